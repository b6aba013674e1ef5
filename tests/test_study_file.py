import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdsearch import study_file, yaml_file
from kdsearch.errors import UserError
from tests import tiny

FILES = sorted((tiny.REPOSITORY / "studies").glob("*.yaml"))
SMALLEST = {"teacher": {"model": "m"}, "task": {"data": "d.csv"}, "space": "s.yaml"}


def messages_of(tmp_path: Path, content: Any) -> list[str]:
    path = tmp_path / "study.yaml"
    path.write_text(content) if isinstance(content, str) else tiny.write_yaml(path, content)
    with pytest.raises(UserError) as caught:
        study_file.load(path)
    assert all(message.startswith(f"{path}: ") for message in caught.value.messages)
    return [message.removeprefix(f"{path}: ") for message in caught.value.messages]


def test_studies_are_shipped() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_study_loads_and_its_space_exists(path: Path) -> None:
    spec = study_file.load(path)
    assert spec.name == path.stem
    assert (path.parent / spec.space).is_file()


def test_three_keys_are_enough_and_the_file_gives_the_name(tmp_path: Path) -> None:
    spec = study_file.load(tiny.write_yaml(tmp_path / "polarity.yaml", SMALLEST))
    assert spec.name == "polarity"
    assert spec.teacher.fine_tune is not None
    assert spec.search.sampler == "auto"


def test_short_distillations_are_averaged_and_full_ones_let_their_rate_fall() -> None:
    spec = study_file.StudySpec.model_validate({"name": "x", "teacher": {"model": "x"}, "task": {"data": "x"}, "space": "x"})
    assert (spec.proxy.schedule, spec.train.schedule) == ("averaged", "linear")


def test_a_teacher_is_not_fine_tuned_when_the_study_says_null(tmp_path: Path) -> None:
    spec = study_file.load(tiny.write_yaml(tmp_path / "s.yaml", {**SMALLEST, "teacher": {"model": "m", "fine_tune": None}}))
    assert spec.teacher.fine_tune is None


