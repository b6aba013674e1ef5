"""What every trial of a study shares: the teacher, the rows, what the teacher says of them; loaded once in each process."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from kdsearch import calibration, cost, inference, teacher
from kdsearch.candidate import Candidate
from kdsearch.distillation.distil import rows_read
from kdsearch.distillation.knowledge import shapes_of, teacher_signals
from kdsearch.distillation.loop import Progress
from kdsearch.errors import UserError
from kdsearch.inference import Outputs
from kdsearch.order import seed_of
from kdsearch.search_space import depths, each_branch, vocabularies
from kdsearch.space_file import SearchSpace
from kdsearch.students import reading
from kdsearch.students.families import architecture_of
from kdsearch.students.importance import Calibration
from kdsearch.students.reading import Reading
from kdsearch.students.vocabulary import Ranking
from kdsearch.study_file import StudySpec
from kdsearch.target.latency import measure
from kdsearch.tasks import data, metrics, pool
from kdsearch.tasks.data import TaskData


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


def teacher_latency(bench: Bench) -> dict[str, float]:
    """Milliseconds of the teacher on the target, beside itself, with their 95 % interval."""
    found = measure(bench.teacher, bench.teacher, bench.spec.target)
    return {"latency_ms": found.ms, "latency_ms_low": found.ms_low, "latency_ms_high": found.ms_high}


def least_accuracy(bench: Bench) -> float:
    """What a student of any use has: the limit relative to the teacher, and two standard errors more than the largest class would have."""
    majority = bench.rows.majority
    error = math.sqrt(majority * (1 - majority) / len(bench.rows.validation))
    return max(majority + 2 * error, (bench.spec.limits.accuracy_relative or 0.0) * bench.facts["teacher"]["accuracy"])
