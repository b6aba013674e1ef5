"""Samplers by name, seeded anew for every ask, so that a search that was stopped goes on as if it had not been."""

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from kdsearch import search_space
from kdsearch.errors import UserError
from kdsearch.order import derived
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import Search

# Up to so many trials that all run to the end, GP was ahead of TPE on a synthetic space (and takes seconds for an ask beyond them).
MOST_FOR_GP = 100


def sampler_for(plan: Search, place: int, unseen: int = 0, given: bool = False) -> BaseSampler:
    """The sampler for a place of a search: the study's own, or for ``random_share`` of the places chance.

    ``unseen``: how many of the trials before this one it does not see yet; ``given``: whether the trial has its parameters already, for
    which gp need not fit a model for seconds.
    """
    seed = derived(plan.seed, place)
    if derived(plan.seed, place, "random") < plan.random_share * 2**32 or (given and kind(plan) == "gp"):
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _made(kind(plan), plan, place, seed, max(1, plan.startup_trials - unseen))


def kind(plan: Search) -> str:
    """The sampler's name; of "auto" what it stands for: gp for up to 100 trials without rungs, else tpe."""
    if plan.sampler != "auto":
        return plan.sampler
    return "gp" if not plan.rungs and plan.trials is not None and plan.trials <= MOST_FOR_GP else "tpe"


def _made(name: str, plan: Search, place: int, seed: int, startup: int) -> BaseSampler:
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=max(2, plan.startup_trials), seed=seed)
        case "gp":
            inner = optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
            # The knobs of a branch are not in every trial, so that TPE samples them; that is no accident to be warned of.
            options: dict[str, Any] = {"independent_sampler": inner, "warn_independent_sampling": False}
            return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed, **options)
        case "qmc":
            return _AtPlace(place, plan.seed, seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
    return imported(name)(seed)


class _AtPlace(optuna.samplers.QMCSampler):
    """Scrambled Sobol points by the place of a trial; Optuna counts asks, and would count one that was interrupted."""

    def __init__(self, place: int, seed: int, own_seed: int) -> None:
        independent = optuna.samplers.RandomSampler(seed=own_seed)
        super().__init__(scramble=True, seed=seed, independent_sampler=independent, warn_independent_sampling=False)
        self.place = place

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:
        """What the first trial was asked for, ended or not; the knobs of other branches are left to chance."""
        return dict(study.get_trials(deepcopy=False)[0].distributions) if study.get_trials(deepcopy=False) else {}

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, Any]) -> int:
        return self.place


def refuse_unusable(plan: Search, space: SearchSpace) -> None:
    """Ask a sampler of the user's own for two students, in a study of two objectives that is thrown away.

    Raises:
        UserError: it cannot be imported or made, or it does not do that.
    """
    if ":" not in plan.sampler:
        return
    make = imported(plan.sampler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is said when it searches
            study = optuna.create_study(sampler=make(0), directions=["maximize", "minimize"])
            for _ in range(2):
                trial = study.ask()
                search_space.suggest(space, trial)
                study.tell(trial, [0.5, 0.0])
    except Exception as error:
        raise UserError(
            f"search.sampler: must be made by its seed alone and propose students for two objectives; {plan.sampler} says "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; choose another"
        ) from None


def imported(name: str) -> Callable[[int], BaseSampler]:
    """A sampler of the user's own, by ``module:Class``; it must take a seed.

    Raises:
        UserError: it cannot be imported, or is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"search.sampler: {name} cannot be imported ({error}); give module:Class of an installed package") from None
    if not (isinstance(found, type) and issubclass(found, BaseSampler)) or "seed" not in inspect.signature(found).parameters:
        raise UserError(f"search.sampler: {name} is no Optuna sampler that takes a seed; derive it from optuna.samplers.BaseSampler")
    made: Any = found
    return lambda seed: made(seed=seed)
