"""Recorded learning curves as an objective that costs nothing: what any candidate of the space would have had, step by step.

The space is continuous and the curves are some hundred points of it, so that a model stands between: Gaussian processes over the
candidate's architecture, start, recipe and learning rate, one for the logit of the accuracy and one for the logarithm of each divergence,
for all recorded numbers of steps at once. What a candidate is *observed* to have is their mean plus the leave-one-out residual curve of
one of the ten recorded candidates nearest to it, which one its content decides: so early observations agree with late ones as real ones
did. Of the last residual, as much is taken for the truth as second trainings with another seed repeated; the rest is noise. Latency is a sum over blocks (a least-squares fit in
relative terms).

How good the model is stands in the table that benchmarks/search.py writes.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FixedTrial
from scipy.special import expit, logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from kdsearch import search_space
from kdsearch.candidate import Architecture, Candidate
from kdsearch.space_file import SearchSpace

Array = NDArray[np.float64]
NEAREST, LEARNED = 10, 0.6
SCORES = ("accuracy", "divergence", "calibrated_divergence")
LAYERS, WIDTHS = ("random", "first", "last", "uniform"), ("slice", "importance", "pca")


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


def blocks(shape: Architecture) -> list[float]:
    """What latency is a sum of: a constant, the width, and for each layer a constant, its width and its matrix products."""
    layers, width = shape.layers, shape.width
    return [1.0, width, layers, layers * width, layers * width**2, layers * width * shape.ffn, layers * shape.heads]


@dataclass(frozen=True)
class Curve:
    """What a replayed training shows: scores after each recorded number of steps, and the accuracy that it really has at the end."""

    steps: tuple[int, ...]
    scores: dict[str, Array]
    latency: float
    truth: float


@dataclass(frozen=True, eq=False)
class Replay:
    """The recorded trainings of a study, and the models of them."""

    rows: Sequence[dict[str, Any]]
    again: Sequence[dict[str, Any]]
    space: SearchSpace
    steps: int

    @staticmethod
    def read(path: Path, space: SearchSpace, steps: int) -> "Replay":
        """The proxy trainings of ``steps`` steps that a file has."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        proxies = [row for row in rows if (row["kind"], row["of"]) == ("proxy", steps)]
        return Replay([row for row in proxies if row["seed"] == 0], [row for row in proxies if row["seed"] != 0], space, steps)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """Those that were trained to the end."""
        return [row for row in self.rows if row["state"] == "complete"]

    @cached_property
    def marks(self) -> tuple[int, ...]:
        """The numbers of steps at which every training was scored."""
        return tuple(sorted(int(step) for step in self.whole[0]["curve"]))

    @cached_property
    def whole(self) -> list[dict[str, Any]]:
        """Those of the trained that have every score; the first ones were recorded before there was a calibrated divergence."""
        return [row for row in self.trained if all(name in scores for scores in row["curve"].values() for name in SCORES)]

    def candidate(self, row: dict[str, Any]) -> Candidate:
        """The candidate of a row."""
        return search_space.suggest(self.space, FixedTrial(row["params"]))

    @cached_property
    def scale(self) -> tuple[Array, Array]:
        """Mean and spread of the features."""
        raw = np.array([features(self.candidate(row)) for row in self.trained])
        return raw.mean(0), np.maximum(raw.std(0), 1e-9)

    def inputs(self, candidates: Sequence[Candidate]) -> Array:
        """Features, scaled."""
        middle, spread = self.scale
        return (np.array([features(candidate) for candidate in candidates]) - middle) / spread

    def recorded(self, name: str) -> Array:
        """Scores [rows, marks], the accuracy's logit or a divergence's logarithm, of the rows that have them."""
        rows = self.whole if name.startswith("calibrated") else self.trained
        return scaled(name)(np.array([[row["curve"][str(step)][name] for step in self.marks] for row in rows]))

    @cached_property
    def models(self) -> dict[str, "Model"]:
        """One for each score."""
        rows = {name: self.whole if name.startswith("calibrated") else self.trained for name in SCORES}
        return {name: fitted(self.inputs([self.candidate(row) for row in rows[name]]), self.recorded(name)) for name in SCORES}

    @cached_property
    def residuals(self) -> dict[str, Array]:
        """Leave-one-out residuals [whole, marks] of each score."""
        place = {row["number"]: index for index, row in enumerate(self.trained)}
        of_whole = [place[row["number"]] for row in self.whole]
        return {
            name: model.residuals if name.startswith("calibrated") else model.residuals[of_whole] for name, model in self.models.items()
        }

    @cached_property
    def repeated(self) -> float:
        """The share of a student's residual at the end that a training with another seed has too: the slope of one over the other.

        Of students that learned something; those that did not have the same residual for a trivial reason.
        """
        place, last, model = {row["number"]: i for i, row in enumerate(self.trained)}, str(self.steps), self.models["accuracy"]
        pairs = []
        for row in self.again:
            if row["state"] == "complete" and row["number"] in place and row["curve"][last]["accuracy"] > LEARNED:
                first = self.trained[place[row["number"]]]["curve"][last]["accuracy"]
                residual = model.residuals[place[row["number"]], -1]
                pairs.append((residual, logit(row["curve"][last]["accuracy"]) - (logit(first) - residual)))
        one, other = np.array(pairs).T
        return float(np.clip(one @ other / (one @ one), 0.0, 1.0))

    @cached_property
    def latency_weights(self) -> Array:
        """Least squares of the latency relative to the teacher, in relative terms."""
        timed = [row for row in self.rows if row["latency"]]
        terms = np.array([blocks(self.candidate(row).architecture) for row in timed])
        latency = np.array([row["latency"] for row in timed])
        return np.linalg.lstsq(terms / latency[:, None], np.ones(len(timed)), rcond=None)[0]

    def latency(self, shape: Architecture) -> float:
        """Latency relative to the teacher."""
        return max(float(np.dot(blocks(shape), self.latency_weights)), 1e-3)

    def curve(self, candidate: Candidate) -> Curve:
        """What a candidate's training shows; the same at every call."""
        x = self.inputs([candidate])
        near = self.models["calibrated_divergence"]
        nearest = np.argsort(near.kernel(x, near.inputs)[0])[-NEAREST:]
        which = nearest[int(hashlib.sha256(candidate.key().encode()).hexdigest()[:8], 16) % NEAREST]
        means = {name: model.mean(x)[0] for name, model in self.models.items()}
        seen = {name: (expit if name == "accuracy" else np.exp)(means[name] + self.residuals[name][which]) for name in SCORES}
        own = self.residuals["accuracy"][which][-1]
        return Curve(self.marks, seen, self.latency(candidate.architecture), float(expit(means["accuracy"][-1] + self.repeated * own)))


