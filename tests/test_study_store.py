import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note, save_note

from kdsearch import records, search, search_space, session, study_store
from kdsearch.errors import UserError
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, Measurement
from kdsearch.study_file import Search
from kdsearch.together import storage_of
from tests import fake_search, postgres
from tests.fake_search import quiet_load
from tests.test_search import stable


def test_a_trial_killed_between_its_record_and_its_end_is_told_not_run_again(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 4)
    study = quiet_load(tmp_path)
    trial = study.ask()
    candidate = search_space.suggest(fake_search.SPACE, trial)
    record = records.Record(trial.number, candidate.to_dict(), fake_search.objective(Order(candidate, 0, True)), 0)
    for key, value in (
        ("place", 4),
        ("candidate", candidate.to_dict()),
        ("floor", 0.5),
        ("teacher_flops", 1.0),
        ("record", record.to_dict()),
    ):
        trial.set_user_attr(key, value)
    found = fake_search.run(tmp_path, 6)
    assert found[4] == record
    assert quiet_load(tmp_path).trials[4].state.name == "COMPLETE"


def test_a_candidate_that_is_killed_every_time_is_given_up(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    for _ in range(study_store.MOST_RETRIES + 2):
        study = quiet_load(tmp_path)
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        study_store.close_interrupted(study)
        trial = study.ask()
        trial.set_user_attr("place", 3)
        trial.set_user_attr("candidate", search_space.suggest(fake_search.SPACE, trial).to_dict())
    assert study_store.stored_records(quiet_load(tmp_path))[3].measurement.state == FAILED
    tried = [t for t in quiet_load(tmp_path).trials if t.user_attrs.get("interrupted")]
    assert "not tried again" in tried[study_store.MOST_RETRIES].user_attrs["reason"]
    assert "queued again" in tried[0].user_attrs["reason"]


def test_a_study_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study_store.open_study(url, "fake", {"space": 1, "teacher": "a"})
    study_store.open_study(url, "fake", {"space": 1, "teacher": "a"})
    study = study_store.open_study(url, "fake", {"space": 1, "teacher": "c"})
    study.enqueue_trial({})
    study = study_store.open_study(url, "fake", {"space": 1, "teacher": "b"})  # nothing was tried yet: the file may be mended
    study.ask()
    with pytest.raises(UserError, match=r'teacher differs from what its 1 trials .* \("b" then, "a" now\); .* --from takes over'):
        study_store.open_study(url, "fake", {"space": 1, "teacher": "a"})


def test_a_setting_of_a_later_version_that_is_not_used_changes_no_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study_store.open_study(url, "fake", {"limits": {"parameters": 1}}).ask()
    study_store.open_study(url, "fake", {"limits": {"parameters": 1, "memory_megabytes": None}})
    with pytest.raises(UserError, match=r"limits differs .* \(memory_megabytes null then, 5.0 now\)"):
        study_store.open_study(url, "fake", {"limits": {"parameters": 1, "memory_megabytes": 5.0}})


@pytest.mark.parametrize("directions", [["minimize", "minimize"], ["maximize"]])
def test_a_study_of_other_directions_is_refused_before_its_first_trial(tmp_path: Path, directions: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="fake", directions=directions)
    with pytest.raises(UserError, match=f"not made by kdsearch .*goes for {', '.join(directions)}"):
        study_store.open_study(url, "fake", {})


def test_a_note_that_a_reader_wrote_while_the_trial_ran_stays(tmp_path: Path) -> None:
    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})

    def written_while_it_runs(order: Order) -> Measurement:
        save_note(optuna.trial.Trial(study, study.trials[-1]._trial_id), "mine")
        return fake_search.objective(order)

    around = fake_search.around(tmp_path, Search(trials=2, minutes=1000))
    search.search(study, around, written_while_it_runs, fake_search.Watcher())
    assert [get_note(optuna.trial.Trial(study, trial._trial_id)) for trial in study.trials] == ["mine", "mine"]


def test_a_study_that_someone_else_made_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="fake").ask()
    with pytest.raises(UserError, match="its study 'fake' was not made by kdsearch"):
        study_store.open_study(url, "fake", {})


@pytest.mark.parametrize("url", ["nonsense://x", "not a url", "sqlite:////no/such/folder/study.db"])
def test_a_storage_that_cannot_be_opened_is_the_user_s_to_mend(url: str) -> None:
    with pytest.raises(UserError, match=r"cannot be opened .*correct it with --storage"):
        study_store.open_study(url, "fake", {})


