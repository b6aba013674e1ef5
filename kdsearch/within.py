"""``architecture: {within: {parameters: 4e6, share: 0.05}, layers: ...}`` --> one_of the shapes of about that size, each by its name.

A sampler draws each parameter by itself, and most combinations of four would miss the target; one categorical of names cannot.
"""

import itertools
import math
from dataclasses import asdict, replace
from typing import Any

from transformers import PretrainedConfig

from kdsearch import cost
from kdsearch.candidate import Architecture
from kdsearch.space_file import Choice, Int, OneOf, SearchSpace, Within
from kdsearch.students.families import mistakes, narrow

MOST_COUNTED = 10_000  # at 0.7 ms each
OPTIONAL = {"kv_heads": "kv", "embedding": "e", "positions": "p", "vocabulary": "v"}


def listed(space: SearchSpace, config: PretrainedConfig) -> tuple[SearchSpace, list[str]]:
    """The space with the shapes of its ``within`` as branches of one_of, for this teacher, and what is wrong with them.

    Where something is wrong, the space that is given back still shows what else is; without ``within`` it is the space itself.
    """
    target = space.tree["architecture"]
    if not isinstance(target, Within):
        return space, []
    values = {key: _values(domain) for key, domain in target.domains.items()}
    unlisted = replace(space, tree={**space.tree, "architecture": target.domains})
    if (number := math.prod(map(len, values.values()))) > MOST_COUNTED:
        return unlisted, [
            f"architecture.within: counts every combination of the domains, at most {MOST_COUNTED:,}; "
            f"there are {number:,}; give fewer values"
        ]
    shapes = [Architecture(**dict(zip(values, combined, strict=True))) for combined in itertools.product(*values.values())]
    wrong = [message for shape in shapes for message in mistakes(shape, config)]
    wrong += [
        f"architecture.vocabulary: must be a whole number above 0, or null for the teacher's own; the value is {size!r}; correct it"
        for size in values.get("vocabulary", [])
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size <= 0)
    ]
    if wrong:
        return unlisted, list(dict.fromkeys(wrong))
    counts = {shape: counted(shape, config, target.embeddings) for shape in shapes}
    off = {shape: abs(count / target.parameters - 1) for shape, count in counts.items()}
    near = sorted((shape for shape in shapes if off[shape] <= target.share), key=_order)
    nearest = min(shapes, key=off.__getitem__)
    branches = {name(shape): _told(shape) for shape in near or [nearest]}
    messages = [] if near else [_nothing(target, nearest, counts[nearest], off[nearest])]
    content = {**space.content, "architecture": {"one_of": branches}}  # what is recorded needs no teacher to be read
    return SearchSpace({**space.tree, "architecture": OneOf(branches)}, content), messages


def counted(shape: Architecture, config: PretrainedConfig, embeddings: bool) -> int:
    """Parameters of a student of this shape, with or without its word embeddings."""
    narrowed = narrow(config, shape)
    return cost.parameters(narrowed) - (0 if embeddings else cost.embeddings(narrowed))


def name(shape: Architecture) -> str:
    """A shape in a few signs: layers x width, heads, FFN ratio, and what it has of its own."""
    own = [f"{sign}{value}" for key, sign in OPTIONAL.items() if (value := getattr(shape, key)) is not None]
    return " ".join([f"{shape.layers}x{shape.width}", f"h{shape.heads}", f"f{shape.ffn_ratio:g}", *own])


def _values(domain: Any) -> list[Any]:
    match domain:
        case Int(low, high, step):
            return list(range(low, high + 1, step))
        case Choice(values):
            return list(values)
    return [domain]


def _order(shape: Architecture) -> tuple[Any, ...]:
    """By depth, then width: a categorical must not change between runs, whatever the order of the file's keys."""
    return shape.layers, shape.width, shape.heads, shape.ffn_ratio, name(shape)


def _told(shape: Architecture) -> dict[str, Any]:
    return {key: value for key, value in asdict(shape).items() if value is not None}


def _nothing(target: Within, nearest: Architecture, count: int, off: float) -> str:
    kind = "parameters" if target.embeddings else "parameters besides word embeddings"
    return (
        f"architecture.within: must leave a shape of {target.parameters:,.0f} {kind}, {100 * target.share:g} % more or less; "
        f"the nearest, {name(nearest)}, has {count:,} ({100 * off:.2g} % off); correct parameters, widen share, or give more values"
    )
