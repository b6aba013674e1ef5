"""Ask a candidate, have it evaluated, tell what was found, until the budget is used.

One controller asks and tells, and up to ``at_once`` candidates are evaluated side by side. Which result comes first is chance; what is
proposed is not: the ask at place p sees the results of the places up to p - lag and no others, by a sampler seeded from (seed, p). So a
search that was killed and started again proposes what the uninterrupted one would have. The storage holds everything; trials.jsonl is
derived from it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from kdsearch import budget, guard, records, search_space, study_store
from kdsearch.budget import Work
from kdsearch.calling import callers, uninterrupted
from kdsearch.candidate import Architecture, Candidate, from_dict
from kdsearch.order import Order, seed_of
from kdsearch.records import COMPLETE, FAILED, STOPPED, Measurement, Record
from kdsearch.rungs import Rungs
from kdsearch.samplers import sampler_for
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import Search
from kdsearch.together import together
from kdsearch.view import OfTheSpace

MOST_DUPLICATES_IN_A_ROW = 100
BASELINE_EVERY = 10
# Side by side, results of the last six places, or of two for each trial beyond the first, are not waited for: a slow trial then seldom
# makes the others wait, and what a proposal sees is not too old.
LAG, LEAST_LAG = 2, 6
Objective = Callable[[Order], Measurement]


class Watcher(Protocol):
    """Who is told how the search goes; the command line's progress display is one."""

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None: ...  # noqa: D102

    def found(self, record: Record, known: Sequence[Record]) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Surroundings:
    """What the engine needs besides Optuna: the plan, the domains, the accuracy of guessing, the teacher's FLOPs, the study's folder, a
    trial's note, what is tried before chance (whole candidates, and parameters that the sampler completes), the rungs in steps, the
    least accuracy of a student that is any use, by its key what another study has found of a student, how FLOPs are counted, and the
    seconds of the minutes to keep for what comes after."""

    plan: Search
    space: SearchSpace
    floor: float
    teacher_flops: float
    folder: Path
    note: Callable[[Record], str]
    baselines: dict[str, Candidate] = field(default_factory=dict)
    starts: Sequence[dict[str, Any]] = ()
    rungs: Sequence[int] = ()
    least: float = 0.0
    imported: dict[str, Record] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    keep: Callable[[Sequence[Record]], float] = budget.nothing_kept


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for and is not told yet."""

    trial: optuna.Trial
    place: int
    candidate: Candidate
    baseline: str | None
    rungs: Rungs
    timed: Measurement | None


@dataclass(frozen=True)
class State:
    """Records by place, trials that run, and trials that wait for the result of one that runs: it is the same student.

    ``places`` of the first record of each student by its key, each record's line of trials.jsonl, and the places that timed a shape: none
    is made anew at every trial.
    """

    known: dict[int, Record] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)
    shapes: dict[Architecture, list[int]] = field(default_factory=dict)
    running: dict[Future[Measurement], Asked] = field(default_factory=dict)
    held: list[Asked] = field(default_factory=list)

    def keep(self, place: int, record: Record) -> None:
        """Know a record."""
        self.known[place], self.lines[place] = record, records.to_line(record)
        if record.duplicate_of is None:
            candidate = from_dict(record.candidate)
            self.places.setdefault(candidate.key(), place)
            if record.measurement.latency_relative is not None and record.baseline is None:  # nothing waits for a baseline
                self.shapes.setdefault(candidate.architecture, []).append(place)

    def timed(self, shape: Architecture, last: int) -> Measurement | None:
        """The first that timed a shape, of the places up to ``last``."""
        place = min((place for place in self.shapes.get(shape, []) if place <= last), default=None)
        return None if place is None else self.known[place].measurement

    def twin(self, candidate: Candidate) -> Record | None:
        """The first record of the same student."""
        place = self.places.get(candidate.key())
        return None if place is None else self.known[place]

    @property
    def open(self) -> list[Asked]:
        """What is asked and not told."""
        return [*self.running.values(), *self.held]


@dataclass(frozen=True)
class Session:
    """A search while it runs: what it needs, what it knows, who is told, and since when the clock runs."""

    study: optuna.Study
    around: Surroundings
    watcher: Watcher
    clock: Callable[[], float]
    begin: float
    state: State = field(default_factory=State)

    def seconds(self) -> float:
        """Of search so far, in all sessions."""
        return self.clock() - self.begin

    def settle(self, asked: Asked, record: Record) -> None:
        """Tell a trial's record to everyone."""
        around, state = self.around, self.state
        with uninterrupted():
            study_store.tell(self.study, asked.trial, record, around.note(record), around.floor, around.teacher_flops)
            self.study.set_user_attr(study_store.SECONDS, self.seconds())
        state.keep(asked.place, record)
        self.write()
        self.watcher.found(record, in_order(state.known))

    def write(self) -> None:
        """trials.jsonl."""
        lines = self.state.lines
        records.write_text(self.around.folder / "trials.jsonl", "".join(lines[place] for place in sorted(lines)))


