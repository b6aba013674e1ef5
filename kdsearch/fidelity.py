"""How well short distillations rank students, held against their full trainings.

Over all students size alone ranks well, because larger ones are slower and more accurate. What a search needs is the order of students that
are equally fast, so every agreement is also counted over pairs within latency bins, and stands beside that of parameters and FLOPs. No
proxy can be expected to agree with a full training better than two full trainings do that differ by their seed: the ceiling.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdsearch.pareto import front, hypervolume

LEAST_IN_A_BIN, LEAST = 4, 3
RESAMPLES, SEED = 2000, 0
GOOD_TAU, AS_GOOD_AS, TOO_WIDE = 0.8, 0.05, 1.0

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array, Array, NDArray[np.bool_]], Array]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where it is not defined (too few students, or all alike)."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b and Spearman's rho of two orders, over all pairs and over pairs within latency bins."""

    tau: Estimate
    rho: Estimate
    tau_within: Estimate
    rho_within: Estimate


@dataclass(frozen=True)
class Fidelity:
    """What ``count`` full trainings tell of a proxy of ``steps`` steps; ``reference`` of the regret is (accuracy, relative latency).

    ``ceiling``: by how much tau two seeds of the full training agree; ``as_a_seed``: by how much the proxy agrees with one seed, which is
    what may be compared with it, as their mean is easier to agree with.
    """

    steps: int
    count: int
    proxy: Agreement
    parameters: Agreement
    flops: Agreement
    ceiling: float | None
    as_a_seed: float | None
    regret: float | None
    reference: tuple[float, float]


