"""What each command does, from files to files: the command line calls these, and so may a program."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig

from kdsearch import check, confirmed, estimate, guard, objective, records, remarks, rungs, search, session, study_store, teacher, workers
from kdsearch import export as exporting
from kdsearch import guideline as guidelines
from kdsearch.candidate import Candidate, from_dict
from kdsearch.check import Study
from kdsearch.confirmed import Job
from kdsearch.display import Display, line
from kdsearch.errors import UserError
from kdsearch.guesses import guesses
from kdsearch.machine import accelerator
from kdsearch.objective import Bench
from kdsearch.order import Order
from kdsearch.report import dashboard, front, html, study_folder, tables
from kdsearch.samplers import derived
from kdsearch.students.baselines import baselines
from kdsearch.students.families import architecture_of, family_of
from kdsearch.study_file import Search


def run_study(path: Path, out: Path | None = None, storage: str | None = None, overrides: dict[str, Any] | None = None) -> Path:
    """Search, or go on with a search; the study's folder.

    Raises:
        UserError: a mistake in the input, another run of the same study, or a study made with other settings.
        RuntimeError: the storage or the study's folder failed, or too many trials did; what was found is kept.
    """
    console, study = Console(soft_wrap=True), check.open_files(path, out, overrides)
    check.refuse_unreachable(study, path)
    session.refuse_other_study(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    url = storage or default_storage(study.folder)
    with session.locked(study.folder), study_store.alone(url, study.spec.name), session.kept(study.folder, url):
        store = study_store.open_study(url, study.spec.name, session.fingerprint(study))
        count, hand_made = session.workers_as_before(study, store), _baselines(study)
        known = search.in_order(study_store.stored_records(store))
        extra = list(hand_made.values())
        with (
            Display(console, study.spec.search, known, store.user_attrs.get(study_store.SECONDS, 0.0)) as display,
            workers.Workers(None, count, display.progress) if count > 1 else nullcontext() as crew,  # they import while this prepares
        ):
            bench = _guarded(objective.prepare(study.spec, study.space, study.base, extra, display.progress), study, count)
            study_store.same_as_before(store, {"teacher's weights": bench.facts["teacher"]["key"], "data": bench.facts["task"]["key"]})
            if crew:
                crew.load(_lesson(study, bench, extra))
            bench.facts["teacher"] |= objective.teacher_latency(bench)  # while the workers wait
            session.write_facts(study, bench, count)
            console.print(_introduction(bench), highlight=False)

            def evaluate(order: Order) -> records.Measurement:
                return objective.evaluate(order, bench, display.progress)

            around = _surroundings(study, bench, hand_made)
            with _then_written(study.folder, store, console):
                if crew is None:
                    search.search(store, around, evaluate, display)
                else:
                    search.search(store, around, crew.evaluate, display, count + 1)  # one is asked for before it is needed
    return study.folder


def check_study(path: Path) -> None:
    """Read both files, draw candidates, build them without weights, and say what would run and for about how long."""
    console, study = Console(soft_wrap=True), check.open_files(path)
    check.refuse_unreachable(study, path)
    rows = estimate.describe(study)
    for name, text in rows.items():
        console.print(f"{name:<12}{text}", highlight=False)


def rerun_trial(place: Path, trial: int) -> None:
    """Evaluate a recorded candidate again and print both results."""
    study, folder = _recorded(place)
    record = _record(folder, trial)
    candidate = from_dict(record.candidate)
    console = Console(soft_wrap=True)
    with Display(console, study.spec.search) as display:
        bench = objective.prepare(study.spec, study.space, study.base, [candidate, *_baselines(study).values()], display.progress)
        found = objective.evaluate(Order(candidate, record.seed, True), bench, display.progress)
    console.print(
        f"recorded: {line(record)}\n   again: {line(replace(record, measurement=found, duplicate_of=None))}", markup=False, highlight=False
    )


def train_pick(place: Path, pick: str, steps: int | None = None) -> exporting.Export:
    """Distil a pick at full length, export it, and write the report again.

    Raises:
        UserError: no such pick or trial.
    """
    study, folder = _recorded(place)
    record = _record(folder, picked(folder, pick))
    study = _with_steps(study, steps)
    candidate, console = from_dict(record.candidate), Console(soft_wrap=True)
    if remark := remarks.on_pick(record):
        console.print(remark, markup=False, highlight=False)
    with Display(console, study.spec.search) as display:
        bench = objective.prepare(study.spec, study.space, study.base, [candidate, *_baselines(study).values()], display.progress)
        export = exporting.train(candidate, record.trial, record.seed, bench, study.folder, display.progress)
    html.write(study_folder.load(study.folder))
    result = export.result
    console.print(
        f"trial {record.trial} after {result['steps']} steps: "
        f"test accuracy {result['test_accuracy']:.4f} ± {result['test_accuracy_se']:.4f} "
        f"(teacher {result['teacher_test_accuracy']:.4f}), {1 / result['latency_relative']:.2f}x faster\n{export.folder}",
        highlight=False,
    )
    return export


def confirm_study(place: Path, count: int = 6, seeds: int = 2, steps: int | None = None) -> dict[str, Any]:
    """Distil the front and its near neighbours in full with several seeds, the knee's twin without distillation and the baselines too; the
    content of confirmed.json. Started again, or with more seeds, it trains what is missing.

    Raises:
        UserError: the front is empty, or another kdsearch runs this study.
        RuntimeError: no training came to its end.
    """
    study, folder = _recorded(place)
    study = _with_steps(study, steps)
    picks = front.picks(folder)
    if not picks:
        raise UserError(
            f"{place}: must have a student on its front to confirm; the front is empty ({len(folder.records)} trials); "
            "go on with 'kdsearch run', or change the limits or the space"
        )
    reference, console = front.reference(folder), Console(soft_wrap=True)
    yardsticks = [record for record in front.trained(folder.records) if record.baseline]
    students = confirmed.students(front.eligible(folder), picks["knee"], yardsticks, count, reference)
    own = _record(folder, picks["knee"]).seed  # the same for all: equal data order makes their difference clearer
    full = [derived(own, number, "confirm") for number in range(seeds)]
    jobs = [Job(student, seed, study.spec.train.steps) for seed in full for student in students]
    with session.locked(folder.path):
        store = confirmed.Store(folder.path)
        _train_in_full(study, folder, store, store.missing(jobs), console)
        document = confirmed.document(store, jobs, study.spec.proxy.steps, reference)
        if all(row["seeds"] == 0 for row in document["students"]):
            reason = store.lines[-1].found.reason
            raise RuntimeError(f"none of the {len(jobs)} full trainings came to its end; the last one: {reason}")
        records.write_text(folder.path / confirmed.TABLE, json.dumps({"study": study.spec.name, **document}, indent=2))
    html.write(study_folder.load(folder.path))
    tables.show_confirmed(document, study.spec.name, console)
    console.print(str(folder.path / confirmed.TABLE), markup=False, highlight=False)
    return document


def write_guideline(place: Path) -> Path:
    """guideline.md and guideline.json of a study; the path of the former."""
    folder = study_folder.load(place)
    statements = guidelines.statements(folder.records)
    records.write_text(folder.path / "guideline.md", guidelines.to_markdown(statements, folder.facts))
    records.write_text(folder.path / "guideline.json", guidelines.to_json(statements, folder.facts))
    return folder.path / "guideline.md"


def picked(folder: study_folder.StudyFolder, pick: str) -> int:
    """The trial that a pick names: knee, fastest or best of the front, or a trial's number."""
    picks = front.document(folder)["picks"]
    if pick in picks:
        return picks[pick]
    if not pick.isdecimal():
        options = " or ".join([*picks, "a trial's number"])
        raise UserError(f"--pick: must be {options}{'' if picks else ' (the front is empty)'}; the value is {pick!r}")
    return int(pick)


