import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig, PreTrainedModel

from kdsearch import check, commands, objective, records, search_space, starts, workbench
from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.errors import UserError
from kdsearch.order import Order
from kdsearch.students import vocabulary
from tests import tiny

OWN = {"layers": 2, "heads": 4, "head_size": 6, "ffn_ratio": 2}
SIZES = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}


def small(folder: Path, tokens: list[str] = tiny.VOCABULARY, **changes: Any) -> PreTrainedModel:
    """A pre-trained model of the students' shape, with its tokenizer."""
    model = tiny.teacher(seed=5, attention="sdpa", vocab_size=len(tokens), **{**SIZES, **changes})
    model.save_pretrained(folder)
    tiny.tokenizer(folder, tokens).save_pretrained(folder)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    batch = tiny.batch([7, 12, 5])
    with torch.inference_mode():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    tiny.write_yaml(tmp_path / "study.yaml", tiny.study(tmp_path))
    return tmp_path


def space(folder: Path, start: dict[str, Any], **shape: Any) -> Path:
    content = {**tiny.space_content(), "architecture": {**OWN, **shape}, "initialization": start}
    tiny.write_yaml(folder / "space.yaml", content)
    return folder / "study.yaml"


def bench_of(folder: Path, start: dict[str, Any]) -> workbench.Bench:
    study = check.open_files(space(folder, start))
    return workbench.prepare(study.spec, study.space, study.base, [])


def test_a_pre_trained_model_of_the_student_s_shape_is_the_student(folder: Path) -> None:
    model = small(folder / "small")
    bench = bench_of(folder, {"layers": {"choice": ["pretrained", "uniform"]}, "model": "small"})
    candidate = Candidate(Architecture(**OWN), Initialization("pretrained", model="small"))
    torch.testing.assert_close(logits(objective.started(candidate, bench, 0)), logits(model), rtol=0, atol=0)
    other = Candidate(Architecture(**OWN), Initialization("uniform", model="small"))
    assert not torch.equal(logits(objective.started(other, bench, 0)), logits(model))
    assert objective.evaluate(Order(candidate, 0), bench).state == records.COMPLETE


def test_a_larger_one_is_cut_and_a_base_model_gets_a_head(folder: Path) -> None:
    small(folder / "large", hidden_size=48, num_hidden_layers=3).bert.save_pretrained(folder / "base")
    tiny.tokenizer(folder / "base").save_pretrained(folder / "base")
    bench = bench_of(folder, {"layers": "pretrained", "model": "base"})
    found = objective.started(Candidate(Architecture(**OWN), Initialization("pretrained", model="base")), bench, 0)
    assert (found.config.num_hidden_layers, found.config.hidden_size) == (2, 24)
    large = AutoModelForSequenceClassification.from_pretrained(folder / "large")
    assert torch.equal(found.bert.embeddings.word_embeddings.weight, large.bert.embeddings.word_embeddings.weight[:, :24])
    assert found.classifier.weight.std() > 0


def test_a_smaller_vocabulary_is_cut_out_of_it(folder: Path) -> None:
    tiny.write_yaml(folder / "study.yaml", tiny.study(folder, tiny.SPELLED))
    small(folder / "small", tiny.SPELLED)
    study = check.open_files(space(folder, {"layers": "pretrained", "model": "small"}, vocabulary={"choice": [None, 200]}))
    bench = workbench.prepare(study.spec, study.space, study.base, [])
    candidate = Candidate(Architecture(**OWN, vocabulary=200), Initialization("pretrained", model="small"))
    assert objective.started(candidate, bench, 0).get_input_embeddings().weight.shape == (200, 24)


def test_an_export_of_an_earlier_study_is_a_start(folder: Path) -> None:
    path = space(folder, {"layers": "uniform"})
    content = {**tiny.study(folder), "search": {"trials": 1, "startup_trials": 1, "baselines": False}, "train": {"steps": 2}}
    tiny.write_yaml(path, content)
    space(folder, {"layers": "uniform"})
    commands.run_study(path)
    made = commands.train_pick(path, "0")
    export = folder / "tiny" / "exports" / "0"
    for place in (export, made.folder):
        name = str(place.relative_to(folder))
        tiny.write_yaml(path, {**content, "name": "again"})
        bench = bench_of(folder, {"layers": "distilled", "model": name})
        found = objective.started(Candidate(Architecture(**OWN), Initialization("distilled", model=name)), bench, 0)
        torch.testing.assert_close(logits(found), logits(AutoModelForSequenceClassification.from_pretrained(made.folder)), rtol=0, atol=0)


