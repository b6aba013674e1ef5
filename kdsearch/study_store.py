"""What a study's storage holds: opened for one study only, its finished trials as records, and what a kill left behind.

A trial has a *place*: the number it would have had if nothing had been interrupted. A retry keeps the place of what it retries, so that a
search that was killed sees its trials in the order of one that was not.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.storages._rdb.models import NOT_FOUND_MSG
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kdsearch import records
from kdsearch.errors import UserError
from kdsearch.records import FAILED, STOPPED, Measurement, Record
from kdsearch.together import Storage, storage_of, together

MADE_BY, SECONDS = "made by", "seconds searched"
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]
METRICS = ["accuracy", "log latency (relative to the teacher)"]
MOST_RETRIES, LONGEST_SAID = 3, 200
# What a retry takes over from the trial that was interrupted.
KEPT = ("baseline", "candidate", "start", "place")
# What the dashboard has as columns.
SHOWN = ("state", "accuracy_se", "divergence", "latency_ms", "latency_relative", "parameters", "reason")


def open_study(storage: str, name: str, facts: dict[str, Any]) -> optuna.Study:
    """The study of this name, new or as it was left.

    Raises:
        UserError: the stored study was made with another teacher, data, space, target or seed; the message names what differs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            study = optuna.create_study(storage=backend(storage), study_name=name, directions=DIRECTIONS, load_if_exists=True)
        except (SQLAlchemyError, ImportError, ValueError, optuna.exceptions.OptunaError) as error:
            raise _closed(storage, error) from None
        # Optuna takes up a study of that name whatever it was made for, and whatever its directions are.
        theirs = [direction.name.lower() for direction in study.directions]
        if theirs != DIRECTIONS or (study.trials and study.user_attrs.get(MADE_BY) != "kdsearch"):
            raise UserError(
                f"storage {shown(storage)}: its study '{name}' was not made by kdsearch (it has {len(study.trials)} trials, and goes for "
                f"{', '.join(theirs)}); give this one another name or --storage"
            )
        study.set_user_attr(MADE_BY, "kdsearch")
        study.set_metric_names(METRICS)
    same_as_before(study, facts)
    return study


@contextmanager
def alone(storage: str, name: str) -> Iterator[None]:
    """A storage for one controller: SQLite has one writer, so its file is locked for any study; of PostgreSQL the study of this name is.

    Two controllers of one study would close each other's running trials. On MySQL and other servers nothing keeps a second one away.

    Raises:
        UserError: another kdsearch has it, or the storage cannot be opened.
    """
    with ExitStack() as held:
        try:
            url = make_url(storage)
            file = _file_of(url)
            if file and file.parent.is_dir():
                held.enter_context(FileLock(file.with_name(f".{file.name}.lock"), timeout=0))
            elif url.get_backend_name() == "postgresql" and not held.enter_context(_advisory_lock(url, name)):
                raise UserError(
                    f"storage {shown(storage)}: another kdsearch is running the study '{name}' in it; wait for it, or give this one "
                    "another name"
                )
        except Timeout:
            raise UserError(
                f"storage {shown(storage)}: another kdsearch is writing to it, and SQLite has one writer; wait for it, or choose another "
                "with --storage"
            ) from None
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise _closed(storage, error) from None
        yield


def _closed(storage: str, error: Exception) -> UserError:
    return UserError(f"storage {shown(storage)}: cannot be opened ({' '.join(str(error).split())[:200]}); correct it with --storage")


def _file_of(url: URL) -> Path | None:
    """The file of an SQLite database; none of one in memory, or of a server's."""
    plain = url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":memory:", "file:"))
    return Path(str(url.database)).resolve() if plain else None


