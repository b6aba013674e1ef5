"""The end of a study: its finalists are trained in full, at once behind the search or by a command of its own.

What a search keeps of its minutes for that is what these same trainings are expected to take, from the trials so far.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from statistics import mean
from typing import Any

from rich.console import Console

from kdsearch import budget, confirmed, guard, objective, records, workbench, workers
from kdsearch.budget import Full
from kdsearch.calling import callers
from kdsearch.candidate import Candidate
from kdsearch.check import Study
from kdsearch.confirmed import Job, Store
from kdsearch.display import Display
from kdsearch.kept import digest
from kdsearch.order import Order, derived, seed_of
from kdsearch.records import COMPLETE, STOPPED, Measurement, Record
from kdsearch.report import front, html, study_folder, tables
from kdsearch.report.study_folder import StudyFolder

Hands = tuple[Callable[[Order], Measurement], int]  # who evaluates, and in how many threads it may be called


def jobs(study: Study, folder: StudyFolder, hand_made: Mapping[str, Candidate], count: int, seeds: int) -> list[Job]:
    """The full trainings of up to ``count`` finalists, the knee's twin without distillation and the baselines, those of ``hand_made``
    that the search did not come to as well; none on an empty front."""
    picks = front.short_picks(folder)
    if not picks:
        return []
    yardsticks = [record for record in front.trained(folder.records) if record.baseline]
    untried = untried_of(hand_made, folder.records)
    students = confirmed.students(front.eligible(folder), picks["knee"], yardsticks, count, front.reference(folder), untried)
    own = seed_of(study.spec.search)
    full = [derived(own, number, "confirm") for number in range(seeds)]  # the same for all: equal data order makes differences clearer
    under = _conditions(study, folder.facts)
    return [Job(student, seed, study.spec.train.steps, under) for seed in full for student in students]


def _conditions(study: Study, facts: dict[str, Any]) -> str:
    """A hash of what full trainings depend on, and may be changed between two commands: theirs count only where it is the same."""
    spec = study.spec.model_dump(mode="json", include={"train", "target", "limits"})
    return digest(facts["teacher"]["key"], facts["task"]["key"], json.dumps(spec, sort_keys=True))


def untried_of(hand_made: Mapping[str, Candidate], known: Sequence[Record]) -> dict[str, Candidate]:
    """The baselines that a search did not come to; one that failed is none of these, and is not tried again."""
    tried = {record.baseline for record in known}
    return {name: candidate for name, candidate in hand_made.items() if name not in tried}


def keeper(
    study: Study, facts: dict[str, Any], hand_made: Mapping[str, Candidate], flops: Mapping[str, float], count: int
) -> Callable[[Sequence[Record]], float]:
    """How many seconds of the study's minutes to keep for the finalists that some records would give, with ``count`` workers; ``flops``:
    what a pass of each of ``hand_made`` costs, for those that are not tried yet."""
    spec, plan = study.spec, study.spec.search
    heavier = spec.train.batch_tokens / spec.proxy.batch_tokens
    full = Full(plan.finalists + 1, plan.finalist_seeds, spec.train.steps, heavier, count)

    def seconds(known: Sequence[Record]) -> float:
        folder = StudyFolder(study.folder, facts, list(known), [])
        would = [job.student for job in jobs(study, folder, hand_made, plan.finalists, 1) if not job.student.yardstick]
        short: dict[int | None, Measurement | None] = {one.trial: one.short for one in would if one.trial is not None}
        chosen = [found for one in would if (found := one.short or short.get(one.twin_of))]  # a twin takes what its pick does
        trained = [record for record in known if record.measurement.state in (COMPLETE, STOPPED)]
        tried = [record.measurement for record in trained if record.baseline and record.trial not in short]
        untried = [flops[name] for name in untried_of(hand_made, known)]
        expected = budget.seconds_for_finalists(chosen, tried, untried, [record.measurement for record in trained], full)
        return budget.seconds_kept(expected, plan)

    return seconds if plan.finalists else budget.nothing_kept


def confirm(
    study: Study, todo: Sequence[Job], hands: Callable[[Sequence[Job]], AbstractContextManager[Hands]], console: Console
) -> dict[str, Any]:
    """Do what is missing of these jobs, with the hands that are opened for it, and write and show what all of them found; the content of
    confirmed.json.

    Raises:
        RuntimeError: no training came to its end.
    """
    store = Store(study.folder)
    if missing := store.missing(todo):
        there = len(todo) - len(missing)
        console.print(f"{len(todo)} full trainings of {todo[0].steps} steps{f', {there} of them done' if there else ''}", highlight=False)
        console.print(_outlook(study, missing), highlight=False, markup=False)
        with hands(missing) as (evaluate, count):
            _train(study, store, in_turn(study, missing), (evaluate, count), console)
    folder = study_folder.load(study.folder)
    document = confirmed.document(store, todo, study.spec.proxy.steps, front.reference(folder))
    if all(row["seeds"] == 0 for row in document["students"]):
        raise RuntimeError(f"none of the {len(todo)} full trainings came to its end; the last one: {store.lines[-1].found.reason}")
    records.write_text(study.folder / confirmed.TABLE, json.dumps({"study": study.spec.name, **document}, indent=2))
    folder = study_folder.load(study.folder)
    front.write(folder)
    html.write(folder)
    tables.show_confirmed(document, study.spec.name, console)
    console.print(str(study.folder / confirmed.TABLE), markup=False, highlight=False)
    return document


def expected(study: Study, some: Sequence[Job]) -> list[float]:
    """About the seconds of each of some full trainings: by its student's trial, a twin's by its pick's; of others the mean of these."""
    full = Full(1, 1, some[0].steps, study.spec.train.batch_tokens / study.spec.proxy.batch_tokens)
    short: dict[int | None, Measurement | None] = {job.student.trial: job.student.short for job in some if job.student.trial is not None}
    trials = [job.student.short or short.get(job.student.twin_of) for job in some]
    known = [budget.seconds_in_full(found, full) if found and found.steps else None for found in trials]
    told = [seconds for seconds in known if seconds is not None]
    return [(mean(told) if told else 0.0) if seconds is None else seconds for seconds in known]


