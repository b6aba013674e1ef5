from pathlib import Path
from typing import Any

import pytest

from kdsearch import space_file
from kdsearch.errors import UserError
from kdsearch.space_file import SearchSpace, Within, parse
from tests import tiny

ARCHITECTURE = {"layers": {"int": [1, 6]}, "heads": {"choice": [2, 4]}, "head_size": 16, "ffn_ratio": {"float": [1, 4]}}


def messages_of(content: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(content)
    return caught.value.messages


def test_all_mistakes_come_at_once_with_their_key_paths() -> None:
    messages = messages_of(
        {
            "architecure": {},
            "architecture": {"layer": 3, "heads": {"choice": []}, "head_size": {"int": [8, 4]}, "ffn_ratio": {"float": ["a", 2]}},
            "initialization": {"layers": {"choice": ["first", "first"]}},
            "distillation": {"one_of": {"none": None}},
            "training": {"learning_rate": {"float": [0, 1], "log": True, "stepp": 2}},
        }
    )
    expected = [
        "unknown key 'architecure'; did you mean 'architecture'?",
        "architecture.heads: choice must be a list of at least one value; the value is []",
        "architecture.head_size: low must not exceed high; the value is [8, 4]",
        "architecture.ffn_ratio: float must be [low, high]",
        "architecture: unknown key 'layer'; did you mean 'layers'?",
        "architecture.layers is missing",
        "initialization.layers: a choice must not name a value twice",
        "distillation: one_of must map the name of each branch",
        "training.learning_rate: unknown option of float 'stepp'",
        "training.learning_rate: a log range must start above 0",
    ]
    assert [part for part in expected if not any(message.startswith(part) for message in messages)] == []
    assert len(messages) >= len(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": 3}, "architecture: must hold keys and values; the value is 3"),
        ({"distillation": "kd"}, "distillation: must be a recipe or one_of several; the value is 'kd'"),
        ({"training": {"learning_rat": 1e-4}}, "training: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"architecture": {**ARCHITECTURE, "layers": {"int": [1, 2.5]}}}, "architecture.layers: int must be [low, high]"),
        ({"architecture": {**ARCHITECTURE, "layers": {"int": [True, 2]}}}, "architecture.layers: int must be [low, high]"),
        (
            {"architecture": {**ARCHITECTURE, "layers": {"int": [1, 8], "log": True, "step": 2}}},
            "architecture.layers: log and step exclude",
        ),
    ],
)
def test_a_mistake_is_told_by_rule_and_value(change: dict[str, Any], expected: str) -> None:
    messages = messages_of({"architecture": ARCHITECTURE, **change})
    assert any(message.startswith(expected) for message in messages), messages


SIZE = {"parameters": 4e6}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ({"within": 4e6}, "architecture.within: must hold parameters, and may hold share and embeddings; the value is 4000000.0"),
        ({"within": None}, "architecture.within: must hold parameters"),
        ({"within": {**SIZE, "shar": 0.1}}, "architecture.within: unknown key 'shar'; did you mean 'share'?"),
        ({"within": {"parameters": "4M"}}, "architecture.within.parameters: must be a number above 0; the value is '4M'"),
        (
            {"within": {**SIZE, "share": 5}},
            "architecture.within.share: must lie between 0 and 1; the value is 5; 0.05 is 5 % to either side",
        ),
        ({"within": {**SIZE, "embeddings": "no"}}, "architecture.within.embeddings: must be true, or false to leave word embeddings out"),
        ({"within": SIZE}, "architecture.ffn_ratio: beside within, a domain must be an int or a choice, since every shape is counted"),
        ({"within": SIZE, "layer": 3}, "architecture: unknown key 'layer'; did you mean 'layers'?"),
        (
            {"within": SIZE, "one_of": {"a": ARCHITECTURE}},
            "architecture.within: lists the shapes of domains, and one_of lists them by itself",
        ),
        ({"one_of": {"a": {**ARCHITECTURE, "layer": 3}}}, "architecture.a: unknown key 'layer'; did you mean 'layers'?"),
        ({"one_of": {"a": {"layers": 3}}}, "architecture.a.heads is missing; add it"),
    ],
)
def test_mistakes_of_listed_shapes(architecture: dict[str, Any], expected: str) -> None:
    whole = architecture if "one_of" in architecture else {**ARCHITECTURE, **architecture}
    assert any(message.startswith(expected) for message in messages_of({"architecture": whole}))


