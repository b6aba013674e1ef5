"""What each command does, from files to files: the command line calls these, and so may a program."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig

from kdsearch import (
    budget,
    check,
    earlier,
    estimate,
    finals,
    guard,
    objective,
    records,
    remarks,
    rungs,
    search,
    search_space,
    session,
    study_store,
    teacher,
    workbench,
    workers,
)
from kdsearch import export as exporting
from kdsearch import guideline as guidelines
from kdsearch.budget import Spent
from kdsearch.candidate import Candidate, from_dict
from kdsearch.check import Study
from kdsearch.display import Display, line
from kdsearch.earlier import Taken
from kdsearch.errors import UserError, all_of
from kdsearch.guesses import guesses
from kdsearch.machine import use_precision
from kdsearch.order import Order
from kdsearch.report import dashboard, front, html, study_folder, tables
from kdsearch.students.baselines import baselines
from kdsearch.students.families import architecture_of, family_of
from kdsearch.workbench import Bench


def run_study(
    path: Path,
    out: Path | None = None,
    storage: str | None = None,
    overrides: dict[str, Any] | None = None,
    earlier_studies: Sequence[Path] = (),
) -> Path:
    """Search, or go on with a search; the study's folder. What earlier studies found is taken over before the first trial.

    Raises:
        UserError: a mistake in the input, another run of the same study, or a study made with other settings.
        RuntimeError: the storage or the study's folder failed, or too many trials did; what was found is kept.
    """
    console = Console(soft_wrap=True)
    study, others = all_of(lambda: check.open_files(path, out, overrides), lambda: earlier.load(earlier_studies))
    check.refuse_unreachable(study, path)
    session.refuse_other_study(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    url = storage or default_storage(study.folder)
    with session.locked(study.folder), study_store.alone(url, study.spec.name), session.kept(study.folder, url):
        store = study_store.open_study(url, study.spec.name, session.fingerprint(study))
        sources = [other.path for other in others]
        session.refuse_other_sources(study, store, sources)
        count, hand_made = session.workers_as_before(study, store), _baselines(study)
        known = search.in_order(study_store.stored_records(store))
        extra = list(hand_made.values())
        if not known and (remark := estimate.on_finalists(study)):
            console.print(remark, markup=False, highlight=False)
        with (
            Display(console, study.spec.search, known, store.user_attrs.get(study_store.SECONDS, 0.0)) as display,
            workers.Workers(None, count, display.progress) if count > 1 else nullcontext() as crew,  # they import while this prepares
        ):
            bench = workbench.prepare(study.spec, study.space, study.base, extra, display.progress)
            bench = replace(bench, most_bytes=session.most_bytes_as_before(study, store, count))
            keys = {"teacher's weights": bench.facts["teacher"]["key"], "data": bench.facts["task"]["key"]}
            study_store.same_as_before(store, {**keys, "corpus or a model that students start from": session.files_key(study)})
            if remark := remarks.on_teacher_flops(budget.work(study.spec, bench.facts).teacher, study.spec.search):
                raise UserError(remark)
            if crew:
                crew.load(workers.lesson(study, bench, extra))
                guard.give_back()  # what the teacher's pass took
            bench.facts["teacher"] |= workbench.teacher_latency(bench)  # while the workers wait
            facts = session.write_facts(study, bench, count)
            taken = session.taken_as_before(study, store, sources, lambda: earlier.take(others, study, facts, extra))
            console.print("\n".join([_introduction(facts, count), *taken.said]), markup=False, highlight=False)

            def alone(order: Order) -> records.Measurement:
                return records.measured(objective.evaluate, order, bench, display.progress)

            around, evaluate = _surroundings(study, bench, hand_made, taken, count), crew.evaluate if crew else alone
            display.reckons(around.work, around.keep)
            with _then_written(store, around, console):
                search.search(store, around, evaluate, display, count + 1 if crew else 1)  # one is asked for before it is needed
            plan = study.spec.search
            loaded = study_folder.load(study.folder)
            if plan.finalists and (todo := finals.jobs(study, loaded, hand_made, plan.finalists, plan.finalist_seeds)):
                finals.confirm(study, todo, lambda _: nullcontext((evaluate, count)), console)
    return study.folder


def check_study(path: Path) -> None:
    """Read both files, draw candidates, build them without weights, and say what would run and for about how long."""
    console, study = Console(soft_wrap=True), check.open_files(path)
    check.refuse_unreachable(study, path)
    rows = {**estimate.describe(study), **_so_far(study)}
    for name, text in rows.items():
        console.print(f"{name:<12}{text}", highlight=False)


def rerun_trial(place: Path, trial: int) -> None:
    """Evaluate a recorded candidate again and print both results."""
    study, folder = _recorded(place)
    record = _record(folder, trial)
    candidate = from_dict(record.candidate)
    console = Console(soft_wrap=True)
    with Display(console, study.spec.search) as display:
        bench = workbench.prepare(study.spec, study.space, study.base, [candidate, *_baselines(study).values()], display.progress)
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
    chosen_by = None if pick.isdecimal() or not folder.confirmed else (front.unconfirmed(folder), len(front.on_front(folder)))
    for remark in filter(None, (remarks.on_pick(record), remarks.on_picks(*chosen_by) if chosen_by else None)):
        console.print(remark, markup=False, highlight=False)
    with Display(console, study.spec.search) as display:
        bench = workbench.prepare(study.spec, study.space, study.base, [candidate, *_baselines(study).values()], display.progress)
        bench = workbench.in_full(bench, display.progress)
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
    study, console = _with_steps(study, steps), Console(soft_wrap=True)
    hand_made = _baselines(study)
    todo = finals.jobs(study, folder, hand_made, count, seeds)
    if not todo:
        raise UserError(
            f"{place}: must have a student on its front to confirm; the front is empty ({len(folder.records)} trials); "
            "go on with 'kdsearch run', or change the limits or the space"
        )
    hands = partial(finals.opened, study, folder.facts.get("workers", 1), list(hand_made.values()), console)
    with session.locked(folder.path), session.kept(folder.path, default_storage(folder.path)):
        return finals.confirm(study, todo, hands, console)


def write_guideline(place: Path) -> Path:
    """guideline.md and guideline.json of a study; the path of the former."""
    folder = study_folder.load(place)
    statements = guidelines.statements(folder.records)
    records.write_text(folder.path / "guideline.md", guidelines.to_markdown(statements, folder.facts))
    records.write_text(folder.path / "guideline.json", guidelines.to_json(statements, folder.facts))
    return folder.path / "guideline.md"


def picked(folder: study_folder.StudyFolder, pick: str) -> int:
    """The trial that a pick names: knee, fastest or best of the front, or a trial's number."""
    picks = front.picks(folder)
    if pick in picks:
        return picks[pick]
    if not pick.isdecimal():
        if not picks:
            raise UserError(
                f"{folder.path}: has no front to pick from yet ({len(folder.records)} trials); give --pick a trial's number, or go on with "
                "'kdsearch run'"
            )
        options = " or ".join([*picks, "a trial's number"])
        raise UserError(f"--pick: must be {options}; the value is {pick!r}")
    return int(pick)