def in_turn(study: Study, missing: Sequence[Job]) -> list[Job]:
    """Seed by seed, and of each the longest first: the last of all, which may have no company, is a short one."""
    seeds, seconds = list(dict.fromkeys(job.seed for job in missing)), expected(study, missing)
    order = sorted(range(len(missing)), key=lambda index: (seeds.index(missing[index].seed), -seconds[index]))
    return [missing[index] for index in order]


def _outlook(study: Study, missing: Sequence[Job]) -> str:
    """Who is to be trained, and for about how long."""
    who = ", ".join(dict.fromkeys(job.student.title for job in missing))
    count = min(study_folder.load(study.folder).facts.get("workers", 1), len(missing))
    minutes = sum(expected(study, missing)) / count / 60
    return f"about {minutes:.2g} min: {who}" if minutes else who


@contextmanager
def opened(study: Study, most: int, extra: list[Candidate], console: Console, missing: Sequence[Job]) -> Iterator[Hands]:
    """Hands for some jobs: as many workers, or this process alone. ``extra``: candidates outside of the space that the search had."""
    count, everyone = min(most, len(missing)), [*{job.student.name: job.student.candidate for job in missing}.values(), *extra]
    with ExitStack() as until_done:
        display = until_done.enter_context(Display(console, study.spec.search))
        bench = workbench.prepare(study.spec, study.space, study.base, everyone, display.progress)
        bench = replace(workbench.in_full(bench, display.progress), most_bytes=guard.most_bytes(study.spec.search.trial_gigabytes, count))
        if count == 1:
            yield lambda order: records.measured(objective.evaluate, order, bench, display.progress), 1
        else:
            lesson = workers.lesson(study, bench, everyone)
            yield until_done.enter_context(workers.Workers(lesson, count, display.progress)).evaluate, count


def _train(study: Study, store: Store, missing: Sequence[Job], hands: Hands, console: Console) -> None:
    """Do jobs side by side. Each is kept as soon as it is done."""
    (evaluate, count), left = hands, iter(range(len(missing) - 1, -1, -1))

    def one(job: Job) -> None:
        found = evaluate(Order(job.student.candidate, job.seed, train_anyway=True, training=study.spec.train))
        store.add(job, found)
        said = f"accuracy {found.accuracy:.3f}" if found.state == COMPLETE else f"{found.state}: {found.reason}"
        console.print(
            f"{job.student.title}, seed {job.seed}: {said}  {found.seconds:.0f} s, {next(left)} to go", markup=False, highlight=False
        )

    with callers(min(count, len(missing))) as threads:
        for future in [threads.submit(one, job) for job in missing]:
            future.result()
