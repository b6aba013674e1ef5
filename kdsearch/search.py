"""Create or resume the study; ask a candidate, run it, tell what was found, until the budget is used. Optuna is only imported here
and in samplers.

One controller asks and tells. Every ask has a fresh sampler seeded from (seed, number of trials), so that a search that was killed and
started again proposes what the uninterrupted one would have. The storage holds everything; trials.jsonl is derived from it.
"""

import json
import math
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from kdsearch import records, search_space
from kdsearch.candidate import Candidate, from_dict
from kdsearch.errors import UserError
from kdsearch.records import COMPLETE, FAILED, Measurement, Record
from kdsearch.samplers import OfTheSpace, derived, make_sampler
from kdsearch.search_space import SearchSpace
from kdsearch.study_file import Search

MADE_BY = "made by"
METRICS = ["accuracy", "log latency (relative to the teacher)"]
MOST_RETRIES, MOST_DUPLICATES_IN_A_ROW = 3, 100
Objective = Callable[[Candidate, int, bool], Measurement]


class Watcher(Protocol):
    """Who is told how the search goes; the command line's progress display is one."""

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None: ...  # noqa: D102

    def found(self, record: Record, known: Sequence[Record]) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Surroundings:
    """What the engine needs besides Optuna: the domains, the accuracy of guessing, the teacher's FLOPs, its folder, a trial's note."""

    space: SearchSpace
    floor: float
    teacher_flops: float
    folder: Path
    note: Callable[[Record], str]


def open_study(storage: str, name: str, facts: dict[str, Any]) -> optuna.Study:
    """The study of this name, new or as it was left.

    Raises:
        UserError: the stored study was made with another teacher, data, space, target or seed; the message names what differs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            study = optuna.create_study(storage=backend(storage), study_name=name, directions=["maximize", "minimize"], load_if_exists=True)
        except (SQLAlchemyError, ImportError, ValueError, optuna.exceptions.OptunaError) as error:
            raise UserError(
                f"storage {storage}: cannot be opened ({' '.join(str(error).split())[:200]}); correct it with --storage"
            ) from None
        # Optuna takes up a study of that name whatever it was made for, and whatever its directions are.
        if study.trials and study.user_attrs.get(MADE_BY) != "kdsearch":
            raise UserError(f"storage {storage}: its study '{name}' was not made by kdsearch; give this one another name or --storage")
        study.set_user_attr(MADE_BY, "kdsearch")
        study.set_metric_names(METRICS)
    same_as_before(study, facts)
    return study


def same_as_before(study: optuna.Study, facts: dict[str, Any]) -> None:
    """Remember what a study's trials depend on, or compare it with what was remembered.

    Raises:
        UserError: something differs; the message names it.
    """
    fix = "restore it to resume, or give the study another name or --out folder to start anew"
    messages = []
    for key, value in facts.items():
        if key not in study.user_attrs or not study.trials:  # before the first trial nothing depends on it
            study.set_user_attr(key, value)
        elif json.dumps(study.user_attrs[key], sort_keys=True) != json.dumps(value, sort_keys=True):
            messages.append(f"study '{study.study_name}': {key} differs from what its {len(study.trials)} trials were made with; {fix}")
    if messages:
        raise UserError(messages)


def backend(storage: str) -> optuna.storages.RDBStorage:
    """The storage behind a URL; SQLite waits up to a minute for a lock."""
    options = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(storage, engine_kwargs=options)


def search(
    study: optuna.Study, around: Surroundings, objective: Objective, plan: Search, baselines: dict[str, Candidate], watcher: Watcher
) -> list[Record]:
    """Run trials until the study's minutes or trials are used up; the records of all trials, of earlier sessions too.

    Raises:
        RuntimeError: more failures in a row than the study allows; finished trials are kept.
    """
    close_interrupted(study)
    known = stored_records(study)
    records.write(around.folder / "trials.jsonl", known)
    while not exhausted(known, plan):
        _enqueue_next(study, baselines if plan.baselines else {})
        study.sampler = OfTheSpace(make_sampler(plan, derived(plan.seed, len(known))))
        trial = study.ask()
        candidate = _proposal(trial, around.space)
        baseline = trial.user_attrs.get("baseline")
        watcher.proposed(trial.number, candidate, baseline)
        record = _run(trial, candidate, baseline, known, objective, plan)
        _tell(study, trial, record, around)
        known.append(record)
        records.write(around.folder / "trials.jsonl", known)
        watcher.found(record, known)
        _stop_on_failures(known, plan)
    return known


def exhausted(known: Sequence[Record], plan: Search) -> bool:
    """Whether the budget is used: minutes spent in trials, number of trials, or nothing new left to propose."""
    spent = sum(record.measurement.seconds for record in known if record.duplicate_of is None)
    recent = known[-MOST_DUPLICATES_IN_A_ROW:]
    nothing_new = len(recent) == MOST_DUPLICATES_IN_A_ROW and all(record.duplicate_of is not None for record in recent)
    return spent >= plan.minutes * 60 or (plan.trials is not None and len(known) >= plan.trials) or nothing_new


def close_interrupted(study: optuna.Study) -> None:
    """Settle trials that a kill left running: one with a record is told, any other is failed and its candidate queued again."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        live = optuna.trial.Trial(study, trial._trial_id)
        if "record" in trial.user_attrs:
            record = records.from_dict(trial.user_attrs["record"])
            study.tell(trial.number, _values(record, trial.user_attrs["floor"], trial.user_attrs["teacher_flops"]), state=_state(record))
            continue
        live.set_user_attr("interrupted", True)
        retries = trial.user_attrs.get("retries", 0)
        attributes = {key: trial.user_attrs[key] for key in ("baseline", "candidate") if key in trial.user_attrs}
        again = "candidate" in attributes and retries < MOST_RETRIES
        # A kill may have come after the queueing and before the end.
        queued = any(other.user_attrs.get("retry_of") == trial.number for other in study.get_trials(deepcopy=False))
        live.set_user_attr("reason", "interrupted: the process ended while it ran" + ("; queued again" if again else "; not tried again"))
        if again and not queued:
            # A retry that was killed while it was still asking has only part of its parameters; the queue's own attribute has all.
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(params, user_attrs={**attributes, "retries": retries + 1, "retry_of": trial.number})
        study.tell(trial.number, state=TrialState.FAIL)


