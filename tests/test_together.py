from pathlib import Path

import optuna
import pytest

from kdsearch import study_store
from kdsearch.together import storage_of, together


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})


def stored(study: optuna.Study, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
    """A trial as another process would read it."""
    storage = study_store.backend(str(study._storage._backend.engine.url))  # pyright: ignore[reportAttributeAccessIssue]
    return storage.get_trial(trial._trial_id)


def test_what_is_set_inside_is_written_at_the_end_and_only_then(study: optuna.Study) -> None:
    trial = study.ask()
    with together(study):
        x = trial.suggest_float("x", 0, 1)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("place", 7)
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        storage_of(study).add_study_attrs(study._study_id, {"version": 1, "note": "text"})
        assert stored(study, trial).params == {}
    found = stored(study, trial)
    assert found.params == {"x": x, "kind": kind}
    assert found.user_attrs == {"place": 7}
    assert found.system_attrs["constraints"] == [1.0]
    assert study._storage.get_study_system_attrs(study._study_id)["note"] == "text"


def test_what_somebody_else_has_set_of_a_study_stays(study: optuna.Study) -> None:
    storage = storage_of(study)
    storage.add_study_attrs(study._study_id, {"version": 3, "note": "theirs"})
    with together(study):
        storage.add_study_attrs(study._study_id, {"version": 1, "note": "ours", "more": "of it"})
    found = study._storage.get_study_system_attrs(study._study_id)
    assert (found["version"], found["note"], found.get("more")) == (3, "theirs", None)


def test_after_an_error_nothing_is_written(study: optuna.Study) -> None:
    trial = study.ask()

    def fail() -> None:
        with together(study):
            trial.set_user_attr("place", 7)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert stored(study, trial).user_attrs == {}
    trial.set_user_attr("place", 8)  # outside of a block at once, as ever
    assert stored(study, trial).user_attrs == {"place": 8}


def test_a_parameter_whose_domain_changed_is_refused_as_by_optuna(study: optuna.Study) -> None:
    study.ask().suggest_categorical("kind", ["a", "b"])
    with pytest.raises(ValueError, match="does not support dynamic value space"), together(study):
        study.ask().suggest_categorical("kind", ["a", "c"])


def test_a_storage_that_cannot_hold_back_writes_at_once() -> None:
    study = optuna.create_study()
    trial = study.ask()
    with together(study):
        trial.set_user_attr("place", 7)
        assert study.trials[0].user_attrs == {"place": 7}
