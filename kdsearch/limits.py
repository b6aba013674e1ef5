"""What a student must not exceed, or fall below, as numbers for a sampler and as words for people."""

from kdsearch.records import Measurement
from kdsearch.study_file import Limits


def excess(found: Measurement, limits: Limits, teacher_accuracy: float) -> tuple[float, ...]:
    """For each limit of the study, always in one order: value / limit - 1, above 0 where the limit is broken.

    What must not fall below its limit counts limit / value - 1. What is not measured yet counts as at its limit (0), so that every trial
    has the same number of constraints.
    """
    return tuple(over for _, _, _, over in _limited(found, limits, teacher_accuracy))


def broken(found: Measurement, limits: Limits, teacher_accuracy: float) -> str | None:
    """Which limits a candidate breaks, in words; None when it breaks none."""
    limited = _limited(found, limits, teacher_accuracy)
    words = [f"{name} {value:.4g} {_verb(name)} the limit {limit:.4g}" for name, value, limit, over in limited if over > 0]
    return "; ".join(words) or None


def _limited(found: Measurement, limits: Limits, teacher_accuracy: float) -> list[tuple[str, float | None, float, float]]:
    """Name, value, limit and excess of every limit of the study."""
    least = {"accuracy_relative": found.accuracy / teacher_accuracy if found.accuracy is not None else None}
    most = {
        "latency_ms": found.latency_ms,
        "latency_relative": found.latency_relative,
        "parameters": found.parameters,
        "megabytes": found.bytes / 1e6 if found.bytes else None,
        "memory_megabytes": found.memory_bytes / 1e6 if found.memory_bytes else None,
    }
    rows = []
    for name, limit in limits.model_dump().items():
        if limit is not None:
            value = {**most, **least}[name]
            larger, smaller = (limit, value) if name in least else (value, limit)
            rows.append((name, value, limit, 0.0 if value is None else larger / max(smaller, 1e-9) - 1))
    return rows


def _verb(name: str) -> str:
    return "is below" if name == "accuracy_relative" else "exceeds"