def test_a_whole_number_may_be_written_as_yaml_writes_large_ones(tmp_path: Path) -> None:
    place = tiny.write_yaml(tmp_path / "s.yaml", {**SMALLEST, "limits": {"parameters": 10.0e6}})
    assert study_file.load(place).limits.parameters == 10_000_000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"serach": {}}, r"unknown key 'serach'; did you mean 'search'\?"),
        ({"search": {"minuts": 3}}, r"search: unknown key 'minuts'; did you mean 'minutes'\?"),
        ({"teacher": {"model": "m", "fine_tune": {"epoch": 1}}}, r"teacher\.fine_tune: unknown key 'epoch'; did you mean 'epochs'\?"),
        (
            {"task": {"data": "d", "transfer": {"data": "d", "heldout": 1}}},
            r"task\.transfer: unknown key 'heldout'; did you mean 'held_out'\?",
        ),
        ({"task": {"text": "text"}}, r"task\.data is missing"),
        ({"search": {"trials": "12"}}, r"search\.trials: .*integer; the value is '12' \(str\)"),
        ({"search": {"trials": 2.5}}, r"search\.trials: .*integer.*; the value is 2\.5 \(float\)"),
        ({"search": {"trials": True}}, r"search\.trials: .*integer; the value is True \(bool\)"),
        (
            {"search": {"sampler": "tpee"}},
            r"search\.sampler: .*'tpee'; did you mean 'tpe'\?.*, or module:Class; the value is 'tpee'",
        ),
        ({"search": {"minutes": 0}}, r"search\.minutes: .*greater than 0; the value is 0"),
        ({"search": None}, r"search: .*; the value is None"),
        ({"limits": {"latency_relative": "0.6"}}, r"limits\.latency_relative: .*number; the value is '0\.6' \(str\)"),
        ({"proxy": {"transfer_share": 1.0}}, r"proxy\.transfer_share: .*less than 1; the value is 1\.0"),
        ({"teacher": {"model": "m", "sha256": "abc"}}, r"teacher\.sha256: .*pattern.*; the value is 'abc'"),
        ({"name": "../up"}, r"name: .*pattern.*; the value is '\.\./up'"),
        ({"space": 3}, r"space: .*string; the value is 3 \(int\)"),
    ],
)
def test_a_mistake_names_the_key_the_rule_and_the_value(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (message,) = messages_of(tmp_path, {**SMALLEST, **change})
    assert re.match(expected, message), message


def test_mistakes_of_several_sections_and_several_in_one_are_all_reported(tmp_path: Path) -> None:
    content = {
        "teacher": {"modell": "m"},
        "task": {"data": 3, "max_length": "long", "split": {"validation": 0.9}},
        "limits": {"latency": 1},
        "search": {"trials": 0, "seed": "x"},
        "proxi": {},
    }
    messages = messages_of(tmp_path, content)
    places = ["unknown key 'proxi'", "'space' is missing", "teacher.model is missing", "teacher: unknown key 'modell'", "task.data: "]
    places += ["task.max_length: ", "task.split.validation: ", "limits: unknown key 'latency'", "search.trials: ", "search.seed: "]
    assert [place for place in places if not any(message.startswith(place) for message in messages)] == []
    assert len(messages) == len(places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3e-4", 3e-4), ("3E4", 3e4), ("-1.e+2", -100.0), ("1.0e-4", 1e-4), ("1e", "1e"), ("e5", "e5"), ("'3e-4'", "3e-4"), ("12", 12)],
)
def test_a_number_is_a_number(text: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"value: {text}\n")
    value = yaml_file.load(tmp_path / "x.yaml")["value"]
    assert value == expected
    assert type(value) is type(expected)


def test_the_learning_rate_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("teacher: {model: m, fine_tune: {learning_rate: 3e-4}}\ntask: {data: d.csv}\nspace: s.yaml\n")
    spec = study_file.load(path)
    assert spec.teacher.fine_tune is not None
    assert spec.teacher.fine_tune.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("space: a\nname: b\nspace: c\n", "the key 'space' is given twice"),
        ("search:\n  trials: 1\n  seed: 0\n  trials: 2\n", "the key 'trials' is given twice"),
        ("a: [1, 2\nb: 3\n", "line 2"),
        ("just a text\n", "must hold keys and values at its top level, not str"),
        ("", "must hold keys and values at its top level, not NoneType"),
        ("- 1\n", "not list"),
    ],
)
def test_a_file_that_is_not_a_mapping_with_each_key_once_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (message,) = messages_of(tmp_path, text)
    assert expected in message


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a: \x81")
    for name, expected in (("binary.yaml", "is not valid YAML"), ("absent.yaml", "cannot be read (No such file or directory)")):
        with pytest.raises(UserError, match=re.escape(expected)):
            study_file.load(tmp_path / name)


def test_an_anchor_may_be_merged(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")
    assert yaml_file.load(tmp_path / "x.yaml")["two"] == {"a": 1, "b": 3}


def test_lists_of_a_file_and_of_a_record_are_read_alike(tmp_path: Path) -> None:
    for falling in ([0.5, 0.2], [0.5, 0.5]):
        with pytest.raises(UserError, match=r"search\.rungs: .*should rise from rung to rung"):
            study_file.load(tiny.write_yaml(tmp_path / "study.yaml", {**SMALLEST, "search": {"rungs": falling}}))
    spec = study_file.load(tiny.write_yaml(tmp_path / "study.yaml", {**SMALLEST, "search": {"rungs": [0.25, 0.6]}}))
    assert spec.search.rungs == (0.25, 0.6)
    assert study_file.StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 1.0),
        ({"accuracy_relative": 0.9}, 1.0),
        ({"latency_relative": None}, None),
        ({"latency_relative": 2.0}, 2.0),
        ({"parameters": 9}, None),
    ],
)
def test_a_student_must_be_faster_than_its_teacher_unless_another_limit_is_given(
    tmp_path: Path, limits: dict[str, float], expected: float | None
) -> None:
    spec = study_file.load(tiny.write_yaml(tmp_path / "study.yaml", {**SMALLEST, **({"limits": limits} if limits else {})}))
    assert spec.limits.latency_relative == expected
    assert study_file.StudySpec.model_validate(spec.model_dump(mode="json")) == spec
