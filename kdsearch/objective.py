"""Candidate --> Measurement: the only place that states the order of the stages."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from kdsearch import calibration, cost, guard, inference, limits, starts, teacher
from kdsearch.candidate import Candidate
from kdsearch.distillation.distil import Lesson, TeacherOf, distil, rows_read
from kdsearch.distillation.knowledge import shapes_of, teacher_signals
from kdsearch.distillation.loop import GoesOn, Progress, always, telling
from kdsearch.distillation.mistakes import recipe_mistakes, token_mistakes
from kdsearch.errors import UserError
from kdsearch.inference import Outputs
from kdsearch.machine import accelerator
from kdsearch.order import Order, seed_of
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement
from kdsearch.search_space import depths, each_branch, vocabularies
from kdsearch.space_file import SearchSpace
from kdsearch.students import reading
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, narrow
from kdsearch.students.importance import Calibration
from kdsearch.students.reading import Reading
from kdsearch.students.vocabulary import Ranking
from kdsearch.study_file import StudySpec, Training
from kdsearch.target.latency import CAREFUL, QUICK, Latency, measure
from kdsearch.target.memory import peak_bytes
from kdsearch.tasks import data, metrics, pool
from kdsearch.tasks.batches import Batch, collate
from kdsearch.tasks.data import TaskData

# Every so many rows are scored at a rung: all of them took as long as 17 steps of a small student.
ROWS_AT_RUNGS = 4
LATENCY = ("latency_ms", "latency_ms_low", "latency_ms_high", "latency_relative", "latency_relative_low", "latency_relative_high")


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Known:
    """What one process found out of a study's data and teacher, for others: nothing is read, tokenised or compared anew.

    ``told``: the rows that the teacher's outputs are kept of, None for all that students are trained on.
    """

    facts: dict[str, Any]
    texts: TaskData
    rows: pool.Pool
    told: NDArray[np.int64] | None


@dataclass(frozen=True)
class Bench:
    """What every trial of a study shares: the teacher, the rows, the teacher's cached outputs, and what is known of the teacher.

    ``reduces``: whether students of the space may have smaller vocabularies; their readings are made when first asked for, and kept.
    ``quiet``: what is open while latency is timed; workers stop the others with it. ``most_bytes``: of memory that the process may hold.
    """

    spec: StudySpec
    teacher: PreTrainedModel
    tokenizer: Any
    rows: pool.Pool
    outputs: Outputs
    facts: dict[str, Any]
    texts: TaskData
    reduces: bool = False
    readings: dict[int, Reading] = field(default_factory=dict)
    base: Path = Path()
    calibration: Calibration | None = None
    quiet: Callable[[], AbstractContextManager[object]] = nullcontext
    most_bytes: float = math.inf
    told: NDArray[np.int64] | None = None

    @property
    def known(self) -> Known:
        """What another process need not find out."""
        return Known(self.facts, self.texts, self.rows, self.told)

    @cached_property
    def ranking(self) -> Ranking:
        """The order in which smaller vocabularies keep the teacher's tokens."""
        return reading.rank(self.tokenizer, self.texts, self.spec.task.max_length)

    def reading(self, vocabulary: int | None) -> Reading:
        """What a student of a vocabulary reads, and the teacher that it is cut from; None: the teacher's own."""
        whole = Reading(self.tokenizer, self.rows, self.teacher)
        if vocabulary is None:
            return whole
        if vocabulary not in self.readings:
            self.readings[vocabulary] = reading.reduced(whole, self.ranking, vocabulary, self.texts, self.spec.task.max_length)
        return self.readings[vocabulary]


def prepare(
    spec: StudySpec,
    space: SearchSpace,
    base: Path,
    extra: list[Candidate],
    progress: Progress = silent,
    known: Known | None = None,
) -> Bench:
    """Load data and teacher (fine-tuned once), and compute the outputs that a candidate of the space, or one of ``extra``, can use.

    Of rows that no short distillation reads they are not computed, where that is most of them; :func:`in_full` is for the full ones.
    """
    device, seed = spec.target.device, spec.search.seed
    progress("reading the data", 0, 1)
    tokenizer = teacher.load_tokenizer(spec.teacher, base)
    texts = known.texts if known else data.load(spec.task, base, teacher.labels(spec.teacher, base))
    rows = known.rows if known else pool.build(texts, tokenizer, spec.task.max_length)
    model, key = teacher.load(spec.teacher, base, rows, seed, device, progress)
    signals, sizes = signals_of(space, extra, model.config), vocabularies(space)
    told = known.told if known else _told(spec, rows, sizes)
    outputs = inference.outputs(model, key, rows, signals, device, progress, trusted=known is not None, rows=told)
    facts = known.facts if known else _facts(spec, model, rows, outputs, key)
    if not known:
        _refuse_guessing(spec, facts)
    parts = calibration.parts_of(candidate.initialization for candidate in (*each_branch(space), *extra))
    scores = calibration.load(model, rows, parts, seed, device, progress)
    return Bench(spec, model, tokenizer, rows, outputs, facts, texts, sizes != [None], base=base, calibration=scores, told=told)


