"""Candidate --> Measurement: the only place that states the order of the stages."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from kdsearch import cost, guard, inference, limits, starts
from kdsearch.candidate import Candidate
from kdsearch.distillation.distil import Lesson, TeacherOf, distil
from kdsearch.distillation.knowledge import shapes_of
from kdsearch.distillation.loop import GoesOn, Progress, Shown, always, telling
from kdsearch.distillation.mistakes import recipe_mistakes, token_mistakes
from kdsearch.errors import UserError
from kdsearch.machine import accelerator
from kdsearch.order import Order
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement
from kdsearch.students.build import build
from kdsearch.students.families import narrow
from kdsearch.study_file import Training
from kdsearch.target.latency import CAREFUL, QUICK, Latency, measure
from kdsearch.target.memory import peak_bytes
from kdsearch.tasks import metrics
from kdsearch.tasks.batches import Batch, collate
from kdsearch.workbench import Bench, silent

# Every so many rows are scored at a rung: all of them took as long as 17 steps of a small student.
ROWS_AT_RUNGS = 4
LATENCY = ("latency_ms", "latency_ms_low", "latency_ms_high", "latency_relative", "latency_relative_low", "latency_relative_high")


def evaluate(order: Order, bench: Bench, progress: Progress = silent) -> Measurement:
    """Cost, limits, build, memory, latency, limits, distillation rung by rung, scores, limits.

    What goes wrong in a stage is raised; the search records it and goes on.
    """
    candidate, laps, since = order.candidate, dict[str, float](), time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal since
        laps[stage], since = laps.get(stage, 0.0) + time.perf_counter() - since, time.perf_counter()

    def ended(found: Measurement, **changes: Any) -> Measurement:
        lap("rest")
        return replace(found, seconds=sum(laps.values()), stages=laps, **changes)

    if impossible := recipe_mistakes(candidate.distillation, shapes_of(candidate.architecture, bench.teacher.config)):
        return ended(Measurement(REFUSED), reason="; ".join(impossible), violations=_violations(Measurement(REFUSED), bench))
    counted = measured_cost(candidate, bench)
    if (reason := broken(counted, bench)) and not order.train_anyway:
        return ended(counted, reason=reason)
    if messages := tokenised_otherwise(candidate, bench):
        return ended(counted, reason="; ".join(messages), violations=(*_excess(counted, bench), 1.0))
    averaged = (order.training or bench.spec.proxy).schedule == "averaged"
    guard.refuse_large(counted.parameters or 0, _frozen(candidate, order, bench), bench.most_bytes, averaged)
    student = started(candidate, bench, order.seed)
    lap("building")
    timed = _on_target(student, counted, order, bench, lap)
    if (reason := broken(timed, bench)) and not order.train_anyway:
        return ended(timed, reason=reason)
    found = _taught(student, order, timed, bench, lap, progress)
    if found.state == STOPPED:  # what accuracy it would have had is not known
        return ended(found)
    return ended(found, violations=_violations(found, bench), reason=broken(found, bench))


def _on_target(student: PreTrainedModel, counted: Measurement, order: Order, bench: Bench, lap: Callable[[str], None]) -> Measurement:
    """With its memory, where the study limits it, and its latency; what breaks a limit by its memory is not timed."""
    found, target = counted, bench.spec.target
    if bench.spec.limits.memory_megabytes is not None:
        found = replace(found, memory_bytes=peak_bytes(student, target))
        found = replace(found, violations=_violations(found, bench))
        lap("memory")
        if broken(found, bench) and not order.train_anyway:
            return found
    if order.timed:
        found = replace(found, **{name: getattr(order.timed, name) for name in LATENCY})
    else:
        with bench.quiet():
            lap("waiting")
            effort = QUICK if order.training is None else CAREFUL
            found = _with_latency(found, measure(student, bench.teacher, target, order.seed, effort))
        lap("latency")
    return replace(found, violations=_violations(found, bench))


def _taught(
    student: PreTrainedModel, order: Order, timed: Measurement, bench: Bench, lap: Callable[[str], None], progress: Progress
) -> Measurement:
    """Distil until the end or the rung that stops it, and score."""
    candidate, training, at_rung = order.candidate, order.training or bench.spec.proxy, dict[str, dict[str, float]]()

    def goes_on(step: int, shown: Shown) -> bool:
        if step not in order.rungs.seen:
            return True
        lap("training")
        with shown():
            found = at_rung[str(step)] = scores(student, bench, candidate.architecture.vocabulary, ROWS_AT_RUNGS)
        lap("scoring")
        return order.rungs.goes_on(step, found["calibrated_divergence"], timed.latency_relative or 1.0)

    steps = train(student, candidate, bench, training, order.seed, telling(progress, "distilling", training.steps, goes_on))
    lap("training")
    if steps < training.steps:
        reason = f"stopped at step {steps} of {training.steps}: others of its latency are closer to the teacher"
        return replace(timed, state=STOPPED, **at_rung[str(steps)], steps=steps, rungs=at_rung, reason=reason)
    found = scores(student, bench, candidate.architecture.vocabulary)
    lap("scoring")
    return replace(timed, state=COMPLETE, **found, steps=steps, rungs=at_rung)


def _frozen(candidate: Candidate, order: Order, bench: Bench) -> int:
    """Parameters that are not trained: the word embeddings, unless they are."""
    learn = (order.training or bench.spec.proxy).train_embeddings
    return 0 if learn else cost.embeddings(narrow(bench.teacher.config, candidate.architecture))


def started(candidate: Candidate, bench: Bench, seed: int) -> PreTrainedModel:
    """The untrained student, cut from the teacher or from the model that the candidate names in its place."""
    own, model = bench.reading(candidate.architecture.vocabulary), candidate.initialization.other_model
    other = starts.load(candidate.initialization, own, bench.reading(None), bench.rows.classes, bench.base) if model else own.teacher
    return build(other, candidate, seed, bench.calibration)


def train(
    student: PreTrainedModel,
    candidate: Candidate,
    bench: Bench,
    training: Training,
    seed: int,
    goes_on: GoesOn = always,
) -> int:
    """Distil a built student on the bench, in place; the number of steps that were done. The seed decides the order of the rows.

    Raises:
        UserError: the recipe compares token by token, and the student tokenises otherwise than the teacher.
    """
    if messages := tokenised_otherwise(candidate, bench):
        raise UserError(messages)
    own = bench.reading(candidate.architecture.vocabulary)
    teacher_of = _told_on_its_own_tokens(bench) if own.changed else _teacher_of(bench)
    lesson = Lesson(own.rows, teacher_of, training, seed, bench.spec.target.device, lambda: guard.refuse_growth(bench.most_bytes))
    return len(distil(student, candidate, shapes_of(candidate.architecture, bench.teacher.config), lesson, goes_on))


def tokenised_otherwise(candidate: Candidate, bench: Bench) -> list[str]:
    """Why the recipe cannot be used on a student that tokenises as its vocabulary does; empty when it can."""
    size = candidate.architecture.vocabulary
    if size is None or not (messages := token_mistakes(candidate.distillation, size, bench.ranking.lossless)):
        return []
    return messages if bench.reading(size).changed else []


def _told_on_its_own_tokens(bench: Bench) -> TeacherOf:
    """What the teacher said on a batch of another tokenisation: on its own tokens of the same rows, with the mask of these."""
    place, teacher_of = accelerator(bench.spec.target.device).device, _teacher_of(bench)

    def told(signals: frozenset[str], batch: Batch) -> dict[str, Tensor]:
        own = collate(bench.rows.encoded, batch.rows, bench.rows.pad_id, place)
        return {**teacher_of(signals, own), "mask": own.attention_mask}

    return told


def _teacher_of(bench: Bench) -> TeacherOf:
    """What the teacher said on a batch: as it is kept, and otherwise (other seeds and longer trainings read other rows) computed now."""

    def told(signals: frozenset[str], batch: Batch) -> dict[str, Tensor]:
        kept = not signals or bench.outputs.holds(batch.rows)
        return bench.outputs.batch(signals, batch) if kept else inference.told_now(bench.teacher, signals, batch)

    return told


def measured_cost(candidate: Candidate, bench: Bench) -> Measurement:
    """What arithmetic knows of a candidate, before anything is built."""
    config, target = narrow(bench.teacher.config, candidate.architecture), bench.spec.target
    parameters, flops = cost.parameters(config), cost.flops(config, target.batch_size, target.sequence_length)
    counted = Measurement(state=REFUSED, parameters=parameters, flops=flops, bytes=cost.weight_bytes(parameters))
    return replace(counted, violations=_violations(counted, bench))


def scores(student: PreTrainedModel, bench: Bench, vocabulary: int | None = None, every: int = 1) -> dict[str, float]:
    """Accuracy on validation, mean KL(teacher || student) in nats on validation and held-out text, each with its standard error, and the
    labels' log loss on validation."""
    rows, measuring = bench.reading(vocabulary).rows, bench.rows.measuring[::every]
    logits = inference.predict(student, rows.encoded, measuring, rows.pad_id, bench.spec.target.device)
    labelled = len(rows.validation[::every])  # they stand first
    labels = rows.encoded.labels[measuring[:labelled]]
    accuracy, accuracy_se = metrics.accuracy(logits[:labelled].argmax(1), labels)
    log_loss, _ = metrics.log_loss(logits[:labelled], labels)
    divergence, divergence_se = metrics.mean(metrics.kl(bench.outputs.arrays["logits"][measuring], logits))
    found = {"accuracy": accuracy, "accuracy_se": accuracy_se, "divergence": divergence, "divergence_se": divergence_se}
    calibrated = metrics.calibrated_kl(bench.outputs.arrays["logits"][measuring], logits)
    return {**found, "log_loss": log_loss, "calibrated_divergence": calibrated}


def _excess(found: Measurement, bench: Bench) -> tuple[float, ...]:
    return limits.excess(found, bench.spec.limits, bench.facts["teacher"]["accuracy"])


def _violations(found: Measurement, bench: Bench) -> tuple[float, ...]:
    """What Optuna sees as constraints: the limits' excess, and where vocabularies vary, whether the recipe cannot be used with this one."""
    return (*_excess(found, bench), *([0.0] if bench.reduces else []))


def broken(found: Measurement, bench: Bench) -> str | None:
    """Which limits a candidate breaks, in words; None when it breaks none."""
    return limits.broken(found, bench.spec.limits, bench.facts["teacher"]["accuracy"])


def _with_latency(found: Measurement, latency: Latency) -> Measurement:
    return replace(found, **{name: getattr(latency, name.removeprefix("latency_")) for name in LATENCY})
