"""What ends a search from outside: a full disk, a storage or a folder that is gone. Once that is mended, it goes on as if nothing was."""

import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from kdsearch import records, search, session, space_file, study_store
from kdsearch.check import Study
from kdsearch.earlier import Taken
from kdsearch.errors import UserError
from kdsearch.order import Order
from kdsearch.records import Measurement, Record
from kdsearch.study_file import Search, StudySpec
from tests import fake_search
from tests.test_search import stable

TRIALS, FAULT = 14, 7
GOES_ON = "; finished trials are kept, and the same command goes on from there once it is mended"
UNTIL_FULL = """
import sys
from pathlib import Path
from kdsearch import cli, session
from tests import fake_search
folder = Path(sys.argv[1])
def run():
    with session.kept(folder, f"sqlite:///{folder}/study.db"):
        fake_search.run(folder, 14, at_once=int(sys.argv[2]))
cli.main(run)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return fake_search.run(tmp_path_factory.mktemp("whole"), TRIALS)


def run(folder: Path, fault: Callable[[], object] = lambda: None, database: Path | None = None) -> list[Record]:
    """The search of fake_search, with a fault while the eighth candidate that is new is evaluated."""
    calls, url = [], f"sqlite:///{database or folder / 'study.db'}"

    def objective(order: Order) -> Measurement:
        calls.append(order)
        if len(calls) == FAULT:
            fault()
        return fake_search.objective(order)

    folder.mkdir(exist_ok=True)
    with session.kept(folder, url):
        study = study_store.open_study(url, "fake", {})
        plan = Search(sampler="tpe", trials=TRIALS, startup_trials=5, minutes=1000)
        return search.search(study, fake_search.around(folder, plan, fake_search.BASELINES), objective, fake_search.Watcher())


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("at_once", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_full_disk_is_told_in_one_line_and_the_search_goes_on_when_there_is_room(tmp_path: Path, at_once: int) -> None:
    """A limit on the size of files is what a process can be given of a full disk."""
    most, folder = 400 * 1024, tmp_path / "full"
    command = [sys.executable, "-c", UNTIL_FULL, str(folder), str(at_once)]
    ended = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"failed: storage sqlite:///{folder}/study.db: ")
    assert line.endswith(GOES_ON)
    assert 0 < len(records.read(folder / "trials.jsonl")) < TRIALS
    resumed = fake_search.run(folder, TRIALS, at_once=at_once)
    assert stable(resumed) == stable(fake_search.run(tmp_path / "whole", TRIALS, at_once=at_once))


def test_a_table_that_is_missing_for_a_while(tmp_path: Path, whole: list[Record]) -> None:
    database = tmp_path / "study.db"
    with pytest.raises(RuntimeError, match=f"storage sqlite:///{database}: no such table: trial_user_attributes{GOES_ON}"):
        run(tmp_path, lambda: execute(database, "ALTER TABLE trial_user_attributes RENAME TO gone"))
    execute(database, "ALTER TABLE gone RENAME TO trial_user_attributes")
    assert stable(run(tmp_path)) == stable(whole)


def test_a_database_that_may_only_be_read_for_a_while(tmp_path: Path, whole: list[Record]) -> None:
    database = tmp_path / "study.db"
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON trial_user_attributes BEGIN SELECT RAISE(ABORT, 'no permission'); END"
    with pytest.raises(RuntimeError, match=f"no permission{GOES_ON}"):
        run(tmp_path, lambda: execute(database, refuse))
    execute(database, "DROP TRIGGER refuse")
    assert stable(run(tmp_path)) == stable(whole)


def test_a_database_that_is_deleted_is_saved_again_with_all_that_it_had(tmp_path: Path, whole: list[Record]) -> None:
    def delete() -> None:
        for file in tmp_path.glob("study.db*"):
            file.unlink()

    with pytest.raises(RuntimeError, match=r"study.db: was moved or deleted while the search ran; it is saved there again, and the same"):
        run(tmp_path, delete)
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.endswith(("-wal", "-shm"))) == ["study.db", "trials.jsonl"]
    assert list(study_store.stored_records(fake_search.quiet_load(tmp_path))) == list(range(FAULT - 1))
    assert stable(run(tmp_path)) == stable(whole)


def test_a_database_that_is_moved_is_saved_again_without_what_lay_beside_it(tmp_path: Path, whole: list[Record]) -> None:
    with pytest.raises(RuntimeError, match="saved there again"):
        run(tmp_path, lambda: (tmp_path / "study.db").rename(tmp_path / "other.db"))  # its write-ahead log stays
    assert stable(run(tmp_path)) == stable(whole)


def test_another_file_in_the_database_s_place_is_left_alone(tmp_path: Path, whole: list[Record]) -> None:
    database, away = tmp_path / "study.db", tmp_path / "away"

    def put_another() -> None:
        away.mkdir()
        for file in tmp_path.glob("study.db*"):
            file.rename(away / file.name)
        database.write_text("mine")

    with pytest.raises(RuntimeError, match=r"cannot be saved there again \(another file has its name\); put it back, and the same command"):
        run(tmp_path, put_another)
    assert database.read_text() == "mine"
    for file in away.iterdir():
        file.rename(tmp_path / file.name)
    assert stable(run(tmp_path)) == stable(whole)


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path, whole: list[Record]) -> None:
    folder, database = tmp_path / "study", tmp_path / "elsewhere.db"
    with pytest.raises(RuntimeError, match=f"folder {folder}: No such file or directory{GOES_ON}"):
        run(folder, lambda: shutil.rmtree(folder), database)
    assert stable(run(folder, database=database)) == stable(whole)


def test_a_study_that_is_deleted_from_the_storage_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(RuntimeError, match=f"storage {url}: the study was deleted from it while the search ran"):
        run(tmp_path, lambda: optuna.delete_study(study_name="fake", storage=url))


def test_an_error_of_another_kind_or_place_stays_as_it_is(tmp_path: Path) -> None:
    for error in (KeyError("architecture"), FileNotFoundError(2, "No such file", "/elsewhere/model"), ValueError("x")):
        with pytest.raises(type(error)) as raised, session.kept(tmp_path, "sqlite://"):
            raise error
        assert raised.value is error


def test_a_password_is_not_told() -> None:
    assert study_store.shown("postgresql://me:secret@server/studies") == "postgresql://me:***@server/studies"


def test_a_disk_that_is_full_of_the_folder_s_files_is_told_as_the_folder(tmp_path: Path) -> None:
    records.write_text(tmp_path / "trials.jsonl", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(RuntimeError, match=f"folder {tmp_path}: File too large{GOES_ON}"), session.kept(tmp_path, "sqlite://"):
            records.write_text(tmp_path / "trials.jsonl", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("trials.jsonl", "old")]


TAKEN, OTHERS = Taken([{"architecture.layers": 2}], [], ["from a: 0 trials imported"]), Taken([], [], ["from b: nothing"])


class Store(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(user_attrs={}, trials=[])

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value


def never() -> Taken:
    raise AssertionError("what the first session took is not taken anew")


@pytest.fixture
def study(tmp_path: Path) -> Any:
    return SimpleNamespace(folder=tmp_path)


def test_what_the_first_session_took_stays_with_and_without_the_option(study: Any) -> None:
    store, sources = Store(), [Path("a"), Path("b")]
    assert session.taken_as_before(study, store, sources, lambda: TAKEN) == TAKEN
    assert session.taken_as_before(study, store, [], never) == TAKEN
    store.trials.append("one")
    session.refuse_other_sources(study, store, [Path("b"), Path("a"), Path("a")])
    for again in ([], sources):
        assert session.taken_as_before(study, store, again, never) == TAKEN


def test_before_the_first_trial_other_studies_may_be_named(study: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    session.refuse_other_sources(study, store, [Path("b")])
    assert session.taken_as_before(study, store, [Path("b")], lambda: OTHERS) == OTHERS
    assert session.taken_as_before(study, store, [], never) == OTHERS


def test_a_study_that_started_from_none_goes_on_with_none(study: Any) -> None:
    store = Store()
    assert session.taken_as_before(study, store, [], never) == Taken()
    store.trials.append("one")
    assert session.taken_as_before(study, store, [], never) == Taken()
    with pytest.raises(UserError, match="--from: must name what the study's 1 trials started from: no other study; leave it out"):
        session.refuse_other_sources(study, store, [Path("a")])


def test_other_studies_than_the_first_session_s_and_the_study_itself_are_refused(study: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    store.trials.append("one")
    for others in ([Path("b")], [Path("a"), Path("b")]):
        with pytest.raises(UserError, match=f"started from: {Path('a').resolve()}; leave it out"):
            session.refuse_other_sources(study, store, others)
    with pytest.raises(UserError, match=r"must name other studies; .* is this one"):
        session.refuse_other_sources(study, store, [study.folder / ".." / study.folder.name])


@pytest.mark.parametrize("spoil", [lambda place: place.write_text("{}"), lambda place: place.unlink()])
def test_what_was_taken_and_changed_since_is_refused(study: Any, spoil: Any) -> None:
    store = Store()
    session.taken_as_before(study, store, [Path("a")], lambda: TAKEN)
    store.trials.append("one")
    spoil(study.folder / "earlier.json")
    with pytest.raises(UserError, match=r"earlier\.json: must be as the first session wrote it"):
        session.taken_as_before(study, store, [], never)


def test_what_students_are_made_from_besides_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("one")
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_text("two")
    shape = {"layers": 2, "heads": 2, "head_size": 16, "ffn_ratio": 1}

    def key(corpus: str | None = "corpus.txt", **initialization: str) -> str:
        content = {"name": "x", "teacher": {"model": "m"}, "task": {"data": "d", "corpus": corpus}, "space": "s", "proxy": {"steps": 1}}
        space = space_file.parse({"architecture": shape, **({"initialization": initialization} if initialization else {})})
        return session.files_key(Study(tmp_path, StudySpec.model_validate(content), space, tmp_path))

    start = {"layers": "pretrained", "width": "slice", "model": "./model"}
    before = [key(None), key(), key(**start)]
    assert len(set(before)) == 3
    assert [key(None), key(), key(**start)] == before
    weights.write_text("another")
    assert [key(None), key(), key(**start)][:2] == before[:2]
    assert key(**start) != before[2]
    (tmp_path / "corpus.txt").write_text("another")
    assert key() != before[1]
