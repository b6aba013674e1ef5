import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from kdsearch import records, search, search_space, space_file
from kdsearch.candidate import from_dict
from kdsearch.errors import UserError
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement
from kdsearch.samplers import OfTheSpace, make_sampler
from kdsearch.study_file import Search
from tests import fake_search


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.fake_search", str(folder), "25"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])


def stable(found: list[records.Record]) -> list[dict]:
    """What must be equal between two searches: everything but the trial's number, which counts interrupted trials too."""
    rows = [record.to_dict() for record in found]
    first = {row["trial"]: place for place, row in enumerate(rows)}
    for row in rows:
        row["duplicate_of"] = first.get(row["duplicate_of"])
        del row["trial"], row["traceback"], row["seconds"]
    return rows


def quiet_load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="fake", storage=f"sqlite:///{folder / 'study.db'}")


def test_killed_at_random_moments_it_ends_as_the_uninterrupted_search(tmp_path: Path) -> None:
    whole = fake_search.run(tmp_path / "whole", 25)
    moments = random.Random(0)
    for _ in range(6):
        events, process = moments.randint(2, 6), start(tmp_path / "killed")
        for _ in range(events):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    last = start(tmp_path / "killed")
    _, errors = last.communicate()
    assert last.returncode == 0, errors.decode()
    ended = records.read(tmp_path / "killed" / "trials.jsonl")
    assert stable(ended) == stable(whole)
    study = quiet_load(tmp_path / "killed")
    trained = [from_dict(record.candidate).key() for record in ended if record.duplicate_of is None]
    assert len(trained) == len(set(trained))
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING])
    interrupted = [trial for trial in study.trials if trial.user_attrs.get("interrupted")]
    assert interrupted
    assert all(trial.state == optuna.trial.TrialState.FAIL and "interrupted" in trial.user_attrs["reason"] for trial in interrupted)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_resumed_search_equals_the_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    whole = fake_search.run(tmp_path / "whole", 14, sampler)
    for trials in (2, 7, 8, 14):
        parts = fake_search.run(tmp_path / "parts", trials, sampler)
    assert stable(parts) == stable(whole)
    assert records.read(tmp_path / "parts" / "trials.jsonl") == parts


def test_baselines_come_first_and_once(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 2)
    found = fake_search.run(tmp_path, 6)
    assert [record.baseline for record in found] == ["no-kd", "distilbert", "tinybert", None, None, None]
    assert [from_dict(record.candidate) for record in found[:3]] == list(fake_search.BASELINES.values())


def test_starts_come_after_the_baselines_once_each_also_when_the_search_is_resumed(tmp_path: Path) -> None:
    wanted = [{"architecture.layers": 2, "architecture.heads": 12}, {"architecture.layers": 3}]
    around = replace(fake_search.around(tmp_path), starts=wanted)

    def run(trials: int) -> list[records.Record]:
        study = search.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        plan = Search(trials=trials, minutes=1000, startup_trials=8)
        return search.search(study, around, fake_search.objective, plan, fake_search.BASELINES, fake_search.Watcher())

    run(4)
    found = run(8)
    shapes = [from_dict(record.candidate).architecture for record in found]
    assert [record.baseline for record in found[:3]] == list(fake_search.BASELINES)
    assert (shapes[3].layers, shapes[3].heads, shapes[4].layers) == (2, 12, 3)
    trials = optuna.load_study(study_name="fake", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.user_attrs.get("start") for trial in trials] == [None, None, None, 0, 1, None, None, None]


def test_the_same_seed_proposes_the_same_and_another_seed_does_not(tmp_path: Path) -> None:
    def proposed(folder: str, seed: int) -> list[dict]:
        plan = Search(trials=8, seed=seed, minutes=1000)
        study = search.open_study(f"sqlite:///{tmp_path / folder}.db", "fake", {})
        return [
            r.candidate for r in search.search(study, fake_search.around(tmp_path), fake_search.objective, plan, {}, fake_search.Watcher())
        ]

    assert proposed("a", 1) == proposed("b", 1) != proposed("c", 2)


