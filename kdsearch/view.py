"""What a sampler sees of a study: the trials that were sampled from the space, in the order of their places, up to one of them.

* Hand-made baselines are left out: they have no parameters, and one such trial leaves GP and NSGA-II no common space.
* A trial that was stopped at a rung counts as complete with what it had there and what the median trial gained from there to the end.
  Optuna gives a stopped trial of several objectives no values, so TPE would put all of them among the bad ones, or the first of them among
  the good.
* What was asked for after the last place that is seen, is seen as running: its parameters are known, its result is not, whether it has
  ended or not. So proposals do not depend on who ends first, and TPE does not propose what is on its way.
"""

import copy
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch.study_store import place_of

Rungs = dict[str, dict[str, float]]


class _Searched(optuna.Study):
    """A study with only these trials (as Optuna's HyperbandPruner narrows a study)."""

    seen: list[FrozenTrial]

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        return [trial for trial in self.seen if states is None or trial.state in states]


class OfTheSpace(BaseSampler):
    """A sampler that sees a study as this module says, for one ask, at ``place``; all trials up to the place ``last`` have ended."""

    def __init__(self, inner: BaseSampler, last: float = math.inf, place: float = math.inf) -> None:
        self.inner, self.last, self.place = inner, last, place
        self.view: optuna.Study | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:  # noqa: D102
        return self.inner.infer_relative_search_space(self._searched(study), trial)

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        return self.inner.sample_relative(self._searched(study), trial, search_space)

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
            self.view.seen = seen(study.get_trials(deepcopy=False), self.last, self.place)  # pyright: ignore[reportAttributeAccessIssue]
        return self.view


def seen(trials: Sequence[FrozenTrial], last: float, before: float) -> list[FrozenTrial]:
    """The trials as a sampler sees them that proposes for the place ``before``, in the order of their places."""
    sampled = [(place_of(trial), trial) for trial in trials if "baseline" not in trial.user_attrs]
    placed = [(place, trial) for place, trial in sampled if place is not None and place < before]
    ended = [trial for place, trial in placed if place <= last]
    gains = gained(ended)
    found: dict[int, FrozenTrial] = {}
    for place, trial in placed:
        # Of a trial that was interrupted and tried again, what comes later holds the place.
        if place > last:
            found[place] = _running(trial)
        elif trial.state == TrialState.PRUNED:
            found[place] = _as_complete(trial, gains)
        else:
            found[place] = trial
    return [found[place] for place in sorted(found)]


def gained(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """For each rung (steps) the median of what trials that went to the end had more accuracy there than at the rung."""
    differences: dict[str, list[float]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            for step, scores in _rungs(trial).items():
                differences.setdefault(step, []).append(trial.values[0] - scores["accuracy"])
    return {step: median(values) for step, values in differences.items()}


def _as_complete(trial: FrozenTrial, gains: dict[str, float]) -> FrozenTrial:
    record = trial.user_attrs["record"]
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.values = [record["accuracy"] + gains.get(str(record["steps"]), 0.0), math.log(record["latency_relative"])]
    return shown


def _running(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state, shown.values = TrialState.RUNNING, None
    return shown


def _rungs(trial: FrozenTrial) -> Rungs:
    return trial.user_attrs.get("record", {}).get("rungs", {})
