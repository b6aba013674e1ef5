"""What a search tries before chance: students over the range of latencies that a limit allows, well started and distilled."""

import math
from typing import Any

from kdsearch.candidate import Architecture
from kdsearch.search_space import each_asked, each_branch, sample
from kdsearch.space_file import Choice, Float, Int, OneOf, SearchSpace

# Shares of the latency limit, the fastest first: it is trained the soonest. Where the limit is above half of the teacher's latency, shares
# of that half: students between there and the teacher take the most time to train, and add the least to a front.
SHARES, MOST = (0.12, 0.25, 0.5, 0.9), 0.5
# Where the learning rate of the fastest stands in its range, and that of the others: of the recorded students the fastest want more.
FAST_RATE, RATE = 0.75, 0.5
# Share of a layer's latency that does not shrink with its matrices (one row of 32 tokens on a CPU; benchmarks/curves).
FIXED = 0.25
# Where the width shrinks, uniform layers from principal components did best (benchmarks/initialization.md); kd is the plainest recipe.
# What a space does not have is left to the sampler.
PREFERRED = {
    "initialization.layers": ("uniform", "last"),
    "initialization.width": ("pca", "importance"),
    "distillation": ("kd", "hinton"),
}
LEARNING_RATE = "training.learning_rate"


def guesses(space: SearchSpace, teacher: Architecture, limit: float | None) -> list[dict[str, Any]]:
    """Parameters of up to four students of the space; what is not among them is left to the sampler.

    For each of some shares of the limit (latency relative to the teacher) the architecture of the greatest size, and then
    the most matrix products, that is expected to be as fast. Size is layers * sqrt(width) where students may start from principal
    components: of the recorded students of benchmarks/curves the deep and half as wide ones were ahead of the wide and shallow at every
    latency. It is width * sqrt(layers) where they cannot: a slice of the channels loses more than layers do.
    """
    best: dict[float, tuple[float, float, dict[str, Any]]] = {}
    rotated = any(candidate.initialization.width == "pca" for candidate in each_branch(space))
    for params, shape in each_asked(space):
        more, less = (shape.layers, shape.width) if rotated else (shape.width, shape.layers)
        size = more * math.sqrt(less), _products(shape)
        for share in SHARES:
            if expected_latency(shape, teacher) <= share * min(limit or MOST, MOST) and size > best.get(share, (0.0, 0.0))[:2]:
                best[share] = *size, params
    chosen: list[dict[str, Any]] = []
    for share in SHARES:
        if share in best and best[share][2] not in chosen:
            chosen.append(best[share][2])
    rates = [FAST_RATE, *[RATE] * len(chosen)]
    return [{**params, **settings(space, rate)} for params, rate in zip(chosen, rates, strict=False)]


def expected_latency(shape: Architecture, teacher: Architecture) -> float:
    """About the latency relative to the teacher: its share of the layers * (1/4 + 3/4 * its share of a layer's matrix products)."""
    products = _products(shape) / shape.layers / (_products(teacher) / teacher.layers)
    return shape.layers / teacher.layers * (FIXED + (1 - FIXED) * products)


def settings(space: SearchSpace, rate: float = RATE) -> dict[str, Any]:
    """Parameters beside the architecture: the preferred choices, and of every range the middle (of its logarithm where it has one), but of
    the learning rate the place ``rate`` in [0, 1]."""
    found: dict[str, Any] = {}

    def pick(name: str, domain: Int | Float | Choice | OneOf) -> Any:
        match domain:
            case Int(low, high, step):
                found[name] = low + (high - low) // (2 * step) * step
            case Float(low, high, log):
                place = rate if name == LEARNING_RATE else 0.5
                found[name] = low ** (1 - place) * high**place if log else low + place * (high - low)
            case Choice(options) | OneOf(options):
                known = [option for option in PREFERRED.get(name, ()) if option in options]
                if not known:
                    return next(iter(options))
                found[name] = known[0]
        return found[name]

    sample(space, pick)
    return {name: value for name, value in found.items() if not name.startswith("architecture")}


def _products(shape: Architecture) -> float:
    return shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn)