def default_storage(folder: Path) -> str:
    """SQLite in the study's folder: right for one controller."""
    return f"sqlite:///{folder / 'study.db'}"


def _baselines(study: Study) -> dict[str, Candidate]:
    config = AutoConfig.from_pretrained(teacher.source(study.spec.teacher, study.base))
    sees_attention = family_of(config).attention_path is not None
    return baselines(architecture_of(config), attention=sees_attention) if study.spec.search.baselines else {}


def _surroundings(study: Study, bench: Bench, hand_made: dict[str, Candidate]) -> search.Surroundings:
    return search.Surroundings(
        study.spec.search,
        study.space,
        bench.rows.majority,
        bench.facts["teacher"]["flops"],
        study.folder,
        lambda record: dashboard.note(record, bench.facts),
        hand_made,
        guesses(study.space, architecture_of(bench.teacher.config), study.spec.limits.latency_relative),
        rungs.at(study.spec.search.rungs, study.spec.proxy.steps),
        objective.least_accuracy(bench),
    )


def _guarded(bench: Bench, study: Study, count: int) -> Bench:
    """The bench with what each of so many processes may hold of the memory that is left after preparing."""
    return replace(bench, most_bytes=guard.most_bytes(study.spec.search.trial_gigabytes, count))


def _lesson(study: Study, bench: Bench, extra: list[Candidate]) -> workers.Lesson:
    precision = accelerator(study.spec.target.device).mixed_precision
    return workers.Lesson(study.spec, study.space, study.base, extra, bench.facts, precision, bench.most_bytes)