def test_an_export_with_the_student_s_own_tokens_is_a_start(folder: Path) -> None:
    """A model of the 200 tokens that a student has too; one of 200 others is refused when it is built."""
    tiny.write_yaml(folder / "study.yaml", tiny.study(folder, tiny.SPELLED))
    start = {"layers": "pretrained", "model": "small"}
    small(folder / "small", tiny.SPELLED[:200])
    study = check.open_files(space(folder, start, vocabulary=200))
    bench = workbench.prepare(study.spec, study.space, study.base, [])
    candidate = Candidate(Architecture(**OWN, vocabulary=200), Initialization("pretrained", model="small"))
    with pytest.raises(UserError, match="must have the tokens of the student; 'small' has 200 others than its 200"):
        objective.started(candidate, bench, 0)
    vocabulary.reduce(bench.tokenizer, bench.ranking.tokens[:200]).save_pretrained(folder / "small")
    (folder / "small" / "vocab.txt").unlink(missing_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "small")
    torch.testing.assert_close(logits(objective.started(candidate, bench, 0)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({"layers": "pretrained"}, "initialization.model is missing: layers pretrained start from one"),
        ({"model": "absent/nowhere/x"}, "initialization.model: 'absent/nowhere/x' does not exist"),
        ({"model": "rows.csv"}, "initialization.model: '.*rows.csv' is not a Hugging Face model folder"),
        ({"model": "other"}, "must be of the teacher's family; 'other' is distilbert, the teacher bert; name another"),
        ({"model": "shallow"}, "'shallow' in the teacher's place: architecture.layers: must not exceed the teacher's 1; the value is 2"),
        ({"model": "short"}, r"'short' has bert.embeddings.position_embeddings.weight of \[32, 24\], the teacher \[64, 24\]; name another"),
        ({"model": "words"}, "must have the teacher's tokens, .* 'words' has 150 others, the teacher 198, the students None; name another"),
        ({"model": "small", "width": "pca"}, "initialization.width: must be slice where layers is pretrained, since pca is measured"),
        ({"layers": "distilled", "model": "small"}, "'small' is no export of a study, which has a result.json; name STUDY/exports/TRIAL"),
    ],
)
def test_a_model_from_which_no_student_can_start_is_refused(start: dict[str, Any], expected: str, folder: Path) -> None:
    small(folder / "small")
    small(folder / "shallow", num_hidden_layers=1)
    small(folder / "short", max_position_embeddings=32)
    small(folder / "words", tiny.VOCABULARY[:150])
    shutil.copytree(folder / "small", folder / "other")
    DistilBertConfig(vocab_size=198).save_pretrained(folder / "other")
    with pytest.raises(UserError, match=expected):
        check.open_files(space(folder, {"layers": "pretrained", **start}))


def test_a_model_that_is_not_used_changes_no_candidate() -> None:
    one, other = (Candidate(tiny.SHAPE, Initialization("uniform", model=model)) for model in (None, "small"))
    assert one.key() == other.key()
    assert "model" not in one.to_dict()["initialization"]
    started = Candidate(tiny.SHAPE, Initialization("pretrained", model="small"))
    assert started.to_dict()["initialization"]["model"] == "small"
    assert search_space.from_dict(started.to_dict()) == started
    assert started.key() != one.key()


def test_a_source_is_a_folder_an_export_s_model_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "exports" / "3" / "model").mkdir(parents=True)
    (tmp_path / "exports" / "3" / starts.RESULT).write_text(json.dumps({"candidate": {}}))
    for model, expected in (
        ("exports/3", tmp_path / "exports" / "3" / "model"),
        ("exports/3/model", tmp_path / "exports" / "3" / "model"),
        ("nobody/small", "nobody/small"),
    ):
        assert starts.source(Initialization("distilled", model=model), tmp_path) == str(expected)