@contextmanager
def _advisory_lock(url: URL, name: str) -> Iterator[bool]:
    """Whether PostgreSQL gave a lock of this name; it keeps it for as long as the connection lives."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
    key = int.from_bytes(hashlib.sha256(f"kdsearch {name}".encode()).digest()[:8], signed=True)
    with engine.connect() as connection:
        yield bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar())


def same_as_before(study: optuna.Study, facts: dict[str, Any]) -> None:
    """Remember what a study's trials depend on, or compare it with what was remembered.

    Raises:
        UserError: something differs; the message names it.
    """
    fix = "restore it to resume, or give the study another name or --out folder; --from takes over what this one has found"
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    messages = []
    for key, value in facts.items():
        before = study.user_attrs.get(key)
        if key not in study.user_attrs or not begun:  # before the first trial nothing depends on it
            study.set_user_attr(key, value)
        elif _as_text(before) != _as_text(value):
            what = f"study '{study.study_name}': {key} differs from what its {len(begun)} trials were made with{_changes(before, value)}"
            messages.append(f"{what}; {fix}")
    if messages:
        raise UserError(messages)


def _changes(before: Any, now: Any) -> str:
    """What was and what is, in brackets: of settings the keys that differ, of a single value itself; nothing of what is long."""
    pairs = [("", before, now)]
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{key} ", before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)]
    said = ", ".join(f"{key}{json.dumps(old)} then, {json.dumps(new)} now" for key, old, new in pairs)
    return f" ({said})" if len(said) <= LONGEST_SAID else ""


def _as_text(value: Any) -> str:
    """A setting as text; a key of a later version that is not used is as good as absent."""
    used = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value
    return json.dumps(used, sort_keys=True)


def backend(storage: str) -> Storage:
    """The storage behind a URL; SQLite waits up to a minute for a lock, and syncs to the disk seldom.

    With a write-ahead log a commit survives the death of the process without waiting for the disk; only the machine's own takes the last.
    """
    if not storage.startswith("sqlite"):
        return Storage(storage, engine_kwargs={"pool_pre_ping": True})
    found = Storage(storage, engine_kwargs={"connect_args": {"timeout": 60}})
    if found.engine.url.database:
        with found.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        event.listen(found.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
        found.engine.dispose()  # connections made before have not heard of it
        file = _file_of(found.engine.url)
        found.file = (file, file.stat().st_ino) if file else None
    return found


def trouble(error: Exception) -> str | None:
    """What a storage said when it failed (its disk is full, its server is gone, a table is missing), in short; None of any other error."""
    if isinstance(error, KeyError) and error.args == (NOT_FOUND_MSG,):
        return "the study was deleted from it while the search ran"
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
    if not isinstance(cause, SQLAlchemyError):
        return None
    said = cause.orig if isinstance(cause, DBAPIError) else cause
    return " ".join(str(said).split())[:200]


def shown(storage: str) -> str:
    """A storage's URL without its password."""
    try:
        return make_url(storage).render_as_string()
    except ArgumentError:
        return storage


def refuse_moved(study: optuna.Study) -> None:
    """SQLite goes on writing into a file that was deleted, and what it wrote is lost when it ends; here it is saved under its name again.

    Raises:
        RuntimeError: the file was moved or deleted since the storage was opened.
    """
    storage = storage_of(study)
    if storage is None or storage.file is None:
        return
    path, inode = storage.file
    there = path.stat().st_ino if path.exists() else None
    if there == inode:
        return
    try:
        if there is not None:
            raise FileExistsError("another file has its name")
        _save_as(storage, path)
        then = "it is saved there again, and the same command goes on from it"
    except (OSError, SQLAlchemyError) as error:
        then = f"it cannot be saved there again ({trouble(error) or error}); put it back, and the same command goes on from it"
    raise RuntimeError(f"storage {path}: was moved or deleted while the search ran; {then}")


def _save_as(storage: Storage, path: Path) -> None:
    aside = path.with_name(f"{path.name}.saved")
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("VACUUM INTO ?", (str(aside),))
    for end in ("-wal", "-shm"):  # what is left of the old file must not be read into the new one
        Path(f"{path}{end}").unlink(missing_ok=True)
    aside.replace(path)


def as_before(study: optuna.Study, key: str, value: Any) -> Any:
    """The value that the first session has remembered; in the first session, this one."""
    if key not in study.user_attrs:
        study.set_user_attr(key, value)
        return value
    return study.user_attrs[key]


def place_of(trial: FrozenTrial) -> int | None:
    """A trial's place in the search, of a finished one without it the number; None before it was given one."""
    return trial.user_attrs.get("place", trial.number if trial.state.is_finished() else None)


def stored_records(study: optuna.Study) -> dict[int, Record]:
    """The record of every finished trial by its place, in order; interrupted trials have none."""
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    found = {place_of(trial): records.from_dict(trial.user_attrs["record"]) for trial in finished if "record" in trial.user_attrs}
    return {place: found[place] for place in sorted(place for place in found if place is not None)}