def _told(spec: StudySpec, rows: pool.Pool, sizes: list[int | None]) -> NDArray[np.int64] | None:
    """The rows that the study's short distillations read, where they are less than half of the tokens; None: all of them.

    Students of another vocabulary are batched by other lengths, and finalists are trained for longer: there it is all.
    """
    read, trained = rows_read(rows, spec.proxy, seed_of(spec.search)), np.concatenate([rows.train, rows.transfer])
    lengths = rows.encoded.lengths
    few = sizes == [None] and not spec.search.finalists and 2 * lengths[read].sum() < lengths[trained].sum()
    return read if few else None


def in_full(bench: Bench, progress: Progress = silent) -> Bench:
    """The same with the teacher's outputs on all rows that students are trained on."""
    if bench.told is None:
        return bench
    signals, device = frozenset(bench.outputs.arrays), bench.spec.target.device
    outputs = inference.outputs(bench.teacher, bench.facts["teacher"]["key"], bench.rows, signals, device, progress)
    return replace(bench, outputs=outputs, told=None)


def _refuse_guessing(spec: StudySpec, facts: dict[str, Any]) -> None:
    """A teacher that is used as it is and answers no better than the largest class was made for other labels, or in another order."""
    accuracy, error, majority = facts["teacher"]["accuracy"], facts["teacher"]["accuracy_se"], facts["task"]["majority"]
    if spec.teacher.fine_tune is None and accuracy - 2 * error <= majority:
        raise UserError(
            f"teacher.fine_tune: null takes the model as it is, and its accuracy on validation, {accuracy:.3f} ± {error:.3f}, is not above "
            f"that of always answering the largest class, {majority:.3f}; give {{epochs: 3}}, or check the order of its labels"
        )


def signals_of(space: SearchSpace, extra: list[Candidate], config: PretrainedConfig) -> frozenset[str]:
    """What the teacher must tell so that every candidate can be distilled; logits always, since the divergence is measured on them."""
    pairs = [(candidate, layers) for candidate in each_branch(space) for layers in depths(space)]
    pairs += [(candidate, candidate.architecture.layers) for candidate in extra]
    wanted = {"logits"}
    for recipe, student in {
        (str(item.distillation), n): (item.distillation, replace(item.architecture, layers=n)) for item, n in pairs
    }.values():
        wanted |= teacher_signals(recipe, shapes_of(student, config))
    return frozenset(wanted)


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
    guard.refuse_large(counted.parameters or 0, _frozen(candidate, order, bench), bench.most_bytes)
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

    def goes_on(step: int) -> bool:
        if step not in order.rungs.seen:
            return True
        lap("training")
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


def least_accuracy(bench: Bench) -> float:
    """What a student of any use has: the limit relative to the teacher, and two standard errors more than the largest class would have."""
    majority = bench.rows.majority
    error = math.sqrt(majority * (1 - majority) / len(bench.rows.validation))
    return max(majority + 2 * error, (bench.spec.limits.accuracy_relative or 0.0) * bench.facts["teacher"]["accuracy"])


def _with_latency(found: Measurement, latency: Latency) -> Measurement:
    return replace(found, **{name: getattr(latency, name.removeprefix("latency_")) for name in LATENCY})


def teacher_latency(bench: Bench) -> dict[str, float]:
    """Milliseconds of the teacher on the target, beside itself, with their 95 % interval."""
    found = measure(bench.teacher, bench.teacher, bench.spec.target)
    return {"latency_ms": found.ms, "latency_ms_low": found.ms_low, "latency_ms_high": found.ms_high}


def _facts(spec: StudySpec, model: PreTrainedModel, rows: pool.Pool, outputs: Outputs, key: str) -> dict[str, Any]:
    """What the reports say of the teacher and the task, but for the teacher's latency."""
    predicted = outputs.arrays["logits"][rows.validation].argmax(1)
    accuracy, accuracy_se = metrics.accuracy(predicted, rows.encoded.labels[rows.validation])
    parameters = cost.parameters(model.config)
    return {
        "teacher": {
            "model": spec.teacher.model,
            "key": key,
            "architecture": asdict(architecture_of(model.config)),
            "accuracy": accuracy,
            "accuracy_se": accuracy_se,
            "parameters": parameters,
            "flops": cost.flops(model.config, spec.target.batch_size, spec.target.sequence_length),
            "bytes": cost.weight_bytes(parameters),
        },
        "task": {
            "classes": rows.classes,
            "train": len(rows.train),
            "transfer": len(rows.transfer),
            "validation": len(rows.validation),
            "held_out": len(rows.held_out),
            "test": len(rows.test),
            "majority": rows.majority,
            "tokens_per_row": float(np.mean(rows.encoded.lengths)),
            "told_tokens": int(rows.encoded.lengths[np.isfinite(outputs.arrays["logits"][:, 0])].sum()),
            "key": rows.key,
        },
    }
