import optuna
import pytest

from kdsearch import samplers
from kdsearch.errors import UserError
from kdsearch.study_file import Search


def test_the_random_share_is_random_and_as_large_as_asked_for() -> None:
    plan = Search(sampler="tpe", random_share=0.2)
    kinds = [type(samplers.sampler_for(plan, place)) for place in range(1000)]
    assert set(kinds) == {optuna.samplers.RandomSampler, optuna.samplers.TPESampler}
    assert 150 < kinds.count(optuna.samplers.RandomSampler) < 250
    none = Search(sampler="tpe", random_share=0.0)
    assert {type(samplers.sampler_for(none, place)) for place in range(100)} == {optuna.samplers.TPESampler}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (Search(), "tpe"),
        (Search(rungs=()), "tpe"),
        (Search(rungs=(), trials=60), "gp"),
        (Search(rungs=(), trials=400), "tpe"),
        (Search(trials=60), "tpe"),
        (Search(sampler="nsga2", rungs=(), trials=60), "nsga2"),
    ],
)
def test_auto_is_gp_for_few_trials_that_all_go_to_the_end(plan: Search, expected: str) -> None:
    assert samplers.kind(plan) == expected


def test_qmc_fills_the_space_more_evenly_than_chance_also_when_a_trial_is_asked_for_again() -> None:
    plan, found = Search(sampler="qmc", random_share=0.0, seed=3), []
    study = optuna.create_study()
    for place in range(33):
        study.sampler = samplers.sampler_for(plan, place)
        found.append(study.ask().suggest_float("x", 0, 1))
    cells = {int(16 * x) for x in found[1:17]}  # the first is asked for before the space is known
    assert len(cells) >= 15
    study.sampler = samplers.sampler_for(plan, 20)
    assert study.ask().suggest_float("x", 0, 1) == found[20]


@pytest.mark.parametrize(
    ("name", "said"),
    [("no_such_package:Sampler", "cannot be imported"), ("optuna:NoSuch", "cannot be imported"), ("json:JSONDecoder", "no Optuna sampler")],
)
def test_a_sampler_of_one_s_own_that_is_none_is_the_user_s_to_mend(name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"search\.sampler: {name} .*{said}"):
        samplers.sampler_for(Search(sampler=name, random_share=0.0), 0)


def test_gp_fits_no_model_for_a_trial_that_has_its_parameters() -> None:
    """Importing a hundred trials would take it minutes; nsga2 counts generations, so that it must see them."""
    kinds = [type(samplers.sampler_for(Search(sampler=name, random_share=0), 3, given=True)) for name in ("gp", "nsga2", "tpe")]
    assert kinds == [optuna.samplers.RandomSampler, optuna.samplers.NSGAIISampler, optuna.samplers.TPESampler]