def search(
    study: optuna.Study,
    around: Surroundings,
    objective: Objective,
    watcher: Watcher,
    at_once: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Record]:
    """Run trials until the study's minutes, trials or FLOPs are used up; the records of all trials, of earlier sessions too.

    With ``at_once`` above 1 the objective is called from as many threads.

    Raises:
        RuntimeError: more failures in a row than the study allows; finished trials are kept.
    """
    study_store.close_interrupted(study)
    run = Session(study, around, watcher, clock, clock() - study.user_attrs.get(study_store.SECONDS, 0.0))
    state, lag = run.state, 1 if at_once == 1 else 1 + max(LAG * (at_once - 1), LEAST_LAG)
    for place, record in study_store.stored_records(study).items():
        state.keep(place, record)
    run.write()
    with callers(at_once) as hands:
        while True:
            while len(state.running) < at_once and not exhausted(state, around, run.seconds()):
                with uninterrupted():
                    asked = _ask(study, around, state, lag)
                if asked is None:
                    break
                watcher.proposed(asked.trial.number, asked.candidate, asked.baseline)
                _start(run, asked, hands, objective)
            if not state.running:
                study.set_user_attr(study_store.SECONDS, run.seconds())  # what is used up stays so in a later session
                return in_order(state.known)
            for future in wait(state.running, return_when=FIRST_COMPLETED).done:
                _end(run, future)
            _stop_on_failures(in_order(state.known), around.plan)


def _start(run: Session, asked: Asked, hands: Executor, objective: Objective) -> None:
    """Evaluate a candidate; one that is known already, here or from another study, or runs already, is not trained again.

    But a baseline is, should the search have proposed it: there it may have been stopped, and duplicates stand in no table.
    """
    state, given = run.state, asked.baseline is not None
    if not given and (twin := state.twin(asked.candidate)):
        run.settle(asked, _repeated(asked, twin))
    elif not given and any(one.candidate.key() == asked.candidate.key() for one in state.running.values()):
        state.held.append(asked)
    elif found := _imported(run.around, asked):
        run.settle(asked, found)
    else:
        state.running[hands.submit(records.measured, objective, _order(asked, seed_of(run.around.plan)))] = asked


def _end(run: Session, future: Future[Measurement]) -> None:
    """Tell what was found, also of those that waited for it."""
    state = run.state
    asked = state.running.pop(future)
    run.settle(asked, Record(asked.trial.number, asked.candidate.to_dict(), future.result(), seed_of(run.around.plan), asked.baseline))
    for other in [one for one in state.held if one.candidate.key() == asked.candidate.key()]:
        state.held.remove(other)
        run.settle(other, _repeated(other, state.known[asked.place]))


def in_order(known: dict[int, Record]) -> list[Record]:
    """Records by their place."""
    return [known[place] for place in sorted(known)]


def exhausted(state: State, around: Surroundings, seconds: float) -> bool:
    """Whether the budget is used: minutes of search but for what is kept of them, number of trials but for those imported, or nothing new
    left to propose.

    FLOPs are looked at where a trial is asked for: they, unlike the clock, end a search at the same trial in any number of sessions.
    """
    plan, known = around.plan, in_order(state.known)
    recent = known[-MOST_DUPLICATES_IN_A_ROW:]
    nothing_new = len(recent) == MOST_DUPLICATES_IN_A_ROW and all(record.duplicate_of is not None for record in recent)
    enough = plan.trials is not None and len(records.own(state.known.values())) + len(state.open) >= plan.trials
    return seconds + around.keep(known) >= plan.minutes * 60 or enough or nothing_new


def _ask(study: optuna.Study, around: Surroundings, state: State, lag: int) -> Asked | None:
    """The next trial; None when the results that it must see are not there yet, or when they have spent the study's FLOPs."""
    waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])  # the first of them is what Optuna takes
    taken = {*state.known, *(one.place for one in state.open), *map(study_store.place_of, waiting)}
    kept = study_store.place_of(waiting[0]) if waiting else None
    place = next(place for place in range(len(taken) + 1) if place not in taken) if kept is None else kept
    if not waiting and not {*range(place - lag + 1)} <= {*state.known, *_unheeded(around, state)}:
        return None
    before = [state.known[other] for other in sorted(state.known) if other <= place - lag]  # the order decides between equals at a rung
    if budget.used_up(before, around.plan, around.work):
        return None
    given = bool(waiting) or _enqueue_next(study, around, place)
    study.sampler = OfTheSpace(sampler_for(around.plan, place, lag - 1, given), place - lag, place, around.least)
    trial = study.ask()
    with together(study):
        trial.set_user_attr("place", place)
        candidate = _proposal(trial, around.space)
    rungs = Rungs(around.plan.eta, {step: _seen_at(step, before) for step in around.rungs})
    return Asked(trial, place, candidate, trial.user_attrs.get("baseline"), rungs, state.timed(candidate.architecture, place - lag))