def stored_records(study: optuna.Study) -> list[Record]:
    """The record of every finished trial, in order; interrupted trials have none."""
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
    return [records.from_dict(trial.user_attrs["record"]) for trial in finished if "record" in trial.user_attrs]


def _enqueue_next(study: optuna.Study, baselines: dict[str, Candidate]) -> None:
    """Queue the first baseline that was not queued yet, unless something waits already: what was interrupted goes first.

    A baseline need not lie in the space, so it is carried whole instead of as parameters.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get("baseline") for trial in trials}
    following = next((name for name in baselines if name not in queued), None)
    if following and not any(trial.state == TrialState.WAITING for trial in trials):
        study.enqueue_trial({}, user_attrs={"baseline": following, "candidate": baselines[following].to_dict()})


def _proposal(trial: optuna.Trial, space: SearchSpace) -> Candidate:
    if "candidate" in trial.user_attrs and "baseline" in trial.user_attrs:
        return from_dict(trial.user_attrs["candidate"])
    candidate = search_space.suggest(space, trial)
    trial.set_user_attr("candidate", candidate.to_dict())
    return candidate


def _run(
    trial: optuna.Trial, candidate: Candidate, baseline: str | None, known: Sequence[Record], objective: Objective, plan: Search
) -> Record:
    twin = next((record for record in known if from_dict(record.candidate).key() == candidate.key()), None)
    if twin is not None:
        return replace(twin, trial=trial.number, candidate=candidate.to_dict(), baseline=baseline, duplicate_of=twin.trial)
    seed = derived(plan.seed, -1)  # the same for every candidate: equal weights and data order make their difference clearer
    start = time.perf_counter()
    try:
        measurement = objective(candidate, seed, baseline is not None)
        known_numbers = {name: getattr(measurement, name) for name in ("accuracy", "latency_relative", "divergence")}
        odd = {name: value for name, value in known_numbers.items() if value is None or not math.isfinite(value)}
        if measurement.state == COMPLETE and odd:
            raise ArithmeticError(f"not finite: {', '.join(f'{name} {value}' for name, value in odd.items())}")
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        text = "".join(traceback.format_exception(error))[-4000:]
        measurement = Measurement(FAILED, reason=reason, seconds=time.perf_counter() - start, traceback=text)
    return Record(trial.number, candidate.to_dict(), measurement, seed, baseline)


def _tell(study: optuna.Study, trial: optuna.Trial, record: Record, around: Surroundings) -> None:
    """Write all of a trial, its record last, then finish it: after a kill it is told from its record or was never there."""
    found = record.measurement
    if found.violations:
        # The key that both Optuna's samplers and the dashboard (0.21) read; Trial.set_constraint is invisible to the latter.
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", list(found.violations))
    for key in ("accuracy_se", "divergence", "latency_ms", "latency_relative", "parameters", "reason"):
        if (value := getattr(found, key)) is not None:
            trial.set_user_attr(key, value)
    trial.set_user_attr("state", found.state)
    _save_note(trial, around.note(record))
    trial.set_user_attr("floor", around.floor)
    trial.set_user_attr("teacher_flops", around.teacher_flops)
    trial.set_user_attr("record", record.to_dict())
    study.tell(trial, _values(record, around.floor, around.teacher_flops), state=_state(record))


def _save_note(trial: optuna.Trial, body: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optuna_dashboard import save_note  # noqa: PLC0415 - its import warns

        save_note(trial, body)


def _state(record: Record) -> TrialState:
    return TrialState.FAIL if record.measurement.state == FAILED else TrialState.COMPLETE


def _values(record: Record, floor: float, teacher_flops: float) -> list[float] | None:
    """Accuracy and log latency; a refused candidate counts as guessing, at its measured latency, or else at its share of the FLOPs."""
    found = record.measurement
    if found.state == FAILED:
        return None
    latency = found.latency_relative or (found.flops or teacher_flops) / teacher_flops
    return [found.accuracy if found.accuracy is not None else floor, math.log(latency)]


def _stop_on_failures(known: Sequence[Record], plan: Search) -> None:
    last = [record for record in known if record.duplicate_of is None][-plan.max_failures_in_a_row :]
    if len(last) == plan.max_failures_in_a_row and all(record.measurement.state == FAILED for record in last):
        reasons = "\n".join(f"  trial {record.trial}: {record.measurement.reason}" for record in last)
        raise RuntimeError(f"{len(last)} trials failed in a row (search.max_failures_in_a_row); the finished ones are kept:\n{reasons}")