def test_a_candidate_is_not_trained_twice(tmp_path: Path) -> None:
    space = space_file.parse(
        {
            "architecture": {"layers": {"int": [1, 3]}, "heads": 2, "head_size": 16, "ffn_ratio": 1},
            "distillation": {"one_of": {"none": {}, "other": {}}},
        }
    )
    trained = []

    def count(candidate, seed, anyway):
        trained.append(candidate.key())
        return fake_search.objective(candidate, seed, anyway)

    around = search.Surroundings(space, 0.5, 1.0, tmp_path, lambda _: "")
    study = search.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    found = search.search(study, around, count, Search(trials=15, minutes=1000), {}, fake_search.Watcher())
    # Two branch names for one recipe: six paths, three students.
    assert len(trained) == len(set(trained)) == 3
    assert len(found) == 15
    for record in found:
        if record.duplicate_of is not None:
            original = found[record.duplicate_of]
            assert record.measurement == original.measurement
            assert from_dict(record.candidate).key() == from_dict(original.candidate).key()


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    space = space_file.parse({"architecture": {"layers": {"int": [1, 2]}, "heads": 2, "head_size": 16, "ffn_ratio": 1}})
    around = search.Surroundings(space, 0.5, 1.0, tmp_path, lambda _: "")
    study = search.open_study("sqlite://", "fake", {})
    found = search.search(study, around, fake_search.objective, Search(minutes=1000, sampler="random"), {}, fake_search.Watcher())
    assert len(found) <= 2 + search.MOST_DUPLICATES_IN_A_ROW + 20


def test_failing_trials_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    calls = []

    def sometimes(candidate, seed, anyway):
        calls.append(candidate)
        if len(calls) == 2:
            raise MemoryError("out of memory, says the test")
        if len(calls) == 4:
            return Measurement(COMPLETE, accuracy=float("nan"), latency_relative=0.5)
        return fake_search.objective(candidate, seed, True)

    study = search.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    found = search.search(study, fake_search.around(tmp_path), sometimes, Search(trials=8, minutes=1000), {}, fake_search.Watcher())
    assert [record.measurement.state for record in found] == [COMPLETE, FAILED, COMPLETE, FAILED, *[COMPLETE] * 4]
    assert "MemoryError: out of memory, says the test" in found[1].measurement.reason
    assert "sometimes" in found[1].measurement.traceback
    assert "not finite: accuracy nan, divergence None" in found[3].measurement.reason
    assert [trial.state.name for trial in study.trials][:4] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]


def test_too_many_failures_in_a_row_stop_the_search_and_keep_what_was_found(tmp_path: Path) -> None:
    def broken(candidate, seed, anyway):
        raise ValueError("always")

    study = search.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    plan = Search(minutes=1000, max_failures_in_a_row=3)
    with pytest.raises(RuntimeError, match="3 trials failed in a row"):
        search.search(study, fake_search.around(tmp_path), broken, plan, {}, fake_search.Watcher())
    assert len(records.read(tmp_path / "trials.jsonl")) == 3


def test_refused_candidates_are_infeasible_for_optuna_and_never_best(tmp_path: Path) -> None:
    found = fake_search.run(tmp_path, 25)
    study = quiet_load(tmp_path)
    refused = [record for record in found if record.measurement.state == REFUSED]
    assert refused
    for record in refused:
        trial = study.trials[record.trial]
        assert max(trial.constraints.values()) > 0
        # The dashboard (0.21) reads this key, and no other.
        assert trial.system_attrs["constraints"] == list(record.measurement.violations)
        assert trial.values[0] == 0.5
    best = {trial.number for trial in study.best_trials}
    assert best <= {record.trial for record in found if record.feasible}
    assert len({len(trial.constraints) for trial in study.trials if trial.state.name == "COMPLETE"}) == 1


def test_a_trial_killed_between_its_record_and_its_end_is_told_not_run_again(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 4)
    study = quiet_load(tmp_path)
    trial = study.ask()
    candidate = search_space.suggest(fake_search.SPACE, trial)
    record = records.Record(trial.number, candidate.to_dict(), fake_search.objective(candidate, 0, True), 0)
    for key, value in (("candidate", candidate.to_dict()), ("floor", 0.5), ("teacher_flops", 1.0), ("record", record.to_dict())):
        trial.set_user_attr(key, value)
    found = fake_search.run(tmp_path, 6)
    assert found[4] == record
    assert quiet_load(tmp_path).trials[4].state.name == "COMPLETE"


