import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import check, cost, search_space, space_file, teacher
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.mistakes import recipe_mistakes
from kdsearch.errors import UserError
from kdsearch.students.families import mistakes, narrow
from kdsearch.students.initialize import BY_MEASURE, BY_PLACE, WIDTHS
from kdsearch.study_file import Limits
from kdsearch.target.latency import Latency
from kdsearch.tasks import data
from tests import tiny
from tests.students.tiny_families import CONFIGS

SPACE = tiny.space_content()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    tiny.write_yaml(folder / "study.yaml", tiny.study(folder))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study that is right, to be spoiled."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "study"))


def changed(folder: Path, **sections: Any) -> Path:
    """The study with some keys of its sections replaced."""
    path = folder / "study.yaml"
    content = yaml.safe_load(path.read_text())
    for name, value in sections.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return tiny.write_yaml(path, content)


def space(folder: Path, **sections: Any) -> None:
    content = json.loads(json.dumps(SPACE))
    for name, value in sections.items():
        content[name] = {**content[name], **value} if name == "architecture" else value
    tiny.write_yaml(folder / "space.yaml", content)


def messages_of(path: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        check.open_files(path, **options)
    return caught.value.messages


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_study_that_is_right_opens_and_nothing_is_written(folder: Path) -> None:
    before = files(folder)
    study = check.open_files(folder / "study.yaml", overrides={"trials": 7, "minutes": None})
    assert study.folder == folder / "tiny"
    assert study.base == folder
    assert study.space == space_file.load(folder / "space.yaml")
    assert (study.spec.search.trials, study.spec.search.minutes) == (7, 30)
    assert files(folder) == before
    assert check.open_files(folder / "study.yaml", out=folder / "elsewhere").folder == folder / "elsewhere"


def test_a_study_s_folder_leads_back_to_the_same_study(folder: Path) -> None:
    dkd = {"one_of": {"kd": {"kd": {}}, "dkd": {"least_classes": 3, "dkd": {}}}}
    space(folder, distillation=dkd)
    study = check.open_files(folder / "study.yaml")
    assert list(study.space.tree["distillation"].branches) == ["kd"]
    facts = {"base": str(study.base), "spec": study.spec.model_dump(), "space": study.space.content, "task": {"classes": ["0", "1"]}}
    assert check.from_facts(json.loads(json.dumps(facts)), study.folder) == study
    before = json.loads(json.dumps(facts))  # of a time when every rate fell
    del before["spec"]["proxy"]["schedule"]
    assert (study.spec.proxy.schedule, check.from_facts(before, study.folder).spec.proxy.schedule) == ("averaged", "linear")


def with_config(folder: Path, **changes: Any) -> None:
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))


@pytest.mark.parametrize(
    ("classes", "changes", "expected"),
    [
        (2, {"architectures": ["BertModel"]}, "teacher.fine_tune: 'model' is no classifier yet; give {epochs: 3}"),
        (3, {}, "teacher.model: 'model' has a head of 2 classes, the task 3 (0, 1, 2)"),
        (2, {"id2label": {"0": "bad", "1": "good"}}, "teacher.model: its classes are bad, good, the task's are 0, 1; rename"),
    ],
)
def test_a_teacher_used_as_it_is_must_answer_in_the_task_s_classes(
    classes: int, changes: dict[str, Any], expected: str, folder: Path
) -> None:
    texts, labels = tiny.texts(120, classes=classes)
    tiny.write_csv(folder / "rows.csv", {"text": texts, "label": labels})
    with_config(folder, **changes)
    (message,) = messages_of(changed(folder, teacher={"fine_tune": None}))
    assert expected in message
    check.open_files(changed(folder, teacher={"fine_tune": {"epochs": 1}}))  # a new head is made then