def _unheeded(around: Surroundings, state: State) -> set[int]:
    """Places of baselines that run: neither samplers nor rungs look at yardsticks, so nothing waits for them but a budget of FLOPs."""
    return set() if around.plan.flops is not None else {one.place for one in state.open if one.baseline}


def _seen_at(step: int, before: Sequence[Record]) -> list[tuple[float, float]]:
    """Calibrated divergence and latency of those that came to a rung; a baseline is a yardstick and a duplicate was never there."""
    fresh = [record.measurement for record in before if record.baseline is None and record.duplicate_of is None]
    there = [(found.rungs[str(step)]["calibrated_divergence"], found.latency_relative) for found in fresh if str(step) in found.rungs]
    return [(divergence, latency) for divergence, latency in there if latency is not None]


def _order(asked: Asked, seed: int) -> Order:
    yardstick = asked.baseline is not None
    return Order(asked.candidate, seed, yardstick, Rungs() if yardstick else asked.rungs, timed=asked.timed)


def _enqueue_next(study: optuna.Study, around: Surroundings, place: int) -> bool:
    """Queue the first start that was not queued yet, then from every tenth place on a baseline; whether there was one.

    A start has some parameters, and the sampler adds the rest; a baseline need not lie in the space, so it is carried whole. Baselines are
    yardsticks: in the first places they would cost a search that is ended early its students (benchmarks/search.md). One that another
    study has trained costs nothing, and is taken at once.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get(kind) for trial in trials for kind in ("baseline", "start")}
    number = next((number for number in range(len(around.starts)) if number not in queued), None)
    if number is not None:
        study.enqueue_trial(around.starts[number], user_attrs={"start": number})
        return True
    number, following = next(((number, name) for number, name in enumerate(around.baselines, 1) if name not in queued), (0, None))
    if following is None:
        return False
    baseline, due = around.baselines[following], number * min(BASELINE_EVERY, around.plan.startup_trials) - 1
    if place < due and baseline.key() not in around.imported:
        return False
    study.enqueue_trial({}, user_attrs={"baseline": following, "candidate": baseline.to_dict()})
    return True


def _proposal(trial: optuna.Trial, space: SearchSpace) -> Candidate:
    if "candidate" in trial.user_attrs and "baseline" in trial.user_attrs:
        return from_dict(trial.user_attrs["candidate"])
    candidate = search_space.suggest(space, trial)
    trial.set_user_attr("candidate", candidate.to_dict())
    return candidate


def _repeated(asked: Asked, twin: Record) -> Record:
    return replace(_asked_here(asked, twin), duplicate_of=twin.trial, imported_from=None)


def _imported(around: Surroundings, asked: Asked) -> Record | None:
    """What another study has found of a candidate; a yardstick counts only when it was trained to the end there."""
    found = around.imported.get(asked.candidate.key())
    if found is None or (asked.baseline is not None and found.measurement.state != COMPLETE):
        return None
    return _asked_here(asked, found)


def _asked_here(asked: Asked, found: Record) -> Record:
    return replace(found, trial=asked.trial.number, candidate=asked.candidate.to_dict(), baseline=asked.baseline)


def _stop_on_failures(known: Sequence[Record], plan: Search) -> None:
    proposed = [record for record in known if record.baseline is None]  # nothing waits for a baseline, so this must not either
    last = [record for record in proposed if record.duplicate_of is None][-plan.max_failures_in_a_row :]
    too_large = all((record.measurement.reason or "").startswith(guard.TOO_LARGE) for record in last)
    if too_large and any(record.measurement.state in (COMPLETE, STOPPED) for record in known):
        return  # some students fit the memory and some do not, which is no fault of the study
    if len(last) == plan.max_failures_in_a_row and all(record.measurement.state == FAILED for record in last):
        reasons = "\n".join(f"  trial {record.trial}: {record.measurement.reason}" for record in last)
        raise RuntimeError(f"{len(last)} trials failed in a row (search.max_failures_in_a_row); the finished ones are kept:\n{reasons}")
