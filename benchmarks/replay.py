"""Recorded learning curves as an objective that costs nothing: a proposal is answered by the recorded candidate nearest to it.

Each recorded candidate answers once in a search, so that a search draws from real trainings without a model between: what it is shown at a
rung and at the end is what was measured there. The distance is Euclidean, over what is known of a candidate before training, each feature
weighed by what it says of latency and accuracy: its coefficients in ridge regressions on the recorded ones. With every feature alike a
recipe's knobs decided, and a student's neighbour was as fast as it only by chance: of each recorded candidate's nearest other one the log
latency had an R^2 of 0.66, now 0.93, and the accuracy a correlation of 0.42, now 0.40 (throw-away script).
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
from kdsearch.study_file import Training

Array = NDArray[np.float64]
KEPT = ("accuracy", "divergence", "calibrated_divergence", "log_loss")
SCORES = KEPT[:3]
RIDGE, LEAST_WEIGHT = 1.0, 0.01
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
    def read(path: Path, space: SearchSpace, proxy: Training) -> "Replay":
        """Those of a file that have the proxy's steps and schedule.

        Raises:
            SystemExit: there are none.
        """
        one = ("proxy", proxy.steps, proxy.schedule, 0)
        proxies = [row for row in read(path) if (row["kind"], row["of"], row["schedule"], row["seed"]) == one]
        kept = [row for row in proxies if row["latency"]]
        if not kept:
            raise SystemExit(f"{path} holds no proxy of {proxy.steps} {proxy.schedule} steps: record it with benchmarks/record_curves.py")
        return Replay(kept, space, proxy.steps)

    @cached_property
    def trained(self) -> list[Row]:
        """Those that were trained to the end."""
        return [row for row in self.rows if row["curve"]]

    @cached_property
    def weights(self) -> Array:
        """Weight of each feature in the distance: sqrt(a^2 + l^2) / spread, a and l its coefficients in ridge regressions of the accuracy
        (of those trained) and of the log latency, all in units of their spreads. One that says nothing weighs a little all the same."""
        spread = np.maximum(self.places.std(0), 1e-9)
        standard = (self.places - self.places.mean(0)) / spread
        done = np.array([bool(row["curve"]) for row in self.rows])
        accuracy = np.array([row["curve"][str(self.steps)]["accuracy"] for row in self.trained])
        latency = np.log([row["latency"] for row in self.rows])
        found = np.hypot(_ridge(standard[done], accuracy), _ridge(standard, latency))
        return np.maximum(found, LEAST_WEIGHT) / spread

    @cached_property
    def places(self) -> Array:
        """Features of the rows."""
        return np.array([features(search_space.suggest(self.space, FixedTrial(row["params"]))) for row in self.rows])

    def nearest(self, candidate: Candidate, used: set[int]) -> Row | None:
        """The nearest row that has not answered yet, which is marked as used; None when all have."""
        free = [index for index in range(len(self.rows)) if index not in used]
        if not free:
            return None
        away = (self.places[free] - np.array(features(candidate))) * self.weights
        found = free[int(np.argmin((away**2).sum(1)))]
        used.add(found)
        return self.rows[found]


def _ridge(features: Array, outcome: Array) -> Array:
    """Coefficients of a ridge regression of an outcome in units of its spread."""
    spread = max(float(outcome.std()), 1e-9)
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(features.shape[1]), features.T @ (outcome - outcome.mean()) / spread)


def read(path: Path) -> list[Row]:
    """The trainings of a file. A line holds what :func:`line` wrote; here each has its candidate's parameters, and scores have names.

    Raises:
        SystemExit: a number stands for two candidates.
    """
    rows, params = [], dict[int, dict[str, Any]]()
    for text in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        known = params.setdefault(row["number"], row.get("params"))
        if row.setdefault("params", known) != known:
            raise SystemExit(f"{path}: number {row['number']} stands for more than one candidate: take the rows of one of them out")
        curve = {step: zip(KEPT, values, strict=True) for step, values in row["curve"].items()}
        rows.append({**row, "curve": {step: {name: value for name, value in some if value is not None} for step, some in curve.items()}})
    return rows


def line(row: Row, first: bool) -> str:
    """A training as a line of a file: the scores of a step as a list, the parameters in the first line of a candidate."""
    curve = {step: [values.get(name) for name in KEPT] for step, values in row["curve"].items()}
    left_out = () if first else ("params",)
    return json.dumps({key: value for key, value in {**row, "curve": curve}.items() if key not in left_out}, separators=(",", ":")) + "\n"


def scores(row: Row, step: int) -> dict[str, float]:
    """What was measured after so many steps."""
    return {name: row["curve"][str(step)][name] for name in SCORES}
