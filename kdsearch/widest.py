"""Where a search starts beside chance: the widest students that a latency limit is likely to allow."""

from typing import Any

from kdsearch.candidate import Architecture
from kdsearch.search_space import each_asked
from kdsearch.space_file import SearchSpace

MOST, SHARE = 4, 0.75


def widest(space: SearchSpace, teacher: Architecture, limit: float | None) -> list[dict[str, Any]]:
    """Parameters of up to four architectures of the space; what else a trial needs is left to the sampler.

    Of the greatest width, those that need at most 3/4 of the limit (latency relative to the teacher; 1 without one), the largest first,
    counted in matrix products, N (4 d^2 + 2 d f). Latency falls less than the products do, hence the 3/4. A student that keeps the
    teacher's width and drops layers keeps most of its accuracy (Sajjad et al. 2020, arXiv 2004.03844), and few random draws are of
    full width: the search would have to find that end of the front by itself.
    """
    most = SHARE * (limit or 1.0) * _products(teacher)
    found = [(shape, params) for params, shape in each_asked(space) if _products(shape) <= most]
    most_wide = max((shape.width for shape, _ in found), default=0)
    wide = [(shape, params) for shape, params in found if shape.width == most_wide]
    return [params for _, params in sorted(wide, key=lambda one: (-_products(one[0]), one[0].layers))[:MOST]]


def _products(shape: Architecture) -> float:
    return shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn)
