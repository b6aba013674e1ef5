"""What a person should be told of a study's records beside its tables, in one line each."""

from collections.abc import Sequence

from kdsearch.records import COMPLETE, FAILED, STOPPED, Record, own
from kdsearch.study_file import Search


def on_pick(record: Record) -> str | None:
    """What speaks against distilling a trial at full length; None: nothing."""
    found = record.measurement
    if record.feasible:
        return None
    what = {FAILED: "failed", COMPLETE: "breaks a limit of the study", STOPPED: "was stopped at a rung"}.get(found.state, "was refused")
    return f"Trial {record.trial} {what}{f' ({found.reason})' if found.reason else ''}; it is distilled all the same."


def after_run(known: Sequence[Record], plan: Search, seconds: float) -> list[str]:
    """Why the front is empty, where it is; and when the budget is used up (``seconds`` of search in all), how to go on."""
    spent = _on_budget(known, plan, seconds)
    return [remark for remark in (_on_front(known, spent is not None), spent) if remark]


def on_confirmation(found: int, confirmed: bool, place: str) -> str | None:
    """That a front of so many students was not trained in full yet, and how to; None: nothing to say."""
    if not found or confirmed:
        return None
    return f"The front is by short distillations; `kdsearch confirm {place}` trains its students in full, with seeds."


def on_effort(known: Sequence[Record], seconds: float, rate: float, tokens_of_flops: float, batch_tokens: int) -> str | None:
    """Where ``seconds`` (of all workers together) went, and what the training's matrix products alone would take.

    A step of training is three forward passes, 3 x FLOPs of a token x tokens of a batch, of a student whose ``flops`` belong to
    ``tokens_of_flops`` tokens, at ``rate`` FLOP/s, the machine's own in the precision that trains.
    """
    done = [record.measurement for record in own(known) if record.duplicate_of is None and record.measurement.stages]
    if not done or seconds <= 0:
        return None
    stages = dict.fromkeys(stage for found in done for stage in found.stages)
    spent = {stage: sum(found.stages.get(stage, 0.0) for found in done) for stage in stages}
    spent["rest"] = max(0.0, seconds - sum(value for stage, value in spent.items() if stage != "rest"))
    needed = sum(3 * (found.flops or 0.0) / tokens_of_flops * found.steps * batch_tokens for found in done) / rate
    words = ", ".join(f"{stage} {value / seconds:.0%}" for stage, value in sorted(spent.items(), key=lambda item: -item[1]))
    return f"Time: {words}. At the machine's full rate the training's matrix products alone take {needed / seconds:.0%} of it."


def _on_front(known: Sequence[Record], spent: bool) -> str | None:
    fresh = [record for record in known if record.duplicate_of is None]
    if not fresh or any(record.feasible for record in fresh):
        return None
    proposed = [record for record in fresh if not record.baseline]
    if not proposed:
        many = f"{len(fresh)} hand-made baseline{'s' if len(fresh) > 1 else ''}"
        if not spent:
            return f"The front is empty: so far only {many} were trained, no candidate of the search."
        return f"The front is empty: the budget went into {many}, before any candidate; give more of it, or set search.baselines: false."
    reason = next((record.measurement.reason for record in reversed(proposed) if record.measurement.reason), None)
    why = f" (the last: {reason})" if reason else ""
    return f"The front is empty: no student is trained and inside the limits{why}; go on, or change the limits or the space."


def _on_budget(known: Sequence[Record], plan: Search, seconds: float) -> str | None:
    used = [("minutes", seconds / 60, plan.minutes), ("trials", len(own(known)), plan.trials)]
    full = [(name, value, most) for name, value, most in used if most is not None and value >= most]
    if not full:
        return None
    words = " and ".join(f"{value:.3g} of {most:.3g} {name}" for name, value, most in full)
    return f"The budget is used up: {words}. To go on, raise {' and '.join(f'--{name}' for name, _, _ in full)}."