def default_storage(folder: Path) -> str:
    """SQLite in the study's folder: right for one controller."""
    return f"sqlite:///{folder / 'study.db'}"


def _baselines(study: Study) -> dict[str, Candidate]:
    config = AutoConfig.from_pretrained(teacher.source(study.spec.teacher, study.base))
    sees_attention = family_of(config).attention_path is not None
    return baselines(architecture_of(config), attention=sees_attention) if study.spec.search.baselines else {}


def _so_far(study: Study) -> dict[str, str]:
    """What is done already, where the study's folder is there; seconds by its records, since a storage cannot be opened without writing."""
    if not (study.folder / "study.json").is_file():
        return {}
    session.refuse_other_study(study)
    folder = study_folder.load(study.folder)
    known = records.own(folder.records)
    seconds = sum(record.measurement.seconds for record in known if record.duplicate_of is None)
    flops = budget.flops(known, budget.work(study.spec, folder.facts))
    return {"so far": remarks.so_far(known, seconds / folder.facts.get("workers", 1), flops)}


def _starts(study: Study, bench: Bench, taken: Taken) -> list[dict[str, Any]]:
    """What is tried before chance: what earlier studies give, then those guesses that are not among it."""
    own = guesses(study.space, architecture_of(bench.teacher.config), study.spec.limits.latency_relative)
    there = {one.key() for params in taken.starts if (one := search_space.given(study.space, params))} | taken.by_key.keys()
    new = [params for params in own if (one := search_space.given(study.space, params)) is None or one.key() not in there]
    return [*taken.starts, *new]