def bins(latency: ArrayLike) -> NDArray[np.int64]:
    """Each candidate's bin: as many equally full ones along the latencies as leave at least four candidates in each."""
    latency = np.asarray(latency, dtype=float)
    found = np.zeros(len(latency), dtype=np.int64)
    for number, members in enumerate(np.array_split(np.argsort(latency, kind="stable"), max(1, len(latency) // LEAST_IN_A_BIN))):
        found[members] = number
    return found


def agreement(proxy: ArrayLike, full: ArrayLike, latency: ArrayLike) -> Agreement:
    """How well one score orders candidates as another does; more is better in both.

    tau-b = (concordant - discordant) / sqrt(pairs not tied in one x pairs not tied in the other); within bins every sum goes over pairs
    inside them. rho is the correlation of ranks; within bins of ranks inside a bin, less their mean there. Within needs two bins, eight
    candidates. Intervals: percentile bootstrap over candidates, always with the same resamples.
    """
    x, y = np.asarray(proxy, dtype=float), np.asarray(full, dtype=float)
    every, inside = np.ones((len(x), len(x)), dtype=bool), _together(latency)
    return Agreement(*(_estimate(statistic, x, y, pairs) for pairs in (every, inside) for statistic in (_tau, _rho)))


def ceiling(full: ArrayLike, latency: ArrayLike | None = None) -> float | None:
    """Mean tau-b between the seeds of full trainings [candidates, seeds]; with ``latency`` over pairs within bins. None with one seed."""
    scores = np.asarray(full, dtype=float)
    return _mean_tau(([scores[:, a], scores[:, b]] for a, b in combinations(range(scores.shape[1]), 2)), latency, len(scores))


def as_a_seed(proxy: ArrayLike, full: ArrayLike, latency: ArrayLike | None = None) -> float | None:
    """Mean tau-b of a proxy with each seed of full trainings [candidates, seeds], to be held against :func:`ceiling`."""
    x, scores = np.asarray(proxy, dtype=float), np.asarray(full, dtype=float)
    seeds = range(scores.shape[1]) if len(scores) else ()
    return _mean_tau(([x, scores[:, seed]] for seed in seeds), latency, len(scores))


def _mean_tau(orders: Iterable[Sequence[Array]], latency: ArrayLike | None, count: int) -> float | None:
    """Mean of what is defined of tau-b of some pairs of orders of ``count`` candidates; with ``latency`` over pairs within bins."""
    pairs = np.ones((count, count), dtype=bool) if latency is None else _together(latency)
    found = [_estimate(_tau, first, second, pairs).value for first, second in orders]
    known = [tau for tau in found if tau is not None]
    return float(np.mean(known)) if known else None


def regret(proxy: ArrayLike, full: ArrayLike, latency: ArrayLike, reference: tuple[float, float]) -> float | None:
    """1 - hypervolume of what is on the proxy's front / hypervolume of the best front, both by full results, down to ``reference``.

    None where the best front has no hypervolume.
    """
    full, latency = np.asarray(full, dtype=float), np.asarray(latency, dtype=float)
    chosen, best = front(proxy, latency), hypervolume(full, latency, reference)
    return 1 - hypervolume(full[chosen], latency[chosen], reference) / best if best > 0 else None


def in_words(found: Fidelity) -> list[str]:
    """How well the proxy ranked, against size, against the seeds, and what to do about it."""
    tau = found.proxy.tau.value
    if tau is None:
        return [f"{found.count} students were trained in full: too few, or too much alike, to say how well the proxy ranks."]
    said = [
        f"The proxy of {found.steps} steps ranks the {found.count} students as their full trainings do with Kendall's tau "
        f"{_number(found.proxy.tau)} and Spearman's rho {_number(found.proxy.rho)}; among students of about one latency tau is "
        f"{_number(found.proxy.tau_within)}. Most were chosen by the proxy, which makes its task harder than over all trials.",
        _against_size(found),
    ]
    below = None if found.ceiling is None or found.as_a_seed is None else found.ceiling - found.as_a_seed
    if below is None:
        said.append("One seed tells nothing of the noise of the full trainings; --seeds 2 or more does.")
    else:
        near = "comes up to that" if below <= AS_GOOD_AS else f"is {below:.2f} below that"
        said.append(
            f"Two seeds of the full training agree with each other with tau {found.ceiling:.2f}; the proxy agrees with one of them with "
            f"tau {found.as_a_seed:.2f}, and {near}."
        )
    if found.regret is not None:
        said.append(
            f"The front that the proxy chose has {1 - found.regret:.1%} of the hypervolume of the best one among these students (regret "
            f"{found.regret:.3f}, down to accuracy {found.reference[0]:.3f} and relative latency {found.reference[1]:g})."
        )
    if found.proxy.tau.low is not None and found.proxy.tau.high is not None and found.proxy.tau.high - found.proxy.tau.low > TOO_WIDE:
        said.append(f"{found.count} students are too few to tell whether the proxy is good enough: confirm more of them with --finalists.")
    elif tau < GOOD_TAU and (below is None or below > AS_GOOD_AS):
        said.append(
            f"The proxy ranks these students poorly (tau {tau:.2f} is below {GOOD_TAU}): trust the full trainings and not the order of the "
            f"trials, and search with a longer proxy, such as proxy.steps: {2 * found.steps}."
        )
    return said


def _against_size(found: Fidelity) -> str:
    """Whether the proxy knows more than a student's size."""
    tau = found.proxy.tau_within
    sizes = {"parameters": found.parameters.tau_within, "FLOPs": found.flops.tau_within}
    if tau.value is None:
        return "There are too few students to compare the proxy with their size within one latency."
    words = " and ".join(f"{name} {_number(size)}" for name, size in sizes.items())
    others = [size.value for size in sizes.values() if size.value is not None]
    best = max(others, default=0.0)
    if tau.value <= best:
        return f"Within one latency the proxy ranks no better than size alone (tau of {words})."
    clear = tau.low is not None and tau.low > best
    return f"Within one latency the proxy ranks better than size alone (tau of {words}){'' if clear else ', but not clearly'}."


def _number(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "unknown"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _together(latency: ArrayLike) -> NDArray[np.bool_]:
    """Which pairs are in one bin; none where one bin holds all, which says nothing of students that are equally fast."""
    group = bins(latency)
    return (group[:, None] == group) & (len(group) >= 2 * LEAST_IN_A_BIN)


def _estimate(statistic: Statistic, x: Array, y: Array, pairs: NDArray[np.bool_]) -> Estimate:
    """A statistic and its interval; how often a candidate is drawn is its weight."""
    if len(x) < LEAST or not pairs.any():
        return Estimate()
    weights = np.random.default_rng(SEED).multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES).astype(float)
    (value,), drawn = statistic(np.ones((1, len(x))), x, y, pairs), statistic(weights, x, y, pairs)
    if not np.isfinite(value):
        return Estimate()
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def _tau(weights: Array, x: Array, y: Array, pairs: NDArray[np.bool_]) -> Array:
    """tau-b of each row of weights [resamples, candidates]; a candidate is no pair with itself, however often it is drawn."""
    first, second = np.sign(x[:, None] - x) * pairs, np.sign(y[:, None] - y) * pairs
    agreed, untied_x, untied_y = (np.sum((weights @ signs) * weights, axis=1) for signs in (first * second, first**2, second**2))
    return _ratio(agreed, np.sqrt(untied_x * untied_y))


def _rho(weights: Array, x: Array, y: Array, pairs: NDArray[np.bool_]) -> Array:
    """Correlation of the ranks that each row of weights gives, less their mean among those that a candidate is paired with."""
    first, second = (_ranks(weights, values, pairs) for values in (x, y))
    shared, own_x, own_y = (np.sum(weights * product, axis=1) for product in (first * second, first**2, second**2))
    return _ratio(shared, np.sqrt(own_x * own_y))


def _ranks(weights: Array, values: Array, pairs: NDArray[np.bool_]) -> Array:
    below = (values[:, None] < values) + 0.5 * (values[:, None] == values)
    ranks = weights @ (below * pairs)
    return ranks - ((weights * ranks) @ pairs) / np.maximum(weights @ pairs, 1)


def _ratio(above: Array, below: Array) -> Array:
    """Above / below, not a number where all candidates are alike."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 1e-12)