def test_a_size_stands_beside_the_domains() -> None:
    domains = {**ARCHITECTURE, "ffn_ratio": {"choice": [1, 2.5]}}
    space = parse({"architecture": {"within": {"parameters": 4e6, "embeddings": False}, **domains}})
    assert space.tree["architecture"] == Within(parse({"architecture": domains}).tree["architecture"], 4e6, 0.05, embeddings=False)


def test_the_fewest_classes_of_a_branch_are_a_number() -> None:
    wrong = {"one_of": {"dkd": {"least_classes": "three", "dkd": {}}}}
    assert messages_of({"architecture": ARCHITECTURE, "distillation": wrong}) == [
        "distillation.dkd.least_classes: must be a whole number, 2 or more; the value is 'three'"
    ]


def test_a_section_is_taken_over_from_other_files(tmp_path: Path) -> None:
    one = {"one_of": {"none": {}, "kd": {"kd": {}}}}
    tiny.write_yaml(tmp_path / "one.yaml", {"architecture": ARCHITECTURE, "distillation": one})
    tiny.write_yaml(tmp_path / "two.yaml", {"architecture": ARCHITECTURE, "distillation": {"one_of": {"none": {}, "cos": {"cos": {}}}}})

    def load(include: Any) -> SearchSpace:
        whole = {"architecture": {"include": "one.yaml"}, "distillation": {"include": include}}
        return space_file.load(tiny.write_yaml(tmp_path / "joint.yaml", whole))

    assert load("one.yaml").content == {"architecture": ARCHITECTURE, "distillation": one}
    joined = load(["one.yaml", "two.yaml"])
    assert list(joined.tree["distillation"].branches) == ["none", "kd", "cos"]
    assert parse(joined.content) == joined  # what is recorded needs no other file


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"one_of": {"kd": {"kd": {"temperature": 3.0}}}}, "'two.yaml' has another branch 'kd' than a file before it; rename one"),
        ({"kd": {}}, "'two.yaml' has no section 'distillation' with one_of to take over"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(tmp_path: Path, other: dict[str, Any], expected: str) -> None:
    tiny.write_yaml(tmp_path / "one.yaml", {"distillation": {"one_of": {"kd": {"kd": {}}}}})
    tiny.write_yaml(tmp_path / "two.yaml", {"distillation": other})
    joint = {"architecture": ARCHITECTURE, "distillation": {"include": ["one.yaml", "two.yaml"]}}
    with pytest.raises(UserError) as caught:
        space_file.load(tiny.write_yaml(tmp_path / "joint.yaml", joint))
    assert caught.value.messages == [f"{tmp_path / 'joint.yaml'}: distillation: include: {expected}"]


def test_a_space_without_architecture_says_what_to_add() -> None:
    assert messages_of({"training": {}}) == ["'architecture' is missing; add layers, heads, head_size and ffn_ratio"]


@pytest.mark.parametrize("content", ["architecture: {layers: 1", "- 1"])
def test_a_file_that_is_no_space_is_named_once(content: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        space_file.load(path)
    (message,) = caught.value.messages
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1


def test_the_file_is_named_in_each_message(tmp_path: Path) -> None:
    path = tiny.write_yaml(tmp_path / "space.yaml", {"architecture": {}, "trainning": {}})
    with pytest.raises(UserError) as caught:
        space_file.load(path)
    assert len(caught.value.messages) == 5
    assert all(message.startswith(f"{path}: ") for message in caught.value.messages)
