"""The finalists' full trainings: which are to be done, which are there, and the front and the fidelity that they make.

Each training is a line of confirmed.jsonl as soon as it is done, so that a command that was stopped, or is called again with more seeds,
trains only what is missing. confirmed.json is derived from these lines. Accuracy is that of validation; the test rows are for the export.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median, variance
from threading import Lock
from typing import Any

from kdsearch import fidelity, pareto, records
from kdsearch.candidate import Candidate, from_dict
from kdsearch.fidelity import Fidelity
from kdsearch.finalists import finalists, twin_without_kd
from kdsearch.records import COMPLETE, Measurement, Record

LINES, TABLE = "confirmed.jsonl", "confirmed.json"
FRONT, NEAR, BASELINE = "front", "near the front", "baseline"


@dataclass(frozen=True)
class Student:
    """Who is trained in full: its role, its trial and short distillation where it has them, and whose twin without distillation it is."""

    role: str
    candidate: Candidate
    trial: int | None = None
    short: Measurement | None = None
    twin_of: int | None = None

    @property
    def name(self) -> str:
        """What it is called: its trial, or without one its role; sessions know a training by its key."""
        return self.role if self.trial is None else str(self.trial)

    @property
    def title(self) -> str:
        """Its trial and role, for a person."""
        return self.role if self.trial is None else f"trial {self.trial} ({self.role})"

    @property
    def yardstick(self) -> bool:
        """Whether it is trained only as a baseline."""
        return self.role.startswith(BASELINE)


Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Job:
    """One full training; ``under``: a hash of what it depends on besides, the teacher, the data and how students are trained."""

    student: Student
    seed: int
    steps: int
    under: str = ""

    @property
    def key(self) -> Key:
        """What tells it from the others, in every session: the candidate and not its trial, whose number may be another's by then."""
        return self.student.candidate.key(), self.under, self.seed, self.steps


@dataclass(frozen=True)
class Line:
    """A full training that was done: its job's key, and what was found."""

    key: Key
    found: Measurement


