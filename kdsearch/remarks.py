"""What a person should be told of a study's records beside its tables, in one line each."""

from collections.abc import Sequence

from kdsearch import budget
from kdsearch.budget import LEAST_SEARCH, Spent, Work
from kdsearch.records import COMPLETE, FAILED, STOPPED, Record, own
from kdsearch.study_file import Search, StudySpec


def on_pick(record: Record) -> str | None:
    """What speaks against distilling a trial at full length; None: nothing."""
    found = record.measurement
    if record.feasible:
        return None
    what = {FAILED: "failed", COMPLETE: "breaks a limit of the study", STOPPED: "was stopped at a rung"}.get(found.state, "was refused")
    return f"Trial {record.trial} {what}{f' ({found.reason})' if found.reason else ''}; it is distilled all the same."


def after_run(known: Sequence[Record], plan: Search, spent: Spent) -> list[str]:
    """Why the front is empty, where it is; and when the budget is used up, how to go on."""
    return [remark for remark in (_on_front(known), _on_budget(known, plan, spent)) if remark]


def on_confirmation(short: int, front: int, place: str) -> str | None:
    """That so many students of a front were not trained in full yet, and how to; None: nothing to say."""
    if not short:
        return None
    who = (
        "The front is by short distillations" if short == front else f"{short} of the front's {front} students were not trained in full yet"
    )
    return f"{who}; `kdsearch confirm {place}` trains its students in full, with seeds."


def on_picks(unconfirmed: int, front: int) -> str | None:
    """That some of a front's students cannot be picked, where others were trained in full; None: all can."""
    if not unconfirmed:
        return None
    return (
        f"Picks are among the students that were trained in full: {unconfirmed} of the {front} on the front by short distillations are "
        "not. `kdsearch confirm` with a larger --finalists trains them too; a trial's number picks any."
    )


def on_finalists(trainings: int, seconds: float, spec: StudySpec) -> str | None:
    """That so many full trainings of finalists, which take about so many seconds, leave too little of the minutes; None: they do not."""
    minutes = spec.search.minutes
    if budget.seconds_kept(seconds, spec.search) >= seconds:
        return None
    return (
        f"The finalists' {trainings} trainings of {spec.train.steps} steps take about {seconds / 60:.3g} min by arithmetic, more than "
        f"{1 - LEAST_SEARCH:.0%} of the {minutes:.3g} that are given: {LEAST_SEARCH * minutes:.3g} min are searched, and then they are "
        f"trained all the same. Raise search.minutes to {seconds / 60 / (1 - LEAST_SEARCH):.3g} or more, or lower search.finalists, "
        "search.finalist_seeds or train.steps."
    )


def on_teacher_flops(teacher: float, plan: Search) -> str | None:
    """That the teacher's answers alone use up the study's FLOPs; None: they do not."""
    if plan.flops is None or teacher < plan.flops:
        return None
    return (
        f"search.flops: must exceed those of the teacher's answers, {teacher:.3g}, which are charged once; the value is {plan.flops:.3g}; "
        "raise it"
    )


def so_far(known: Sequence[Record], seconds: float, flops: float) -> str:
    """What a study has behind it: its trials, about how many seconds of search, and FLOPs with the teacher's share in them."""
    return f"{len(known)} trials, about {seconds / 60:.1f} min and {flops:.2g} FLOPs of search are done; so is what comes before"


def on_effort(known: Sequence[Record], seconds: float, rate: float, work: Work) -> str | None:
    """Where ``seconds`` (of all workers together) went, and what the training's matrix products alone would take at ``rate`` FLOP/s, the
    machine's own in the precision that trains."""
    done = [record.measurement for record in own(known) if record.duplicate_of is None and record.measurement.stages]
    if not done or seconds <= 0:
        return None
    stages = dict.fromkeys(stage for found in done for stage in found.stages)
    spent = {stage: sum(found.stages.get(stage, 0.0) for found in done) for stage in stages}
    spent["rest"] = max(0.0, seconds - sum(value for stage, value in spent.items() if stage != "rest"))
    needed = budget.trained_flops(known, work) / rate
    words = ", ".join(f"{stage} {value / seconds:.0%}" for stage, value in sorted(spent.items(), key=lambda item: -item[1]))
    return f"Time: {words}. At the machine's full rate the training's matrix products alone take {needed / seconds:.0%} of it."


def _on_front(known: Sequence[Record]) -> str | None:
    fresh = [record for record in known if record.duplicate_of is None]
    if not fresh or any(record.feasible for record in fresh):
        return None
    proposed = [record for record in fresh if not record.baseline]
    reason = next((record.measurement.reason for record in reversed(proposed) if record.measurement.reason), None)
    why = f" (the last: {reason})" if reason else ""
    return f"The front is empty: no student is trained and inside the limits{why}; go on, or change the limits or the space."


def _on_budget(known: Sequence[Record], plan: Search, spent: Spent) -> str | None:
    minutes = (spent.seconds + spent.kept) / 60
    used = [("minutes", minutes, plan.minutes), ("trials", len(own(known)), plan.trials), ("flops", spent.flops, plan.flops)]
    full = [(name, value, most) for name, value, most in used if most is not None and value >= most]
    if not full:
        return None
    words = [f"{value:.3g} of {most:.3g} {name}" for name, value, most in full]
    kept = f" ({spent.kept / 60:.3g} of them kept for the finalists)" if spent.kept and full[0][0] == "minutes" else ""
    words[0] += kept
    return f"The budget is used up: {' and '.join(words)}. To go on, raise {' and '.join(f'--{name}' for name, _, _ in full)}."
