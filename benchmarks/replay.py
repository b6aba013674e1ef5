"""Recorded learning curves as an objective that costs nothing: a proposal is answered by the recorded candidate nearest to it.

Each recorded candidate answers once in a search, so that a search draws from real trainings without a model between: what it is shown at a
rung and at the end is what was measured there. The distance is Euclidean, over what is known of a candidate before training, each feature
by its spread over the recorded ones.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FixedTrial

from kdsearch import search_space
from kdsearch.candidate import Candidate
from kdsearch.space_file import SearchSpace

Array = NDArray[np.float64]
SCORES = ("accuracy", "divergence", "calibrated_divergence")
LAYERS, WIDTHS = ("random", "first", "last", "uniform"), ("slice", "importance", "pca")
Row = dict[str, Any]


def features(candidate: Candidate) -> list[float]:
    """What the models know of a candidate; a knob that its recipe does not have is 0."""
    shape, start, recipe = candidate.architecture, candidate.initialization, candidate.distillation
    knobs = {name: value for term in recipe.terms for name, value in term.knobs}
    weights = [term.weight for term in recipe.terms if term.knowledge != "kd"]
    numbers = [
        shape.layers,
        math.log(shape.layers),
        math.log(shape.width),
        shape.heads,
        shape.head_size,
        math.log2(shape.ffn_ratio),
        math.log(shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn)),
        float(shape.vocabulary is None),
        math.log(candidate.training.learning_rate),
        recipe.hard_weight,
        math.log(knobs.get("temperature", 1.0)),
        math.log(weights[0]) if weights else 0.0,
        float(knobs.get("matching") == "uniform"),
        math.log2(knobs.get("relation_heads", 1)),
    ]
    named = [*(start.layers == name for name in LAYERS), *(start.width == name for name in WIDTHS)]
    return [*numbers, *map(float, named), *(float(recipe.name == name) for name in ("none", "kd", "hidden_mse", "minilmv2"))]


@dataclass(frozen=True, eq=False)
class Replay:
    """The recorded proxy trainings of a study, and the candidates that were refused by their latency."""

    rows: Sequence[Row]
    space: SearchSpace
    steps: int

    @staticmethod
    def read(path: Path, space: SearchSpace, steps: int) -> "Replay":
        """Those of a file that have ``steps`` steps and every score."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        proxies = [row for row in rows if (row["kind"], row["of"], row["seed"]) == ("proxy", steps, 0)]
        return Replay([row for row in proxies if row["latency"] and (not row["curve"] or is_whole(row))], space, steps)

    @cached_property
    def trained(self) -> list[Row]:
        """Those that were trained to the end."""
        return [row for row in self.rows if row["curve"]]

    @cached_property
    def scale(self) -> Array:
        """Spread of the features."""
        return np.maximum(self.places.std(0), 1e-9)

    @cached_property
    def places(self) -> Array:
        """Features of the rows."""
        return np.array([features(search_space.suggest(self.space, FixedTrial(row["params"]))) for row in self.rows])

    def nearest(self, candidate: Candidate, used: set[int]) -> Row | None:
        """The nearest row that has not answered yet, which is marked as used; None when all have."""
        free = [index for index in range(len(self.rows)) if index not in used]
        if not free:
            return None
        away = (self.places[free] - np.array(features(candidate))) / self.scale
        found = free[int(np.argmin((away**2).sum(1)))]
        used.add(found)
        return self.rows[found]


def is_whole(row: Row) -> bool:
    """Whether a training has every score; the first ones were recorded before there was a calibrated divergence."""
    return all(name in scores for scores in row["curve"].values() for name in SCORES)


def scores(row: Row, step: int) -> dict[str, float]:
    """What was measured after so many steps."""
    return {name: row["curve"][str(step)][name] for name in SCORES}
