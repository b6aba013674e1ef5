"""A study as its folder tells it: facts, records and exports. All that a report is made from; neither torch nor Optuna is needed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsearch import records, yaml_file
from kdsearch.errors import UserError
from kdsearch.records import Record


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder: ``facts`` is its study.json, ``exports`` the result.json of each fully trained student, by trial, ``confirmed`` its
    confirmed.json, where the finalists were trained in full."""

    path: Path
    facts: dict[str, Any]
    records: list[Record]
    exports: list[dict[str, Any]]
    confirmed: dict[str, Any] | None = None


def load(path: Path) -> StudyFolder:
    """The study of a folder, or of a study file: studies/x.yaml means studies/NAME, with NAME the file's ``name`` (x when it has none).

    Raises:
        UserError: nothing is there, the study has not been run, or one of its files cannot be read.
    """
    folder = _folder_of(path)
    if not (folder / "study.json").is_file():
        raise UserError(
            f"{path}: {folder} is not a study's folder, it has no study.json; make it with 'kdsearch run', or give the right folder"
        )
    facts = _read(folder / "study.json", json.loads)
    trials = folder / "trials.jsonl"
    found = _read(trials, lambda _: records.read(trials)) if trials.is_file() else []
    exports = [_read(result, json.loads) for result in folder.glob("exports/[0-9]*/result.json")]
    table = folder / "confirmed.json"
    confirmed = _read(table, json.loads) if table.is_file() else None
    if confirmed and not _of_these(confirmed, found):
        confirmed = None
    return StudyFolder(folder, facts, found, sorted(exports, key=lambda export: export["trial"]), confirmed)


def _of_these(confirmed: dict[str, Any], found: list[Record]) -> bool:
    """Whether full trainings are of these trials, and not of an earlier study's in the same folder."""
    candidates = {record.trial: record.candidate for record in found}
    rows = [row for row in confirmed["students"] if row.get("trial") is not None]
    return all(candidates.get(row["trial"]) == row["candidate"] for row in rows)


def _folder_of(path: Path) -> Path:
    if path.is_dir():
        return path
    if not path.is_file():
        raise UserError(f"{path}: does not exist; give a study's folder or its study file")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: must be a study's folder or its .yaml file; the value is a {path.suffix or 'plain'} file")
    return path.parent / str(yaml_file.load(path).get("name", path.stem))


def _read(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:  # JSON that is broken, or that is not what kdsearch writes
        raise UserError(f"{path}: is not as kdsearch wrote it ({error!r}); restore it, or run the study again") from None