def close_interrupted(study: optuna.Study) -> None:
    """Settle trials that a kill left running: one with a record is told, any other is failed and its candidate queued again."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if "record" in trial.user_attrs:
            record = records.from_dict(trial.user_attrs["record"])
            floor, teacher_flops = (trial.user_attrs.get(key, 1.0) for key in ("floor", "teacher_flops"))  # a failed one has none
            study.tell(trial.number, values(record, floor, teacher_flops), state=state(record))
        else:
            _close(study, trial)
    _queue_by_place(study)


def _queue_by_place(study: optuna.Study) -> None:
    """Optuna takes what waits by its number, and a retry has a later one than what was queued after the trial that it retries: such are
    queued anew, in the order of their places, those without a place yet last. What a kill left twice is queued once."""
    waiting = study.get_trials(states=[TrialState.WAITING])
    ordered = sorted(waiting, key=lambda trial: math.inf if (place := place_of(trial)) is None else place)
    once = {tuple(trial.user_attrs.get(key) for key in ("baseline", "start", "place")): trial for trial in ordered}
    if [trial.number for trial in once.values()] == [trial.number for trial in waiting]:
        return
    for trial in once.values():
        study.enqueue_trial(trial.system_attrs.get("fixed_params", {}), user_attrs=trial.user_attrs)
    for trial in waiting:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _close(study: optuna.Study, trial: FrozenTrial) -> None:
    live = optuna.trial.Trial(study, trial._trial_id)
    live.set_user_attr("interrupted", True)
    retries = trial.user_attrs.get("retries", 0)
    attributes = {key: trial.user_attrs[key] for key in KEPT if key in trial.user_attrs}
    known = "candidate" in attributes or "start" in attributes
    again = known and retries < MOST_RETRIES
    # A kill may have come after the queueing and before the end.
    queued = any(other.user_attrs.get("retry_of") == trial.number for other in study.get_trials(deepcopy=False))
    reason = "interrupted: the process ended while it ran" + ("; queued again" if again else "; not tried again")
    live.set_user_attr("reason", reason)
    if again and not queued:
        # A retry that was killed while it was still asking has only part of its parameters; the queue's own attribute has all.
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        study.enqueue_trial(params, user_attrs={**attributes, "retries": retries + 1, "retry_of": trial.number})
    if "candidate" in attributes and not again:
        # It holds its place: the same sampler would propose it again.
        record = Record(trial.number, attributes["candidate"], Measurement(FAILED, reason=reason), 0, attributes.get("baseline"))
        live.set_user_attr("record", record.to_dict())
    study.tell(trial.number, state=TrialState.FAIL)


def tell(study: optuna.Study, trial: optuna.Trial, record: Record, note: str, floor: float, teacher_flops: float) -> None:
    """Write all of a trial at once, then finish it: after a kill it is told from its record or was never there.

    Raises:
        RuntimeError: the storage's file was moved or deleted.
    """
    refuse_moved(study)
    found = record.measurement
    shown = {"imported_from": record.imported_from, **{key: getattr(found, key) for key in SHOWN}}
    kept = {"floor": floor, "teacher_flops": teacher_flops, "record": record.to_dict()}
    with together(study):
        if found.violations:
            # The key that both Optuna's samplers and the dashboard (0.21) read; Trial.set_constraint is invisible to the latter.
            study._storage.set_trial_system_attr(trial._trial_id, "constraints", list(found.violations))
        for key, value in {**shown, **kept}.items():
            if value is not None:
                trial.set_user_attr(key, value)
        _save_note(study, trial, note)
    study.tell(trial, values(record, floor, teacher_flops), state=state(record))


def _save_note(study: optuna.Study, trial: optuna.Trial, body: str) -> None:
    """What optuna_dashboard.save_note writes of a trial that has no note yet; that function reads the notes of all others each time. A
    note that a reader has written while it ran stays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optuna_dashboard._note import note_ver_key, split_body  # noqa: PLC0415 - its import warns
    storage, attributes = storage_of(study), {note_ver_key(trial._trial_id): 1, **split_body(body, trial._trial_id)}
    if storage:
        storage.add_study_attrs(study._study_id, attributes)
    elif not attributes.keys() & study._storage.get_study_system_attrs(study._study_id).keys():
        for key, value in attributes.items():
            study._storage.set_study_system_attr(study._study_id, key, value)


def state(record: Record) -> TrialState:
    """How Optuna calls a record's state."""
    return {FAILED: TrialState.FAIL, STOPPED: TrialState.PRUNED}.get(record.measurement.state, TrialState.COMPLETE)


def values(record: Record, floor: float, teacher_flops: float) -> list[float] | None:
    """Accuracy and log latency; a refused candidate counts as guessing, at its measured latency, or else at its share of the FLOPs.

    A trial that failed or was stopped has none: Optuna lets it have none.
    """
    found = record.measurement
    if found.state in (FAILED, STOPPED):
        return None
    latency = found.latency_relative or (found.flops or teacher_flops) / teacher_flops
    return [found.accuracy if found.accuracy is not None else floor, math.log(latency)]
