"""Who goes on: multi-objective successive halving of the stopping type, over the steps of the proxy distillation.

At a rung (a number of steps) a trial compares itself with those that came there before it, by its calibrated divergence to the teacher so
far and by its latency, which is exact before training. It goes on when it is on the rung's front, or in the best 1/eta by front after front
and, within a front, by distance from what is taken already. A stopped trial ends there; nothing waits for others, and nothing starts again.

Sources: Jamieson & Talwalkar 2016 (successive halving), Li et al. 2020 (stopping in place of waiting), Schmucker et al. 2021 (fronts and
epsilon-nets in place of one metric).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdsearch.pareto import front

# Small students that learn it all answer at random for a dozen steps.
LEAST = 25


@dataclass(frozen=True)
class Rungs:
    """The rungs of one trial: for each number of steps what others had there, calibrated divergence (nats) and relative latency."""

    eta: float = 2.0
    seen: dict[int, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def goes_on(self, step: int, divergence: float, latency: float) -> bool:
        """Whether a trial that has this divergence at this rung is worth its next steps."""
        points = np.array([*self.seen[step], (divergence, latency)], dtype=float)
        order = ranking(-points[:, 0], points[:, 1])
        kept = max(math.ceil(len(points) / self.eta), int(front(-points[:, 0], points[:, 1]).sum()))
        return len(points) - 1 in order[:kept]


def at(shares: Sequence[float], steps: int) -> tuple[int, ...]:
    """The rungs of a training of ``steps`` steps: each share of it, rounded, but none before 25 steps, and none where nothing is left."""
    return tuple(sorted({step for share in shares if (step := max(LEAST, round(share * steps))) < steps}))


def ranking(accuracy: NDArray[np.float64], latency: NDArray[np.float64]) -> list[int]:
    """Indices from best to worst: front after front; within a front its ends first, then always the point farthest from those before it.

    Distances are between (accuracy, log latency), each scaled to [0, 1] over all points.
    """
    places = np.stack([_unit(accuracy), _unit(np.log(latency))], axis=1)
    left, order = np.arange(len(accuracy)), []
    while len(left):
        on = front(accuracy[left], latency[left])
        if not on.any():  # what is not finite is on no front
            return [*order, *left.tolist()]
        order += _spread(left[on], places)
        left = left[~on]
    return order


def _spread(members: NDArray[np.intp], places: NDArray[np.float64]) -> list[int]:
    """A front's members: the fastest, then the one farthest from all that are taken, and so on."""
    rest = members[np.argsort(places[members, 1], kind="stable")].tolist()
    taken = [rest.pop(0)]
    while rest:
        apart = [min(float(np.sum((places[one] - places[other]) ** 2)) for other in taken) for one in rest]
        taken.append(rest.pop(int(np.argmax(apart))))
    return taken


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = values[np.isfinite(values)]
    span = float(np.ptp(finite)) if len(finite) else 0.0
    return (values - finite.min()) / span if span > 0 else np.zeros_like(values)
