import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsearch.errors import UserError
from kdsearch.study_file import Task
from kdsearch.tasks import data
from tests import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def task(**changes: Any) -> Task:
    return Task.model_validate({"data": "rows.csv", **changes})


def labelled(folder: Path, count: int = 200, classes: int = 2) -> tuple[list[str], list[int]]:
    texts, labels = tiny.texts(count, classes=classes)
    tiny.write_csv(folder / "rows.csv", {"text": texts, "label": labels})
    return texts, labels


def test_splits_are_disjoint_whole_and_stratified(tmp_path: Path) -> None:
    texts = tiny.texts(200)[0]
    labels = [0] * 150 + [1] * 50
    tiny.write_csv(tmp_path / "rows.csv", {"text": texts, "label": labels})
    found = data.load(task(split={"validation": 0.2, "test": 0.1}), tmp_path)
    parts = [found.train, found.validation, found.test]
    assert [len(part.texts) for part in parts] == [140, 40, 20]
    assert Counter(text for part in parts for text in part.texts) == Counter(texts)
    for part in parts:
        assert Counter(part.labels)[1] == len(part.texts) / 4
        assert [labels[texts.index(text)] for text in part.texts] == part.labels
    assert found.majority == 0.75
    assert found.transfer.texts == found.held_out.texts == []


def test_the_split_follows_its_seed(tmp_path: Path) -> None:
    labelled(tmp_path)
    assert data.load(task(), tmp_path) == data.load(task(), tmp_path)
    assert data.load(task(), tmp_path).train.texts != data.load(task(split={"seed": 1}), tmp_path).train.texts


def test_rows_keeps_so_many_of_each_class(tmp_path: Path) -> None:
    labelled(tmp_path)
    found = data.load(task(rows=80, split={"validation": 0.25, "test": 0.25}), tmp_path)
    parts = [found.train, found.validation, found.test]
    assert [len(part.texts) for part in parts] == [40, 20, 20]
    assert Counter(label for part in parts for label in part.labels or []) == {0: 40, 1: 40}


def test_where_keeps_the_rows_with_these_values(tmp_path: Path) -> None:
    texts, labels = tiny.texts(200)
    columns = {"text": texts, "label": labels, "source": ["a", "a", "b", "b"] * 50, "year": [1, 2, 2, 1] * 50}
    tiny.write_csv(tmp_path / "rows.csv", columns)
    found = data.load(task(where={"source": "a"}), tmp_path)
    kept = {text for text, source in zip(texts, columns["source"], strict=True) if source == "a"}
    assert {*found.train.texts, *found.validation.texts, *found.test.texts} == kept
    with pytest.raises(UserError, match=r"task\.where: no row has source = 'c'; the column holds a, b"):
        data.load(task(where={"source": "c"}), tmp_path)


@pytest.mark.parametrize("kind", ["names", "numbers", "class label", "booleans"])
def test_labels_of_any_kind_become_indices_with_their_names(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = tiny.texts(60)
    values, classes = {
        "names": (["neg" if label == 0 else "pos" for label in labels], ["neg", "pos"]),
        "numbers": ([3 + 4 * label for label in labels], ["3", "7"]),
        "booleans": ([label == 1 for label in labels], ["False", "True"]),
        "class label": (labels, ["world", "sports"]),
    }[kind]
    if kind == "class label":
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)})
        rows = datasets.Dataset.from_dict({"text": texts, "label": values}, features=features)
        monkeypatch.setattr(data, "read", lambda *_: rows)
    else:
        lines = [json.dumps({"text": text, "label": value}) for text, value in zip(texts, values, strict=True)]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = data.load(task(data="rows.jsonl"), tmp_path)
    assert found.classes == classes
    assert [labels[texts.index(text)] for text in found.train.texts] == found.train.labels


def test_a_row_without_text_or_label_is_left_out(tmp_path: Path) -> None:
    texts, labels = tiny.texts(100)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    rows += [{"text": "  ", "label": 0}, {"text": None, "label": 1}, {"text": "lonely", "label": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = data.load(task(data="rows.jsonl"), tmp_path)
    assert sorted(found.train.texts + found.validation.texts + found.test.texts) == sorted(texts)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_file_type_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    texts, labels = tiny.texts(40)
    path, rows = tmp_path / f"rows{ending}", datasets.Dataset.from_dict({"text": texts, "label": labels})
    match ending:
        case ".parquet":
            rows.to_parquet(path)
        case ".csv":
            tiny.write_csv(path, rows.to_dict())
        case ".tsv":
            path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)))
        case ".json":
            path.write_text(json.dumps(rows.to_list()))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows.to_list())))
    found = data.read(path.name, tmp_path)
    assert list(found["text"]) == texts
    assert list(found["label"]) == labels


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for count in (40, 50):
        labelled(tmp_path, count)
        assert len(data.read("rows.csv", tmp_path)) == count


