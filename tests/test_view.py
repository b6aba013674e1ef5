import math
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from kdsearch import study_store, view
from kdsearch.records import STOPPED
from tests import fake_search
from tests.fake_search import quiet_load


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Fifty trials with rungs, some of them stopped."""
    fake_search.run(tmp_path, 50)
    return quiet_load(tmp_path)


def test_optuna_gives_a_stopped_trial_of_two_objectives_no_values() -> None:
    """What this module is there for; when one of these fails, look at it again."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    trial = study.ask()
    with pytest.raises(ValueError, match=r"[Vv]alues"):
        study.tell(trial, [0.5, 1.0], state=TrialState.PRUNED)
    with pytest.raises(NotImplementedError):
        study.ask().report(0.5, 1)
    with pytest.raises(NotImplementedError):
        study.ask().should_prune()


def test_intermediate_values_in_optuna_s_own_study_of_two_objectives_break_its_sampler() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(n_startup_trials=2, seed=0))
        trial = study.ask()
        study.tell(trial, [trial.suggest_float("x", 0, 1), 0.0])
        trial = study.ask()
        study._storage.set_trial_intermediate_value(trial._trial_id, 1, trial.suggest_float("x", 0, 1))
        study.tell(trial, state=TrialState.PRUNED)
        with pytest.raises(RuntimeError, match="single direction"):
            study.ask().suggest_float("x", 0, 1)


def test_a_stopped_trial_counts_with_what_is_expected_of_it_at_the_end(study: optuna.Study) -> None:
    found = {trial.number: trial for trial in view.seen(study.trials, math.inf, math.inf)}
    stopped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert stopped
    for trial in stopped:
        shown, record = found[trial.number], trial.user_attrs["record"]
        assert trial.values is None
        assert trial.user_attrs["state"] == STOPPED
        assert shown.state == TrialState.COMPLETE
        # The fake objective's curves end 5 / step above where they are at a rung.
        assert shown.values == pytest.approx([record["accuracy"] + 5 / record["steps"], math.log(record["latency_relative"])], abs=0.02)
    assert not any("baseline" in trial.user_attrs for trial in found.values())


def test_with_few_that_went_to_the_end_a_stopped_trial_has_what_it_had(study: optuna.Study) -> None:
    some = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert view.expectations(some) == {}
    for trial, shown in zip(some, view.seen(some, math.inf, math.inf), strict=True):
        assert shown.values[0] == trial.user_attrs["record"]["accuracy"]


def test_what_is_below_the_least_accuracy_breaks_a_constraint_and_nothing_else_does(study: optuna.Study) -> None:
    found = view.seen(study.trials, math.inf, math.inf, least=0.7)
    ended = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert {len(trial.constraints) for trial in ended} == {2}
    for trial in ended:
        *_, last = trial.constraints.values()
        assert last == pytest.approx(0.7 - trial.values[0])
    assert {last > 0 for *_, last in (trial.constraints.values() for trial in ended)} == {True, False}
    assert all(len(trial.constraints) <= 1 for trial in study.trials)  # the stored trials are left as they were


def test_what_is_not_to_be_seen_yet_is_running_whatever_became_of_it(study: optuna.Study) -> None:
    found = view.seen(study.trials, last=20, before=25)
    places = [study_store.place_of(trial) for trial in found]
    assert places == sorted(places)
    assert max(places) == 24
    for trial in found:
        assert (trial.state == TrialState.RUNNING) == (study_store.place_of(trial) > 20)
        assert trial.state != TrialState.RUNNING or (trial.params and trial.values is None)


@pytest.mark.parametrize("seen", [True, False])
def test_the_sampler_learns_from_stopped_trials(seen: bool) -> None:
    """Planted: only what is worst went to the end. Optuna alone takes it for the best there is."""
    random = optuna.samplers.RandomSampler(seed=0)
    study, inside = optuna.create_study(directions=["maximize", "minimize"], sampler=random), 0
    for number in range(40):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        stopped = x < 0.7
        accuracy = 0.9 - 0.5 * x
        record = {"accuracy": accuracy, "calibrated_divergence": 1 - accuracy, "steps": 2, "latency_relative": 0.5}
        trial.set_user_attr("record", record)
        trial.set_user_attr("place", number)
        study.tell(trial, None if stopped else [accuracy, math.log(0.5)], state=TrialState.PRUNED if stopped else TrialState.COMPLETE)
    for number in range(40, 60):
        sampler = optuna.samplers.TPESampler(n_startup_trials=5, multivariate=False, seed=number)
        study.sampler = view.OfTheSpace(sampler, number, number) if seen else sampler
        trial = study.ask()
        inside += trial.suggest_float("x", 0, 1) < 0.2
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert (inside >= 15) if seen else (inside <= 5)


def test_what_is_seen_does_not_tell_what_was_interrupted_or_has_ended_meanwhile(study: optuna.Study) -> None:
    """A retry has another number than its place, and a trial behind the last that is seen may have ended: neither shows."""
    trials = study.trials
    trials[20].number = 77
    found = view.seen(trials, last=30, before=40)
    places = [view.place_of(trial) for trial in study.trials if "baseline" not in trial.user_attrs]
    assert [trial.number for trial in found] == [place for place in places if place < 40]
    behind = [trial for trial in found if trial.number > 30]
    assert behind
    assert all(trial.state == TrialState.RUNNING and "constraints" not in trial.system_attrs for trial in behind)
    assert any("constraints" in trial.system_attrs for trial in study.trials[31:40])
