"""The front of a study as data: front.json, and the rows of every table. Only feasible students that beat guessing, each once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsearch import pareto
from kdsearch.candidate import from_dict
from kdsearch.records import COMPLETE, FAILED, REFUSED, STOPPED, Record, own, write_text
from kdsearch.report.study_folder import StudyFolder

REFERENCE_LATENCY = 1.0  # the teacher's own: a student that is no faster adds nothing to the hypervolume


@dataclass(frozen=True)
class Row:
    """One model of a table; None where it does not apply. ``latency_*`` in ms per batch, ``faster`` is 1 / relative latency."""

    role: str
    trial: int | None = None
    picks: tuple[str, ...] = ()
    breaks: str = ""
    accuracy: float | None = None
    accuracy_se: float | None = None
    latency_ms: float | None = None
    latency_ms_low: float | None = None
    latency_ms_high: float | None = None
    faster: float | None = None
    parameters: int | None = None
    layers: int | None = None
    width: int | None = None
    initialization: str | None = None
    recipe: str | None = None
    divergence: float | None = None


def write(folder: StudyFolder) -> Path:
    """Write the study's front.json anew; its path."""
    path = folder.path / "front.json"
    write_text(path, json.dumps(document(folder), indent=2))
    return path


def document(folder: StudyFolder) -> dict[str, Any]:
    """The content of front.json."""
    able = feasible(folder.records)
    return {
        "study": folder.facts["name"],
        "teacher": folder.facts["teacher"],
        "front": [record.to_dict() for record in on_front(folder)],
        "picks": picks(folder),
        "confirmed": [row for row in (folder.confirmed or {}).get("students", ()) if row["on_front"]],
        "baselines": [record.to_dict() for record in folder.records if record.baseline],
        "counts": counts(folder.records),
        "hypervolume": {"value": pareto.hypervolume(*axes(able), reference(folder)), "reference": list(reference(folder))},
    }


def reference(folder: StudyFolder) -> tuple[float, float]:
    """Down to which accuracy and relative latency hypervolume counts: guessing, and the teacher's own."""
    return folder.facts["task"]["majority"], REFERENCE_LATENCY


def rows(folder: StudyFolder) -> list[Row]:
    """Teacher, baselines, front; each trial once: a baseline on the front stands there."""
    best = on_front(folder)
    numbers = {record.trial for record in best}
    chosen = picks(folder)
    hand_made = [r for r in folder.records if r.baseline and r.measurement.state == COMPLETE and r.duplicate_of is None]
    return [
        _teacher_row(folder.facts["teacher"]),
        *(_row(_role(record), record, {}) for record in hand_made if record.trial not in numbers),
        *(_row(", ".join(filter(None, ("front", _role(record)))), record, chosen) for record in best),
    ]


def trained(found: Sequence[Record]) -> list[Record]:
    """Records with an accuracy and a latency, each student once, whether or not inside the limits."""
    done = [record for record in found if record.measurement.state == COMPLETE and record.duplicate_of is None]
    return [record for record in done if record.measurement.accuracy is not None and record.measurement.latency_relative is not None]


def feasible(found: Sequence[Record]) -> list[Record]:
    """Trained students inside every limit of the study, each once."""
    return [record for record in trained(found) if record.feasible]


def eligible(folder: StudyFolder) -> list[Record]:
    """Feasible students that are more accurate than always answering the largest class, by two standard errors.

    The fastest student of a space has often learned nothing: it would be a front's end that nobody can use. Where no student beats
    guessing (a trial run of a few steps), all count.
    """
    majority, able = folder.facts["task"]["majority"], feasible(folder.records)
    better = [r for r in able if (r.measurement.accuracy or 0.0) - 2 * (r.measurement.accuracy_se or 0.0) > majority]
    return better or able


def on_front(folder: StudyFolder) -> list[Record]:
    """The eligible students that no other one dominates, by relative latency."""
    able = eligible(folder)
    best = [record for record, on in zip(able, pareto.front(*axes(able)), strict=True) if on]
    return sorted(best, key=lambda record: record.measurement.latency_relative or 0.0)