def test_classes_stand_in_the_order_of_the_teacher_s_logits(folder: Path) -> None:
    with_config(folder, id2label={"0": "1", "1": "0"}, label2id={"1": 0, "0": 1})
    study = check.open_files(changed(folder, teacher={"fine_tune": None}))
    names = teacher.labels(study.spec.teacher, study.base)
    assert names == ["1", "0"]
    turned, usual = (data.load(study.spec.task, study.base, order) for order in (names, None))
    assert (turned.classes, usual.classes) == (["1", "0"], ["0", "1"])
    of_text = []
    for found in (turned, usual):
        parts = (found.train, found.validation, found.test)
        pairs = [pair for part in parts for pair in zip(part.texts, part.labels or [], strict=True)]
        of_text.append({text: found.classes[label] for text, label in pairs})
    assert of_text[0] == of_text[1]


def test_a_gpu_that_is_not_there_and_a_cache_that_cannot_be_written_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("KDSEARCH_CACHE", str(folder / "rows.csv" / "cache"))
    messages = messages_of(changed(folder, target={"device": "cuda"}))
    assert any("target.device: 'cuda' needs a GPU" in message for message in messages)
    assert any(f"cache folder: {folder / 'rows.csv'} is a file" in message and "KDSEARCH_CACHE" in message for message in messages)


def test_a_branch_that_no_task_of_so_few_classes_allows_does_not_hide_other_mistakes(folder: Path) -> None:
    space(folder, distillation={"one_of": {"dkd": {"least_classes": 3, "dkd": {}}}})
    messages = messages_of(changed(folder, task={"max_length": 1000}))
    assert any("space.yaml: distillation: every branch needs more than the task's 2 classes" in message for message in messages)
    assert any("task.max_length: must not exceed" in message for message in messages)


def test_the_command_line_s_options_are_checked_as_the_file_is(folder: Path) -> None:
    assert check.open_files(folder / "study.yaml", overrides={"seed": 4, "minutes": None}).spec.search.seed == 4
    with pytest.raises(UserError) as raised:
        check.open_files(folder / "study.yaml", overrides={"seed": 2**32, "minutes": float("nan")})
    assert len(raised.value.messages) == 2
    assert all(message.startswith(("--seed: should be ", "--minutes: should be ")) for message in raised.value.messages)


@pytest.mark.parametrize(("name", "said"), [("GridSampler", "TypeError"), ("CmaEsSampler", "ValueError")])
def test_a_sampler_that_cannot_search_for_two_objectives_is_refused_before_any_work(folder: Path, name: str, said: str) -> None:
    path = changed(folder, search={"sampler": f"optuna.samplers:{name}"})
    assert any("search.sampler: must be made by its seed alone" in message and said in message for message in messages_of(path))
    check.open_files(changed(folder, search={"sampler": "optuna.samplers:NSGAIIISampler"}))


def test_all_kinds_of_mistakes_are_reported_together_and_nothing_is_written(folder: Path) -> None:
    tiny.write_yaml(folder / "space.yaml", {"architecture": {"layers": {"int": [3, 1]}, "heads": 4, "head_size": 6}})
    (folder / "tiny").write_text("a file where the results should go")
    path = changed(
        folder,
        teacher={"sha256": "0" * 64},
        task={"text": "txet", "transfer": {"data": "absent.csv"}},
        search={"minuts": 3},
        limits={"parameters": "few"},
        proxi={},
    )
    before = files(folder)
    messages = messages_of(path)
    expected = {
        "an unknown section": f"{path}: unknown key 'proxi'; did you mean 'proxy'?",
        "an unknown key": f"{path}: search: unknown key 'minuts'; did you mean 'minutes'?",
        "a wrong type": f"{path}: limits.parameters: ",
        "a range upside down": "space.yaml: architecture.layers: low must not exceed high",
        "a missing key of the space": "space.yaml: architecture.ffn_ratio is missing",
        "other weights": f"{path}: teacher.sha256: model.safetensors has ",
        "a missing column": f"{path}: task.text: rows.csv: unknown column 'txet'; did you mean 'text'?",
        "a missing file": f"{path}: task.transfer.data: 'absent.csv' does not exist",
        "an output folder that is a file": f"output folder: {folder / 'tiny'} is a file",
    }
    assert [kind for kind, part in expected.items() if not any(part in message for message in messages)] == [], messages
    assert len(messages) == len(expected)
    assert files(folder) == before


