"""What a search tries before chance: large students of several widths that a latency limit may allow, well started and distilled."""

import math
from typing import Any

from kdsearch.candidate import Architecture
from kdsearch.search_space import each_asked, sample
from kdsearch.space_file import Choice, Float, Int, OneOf, SearchSpace

WIDTHS, SHARE = 4, 0.75
# Where the width shrinks, uniform layers from principal components did best (benchmarks/initialization.md); kd is the plainest recipe.
# What a space does not have is left to the sampler.
PREFERRED = {
    "initialization.layers": ("uniform", "last"),
    "initialization.width": ("pca", "importance"),
    "distillation": ("kd", "hinton"),
}


def guesses(space: SearchSpace, teacher: Architecture, limit: float | None) -> list[dict[str, Any]]:
    """Parameters of up to four students of the space; what is not among them is left to the sampler.

    Of each of the four greatest widths the largest architecture that needs at most 3/4 of the limit (latency relative to the teacher; 1
    without one), counted in matrix products, N (4 d^2 + 2 d f). Latency falls less than the products do, hence the 3/4. Few random draws
    are large, and of those few have a good start and a good recipe: the search would have to find the accurate end of the front by itself.
    """
    most = SHARE * (limit or 1.0) * _products(teacher)
    largest: dict[int, tuple[float, dict[str, Any]]] = {}
    for params, shape in each_asked(space):
        if largest.get(shape.width, (0.0, {}))[0] < (size := _products(shape)) <= most:
            largest[shape.width] = size, params
    return [{**largest[width][1], **settings(space)} for width in sorted(largest, reverse=True)[:WIDTHS]]


def settings(space: SearchSpace) -> dict[str, Any]:
    """Parameters beside the architecture: the preferred choices, and of every range the middle (of its logarithm where it has one)."""
    found: dict[str, Any] = {}

    def pick(name: str, domain: Int | Float | Choice | OneOf) -> Any:
        match domain:
            case Int(low, high, step):
                found[name] = low + (high - low) // (2 * step) * step
            case Float(low, high, log):
                found[name] = math.sqrt(low * high) if log else (low + high) / 2
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