class Store:
    """The lines of a study's confirmed.jsonl; added one by one, from several threads. A line that a kill cut off is dropped."""

    def __init__(self, folder: Path) -> None:
        self.path, self.lock = folder / LINES, Lock()
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            records.write_text(self.path, whole)
        self.lines = [_line(json.loads(one)) for one in whole.splitlines()]

    def add(self, job: Job, found: Measurement) -> None:
        """Keep what a training found, on disk at once."""
        one = job.student
        head = {"student": one.name, "trial": one.trial, "seed": job.seed, "of": job.steps, "under": job.under}
        row = {**head, **asdict(found), "candidate": one.candidate.to_dict()}
        with self.lock:
            before = self.path.stat().st_size if self.path.is_file() else 0
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
            except OSError as error:
                with suppress(OSError):
                    os.truncate(self.path, before)  # half a line in the middle could not be read again
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            self.lines.append(_line(row))

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs without a training that came to its end; one that failed is tried again."""
        done = {line.key for line in self.lines if line.found.state == COMPLETE}
        return [job for job in jobs if job.key not in done]


def students(
    able: Sequence[Record],
    knee: int,
    yardsticks: Sequence[Record],
    count: int,
    reference: tuple[float, float],
    untried: Mapping[str, Candidate] | None = None,
) -> list[Student]:
    """Up to ``count`` finalists of those that may stand on a front, the knee pick among them; the baselines, those too that the search did
    not come to (``untried``); the pick's twin without distillation.

    Who is one of those before is trained once, and has both roles.
    """
    accuracy, latency = ([getattr(one.measurement, name) for one in able] for name in ("accuracy", "latency_relative"))
    best = {record.trial for record, on in zip(able, pareto.front(accuracy, latency), strict=True) if on}
    pick = next(record for record in able if record.trial == knee)
    chosen = [pick, *(record for record in finalists(able, len(able), reference) if record.trial != knee)][:count]
    numbers = {record.trial for record in chosen}
    found = [_student(record, FRONT if record.trial in best else NEAR) for record in chosen]
    found += [_student(record, "") for record in yardsticks if record.trial not in numbers]
    twin = Student(f"no-kd twin of {knee}", twin_without_kd(from_dict(pick.candidate)), twin_of=knee)
    for one in [*(Student(f"{BASELINE} {name}", candidate) for name, candidate in (untried or {}).items()), twin]:
        same = next((index for index, other in enumerate(found) if other.candidate.key() == one.candidate.key()), None)
        if same is None:
            found.append(one)
        elif one is not twin or same > 0:  # the pick is the first, and may be trained on the labels alone itself
            found[same] = replace(found[same], role=f"{found[same].role}, {one.role}", twin_of=one.twin_of)
    return found


def document(store: Store, jobs: Sequence[Job], proxy_steps: int, reference: tuple[float, float]) -> dict[str, Any]:
    """The content of confirmed.json: a row for each student of these jobs, the picks, what they tell of the proxy, and that in words.

    A student's accuracy, divergence and latency are the mean, the mean and the median over its seeds; the standard error of its accuracy
    is sqrt(variance of the seeds / seeds + mean error over rows^2). Whether it is inside a limit, the median over its seeds decides.
    """
    lines = {line.key: line.found for line in store.lines if line.found.state == COMPLETE}
    trained = {job.student.name: (job.student, list[Measurement]()) for job in jobs}
    for job in jobs:
        if job.key in lines:
            trained[job.student.name][1].append(lines[job.key])
    rows = [_row(student, found) for student, found in trained.values()]
    accuracy, latency = ([row[name] if row["feasible"] else math.nan for row in rows] for name in ("accuracy", "latency_relative"))
    rows = [{**row, "on_front": bool(on)} for row, on in zip(rows, pareto.front(accuracy, latency), strict=True)]
    seeds = sorted({job.seed for job in jobs}, key=[job.seed for job in jobs].index)
    whole = [(student, found) for student, found in trained.values() if student.short and len(found) == len(seeds)]
    told = _fidelity(whole, proxy_steps, reference)
    return {
        "steps": jobs[0].steps,
        "seeds": seeds,
        "picks": _picks(rows, reference[0]),
        "students": sorted(rows, key=lambda row: math.inf if row["latency_relative"] is None else row["latency_relative"]),
        "fidelity": asdict(told),
        "sentences": [*_too_short(jobs[0].steps, proxy_steps), *fidelity.in_words(told), *_worth(rows), *_without_trial(rows)],
    }


def _picks(rows: Sequence[dict[str, Any]], guessing: float) -> dict[str, int]:
    """Trial number of the knee, the fastest and the best student by full trainings, of those that beat guessing by two standard errors and
    are a trial."""
    able = [row for row in rows if row["feasible"] and row["trial"] is not None]
    able = [row for row in able if row["accuracy"] - 2 * row["accuracy_se"] > guessing] or able
    found = pareto.picks([row["accuracy"] for row in able], [row["latency_relative"] for row in able])
    return {name: able[index]["trial"] for name, index in found.items()}


def _fidelity(whole: Sequence[tuple[Student, list[Measurement]]], proxy_steps: int, reference: tuple[float, float]) -> Fidelity:
    """Of the students that have a short distillation and all their full ones; the regret is among those inside the limits."""
    seeds = [[found.accuracy or 0.0 for found in some] for _, some in whole]
    full, latency = [mean(some) for some in seeds], [_median(some, "latency_relative") for _, some in whole]
    short = [student.short.accuracy or 0.0 for student, _ in whole if student.short]
    inside = [index for index, (_, some) in enumerate(whole) if _feasible(some)]
    sizes = {name: [getattr(some[0], name) or 0.0 for _, some in whole] for name in ("parameters", "flops")}
    among = [[values[index] for index in inside] for values in (short, full, latency)]
    return Fidelity(
        steps=proxy_steps,
        count=len(whole),
        proxy=fidelity.agreement(short, full, latency),
        parameters=fidelity.agreement(sizes["parameters"], full, latency),
        flops=fidelity.agreement(sizes["flops"], full, latency),
        ceiling=fidelity.ceiling(seeds) if whole else None,
        as_a_seed=fidelity.as_a_seed(short, seeds) if whole else None,
        regret=fidelity.regret(among[0], among[1], among[2], reference),
        reference=reference,
    )


def _worth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What distillation is worth to the knee pick, against its twin."""
    by_name = {row["student"]: row for row in rows}
    said = []
    for twin in (row for row in rows if row["twin_of"] is not None):
        pick = by_name[str(twin["twin_of"])]
        if twin["accuracy"] is not None and pick["accuracy"] is not None:
            gain, error = pick["accuracy"] - twin["accuracy"], math.hypot(pick["accuracy_se"], twin["accuracy_se"])
            said.append(
                f"Trial {pick['trial']} without distillation, on the labels alone, has {twin['accuracy']:.3f}: distillation is worth "
                f"{100 * gain:+.1f} points, ± {100 * error:.1f} at most: both answer the same rows."
            )
    return said