def no_model(folder: Path) -> None:
    (folder / "model" / "config.json").unlink()


def a_file_above(folder: Path) -> None:
    (folder / "results").write_text("")


@pytest.mark.parametrize(
    ("spoil", "sections", "expected"),
    [
        (no_model, {}, "teacher.model: 'model' is not a Hugging Face model folder: it lacks config.json"),
        (None, {"teacher": {"model": "absent/model/folder"}}, "teacher.model: 'absent/model/folder' does not exist"),
        (None, {"teacher": {"model": "nobody/no-such-model"}}, "teacher.model: 'nobody/no-such-model' "),
        (None, {"task": {"data": "absent.csv"}}, "task.data: 'absent.csv' does not exist"),
        (None, {"task": {"corpus": "absent.txt"}}, "task.corpus: 'absent.txt' is no file"),
        (None, {"task": {"where": {"source": "c"}}}, "task.where: no row has source = 'c'"),
        (
            None,
            {"task": {"label": "source", "max_length": 65}},
            "task.max_length: must not exceed the teacher's 64 positions; the value is 65",
        ),
        (
            None,
            {"target": {"sequence_length": 100}},
            "target.sequence_length: must not exceed the teacher's 64 positions; the value is 100",
        ),
        (None, {"space": "absent.yaml"}, "study.yaml: space: 'absent.yaml' is no file (looked in "),
        (None, {"space": "model"}, "study.yaml: space: 'model' is no file (looked in "),
        (None, {"limits": {"parameters": 100}}, "limits.parameters: the smallest student of the space has "),
        (None, {"limits": {"megabytes": 0.001}}, "limits.megabytes: the smallest student of the space has "),
        (None, {"limits": {"memory_megabytes": 0.001}}, "limits.memory_megabytes: the smallest student of the space has "),
        (a_file_above, {"name": "results"}, "results is a file, not a folder; choose another with --out"),
    ],
)
def test_each_kind_of_mistake_alone(spoil: Callable[[Path], None] | None, sections: dict[str, Any], expected: str, folder: Path) -> None:
    if spoil:
        spoil(folder)
    (message,) = messages_of(changed(folder, **sections))
    assert expected in message, message


def test_a_folder_below_a_file_is_refused(folder: Path) -> None:
    (message,) = messages_of(folder / "study.yaml", out=folder / "rows.csv" / "results")
    assert message.startswith(f"output folder: {folder / 'rows.csv'} is a file")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"architecture": {"layers": {"int": [1, 5]}}}, "architecture.layers: must not exceed the teacher's 4; the value is 5"),
        ({"architecture": {"layers": {"float": [1, 4]}}}, "architecture.layers: must be a whole number"),
        ({"architecture": {"heads": {"choice": ["two", 4]}, "head_size": "x"}}, "architecture.heads: must be a whole number"),
        ({"architecture": {"layers": [1, 4]}}, "architecture.layers: must be a whole number above 0; the value is [1, 4]"),
        ({"architecture": {"head_size": {"choice": [6, 24]}}}, "architecture.head_size: must not exceed the teacher's 12"),
        ({"initialization": {"layers": {"choice": ["first", "middle"]}}}, "initialization.layers: must be one of random, first"),
        (
            {"initialization": {"layers": {"choice": ["first", [0, 1]]}}},
            "initialization.layers: a list must name one teacher layer for each of the student's 1; the value is [0, 1]; give as many",
        ),
        (
            {"architecture": {"layers": 2}, "initialization": {"layers": [0, 4]}},
            "initialization.layers: a list must hold teacher layers, 0 to 3; the value is [0, 4]; correct it",
        ),
        ({"architecture": {"kv_heads": 2}}, "architecture.kv_heads: is no choice for bert models; the value is 2; remove the key"),
        (
            {"architecture": {"positions": {"choice": [32, 65]}}},
            "architecture.positions: must not exceed the teacher's 64; the value is 65",
        ),
        (
            {"architecture": {"positions": {"choice": [24, 32]}}},
            "architecture.positions: must be at least 32 for task.max_length 32 (batches are padded to a multiple of 4); the value is 24; "
            "raise it or lower task.max_length",
        ),
        ({"initialization": {"width": "svd"}}, "initialization.width: must be one of slice"),
        ({"training": {"learning_rate": {"float": [1e-4, 3]}}}, "training.learning_rate: must lie between 0 and 1; the value is 3"),
        ({"training": {"learning_rate": "3e-4x"}}, "training.learning_rate: must lie between 0 and 1"),
        ({"distillation": {"kd": {"temprature": 2}}}, "distillation.custom: kd: unknown knob 'temprature'; did you mean 'temperature'?"),
        ({"distillation": {"kd": 2.0}}, "distillation.kd: must hold knobs"),
        ({"distillation": {"one_of": {"a": {"hard_weight": 0.0}, "b": {}}}}, "distillation.a: hard_weight and every term's weight are 0"),
        ({"distillation": {"one_of": {"a": {}, "b": {"coss": {}}}}}, "distillation.b: unknown knowledge type 'coss'; did you mean 'cos'?"),
    ],
)
def test_a_space_with_a_candidate_that_cannot_be_trained_is_refused(sections: dict[str, Any], expected: str, folder: Path) -> None:
    space(folder, **sections)
    messages = messages_of(folder / "study.yaml")
    assert any(f"space.yaml: {expected}" in message for message in messages), messages


