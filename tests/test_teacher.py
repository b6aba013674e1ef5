import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel, PreTrainedModel

from kdsearch import inference, teacher
from kdsearch.errors import UserError
from kdsearch.resources import file_sha256
from kdsearch.study_file import FineTune, Teacher
from kdsearch.tasks import pool
from kdsearch.tasks.pool import Pool
from tests import tiny
from tests.teaching import AS_IT_IS, load

TUNED = Teacher(model="model", fine_tune=FineTune(epochs=6, learning_rate=2e-3))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Pool:
    tiny.save(tmp_path / "model")
    return tiny.rows(tmp_path)


def cross_entropy(model: PreTrainedModel, rows: Pool) -> float:
    logits = inference.predict(model, rows.encoded, rows.train, rows.pad_id, "cpu")
    labels = torch.from_numpy(rows.encoded.labels[rows.train])
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), labels))


def test_a_teacher_is_fine_tuned_once_and_then_reused(tmp_path: Path, rows: Pool, cache: Path) -> None:
    tuned, key, events = load(TUNED, tmp_path, rows)
    steps = events.of("fine-tuning")
    assert steps == events[-1][2] > 0
    assert cross_entropy(tuned, rows) < 0.7 * cross_entropy(load(AS_IT_IS, tmp_path, rows)[0], rows)
    again, same_key, silence = load(TUNED, tmp_path, rows)
    assert (same_key, silence.of("fine-tuning")) == (key, 0)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True))
    assert again.config.id2label == {0: "negative", 1: "positive"}
    (kept,) = (cache / "teachers").iterdir()
    assert (kept / "tokenizer.json").is_file()


def test_a_kept_teacher_that_is_damaged_is_fine_tuned_again(tmp_path: Path, rows: Pool, cache: Path) -> None:
    _, key, _ = load(TUNED, tmp_path, rows)
    (weights,) = (cache / "teachers").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    _, again, events = load(TUNED, tmp_path, rows)
    assert events.of("fine-tuning") > 0
    assert again == key


def test_word_embeddings_stay_when_the_study_freezes_them(tmp_path: Path, rows: Pool) -> None:
    before = load_file(tmp_path / "model" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    for freeze in (True, False):
        spec = Teacher(model="model", fine_tune=FineTune(epochs=1, freeze_embeddings=freeze))
        model = load(spec, tmp_path, rows)[0]
        assert torch.equal(model.bert.embeddings.word_embeddings.weight, before) is freeze
        assert all(weight.requires_grad for weight in model.parameters())


def test_part_of_an_epoch_is_part_of_its_steps(tmp_path: Path, rows: Pool) -> None:
    whole, half = (load(Teacher(model="model", fine_tune=FineTune(epochs=epochs)), tmp_path, rows)[2].of("fine") for epochs in (4, 2))
    assert whole == 2 * half > 0


def test_a_teacher_that_is_not_fine_tuned_is_the_model_of_the_folder(tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, _, events = load(AS_IT_IS, tmp_path, rows)
    expected = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert not model.training
    assert events == []
    assert not cache.exists()


def test_the_key_follows_content_and_nothing_else(tmp_path: Path, rows: Pool) -> None:
    quick = Teacher(model="model", fine_tune=FineTune(epochs=0.1))
    key = load(quick, tmp_path, rows)[1]
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    tiny.save(tmp_path / "other", seed=5)
    more = replace(tiny.task_data(), transfer=tiny.task_data().held_out)
    assert load(quick.model_copy(update={"model": "moved"}), tmp_path, rows)[1] == key
    assert load(quick, tmp_path, pool.build(more, tiny.tokenizer(tmp_path), 32))[1] == key  # it is not fine-tuned on transfer text
    others = [
        load(quick.model_copy(update={"model": "other"}), tmp_path, rows)[1],
        load(quick, tmp_path, tiny.rows(tmp_path, train=46))[1],
        load(Teacher(model="model", fine_tune=FineTune(epochs=2)), tmp_path, rows)[1],
        load(quick, tmp_path, rows, seed=1)[1],
        load(AS_IT_IS, tmp_path, rows)[1],
    ]
    assert len({key, *others}) == 6
    assert load(AS_IT_IS, tmp_path, rows, seed=1)[1] == others[-1]


def test_a_model_without_a_head_gets_the_same_new_one_each_time(tmp_path: Path, rows: Pool) -> None:
    BertModel(tiny.config()).save_pretrained(tmp_path / "base")
    spec = Teacher(model="base", fine_tune=None)
    (one, key, _), (again, same_key, _) = (load(spec, tmp_path, rows) for _ in range(2))
    assert key == same_key
    assert torch.equal(one.classifier.weight, again.classifier.weight)


def test_weights_that_cannot_be_loaded_are_the_user_s_to_mend(tmp_path: Path, rows: Pool) -> None:
    tiny.save(tmp_path / "three", classes=3)
    with pytest.raises(UserError, match=r"'.*three' cannot be loaded as a classifier of 2 classes"):
        load(Teacher(model="three", fine_tune=None), tmp_path, rows)
    refitted, _, _ = load(Teacher(model="three", fine_tune=FineTune(epochs=0.1)), tmp_path, rows)
    assert refitted.classifier.weight.shape[0] == 2  # fine-tuning makes a new head
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"'.*model' cannot be loaded"):
        load(AS_IT_IS, tmp_path, rows)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("./absent", "teacher.model: './absent' does not exist"),
        ("package://no_such_package/model", "teacher.model: package://no_such_package/model: the Python package 'no_such_package' is not"),
        ("empty", "teacher.model: 'empty' is not a Hugging Face model folder: it lacks config.json, model.safetensors, tokenizer.json"),
        ("rows.csv", "teacher.model: 'rows.csv' is not a Hugging Face model folder"),
        ("no_weights", "teacher.model: 'no_weights' is not a Hugging Face model folder: it lacks model.safetensors"),
        ("not_json", "teacher.model: 'not_json' has no config.json that transformers can read"),
        ("no_type", "teacher.model: 'no_type' has no config.json that transformers can read"),
        ("convbert", "teacher.model: unknown model type 'convbert'; "),
        ("albert", "teacher.model: model type 'albert' cannot be searched: ALBERT's layers share one set of weights"),
        ("gpt2", "teacher.model: the config of gpt2 models must name its padding"),
        ("nobody/no-such-model", "teacher.model: 'nobody/no-such-model' has no config.json that transformers can read"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_told_before(model: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows.csv").touch()
    configs = {
        "empty": None,
        "no_weights": {"model_type": "bert"},
        "not_json": "{",
        "no_type": {},
        **{name: {"model_type": name} for name in ("convbert", "albert", "gpt2")},
    }
    for name, config in configs.items():
        folder = tmp_path / name
        folder.mkdir()
        if config is not None:
            (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if name != "empty":
            (folder / "vocab.txt").touch()
        if name not in ("empty", "no_weights"):
            (folder / "model.safetensors").touch()
    (message,) = teacher.mistakes(Teacher(model=model), tmp_path)
    assert message.startswith(expected), message


def test_other_weights_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    pin = file_sha256(tmp_path / "model" / "model.safetensors")
    assert teacher.mistakes(Teacher(model="model", sha256=pin), tmp_path) == []
    (message,) = teacher.mistakes(Teacher(model="model", sha256="0" * 64), tmp_path)
    assert message.startswith(f"teacher.sha256: model.safetensors has {pin}, the study pins 0000")