def _too_short(steps: int, proxy_steps: int) -> list[str]:
    """That full trainings are none."""
    short = (
        f"These trainings have {steps} steps, the short distillations {proxy_steps}: what they say of students is worth less than these."
    )
    return [short] if steps < proxy_steps else []


def _without_trial(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who stands on the front and cannot be picked."""
    some = [row["role"] for row in rows if row["on_front"] and row["trial"] is None]
    return [f"The {role} stands on this front and is no trial of the search, so that no pick is it." for role in some]


def _row(student: Student, some: Sequence[Measurement]) -> dict[str, Any]:
    """A student's line of the table; what is not measured is None."""
    head = {"student": student.name, "role": student.role, "trial": student.trial, "seeds": len(some)}
    before = student.short
    row = {
        **head,
        "twin_of": student.twin_of,
        "proxy_accuracy": before.accuracy if before else None,
        "accuracy": None,
        "accuracy_se": None,
        "divergence": None,
        "latency_relative": None,
        "parameters": None,
        "flops": None,
        "feasible": _feasible(some),
        "breaks": _breaks(some),
        "candidate": student.candidate.to_dict(),
    }
    if not some:
        return row
    accuracies = [found.accuracy or 0.0 for found in some]
    between = variance(accuracies) / len(some) if len(some) > 1 else 0.0
    return row | {
        "accuracy": mean(accuracies),
        "accuracy_se": math.sqrt(between + mean(found.accuracy_se or 0.0 for found in some) ** 2),
        "divergence": mean(found.divergence or 0.0 for found in some),
        "latency_relative": _median(some, "latency_relative"),
        "parameters": some[0].parameters,
        "flops": some[0].flops,
    }


def _feasible(some: Sequence[Measurement]) -> bool:
    """Whether the median training breaks no limit."""
    return bool(some) and all(median(over) <= 0 for over in zip(*(found.violations for found in some), strict=True))


def _breaks(some: Sequence[Measurement]) -> str:
    """The names of the limits that at least half of the trainings break, where the median one breaks any; of all, where none is broken so
    often."""
    counts = Counter(name for found in some for name in found.breaks.split(", ") if name)
    often = [name for name, count in counts.items() if 2 * count >= len(some)]
    return "" if not some or _feasible(some) else ", ".join(often or counts)


def _median(some: Sequence[Measurement], name: str) -> float:
    return median(getattr(found, name) for found in some)


def _student(record: Record, role: str) -> Student:
    name = f"{BASELINE} {record.baseline}" if record.baseline else ""
    return Student(", ".join(filter(None, (role, name))), from_dict(record.candidate), record.trial, record.measurement)


def _line(row: dict[str, Any]) -> Line:
    key = from_dict(row["candidate"]).key(), row.get("under", ""), row["seed"], row["of"]
    return Line(key, records.from_dict(row).measurement)