def test_axes_of_a_family_and_a_list_of_layers_may_stand_in_a_space(folder: Path) -> None:
    space(folder, architecture={"layers": 2, "positions": {"choice": [32, 64]}}, initialization={"layers": {"choice": ["first", [0, 3]]}})
    assert check.open_files(folder / "study.yaml").space == space_file.load(folder / "space.yaml")


def test_every_named_initialization_is_known_and_a_convolution_is_no_place_for_pca() -> None:
    shape, start = {"layers": 2, "heads": 4, "head_size": 4, "ffn_ratio": 1}, {"layers": {"choice": [*BY_PLACE, *BY_MEASURE]}}
    found = space_file.parse({"architecture": shape, "initialization": {**start, "width": {"choice": list(WIDTHS)}}})
    for name in ("bert", "deberta-v3", "modernbert", "llama"):
        assert check.space_mistakes(found, CONFIGS[name]) == []
    (message,) = check.space_mistakes(found, CONFIGS["deberta-v2"])
    assert message.startswith("initialization.width: pca cannot be used on this deberta-v2 teacher")


def test_attention_of_a_family_that_hides_it_is_refused() -> None:
    content = {"layers": 2, "heads": 4, "head_size": 4, "ffn_ratio": 1}
    found = space_file.parse(
        {"architecture": content, "distillation": {"one_of": {"a": {"hidden_mse": {}}, "b": {"minilmv2": {"relation_heads": 8}}}}}
    )
    assert check.space_mistakes(found, CONFIGS["bert"]) == []
    for name in ("deberta", "deberta-v3", "mpnet"):
        (message,) = check.space_mistakes(found, CONFIGS[name])
        assert message.startswith("distillation.b: minilmv2: needs a teacher whose queries and keys can be seen, "), message
        assert "use knowledge of states (hidden_mse, cos, nst ..) or logits" in message


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ({"choice": [None, 30]}, "must be at least 80, the special tokens, bytes and characters .*; the value is 30; raise it"),
        ({"choice": [250, 280]}, "must not exceed the teacher's 270 tokens; the value is 280; lower it, or write null"),
        ("small", "must be a whole number, or null for the teacher's own; the value is 'small'"),
        ({"int": [100, 200]}, "must be null, a size or a choice of these"),
    ],
)
def test_a_vocabulary_that_cannot_be_made_is_refused(vocabulary: Any, expected: str, folder: Path) -> None:
    tiny.save(folder / "model", tokens=tiny.SPELLED)
    space(folder, architecture={"vocabulary": vocabulary})
    (message,) = messages_of(folder / "study.yaml")
    assert re.search(f"space.yaml: architecture.vocabulary: {expected}", message), message


