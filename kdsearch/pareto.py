"""Fronts of accuracy (more is better) against latency (less is better), as NumPy arrays; one index is one candidate."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front(accuracy: ArrayLike, latency: ArrayLike) -> NDArray[np.bool_]:
    """Mask of the points that no other point dominates.

    p dominates q when accuracy_p >= accuracy_q and latency_p <= latency_q and one of the two is strict, so equal points never
    remove each other: all copies stay. A point with NaN or infinity is never on the front.

    Example:
        >>> front([0.9, 0.8, 0.8, 0.7], [4.0, 1.0, 1.0, 2.0]).tolist()
        [True, True, True, False]
    """
    accuracy, latency = np.asarray(accuracy, dtype=float), np.asarray(latency, dtype=float)
    finite = np.isfinite(accuracy) & np.isfinite(latency)
    mask = np.zeros(len(accuracy), dtype=bool)
    times, group = np.unique(latency[finite], return_inverse=True)
    best = np.full(len(times), -np.inf)
    np.maximum.at(best, group, accuracy[finite])
    best_of_faster = np.concatenate([[-np.inf], np.maximum.accumulate(best)[:-1]])[: len(times)]
    mask[finite] = (accuracy[finite] == best[group]) & (accuracy[finite] > best_of_faster[group])
    return mask


def hypervolume(accuracy: ArrayLike, latency: ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the points dominate, down to ``reference`` = (accuracy, latency); a point that is worse than it adds nothing.

    Along the front sorted by latency: sum over i of (accuracy_i - accuracy_ref) * (latency_{i+1} - latency_i), latency_{n+1} = latency_ref.
    """
    accuracy, latency = np.asarray(accuracy, dtype=float), np.asarray(latency, dtype=float)
    inside = (accuracy > reference[0]) & (latency < reference[1])
    accuracy, latency = accuracy[inside], latency[inside]
    points = np.unique(np.stack([latency, accuracy], axis=1)[front(accuracy, latency)], axis=0)
    until = np.append(points[1:, 0], reference[1])[: len(points)]
    return float(np.sum((points[:, 1] - reference[0]) * (until - points[:, 0])))


def knee(accuracy: ArrayLike, latency: ArrayLike) -> int:
    """Index of the front's point farthest above the chord between the front's ends, both axes scaled to [0, 1] and latency in logarithms.

    A front that nowhere rises above its chord (one point, two points, a convex one) has no knee: its most accurate point is taken.

    Raises:
        ValueError: the front is empty.
    """
    accuracy, latency = np.asarray(accuracy, dtype=float), np.asarray(latency, dtype=float)
    indices = np.flatnonzero(front(accuracy, latency))
    if len(indices) == 0:
        raise ValueError("the knee of a front needs at least one finite point; there is none")
    above = _unit(accuracy[indices]) - _unit(np.log(latency[indices]))
    return int(max(zip(above, accuracy[indices], -indices, strict=True))[2] * -1)


def picks(accuracy: ArrayLike, latency: ArrayLike) -> dict[str, int]:
    """The points to hand on: index of the front's knee, fastest and best (most accurate) point; empty when the front is."""
    accuracy, latency = np.asarray(accuracy, dtype=float), np.asarray(latency, dtype=float)
    indices = np.flatnonzero(front(accuracy, latency))
    if len(indices) == 0:
        return {}
    fastest, best = indices[np.argmin(latency[indices])], indices[np.argmax(accuracy[indices])]
    return {"knee": knee(accuracy, latency), "fastest": int(fastest), "best": int(best)}


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scaled to [0, 1], both ends exactly; all 0 when the values do not differ."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