def scaled(name: str) -> Any:
    """What a score is modelled as."""
    return logit if name == "accuracy" else np.log


@dataclass(frozen=True)
class Model:
    """A Gaussian process over several outputs with one kernel: its inputs, weights, and leave-one-out residuals [rows, outputs]."""

    inputs: Array
    kernel: Any
    middle: Array
    weights: Array
    residuals: Array

    def mean(self, x: Array) -> Array:
        """What it expects at x [rows, outputs]."""
        return self.middle + self.kernel(x, self.inputs) @ self.weights


def fitted(x: Array, y: Array) -> Model:
    """The process that explains the last output best, for all outputs.

    Leave-one-out residuals in closed form, r_i = (K^-1 y)_i / (K^-1)_ii (Rasmussen & Williams 2006, eq. 5.10 to 5.12).
    """
    kernel = ConstantKernel() * RBF(np.full(x.shape[1], 3.0), (0.5, 100.0)) + WhiteKernel(0.1)
    middle, last = y.mean(0), y[:, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a feature that explains nothing gets the longest scale allowed
        found: Any = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0).fit(x, (last - middle[-1]) / last.std())
    signal, noise = found.kernel_.k1, found.kernel_.k2.noise_level
    inverse = np.linalg.inv(signal(x) + noise * np.eye(len(x)))
    weights = inverse @ (y - middle)
    return Model(x, signal, middle, weights, weights / np.diag(inverse)[:, None])