def test_a_vocabulary_with_which_no_recipe_can_be_used_is_refused(folder: Path) -> None:
    tiny.save(folder / "model", tokens=tiny.SPELLED)
    space(folder, architecture={"vocabulary": {"choice": [None, 130]}}, distillation={"cos": {"matching": "last_only"}})
    (message,) = messages_of(folder / "study.yaml")
    assert re.search("cos: compares token by token, .* architecture.vocabulary 130 .* a vocabulary of at least 2[0-9]+, or null", message)
    space(folder, architecture={"vocabulary": {"choice": [None, 130]}})  # kd can
    assert check.open_files(folder / "study.yaml").spec.name == "tiny"


SIZED = {"layers": {"int": [1, 4]}, "heads": {"choice": [1, 2, 4]}, "head_size": 12, "ffn_ratio": {"choice": [1, 2, 4]}}


def test_shapes_of_a_size_are_listed_when_the_teacher_is_known(folder: Path) -> None:
    content = {**SPACE, "architecture": {"within": {"parameters": 50_000, "share": 0.3}, **SIZED}, "distillation": {"kd": {}}}
    tiny.write_yaml(folder / "space.yaml", content)
    study = check.open_files(changed(folder, limits={"latency_relative": 1e6, "parameters": 50_000}))
    counts = [cost.parameters(narrow(tiny.config(), shape)) for shape in search_space.each_architecture(study.space)]
    assert all(35_000 <= count <= 65_000 for count in counts)
    assert len(counts) > 2
    check.refuse_unreachable(study, folder / "study.yaml")
    facts = {"base": str(study.base), "spec": study.spec.model_dump(), "space": study.space.content, "task": {"classes": ["0", "1"]}}
    assert check.from_facts(json.loads(json.dumps(facts)), study.folder) == study
    (message,) = messages_of(changed(folder, limits={"parameters": min(counts) - 1}))
    assert f"limits.parameters: the smallest student of the space has {min(counts):,.4g}" in message


def test_a_size_that_no_shape_has_hides_no_other_mistake(folder: Path) -> None:
    tiny.write_yaml(folder / "space.yaml", {"architecture": {"within": {"parameters": 5e6}, **SIZED}, "distillation": {"coss": {}}})
    messages = messages_of(folder / "study.yaml")
    assert any("space.yaml: architecture.within: must leave a shape of 5,000,000 parameters" in message for message in messages)
    assert any("unknown knowledge type 'coss'" in message for message in messages)
    assert len(messages) == 2


def test_a_width_that_only_one_named_shape_has_is_tried_with_every_recipe() -> None:
    shapes = {str(n): {"layers": n, "heads": 2, "head_size": 9 if n == 2 else 12, "ffn_ratio": 1} for n in (1, 2, 3)}
    found = space_file.parse({"architecture": {"one_of": shapes}, "distillation": {"minilmv2": {"relation_heads": 4}}})
    (message,) = check.space_mistakes(found, tiny.config())
    assert "relation_heads must divide the student's hidden size; got 4 for 18" in message


