"""What a sampler sees of a study: the trials that were sampled from the space, in the order of their places, up to one of them.

* Hand-made baselines are left out: they have no parameters, and one such trial leaves GP and NSGA-II no common space.
* A trial that was stopped at a rung counts as complete with the accuracy that is expected at the end from what it had there. Optuna gives a
  stopped trial of several objectives no values, so TPE would put all of them among the bad ones, or the first of them among the good.
* A student that is expected below the least accuracy (the study's limit, or that of guessing) breaks a constraint: the fastest students
  learn nothing and dominate everything by their latency, and TPE would go on to propose them.
* What was asked for after the last place that is seen, is seen as running: its parameters are known, its result is not, whether it has
  ended or not. So proposals do not depend on who ends first, and TPE does not propose what is on its way.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch.study_store import place_of

FEWEST, TINY = 8, 1e-6


class _Searched(optuna.Study):
    """A study with only these trials (as Optuna's HyperbandPruner narrows a study)."""

    seen: list[FrozenTrial]

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        return [trial for trial in self.seen if states is None or trial.state in states]


class OfTheSpace(BaseSampler):
    """A sampler that sees a study as this module says, for one ask, at ``place``; all trials up to the place ``last`` have ended."""

    def __init__(self, inner: BaseSampler, last: float = math.inf, place: float = math.inf, least: float = 0.0) -> None:
        self.inner, self.last, self.place, self.least = inner, last, place, least
        self.view: optuna.Study | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:  # noqa: D102
        return self.inner.infer_relative_search_space(self._searched(study), trial)

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        try:
            return self.inner.sample_relative(self._searched(study), trial, search_space)
        except (ValueError, RuntimeWarning):
            if not isinstance(self.inner, optuna.samplers.GPSampler):
                raise
            return {}  # where all points but one are impossible, GP divides by 0; the parameters are drawn one by one

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: Any) -> Any:  # noqa: D102
        return self.inner.sample_independent(self._searched(study), trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: Any) -> None:  # noqa: D102
        self.inner.before_trial(self._searched(study), trial)

    def after_trial(self, study: optuna.Study, trial: Any, state: TrialState, values: Sequence[float] | None) -> None:  # noqa: D102
        self.inner.after_trial(self._searched(study), trial, state, values)

    def _searched(self, study: optuna.Study) -> optuna.Study:
        if self.view is None:
            self.view = copy.copy(study)
            self.view.__class__ = _Searched
            self.view.seen = seen(study.get_trials(deepcopy=False), self.last, self.place, self.least)  # pyright: ignore[reportAttributeAccessIssue]
        return self.view


def seen(trials: Sequence[FrozenTrial], last: float, before: float, least: float = 0.0) -> list[FrozenTrial]:
    """The trials as a sampler sees them that proposes for the place ``before``, in the order of their places."""
    sampled = [(place_of(trial), trial) for trial in trials if "baseline" not in trial.user_attrs]
    # Of a trial that was interrupted and tried again, what comes later holds the place. The order decides how sums are rounded.
    latest = {place: trial for place, trial in sampled if place is not None and place < before}
    placed = [(place, latest[place]) for place in sorted(latest)]
    lines = expectations([trial for place, trial in placed if place <= last])
    return [_at(place, _running(trial) if place > last else _ended(trial, lines, least)) for place, trial in placed]


def _at(place: int, trial: FrozenTrial) -> FrozenTrial:
    """With the number that it would have had without interruptions: TPE orders by numbers what it draws from."""
    shown = copy.copy(trial)
    shown.number = place
    return shown


def expectations(trials: Sequence[FrozenTrial]) -> dict[int, tuple[float, float]]:
    """For each rung (steps) the line of the accuracy at the end over the logarithm of the calibrated divergence at the rung.

    Of the trials that went to the end; where these are fewer than eight, or the line does not fall, a rung has none.
    """
    points: dict[int, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            for step, scores in trial.user_attrs["record"].get("rungs", {}).items():
                points.setdefault(int(step), []).append((math.log(max(scores["calibrated_divergence"], TINY)), trial.values[0]))
    arrays = {step: np.array(some) for step, some in points.items() if len(some) >= FEWEST}
    lines = {step: np.polyfit(some[:, 0], some[:, 1], 1) for step, some in arrays.items() if np.ptp(some[:, 0]) > 0}
    return {step: (float(slope), float(level)) for step, (slope, level) in lines.items() if slope < 0}


def _ended(trial: FrozenTrial, lines: dict[int, tuple[float, float]], least: float) -> FrozenTrial:
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial
    record, shown = trial.user_attrs["record"], copy.copy(trial)
    if trial.state == TrialState.PRUNED:
        slope, level = lines.get(record["steps"], (0.0, record["accuracy"]))
        accuracy = level + slope * math.log(max(record["calibrated_divergence"], TINY))
        shown.state, shown.values = TrialState.COMPLETE, [min(1.0, max(0.0, accuracy)), math.log(record["latency_relative"])]
    known = trial.system_attrs.get("constraints", [])
    shown.system_attrs = {**trial.system_attrs, "constraints": [*known, least - shown.values[0]]}
    return shown


def _running(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state, shown.values = TrialState.RUNNING, None
    shown.system_attrs = {key: value for key, value in trial.system_attrs.items() if key != "constraints"}
    return shown
