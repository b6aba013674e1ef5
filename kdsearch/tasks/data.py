"""Rows of a data file or a Hub data set, split once by seed: train, validation, test, and unlabelled transfer text."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset
from sklearn.model_selection import train_test_split

from kdsearch.errors import UserError, unknown
from kdsearch.resources import looks_local, resolve
from kdsearch.study_file import Task, Transfer

LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
MARKUP = re.compile(r"<[^>]{1,20}>")
SENTENCE_WORDS = (4, 60)


@dataclass(frozen=True)
class Rows:
    """Texts, with the class index of each or no labels at all."""

    texts: list[str]
    labels: list[int] | None


@dataclass(frozen=True)
class TaskData:
    """A task's texts. ``classes`` names the label of each class index; ``corpus`` is a bigger text file, one text a line."""

    classes: list[str]
    train: Rows
    validation: Rows
    test: Rows
    transfer: Rows
    held_out: Rows
    corpus: Path | None = None

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class of the validation rows: the floor of every front."""
        return float(np.bincount(self.validation.labels or [0]).max() / max(1, len(self.validation.texts)))


def load(task: Task, base: Path, order: list[str] | None = None) -> TaskData:
    """Read, filter and split the task's data; the same seed gives the same rows. ``order``: the names of the classes, as logits have them.

    Raises:
        UserError: a file or a column that is missing, no row left by ``where``, fewer than two classes, a class too small to split.
    """
    rows = _keep(read(task.data, base), task.where, "task", task.data)
    _need_columns(rows, [("task.text", task.text), ("task.label", task.label)], task.data)
    labelled, classes = _labelled(rows, task, order)
    train, validation, test = _split(labelled, classes, task)
    known = {*train.texts, *validation.texts, *test.texts}
    transfer, held_out = _transfer(task.transfer, base, task.split.seed, known) if task.transfer else ([], [])
    return TaskData(classes, train, validation, test, Rows(transfer, None), Rows(held_out, None), _corpus(task, base))


def read(name: str, base: Path) -> Dataset:
    """The rows behind a name: a local or packaged file by its ending, else the ``train`` split of a Hub data set (``name:config``).

    Raises:
        UserError: no such file, an ending that is not known, or a data set that cannot be loaded.
    """
    datasets.disable_progress_bars()
    path = resolve(name, base)
    if path is None and looks_local(name):
        raise UserError(f"data: '{name}' does not exist (looked in {base} and {Path.cwd()}); correct the path")
    if path is not None and path.suffix not in LOADERS:
        raise UserError(f"data: '{name}' must end in one of {', '.join(LOADERS)}; convert it, or name a Hub data set")
    try:
        if path is None:
            hub, _, config = name.partition(":")
            return datasets.load_dataset(hub, config or None, split="train")  # pyright: ignore[reportReturnType]
        extra = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return datasets.load_dataset(LOADERS[path.suffix], data_files=str(path), split="train", **extra)  # pyright: ignore
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data: '{name}' could not be loaded ({type(error).__name__}: {reason}); check the name and the file") from None


def mistakes(task: Task, base: Path) -> list[str]:
    """What :func:`load` would refuse, for the task and its transfer text, all at once."""
    messages: list[str] = []
    parts = [("task", task.data, task.where, {"text": task.text, "label": task.label})]
    if task.transfer:
        parts.append(("task.transfer", task.transfer.data, task.transfer.where, {"text": task.transfer.text}))
    try:
        _corpus(task, base)
    except UserError as error:
        messages += error.messages
    for key, name, where, columns in parts:
        try:
            rows = read(name, base)
            wanted = [*columns.items(), *(("where", column) for column in where)]
            _need_columns(rows, [(f"{key}.{part}", column) for part, column in wanted], name)
            _need_text(rows, columns["text"], key, name)
            rows = _keep(rows, where, key, name)
            if key == "task":
                _split(*_labelled(rows, task), task)
        except UserError as error:
            messages += [message if message.startswith(key) else f"{key}.{message}" for message in error.messages]
    return messages


def classes(task: Task, base: Path) -> list[str]:
    """The names of the task's classes, of a task without :func:`mistakes`."""
    return _labelled(_keep(read(task.data, base), task.where, "task", task.data), task)[1]


def sentences(text: str) -> list[str]:
    """The sentences of a longer text, markup removed, those of 4 to 60 words."""
    low, high = SENTENCE_WORDS
    pieces = SENTENCE_END.split(MARKUP.sub(" ", text))
    return [" ".join(piece.split()) for piece in pieces if low <= len(piece.split()) <= high]


def _corpus(task: Task, base: Path) -> Path | None:
    path = resolve(task.corpus, base) if task.corpus else None
    if task.corpus and (path is None or not path.is_file()):
        raise UserError(f"task.corpus: '{task.corpus}' is no file (looked in {base} and {Path.cwd()}); name a text file, one text a line")
    return path


