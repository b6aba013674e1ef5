"""What a trial found: one JSON line each, in and out. Reports, guideline and re-runs read records and nothing else."""

import json
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMPLETE, STOPPED, REFUSED, FAILED = "complete", "stopped", "refused", "failed"


class NobodyLeftError(RuntimeError):
    """Nobody can evaluate any more: no finding of a trial, but the end of the search."""


@dataclass(frozen=True)
class Measurement:
    """What the objective measured on one candidate; what could not be measured is None.

    Units: ``latency_*`` in milliseconds per batch, ``*_relative`` as a ratio to the teacher measured beside it, accuracy in [0, 1],
    ``divergence`` the mean KL(teacher || student) in nats on held-out text, ``log_loss`` that of the labels on validation,
    ``calibrated_divergence`` what of the divergence confidence and preference for a class do not explain, ``seconds`` of wall time,
    ``parameters`` and ``flops`` (per forward pass of one batch) as counts, ``bytes`` of the saved weights, ``memory_bytes`` at the peak of
    a forward pass (only where the study limits it); ``stages``: which part of ``seconds`` went where. ``rungs``: the scores after so many
    ``steps``; a trial that was stopped at one has those of its last.
    """

    state: str
    reason: str | None = None
    accuracy: float | None = None
    accuracy_se: float | None = None
    divergence: float | None = None
    divergence_se: float | None = None
    log_loss: float | None = None
    calibrated_divergence: float | None = None
    latency_ms: float | None = None
    latency_ms_low: float | None = None
    latency_ms_high: float | None = None
    latency_relative: float | None = None
    latency_relative_low: float | None = None
    latency_relative_high: float | None = None
    parameters: int | None = None
    flops: float | None = None
    bytes: int | None = None
    memory_bytes: int | None = None
    steps: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: tuple[float, ...] = ()
    traceback: str | None = None

    @property
    def feasible(self) -> bool:
        """Trained, and inside every limit of the study."""
        return self.state == COMPLETE and all(violation <= 0 for violation in self.violations)

    @property
    def breaks(self) -> str:
        """The names of the limits that a trained student breaks; "a limit" where it does not say which, nothing where it breaks none."""
        if self.state != COMPLETE or self.feasible:
            return ""
        return ", ".join(part.split()[0] for part in self.reason.split("; ")) if self.reason else "a limit"


@dataclass(frozen=True)
class Record:
    """One trial: what was proposed, what was found. ``baseline`` names a hand-made student that every report compares with,
    ``imported_from`` the trial of another study that found it ("trial 3 of NAME")."""

    trial: int
    candidate: dict[str, Any]
    measurement: Measurement
    seed: int
    baseline: str | None = None
    duplicate_of: int | None = None
    imported_from: str | None = None

    @property
    def breaks(self) -> str:
        """The names of the limits that it breaks, trained; nothing where it breaks none."""
        return self.measurement.breaks

    @property
    def feasible(self) -> bool:
        """Trained, and inside every limit of the study: what may stand on a front."""
        return self.measurement.feasible

    def to_dict(self) -> dict[str, Any]:
        """Flat plain data: the contract of ``trials.jsonl`` and ``front.json``."""
        found = asdict(self.measurement)
        found["violations"] = list(self.measurement.violations)
        head = {"trial": self.trial, "baseline": self.baseline, "duplicate_of": self.duplicate_of, "imported_from": self.imported_from}
        return {**head, **found, "candidate": self.candidate, "seed": self.seed}


def from_dict(data: dict[str, Any]) -> Record:
    """Record from one line of ``trials.jsonl``; inverse of :meth:`Record.to_dict`. Unknown keys (of a later version) are ignored."""
    found = {key: data[key] for key in Measurement.__dataclass_fields__ if key in data}
    found["violations"] = tuple(found.get("violations", ()))
    return Record(
        trial=data["trial"],
        candidate=data["candidate"],
        measurement=Measurement(**found),
        seed=data["seed"],
        baseline=data.get("baseline"),
        duplicate_of=data.get("duplicate_of"),
        imported_from=data.get("imported_from"),
    )


def own(found: Iterable[Record]) -> list[Record]:
    """Those that this study found itself: what was imported cost it nothing."""
    return [record for record in found if record.imported_from is None]


def measured(evaluate: Callable[..., Measurement], *arguments: Any) -> Measurement:
    """What an evaluation found; what it raised, or a number that is none, becomes the reason of a failed measurement.

    Raises:
        NobodyLeftError: it was not evaluated at all.
    """
    start = time.perf_counter()
    try:
        found = evaluate(*arguments)
        numbers = {name: getattr(found, name) for name in ("accuracy", "latency_relative", "divergence")}
        odd = {name: value for name, value in numbers.items() if value is None or not math.isfinite(value)}
        if found.state in (COMPLETE, STOPPED) and odd:
            raise ArithmeticError(f"not finite: {', '.join(f'{name} {value}' for name, value in odd.items())}")
    except NobodyLeftError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        text = "".join(traceback.format_exception(error))[-4000:]
        return Measurement(FAILED, reason=reason, seconds=time.perf_counter() - start, traceback=text)
    return found


def to_line(record: Record) -> str:
    """A record as a line of ``trials.jsonl``."""
    return json.dumps(record.to_dict()) + "\n"


def read(path: Path) -> list[Record]:
    """Records of a ``trials.jsonl``, in file order."""
    return [from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, records: Iterable[Record]) -> None:
    """All records, one JSON line each, written aside and renamed: a reader never sees half a file."""
    write_text(path, "".join(map(to_line, records)))


def open_to_others(place: Path) -> None:
    """Give a temporary file or folder the rights of any other new one; its own are for its user alone."""
    mask = os.umask(0)
    os.umask(mask)
    place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step, so that a kill leaves the old text or the new one.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        open_to_others(Path(name))
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say which file it has no room for
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