def picks(folder: StudyFolder) -> dict[str, int]:
    """Trial number of the front's knee, fastest and best student, by their full trainings where there are some; empty when the front is."""
    return (folder.confirmed or {}).get("picks") or short_picks(folder)


def picked(folder: StudyFolder) -> dict[str, Row]:
    """The same as rows, by what they were picked by."""
    if (folder.confirmed or {}).get("picks"):
        found = {row["trial"]: _full_row(row) for row in (folder.confirmed or {})["students"] if row["seeds"]}
    else:
        found = {row.trial: row for row in rows(folder)}
    return {name: found[trial] for name, trial in picks(folder).items()}


def unconfirmed(folder: StudyFolder) -> int:
    """How many students of the front were not trained in full yet."""
    done = {row["trial"] for row in (folder.confirmed or {}).get("students", ()) if row["seeds"]}
    return sum(record.trial not in done for record in on_front(folder))


def short_picks(folder: StudyFolder) -> dict[str, int]:
    """Those by the short distillations alone."""
    able = eligible(folder)
    return {name: able[index].trial for name, index in pareto.picks(*axes(able)).items()}


def axes(found: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Accuracies and relative latencies, NaN where not measured."""
    nan = float("nan")
    pairs = [(record.measurement.accuracy, record.measurement.latency_relative) for record in found]
    return [nan if a is None else a for a, _ in pairs], [nan if t is None else t for _, t in pairs]


def counts(found: Sequence[Record]) -> dict[str, int]:
    """Trials by how they ended; a duplicate is counted as that alone. ``imported``, where some are, counts them once more."""
    fresh = [record.measurement.state for record in found if record.duplicate_of is None]
    ended = {state: fresh.count(state) for state in (COMPLETE, STOPPED, REFUSED, FAILED)}
    imported = len(found) - len(own(found))
    return {**ended, "duplicates": len(found) - len(fresh), **({"imported": imported} if imported else {})}


def _role(record: Record) -> str:
    """What a record is beside a trial: a baseline, imported, both or neither."""
    return ", ".join(filter(None, (record.baseline and f"baseline {record.baseline}", record.imported_from and "imported")))


def _full_row(row: dict[str, Any]) -> Row:
    """A student of confirmed.json."""
    same = {name: row[name] for name in ("role", "trial", "accuracy", "accuracy_se", "parameters", "divergence")}
    return Row(**same, faster=1 / row["latency_relative"])


def _teacher_row(teacher: dict[str, Any]) -> Row:
    shape = teacher.get("architecture", {})
    width = shape["heads"] * shape["head_size"] if shape else None
    return Row(
        "teacher",
        accuracy=teacher.get("accuracy"),
        accuracy_se=teacher.get("accuracy_se"),
        latency_ms=teacher.get("latency_ms"),
        latency_ms_low=teacher.get("latency_ms_low"),
        latency_ms_high=teacher.get("latency_ms_high"),
        faster=1.0,
        parameters=teacher.get("parameters"),
        layers=shape.get("layers"),
        width=width,
    )


def _row(role: str, record: Record, chosen: dict[str, int]) -> Row:
    found, candidate = record.measurement, from_dict(record.candidate)
    return Row(
        role,
        trial=record.trial,
        picks=tuple(name for name, trial in chosen.items() if trial == record.trial),
        breaks=record.breaks,
        accuracy=found.accuracy,
        accuracy_se=found.accuracy_se,
        latency_ms=found.latency_ms,
        latency_ms_low=found.latency_ms_low,
        latency_ms_high=found.latency_ms_high,
        faster=1 / found.latency_relative if found.latency_relative else None,
        parameters=found.parameters,
        layers=candidate.architecture.layers,
        width=candidate.architecture.width,
        initialization=str(candidate.initialization.layers),
        recipe=candidate.distillation.name,
        divergence=found.divergence,
    )