def _surroundings(study: Study, bench: Bench, hand_made: dict[str, Candidate], taken: Taken, count: int) -> search.Surroundings:
    flops = {name: objective.measured_cost(one, bench).flops or 0.0 for name, one in hand_made.items()}
    return search.Surroundings(
        study.spec.search,
        study.space,
        bench.rows.majority,
        bench.facts["teacher"]["flops"],
        study.folder,
        lambda record: dashboard.note(record, bench.facts),
        hand_made,
        _starts(study, bench, taken),
        rungs.at(study.spec.search.rungs, study.spec.proxy.steps),
        workbench.least_accuracy(bench),
        taken.by_key,
        budget.work(study.spec, bench.facts),
        finals.keeper(study, bench.facts, hand_made, flops, count),
    )


def _with_steps(study: Study, steps: int | None) -> Study:
    """The study with another length of its full training."""
    full = study.spec.train.model_copy(update={"steps": steps or study.spec.train.steps})
    return replace(study, spec=study.spec.model_copy(update={"train": full}))


def _recorded(place: Path) -> tuple[Study, study_folder.StudyFolder]:
    """A study as it was run: from its folder, so that a file changed since does not matter."""
    folder = study_folder.load(place)
    study = check.from_facts(folder.facts, folder.path)
    if precision := folder.facts.get("precision"):
        use_precision(study.spec.target.device, precision)  # as its trials were trained
    return study, folder


def _record(folder: study_folder.StudyFolder, trial: int) -> records.Record:
    found = next((record for record in folder.records if record.trial == trial), None)
    if found is None:
        numbers = ", ".join(str(record.trial) for record in folder.records) or "none"
        raise UserError(f"trial {trial}: is not recorded in {folder.path}; recorded: {numbers}")
    return found


def _introduction(facts: dict[str, Any], count: int) -> str:
    """Of the study's own facts, whose teacher was timed in the first session, as its students were."""
    teacher_facts, task = facts["teacher"], facts["task"]
    return (
        f"teacher   accuracy {teacher_facts['accuracy']:.3f} ± {teacher_facts['accuracy_se']:.3f}  {teacher_facts['latency_ms']:.1f} ms  "
        f"{teacher_facts['parameters'] / 1e6:.1f}M parameters\n"
        f"rows      {task['train']} train, {task['transfer']} transfer, {task['validation']} validation, {task['held_out']} held out, "
        f"{task['test']} test (not looked at)\n"
        f"workers   {f'{count} processes side by side' if count > 1 else 'this process alone'}"
    )


@contextmanager
def _then_written(store: Any, around: search.Surroundings, console: Console) -> Iterator[None]:
    """Write the results at the end, of a search that was interrupted too; what ended it is told, whatever its results meet."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            _write_results(store, around, console)
        raise
    _write_results(store, around, console)


def _write_results(store: Any, around: search.Surroundings, console: Console) -> None:
    """Everything that is made from the records."""
    folder, plan = around.folder, around.plan
    loaded = study_folder.load(folder)
    written = [folder / "trials.jsonl", front.write(loaded), write_guideline(folder), html.write(loaded)]
    dashboard.publish(store, loaded)
    tables.show_front(loaded, console)
    seconds = store.user_attrs.get(study_store.SECONDS, 0.0)
    said = remarks.after_run(loaded.records, plan, Spent(seconds, around.keep(loaded.records), budget.flops(loaded.records, around.work)))
    if rate := loaded.facts["rate"]:
        effort = remarks.on_effort(loaded.records, seconds * loaded.facts["workers"], rate, around.work)
        said = [effort, *said] if effort else said
    # The finalists come at the end of the search.
    unsure = None if plan.finalists else remarks.on_confirmation(front.unconfirmed(loaded), len(front.on_front(loaded)), str(folder))
    said = [*said, unsure] if unsure else said
    console.print("\n".join([*said, *(str(path) for path in written)]), markup=False, highlight=False)