def test_where_shapes_are_named_the_limit_must_hold_for_one_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest FLOPs are not the least time: a shallow student may be faster than a narrow one."""
    deep, flat = {**SIZED, "layers": 4, "heads": 1, "ffn_ratio": 1}, {**SIZED, "layers": 1, "heads": 4, "ffn_ratio": 4}
    space(folder, distillation={"kd": {}})
    content = yaml.safe_load((folder / "space.yaml").read_text())
    tiny.write_yaml(folder / "space.yaml", {**content, "architecture": {"one_of": {"deep": deep, "flat": flat}}})
    study = check.open_files(changed(folder, limits={"latency_ms": 1.5}))

    def measured(student: Any, teacher: Any, target: Any) -> Latency:
        return Latency(*[student.config.num_hidden_layers * slowness] * 7, rounds=9)

    slowness = 1.0
    monkeypatch.setattr(check, "measure", measured)
    check.refuse_unreachable(study, folder / "study.yaml")
    slowness = 2.0
    with pytest.raises(UserError, match="the smallest student of the space takes"):
        check.refuse_unreachable(study, folder / "study.yaml")


def test_a_mistake_that_only_two_choices_together_make_is_found(folder: Path) -> None:
    """16 divides 2 x 16, 3 x 16 and 2 x 24, but not 3 x 24."""
    content = {"layers": 1, "heads": {"choice": [2, 3]}, "head_size": {"choice": [16, 24]}, "ffn_ratio": 1}
    found = space_file.parse({"architecture": content, "distillation": {"minilmv2": {"relation_heads": 16}}})
    teacher = tiny.config(hidden_size=96, num_attention_heads=4, intermediate_size=384)
    (message,) = check.space_mistakes(found, teacher)
    assert "relation_heads must divide the student's hidden size; got 16 for 72" in message


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "sections",
    [{}, {"heads": {"choice": [2, 3, 4]}, "head_size": {"choice": [6, 10]}}, {"ffn_ratio": {"float": [0.5, 8]}}],
    ids=str,
)
def test_every_candidate_of_a_space_without_mistakes_can_be_built_and_distilled(sections: dict[str, Any], data: st.DataObject) -> None:
    content = json.dumps({**SPACE, "architecture": {**SPACE["architecture"], **sections}})
    candidate = data.draw(tiny.candidates(space_file.parse(json.loads(content))))
    shapes = Shapes(candidate.architecture, tiny.SHAPE, 2)
    wrong = mistakes(candidate.architecture, tiny.config()) or recipe_mistakes(candidate.distillation, shapes)
    assert not wrong or mistakes_of_space(content)


@cache
def mistakes_of_space(content: str) -> list[str]:
    return check.space_mistakes(space_file.parse(json.loads(content)), tiny.config())


def test_the_classes_are_those_of_the_task_and_not_of_the_model_that_is_fine_tuned(folder: Path) -> None:
    texts, labels = tiny.texts(120, classes=3)
    tiny.write_csv(folder / "rows.csv", {"text": texts, "label": labels})
    model = folder / "model"
    config = json.loads((model / "config.json").read_text())
    assert "id2label" not in config  # a plain model of two outputs, as any that was never fine-tuned
    space(folder, distillation={"dkd": {}})  # needs three classes
    assert check.open_files(folder / "study.yaml").spec.name == "tiny"
    tiny.write_csv(folder / "rows.csv", {"text": tiny.texts(120)[0], "label": tiny.texts(120)[1]})
    (message,) = messages_of(folder / "study.yaml")
    assert "dkd: the number of classes of this loss must be at least 3; got 2" in message


def test_limits_that_the_smallest_student_meets_are_no_mistake() -> None:
    found, teacher = space_file.parse(SPACE), tiny.config()
    (message,) = check.limit_mistakes(Limits(parameters=1000), found, teacher)
    count = int(message.partition(" has ")[2].partition(",")[0] + message.partition(" has ")[2].partition(",")[2][:3])
    assert check.limit_mistakes(Limits(parameters=count + 10), found, teacher) == []
    assert check.limit_mistakes(Limits(parameters=count - 10), found, teacher) != []


def test_a_latency_that_no_student_can_reach_is_refused_by_measurement(folder: Path) -> None:
    study = check.open_files(changed(folder, limits={"latency_ms": 1e-6, "latency_relative": 2.0}))
    with pytest.raises(UserError) as caught:
        check.refuse_unreachable(study, folder / "study.yaml")
    (message,) = caught.value.messages
    assert "limits.latency_ms: the smallest student of the space takes " in message
    assert "above the limit 1e-06; raise it or widen the space" in message
    check.refuse_unreachable(check.open_files(changed(folder, limits={"latency_ms": 1e6})), folder / "study.yaml")
