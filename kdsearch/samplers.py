"""Samplers by name, each blind to what the space cannot express and seeded anew for every ask."""

import copy
import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from kdsearch.study_file import Search
from kdsearch.study_store import place_of


class _Searched(optuna.Study):
    """A study as a sampler may see it: without its hand-made baselines (they have no parameters, and one such trial leaves GP and NSGA-II
    no common space), without what was asked later than ``last``, and in the order of the places, whatever was interrupted."""

    last: float

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[optuna.trial.FrozenTrial]:
        found = super()._get_trials(deepcopy, states, use_cache)
        places = [(place_of(trial), trial) for trial in found if "baseline" not in trial.user_attrs]
        seen = [(place, trial) for place, trial in places if place is not None and place <= self.last]
        return [trial for _, trial in sorted(seen, key=lambda one: one[0])]


class OfTheSpace(BaseSampler):
    """A sampler that sees only the trials that were sampled from the space, up to a place (as Optuna's HyperbandPruner narrows a study)."""

    def __init__(self, inner: BaseSampler, last: float = math.inf) -> None:
        self.inner, self.last = inner, last

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
        view = copy.copy(study)
        view.__class__ = _Searched
        view.last = self.last  # pyright: ignore[reportAttributeAccessIssue] - it is a _Searched now
        return view


def make_sampler(plan: Search, seed: int, unseen: int = 0) -> BaseSampler:
    """A fresh sampler of the study's kind; the first ``startup_trials`` that are no baselines are random with every kind.

    ``unseen``: how many of the trials before this one it does not see yet.
    """
    startup = max(1, plan.startup_trials - unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match plan.sampler:
            case "tpe":
                return optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(population_size=max(2, plan.startup_trials), seed=seed)
            case "gp":
                inner = optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
                # The knobs of a branch are not in every trial, so that TPE samples them; that is no accident to be warned of.
                options: dict[str, Any] = {"independent_sampler": inner, "warn_independent_sampling": False}
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed, **options)
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)


def derived(seed: int, number: int) -> int:
    """A 32-bit seed for the ask after ``number`` trials, the same in every session."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