def test_transfer_text_is_neither_labelled_nor_in_both_its_parts(tmp_path: Path) -> None:
    texts, _ = labelled(tmp_path, 100)
    other = tiny.texts(80, seed=1)[0]
    tiny.write_csv(tmp_path / "more.csv", {"text": [*other, *texts[:50], *other[:10]]})
    found = data.load(task(transfer={"data": "more.csv", "train": 50, "held_out": 20}), tmp_path)
    train, held_out = found.transfer.texts, found.held_out.texts
    assert len(train) == 50
    assert len(held_out) == 20
    assert len({*train, *held_out}) == 70
    assert {*train, *held_out} <= set(other)
    assert found.transfer.labels is None
    assert found.held_out.labels is None


def test_too_little_transfer_text_is_shared_in_proportion(tmp_path: Path) -> None:
    labelled(tmp_path, 100)
    tiny.write_csv(tmp_path / "more.csv", {"text": tiny.texts(30, seed=1)[0]})
    found = data.load(task(transfer={"data": "more.csv", "train": 400, "held_out": 200}), tmp_path)
    assert (len(found.transfer.texts), len(found.held_out.texts)) == (20, 10)


def test_sentences_of_one_row_are_all_distilled_on_or_all_held_out(tmp_path: Path) -> None:
    labelled(tmp_path, 100)
    reviews = [" ".join(f"Row {row} has a sentence number {n}." for n in range(7)) for row in range(40)]
    tiny.write_csv(tmp_path / "more.csv", {"text": reviews})
    found = data.load(task(transfer={"data": "more.csv", "sentences": True, "train": 100, "held_out": 31}), tmp_path)
    of_train, of_held_out = ({text.split()[1] for text in part.texts} for part in (found.transfer, found.held_out))
    assert of_train
    assert of_held_out
    assert not of_train & of_held_out
    assert 100 - 7 < len(found.transfer.texts) <= 100  # less what was dropped of the row at the border
    assert len(found.held_out.texts) == 31


def test_a_sentence_has_4_to_60_words_and_no_markup() -> None:
    text = "Too short. This one is long enough. <br /><br />And so is this one! Is <b>this</b> one too?  " + "word " * 61 + "."
    assert data.sentences(text) == ["This one is long enough.", "And so is this one!", "Is this one too?"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": "absent.csv"}, ["task.data: 'absent.csv' does not exist"]),
        ({"data": "notes.txt"}, ["task.data: 'notes.txt' must end in one of .csv"]),
        ({"data": "package://no_such_package/x.csv"}, ["'no_such_package' is not installed"]),
        ({"data": "broken.json"}, ["task.data: 'broken.json' could not be loaded"]),
        (
            {"text": "txet", "label": "lable"},
            [
                "task.text: rows.csv: unknown column 'txet'; did you mean 'text'?",
                "task.label: rows.csv: unknown column 'lable'; did you mean 'label'?",
            ],
        ),
        ({"where": {"sauce": "a"}}, ["task.where: rows.csv: unknown column 'sauce'"]),
        ({"where": {"label": 7}}, ["task.where: no row has label = 7; the column holds 0, 1"]),
        ({"label": "one"}, ["task.label: a classification needs 2 to 1000 classes; column 'one' has 1"]),
        (
            {"rows": 9, "label": "ten"},
            ["task.split: train, validation and test each need rows of all 10 classes; they have 7, 1 and 1 rows of 9"],
        ),
        ({"label": "rare"}, ["task.label: each class needs a row in validation and in test; too few rows of 'x' (1)"]),
        (
            {"transfer": {"data": "rows.csv", "text": "txt"}, "label": "lable"},
            ["'lable'", "task.transfer.text: rows.csv: unknown column 'txt'"],
        ),
    ],
)
def test_what_would_not_load_is_told_before(change: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    texts, labels = tiny.texts(100)
    columns = {"text": texts, "label": labels, "one": ["x"] * 100, "rare": ["x"] + ["y", "z"] * 49 + ["y"], "ten": [*range(10)] * 10}
    tiny.write_csv(tmp_path / "rows.csv", columns)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.json").write_text('{"text": ')
    messages = data.mistakes(task(**change), tmp_path)
    assert len(messages) == len(expected)
    assert all(part in message for part, message in zip(expected, messages, strict=True)), messages
    with pytest.raises(UserError):
        data.load(task(**change), tmp_path)


def test_a_text_column_holds_text(tmp_path: Path) -> None:
    tiny.write_csv(tmp_path / "rows.csv", {"text": range(40), "label": [0, 1] * 20})
    (message,) = data.mistakes(task(), tmp_path)
    assert message == "task.text: rows.csv: the column 'text' must hold text; its first value is 0; name another column"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    validation=st.sampled_from([0.1, 0.125, 0.2, 0.4]),
    test=st.sampled_from([0.1, 0.125, 0.3, 0.49]),
    rows=st.none() | st.integers(1, 40),
)
def test_what_has_no_mistakes_loads(counts: list[int], validation: float, test: float, rows: int | None, monkeypatch) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    table = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(len(labels))], "label": labels})
    monkeypatch.setattr(data, "read", lambda *_: table)
    wanted = task(split={"validation": validation, "test": test}, rows=rows)
    if data.mistakes(wanted, Path()) == []:
        found = data.load(wanted, Path())
        assert all(set(part.labels or []) == set(range(len(counts))) for part in (found.train, found.validation, found.test))