def _with_steps(study: Study, steps: int | None) -> Study:
    """The study with another length of its full training."""
    full = study.spec.train.model_copy(update={"steps": steps or study.spec.train.steps})
    return replace(study, spec=study.spec.model_copy(update={"train": full}))


def _train_in_full(study: Study, folder: study_folder.StudyFolder, store: confirmed.Store, jobs: Sequence[Job], console: Console) -> None:
    """Do these jobs as the search did its trials: side by side where it had workers. Each is kept as soon as it is done."""
    if not jobs:
        return
    count, left = min(folder.facts.get("workers", 1), len(jobs)), iter(range(len(jobs) - 1, -1, -1))
    extra = [*{job.student.name: job.student.candidate for job in jobs}.values(), *_baselines(study).values()]
    with ExitStack() as open_until_done:
        display = open_until_done.enter_context(Display(console, study.spec.search))
        bench = _guarded(objective.prepare(study.spec, study.space, study.base, extra, display.progress), study, count)
        threads = open_until_done.enter_context(search.callers(count))  # closed last: those that wait for a worker end when it does
        crew = open_until_done.enter_context(workers.Workers(_lesson(study, bench, extra), count, display.progress)) if count > 1 else None

        def one(job: Job) -> None:
            order = Order(job.student.candidate, job.seed, train_anyway=True, training=study.spec.train)
            found = crew.evaluate(order) if crew else records.measured(objective.evaluate, order, bench, display.progress)
            store.add(job, found)
            said = f"accuracy {found.accuracy:.3f}" if found.state == records.COMPLETE else f"{found.state}: {found.reason}"
            who = job.student.role if job.student.trial is None else f"trial {job.student.trial} ({job.student.role})"
            console.print(f"{who}, seed {job.seed}: {said}  {found.seconds:.0f} s, {next(left)} to go", markup=False, highlight=False)

        for future in [threads.submit(one, job) for job in jobs]:
            future.result()


def _recorded(place: Path) -> tuple[Study, study_folder.StudyFolder]:
    """A study as it was run: from its folder, so that a file changed since does not matter."""
    folder = study_folder.load(place)
    return check.from_facts(folder.facts, folder.path), folder


def _record(folder: study_folder.StudyFolder, trial: int) -> records.Record:
    found = next((record for record in folder.records if record.trial == trial), None)
    if found is None:
        numbers = ", ".join(str(record.trial) for record in folder.records) or "none"
        raise UserError(f"trial {trial}: is not recorded in {folder.path}; recorded: {numbers}")
    return found


def _introduction(bench: Bench) -> str:
    teacher_facts, task = bench.facts["teacher"], bench.facts["task"]
    return (
        f"teacher   accuracy {teacher_facts['accuracy']:.3f} ± {teacher_facts['accuracy_se']:.3f}  {teacher_facts['latency_ms']:.1f} ms  "
        f"{teacher_facts['parameters'] / 1e6:.1f}M parameters\n"
        f"rows      {task['train']} train, {task['transfer']} transfer, {task['validation']} validation, {task['held_out']} held out, "
        f"{task['test']} test (not looked at)"
    )


@contextmanager
def _then_written(folder: Path, store: Any, console: Console) -> Iterator[None]:
    """Write the results at the end, of a search that was interrupted too; what ended it is told, whatever its results meet."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            _write_results(folder, store, console)
        raise
    _write_results(folder, store, console)


def _write_results(folder: Path, store: Any, console: Console) -> None:
    """Everything that is made from the records."""
    loaded = study_folder.load(folder)
    records.write_text(folder / "front.json", json.dumps(front.document(loaded), indent=2))
    written = [folder / "trials.jsonl", folder / "front.json", write_guideline(folder), html.write(loaded)]
    dashboard.publish(store, loaded)
    tables.show_front(loaded, console)
    plan, seconds = Search.model_validate(loaded.facts["spec"]["search"]), store.user_attrs.get(study_store.SECONDS, 0.0)
    said = remarks.after_run(loaded.records, plan, seconds)
    target, batch_tokens = loaded.facts["spec"]["target"], loaded.facts["spec"]["proxy"]["batch_tokens"]
    read = target["batch_size"] * target["sequence_length"]
    if rate := loaded.facts["rate"]:
        effort = remarks.on_effort(loaded.records, seconds * loaded.facts["workers"], rate, read, batch_tokens)
        said = [effort, *said] if effort else said
    unsure = remarks.on_confirmation(len(front.on_front(loaded)), loaded.confirmed is not None, str(folder))
    said = [*said, unsure] if unsure else said
    console.print("\n".join([*said, *(str(path) for path in written)]), markup=False, highlight=False)