def test_a_retry_is_queued_once_and_whole_wherever_a_kill_falls(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    study = quiet_load(tmp_path)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    trial = study.ask()
    candidate = search_space.suggest(fake_search.SPACE, trial)
    trial.set_user_attr("candidate", candidate.to_dict())
    study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, "retries": 1, "retry_of": trial.number})  # killed right after this
    study_store.close_interrupted(study)
    again = study.ask()  # the retry, killed while it asks for its second parameter
    again.set_user_attr("candidate", candidate.to_dict())
    again.suggest_int("architecture.layers", 1, 6)
    study_store.close_interrupted(study)
    study_store.close_interrupted(study)
    (waiting,) = study.get_trials(states=[optuna.trial.TrialState.WAITING])
    assert waiting.user_attrs["retries"] == 2
    assert search_space.suggest(fake_search.SPACE, study.ask()) == candidate


def test_trials_carry_notes_that_the_dashboard_shows(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    study = quiet_load(tmp_path)
    notes = [value for key, value in study._storage.get_study_system_attrs(study._study_id).items() if "note" in key]
    assert any("trial 2" in str(value) for value in notes)


def test_what_the_first_session_found_holds_for_the_later_ones(tmp_path: Path) -> None:
    for value in (2, 1):
        study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        assert study_store.as_before(study, "workers", value) == 2


def test_a_kill_between_a_given_up_trial_s_record_and_its_end_leaves_a_study_that_resumes(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 3)
    study = quiet_load(tmp_path)
    trial = study.ask()
    trial.set_user_attr("place", 3)
    record = records.Record(trial.number, fake_search.BASELINES["no-kd"].to_dict(), Measurement(FAILED, reason="given up"), 0)
    trial.set_user_attr("record", record.to_dict())
    study_store.close_interrupted(study)
    assert study_store.stored_records(study)[3] == record
    assert quiet_load(tmp_path).trials[3].state.name == "FAIL"


def test_trials_of_before_there_were_places_keep_their_numbers(tmp_path: Path) -> None:
    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    for number in range(2):
        trial = study.ask()
        record = records.Record(number, {}, Measurement(COMPLETE, accuracy=0.5), 0)
        study_store.tell(study, trial, record, "", 0.5, 1.0)
    assert list(study_store.stored_records(study)) == [0, 1]


HOLDS = """
import sys
from kdsearch import study_store
with study_store.alone(sys.argv[1], sys.argv[2]):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(storage: str, name: str) -> Iterator[None]:
    """While open, another process has the storage; in the end it is killed."""
    command, pipe = [sys.executable, "-c", HOLDS, storage, name], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[1]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        yield
        other.kill()


def test_sqlite_is_for_one_controller_whatever_the_study_and_the_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "study.db")
    with held_elsewhere(f"sqlite:///{tmp_path}/study.db", "one"):
        for url in (f"sqlite:///{tmp_path}/study.db", "sqlite:///study.db", "sqlite:///link.db"):
            with pytest.raises(UserError, match=f"storage {url}: another kdsearch is writing to it, and SQLite has one writer; wait"):
                study_store.alone(url, "other").__enter__()
        for url in ("sqlite:///other.db", "sqlite://", "mysql://server/studies"):  # not this file; in memory; not guarded
            with study_store.alone(url, "one"):
                pass
    with study_store.alone("sqlite:///study.db", "one"):  # its holder was killed
        pass


def test_a_folder_that_is_not_there_is_not_made_for_a_lock(tmp_path: Path) -> None:
    with study_store.alone(f"sqlite:///{tmp_path}/absent/study.db", "one"):
        assert not (tmp_path / "absent").exists()


@pytest.mark.skipif(not postgres.INITDB or not find_spec("psycopg"), reason="needs PostgreSQL and psycopg")
def test_of_postgresql_a_study_is_for_one_controller_and_the_server_may_go_away_for_a_while(tmp_path: Path) -> None:
    whole, folder = fake_search.run(tmp_path / "whole", 8), tmp_path / "study"
    folder.mkdir()

    def run(objective: Callable[[Order], Measurement]) -> list[records.Record]:
        with study_store.alone(server.url, "fake"), session.kept(folder, server.url):
            study = study_store.open_study(server.url, "fake", {})
            plan = Search(sampler="tpe", trials=8, startup_trials=5, minutes=1000)
            try:
                return search.search(study, fake_search.around(folder, plan, fake_search.BASELINES), objective, fake_search.Watcher())
            finally:
                storage_of(study).engine.dispose()  # psycopg warns of connections that nobody closes

    def gone(order: Order) -> Measurement:
        server.stop()
        return fake_search.objective(order)

    with postgres.server() as server:
        with held_elsewhere(server.url, "fake"):
            with pytest.raises(UserError, match="another kdsearch is running the study 'fake' in it; wait for it, or give this one"):
                study_store.alone(server.url, "fake").__enter__()
            with study_store.alone(server.url, "other"):
                pass
        with pytest.raises(RuntimeError, match=r"storage postgresql.*: .*; finished trials are kept, and the same command goes on"):
            run(gone)
        with pytest.raises(UserError, match="cannot be opened"):
            run(fake_search.objective)
        server.start()
        assert stable(run(fake_search.objective)) == stable(whole)