def _split(rows: Rows, classes: list[str], task: Task) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test, each with rows of every class."""
    seed, kept = task.split.seed, min(task.rows or len(rows.texts), len(rows.texts))
    of_validation, of_test = round(task.split.validation * kept), round(task.split.test * kept)
    sizes = f"{kept - of_validation - of_test}, {of_validation} and {of_test}"
    refusal = UserError(
        f"task.split: train, validation and test each need rows of all {len(classes)} classes; they have {sizes} rows of {kept}; "
        "give more rows or other shares"
    )
    try:
        rows = _divide(rows, len(rows.texts) - kept, seed)[0] if kept < len(rows.texts) else rows
        train, rest = _divide(rows, of_validation + of_test, seed)
        validation, test = _divide(rest, of_test, seed)
    except ValueError:  # scikit-learn's: too few rows to give every class its share
        raise refusal from None
    if any(len(set(part.labels or [])) < len(classes) for part in (train, validation, test)):
        raise refusal
    return train, validation, test


def _divide(rows: Rows, second: int, seed: int) -> tuple[Rows, Rows]:
    """Two parts with the classes in equal shares; ``second`` is the number of rows of the second part."""
    first, rest = train_test_split(range(len(rows.texts)), test_size=second, stratify=rows.labels, random_state=seed)
    labels = rows.labels or []
    parts = [Rows([rows.texts[i] for i in part], [labels[i] for i in part]) for part in (first, rest)]
    return parts[0], parts[1]


def _need_columns(rows: Dataset, columns: list[tuple[str, str]], name: str) -> None:
    """Columns, each after the key of the study that names it."""
    known = rows.column_names
    messages = [f"{key}: {name}: {unknown('column', column, known)}" for key, column in columns if column not in known]
    if messages:
        raise UserError(messages)


def _need_text(rows: Dataset, column: str, key: str, name: str) -> None:
    found = next((value for value in rows[column] if value is not None), None)
    if found is not None and not isinstance(found, str):
        raise UserError(f"{key}.text: {name}: the column '{column}' must hold text; its first value is {found!r}; name another column")


def _keep(rows: Dataset, where: dict[str, Any], key: str, name: str) -> Dataset:
    for column, value in where.items():
        _need_columns(rows, [(f"{key}.where", column)], name)
        kept = np.flatnonzero([item == value for item in rows[column][:]])  # all at once: one by one takes 80 times as long
        if len(kept) == 0:
            found = sorted({str(item) for item in rows[column][:5000]})[:5]
            raise UserError(f"{key}.where: no row has {column} = {value!r}; the column holds {', '.join(found)} ...")
        rows = rows.select(kept)
    return rows


def _labelled(rows: Dataset, task: Task, order: list[str] | None = None) -> tuple[Rows, list[str]]:
    """The rows that have a text and a label, and the names of the classes: in this order, where it names the same ones."""
    values, texts = rows[task.label][:], rows[task.text][:]
    keep = [i for i, (text, value) in enumerate(zip(texts, values, strict=True)) if text and str(text).strip() and value is not None]
    feature = rows.features[task.label]
    names = feature.names if isinstance(feature, ClassLabel) else None
    kinds = list(range(len(names))) if names else sorted({values[i] for i in keep}, key=lambda item: (str(type(item)), item))
    if not 2 <= len(kinds) <= 1000:
        raise UserError(
            f"task.label: a classification needs 2 to 1000 classes; column '{task.label}' has {len(kinds)}; name another column"
        )
    names = [str(kind) for kind in (names or kinds)]
    if order and set(order) == set(names):
        kinds, names = [kinds[names.index(name)] for name in order], order
    index = {kind: i for i, kind in enumerate(kinds)}
    labels = [index[values[i]] for i in keep]
    counts = np.bincount(labels, minlength=len(kinds))
    small = [f"{kinds[i]!r} ({counts[i]})" for i in np.flatnonzero(counts * min(task.split.validation, task.split.test) < 1)]
    if small:
        raise UserError(
            f"task.label: each class needs a row in validation and in test; too few rows of {', '.join(small)}; drop or merge them"
        )
    return Rows([str(texts[i]) for i in keep], labels), names


def _transfer(spec: Transfer, base: Path, seed: int, known: set[str]) -> tuple[list[str], list[str]]:
    """Held-out texts first, then texts to distil on, from different rows; none of them stands among the labelled texts."""
    rows = _keep(read(spec.data, base), spec.where, "task.transfer", spec.data)
    _need_columns(rows, [("task.transfer.text", spec.text)], spec.data)
    column, seen, drawn, row_of = rows[spec.text][:], set(known), [], []
    wanted = spec.train + spec.held_out
    for row in np.random.default_rng(seed).permutation(len(rows)).tolist():
        for text in sentences(column[row] or "") if spec.sentences else [column[row]]:
            if text and text not in seen:
                seen.add(text)
                drawn.append(text)
                row_of.append(row)
        if len(drawn) > wanted:
            break
    border = min(spec.held_out, max(1, round(len(drawn) * spec.held_out / wanted)))
    first = border
    while first < len(drawn) and row_of[first] == row_of[border - 1]:
        first += 1
    return drawn[first : first + spec.train], drawn[:border]