def test_a_candidate_that_is_killed_every_time_is_given_up(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    for _ in range(search.MOST_RETRIES + 2):
        study = quiet_load(tmp_path)
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        search.close_interrupted(study)
        trial = study.ask()
        trial.set_user_attr("candidate", search_space.suggest(fake_search.SPACE, trial).to_dict())
    tried = [t for t in quiet_load(tmp_path).trials if t.user_attrs.get("interrupted")]
    assert "not tried again" in tried[search.MOST_RETRIES].user_attrs["reason"]
    assert "queued again" in tried[0].user_attrs["reason"]


def test_a_study_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    search.open_study(url, "fake", {"space": 1, "teacher": "a"})
    search.open_study(url, "fake", {"space": 1, "teacher": "a"})
    study = search.open_study(url, "fake", {"space": 1, "teacher": "b"})  # nothing was tried yet: the file may be mended
    study.ask()
    with pytest.raises(UserError, match="teacher differs"):
        search.open_study(url, "fake", {"space": 1, "teacher": "a"})


def test_a_study_that_someone_else_made_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="fake").ask()
    with pytest.raises(UserError, match="its study 'fake' was not made by kdsearch"):
        search.open_study(url, "fake", {})


@pytest.mark.parametrize("url", ["nonsense://x", "not a url", "sqlite:////no/such/folder/study.db"])
def test_a_storage_that_cannot_be_opened_is_the_user_s_to_mend(url: str) -> None:
    with pytest.raises(UserError, match=r"cannot be opened .*correct it with --storage"):
        search.open_study(url, "fake", {})


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_baselines_leave_the_model_based_samplers_a_common_space(tmp_path: Path, sampler: str) -> None:
    """A trial without parameters among the complete ones would empty it, and every proposal would be random."""
    fake_search.run(tmp_path, 10, sampler)
    study = quiet_load(tmp_path)
    assert sum("baseline" in trial.user_attrs for trial in study.trials) == 3
    wrapped = OfTheSpace(make_sampler(Search(sampler=sampler, startup_trials=5), 0))  # pyright: ignore[reportArgumentType]
    common = wrapped.infer_relative_search_space(study, study.trials[-1])
    assert {"architecture.layers", "architecture.heads", "distillation", "training.learning_rate"} <= set(common)


def test_a_retry_is_queued_once_and_whole_wherever_a_kill_falls(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    study = quiet_load(tmp_path)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    trial = study.ask()
    candidate = search_space.suggest(fake_search.SPACE, trial)
    trial.set_user_attr("candidate", candidate.to_dict())
    study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, "retries": 1, "retry_of": trial.number})  # killed right after this
    search.close_interrupted(study)
    again = study.ask()  # the retry, killed while it asks for its second parameter
    again.set_user_attr("candidate", candidate.to_dict())
    again.suggest_int("architecture.layers", 1, 6)
    search.close_interrupted(study)
    search.close_interrupted(study)
    (waiting,) = study.get_trials(states=[optuna.trial.TrialState.WAITING])
    assert waiting.user_attrs["retries"] == 2
    assert search_space.suggest(fake_search.SPACE, study.ask()) == candidate


def test_the_budget_is_shared_by_all_sessions(tmp_path: Path) -> None:
    plan = Search(minutes=5 / 60, startup_trials=2)
    for _ in range(2):
        study = search.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        found = search.search(study, fake_search.around(tmp_path), fake_search.objective, plan, {}, fake_search.Watcher())
        assert sum(r.measurement.seconds for r in found) == pytest.approx(5, abs=1)


def test_trials_carry_notes_that_the_dashboard_shows(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    study = quiet_load(tmp_path)
    notes = [value for key, value in study._storage.get_study_system_attrs(study._study_id).items() if "note" in key]
    assert any("trial 2" in str(value) for value in notes)


def test_trials_file_is_derived_from_the_storage(tmp_path: Path) -> None:
    found = fake_search.run(tmp_path, 5)
    (tmp_path / "trials.jsonl").write_text("torn")
    assert fake_search.run(tmp_path, 5) == found == records.read(tmp_path / "trials.jsonl")
    assert all(json.loads(row)["candidate"] for row in (tmp_path / "trials.jsonl").read_text().splitlines())
