"""Who is trained in full: the front, and behind it those whose accuracy a short distillation cannot tell from the front's.

Accuracy on a thousand validation rows has a standard error of a point, so that students a point behind the front may well stand on it.
Beside them goes the same student as the pick without distillation: what distillation was worth.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdsearch.candidate import Candidate, Recipe
from kdsearch.pareto import front, hypervolume
from kdsearch.records import Record

WIDTH = 1.96  # standard errors to each side in a 95 % interval


def finalists(found: Sequence[Record], count: int, reference: tuple[float, float] = (0.0, 1.0)) -> list[Record]:
    """Up to ``count`` records, the first of them first: the front by contribution, then those behind it that may belong there.

    A front member's contribution is the hypervolume that the front loses without it, down to ``reference`` = (accuracy, relative latency).
    Behind the front comes who is feasible and whose interval, accuracy ± 1.96 standard errors, overlaps that of the front at its latency
    (its most accurate member that is as fast), nearest first. Baselines there are left out, since they are trained in any case.
    """
    able = [
        record for record in found if record.feasible and record.duplicate_of is None and record.measurement.latency_relative is not None
    ]
    accuracy = np.array([record.measurement.accuracy for record in able], dtype=float)
    latency = np.array([record.measurement.latency_relative for record in able], dtype=float)
    error = np.array([record.measurement.accuracy_se or 0.0 for record in able])
    on = front(accuracy, latency)
    members = np.flatnonzero(on)
    lost = contributions(accuracy[members], latency[members], reference)
    order = [int(index) for index in members[np.argsort(-lost, kind="stable")]]
    behind = []
    for index in np.flatnonzero(~on & np.isfinite(accuracy) & np.isfinite(latency)):
        before = members[latency[members] <= latency[index]]
        best = before[np.argmax(accuracy[before])]
        gap = float(accuracy[best] - accuracy[index])
        if able[index].baseline is None and gap <= WIDTH * (error[best] + error[index]):
            behind.append((gap, int(index)))
    return [able[index] for index in [*order, *(index for _, index in sorted(behind))][:count]]


def contributions(accuracy: ArrayLike, latency: ArrayLike, reference: tuple[float, float]) -> NDArray[np.float64]:
    """The hypervolume that is lost without each point."""
    accuracy, latency = np.asarray(accuracy, dtype=float), np.asarray(latency, dtype=float)
    whole, others = hypervolume(accuracy, latency, reference), ~np.eye(len(accuracy), dtype=bool)
    return np.array([whole - hypervolume(accuracy[rest], latency[rest], reference) for rest in others])


def twin_without_kd(candidate: Candidate) -> Candidate:
    """The same student, trained on the labels alone."""
    return replace(candidate, distillation=Recipe("none", 1.0))
