"""One distillation: a student, a recipe, what the teacher said on each batch, a number of steps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.candidate import Candidate
from kdsearch.distillation.composition import Composition
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.loop import GoesOn, Schedule, always, fit
from kdsearch.distillation.signals import explicit_attention, observe
from kdsearch.distillation.watch import Watch
from kdsearch.machine import accelerator, threads, threads_for
from kdsearch.students.families import family_of
from kdsearch.study_file import Training
from kdsearch.tasks.batches import Batch, collate, stream
from kdsearch.tasks.pool import Pool

CALIBRATION_BATCHES = 4
TeacherOf = Callable[[frozenset[str], Batch], dict[str, Tensor]]


def unguarded() -> None:
    """Any memory may be taken."""


@dataclass(frozen=True)
class Lesson:
    """What every student of a study is taught with: the rows, what the teacher said on them, how long, in which order, and where.

    ``guard`` is asked in the middle of every step, where it holds most, whether that is too much memory; it raises if it is.
    """

    rows: Pool
    teacher_of: TeacherOf
    training: Training
    seed: int
    device: str
    guard: Callable[[], None] = unguarded


def distil(student: PreTrainedModel, candidate: Candidate, shapes: Shapes, lesson: Lesson, goes_on: GoesOn = always) -> list[float]:
    """Train the student in place, dropout off; the loss of every step. ``goes_on`` is asked after each whether it is worth the next.

    The seed decides the order of the rows, which is the same for every candidate. Word embeddings stay as they are unless
    ``training.train_embeddings``: they are most of a small student's parameters and what it inherits from the teacher.

    Raises:
        DivergedError: the loss is not finite, or stays far above what guessing scores.
    """
    training, helper = lesson.training, accelerator(lesson.device)
    composition = Composition(candidate.distillation, shapes, lesson.seed).to(helper.device)
    student.to(helper.device).eval()
    student.get_submodule(family_of(student.config).embedding_path).requires_grad_(training.train_embeddings)
    # Labels alone learn nothing from text without labels.
    recipe = candidate.distillation
    share = training.transfer_share if recipe.terms else 0.0
    if recipe.terms:
        some = islice(batches(lesson, share), CALIBRATION_BATCHES)
        composition.calibrate((lesson.teacher_of(composition.teacher_signals, batch), batch) for batch in some)

    watch = Watch(composition, training.steps)

    def loss_of(batch: Batch, step: int) -> Tensor:
        progress = (step + 0.5) / training.steps
        of_student, of_teacher = composition.wanted(progress)
        loss = composition(observe(student, batch, of_student), lesson.teacher_of(of_teacher, batch), batch, progress)
        watch.see(composition.means, progress, step)
        lesson.guard()
        return loss

    averaged, second_stage = training.schedule == "averaged", math.ceil((recipe.switch or 0.0) * training.steps - 0.5)
    schedule = Schedule(training.steps, candidate.training.learning_rate, training.warmup, averaged, second_stage)
    with explicit_attention(student), threads(threads_for(student, training.batch_tokens)):
        losses = fit(
            [student, composition],
            loss_of,
            batches(lesson, share),
            schedule,
            lesson.device,
            goes_on,
        )
    student.requires_grad_(True)
    return losses


def batches(lesson: Lesson, share: float) -> Iterator[Batch]:
    """Labelled and transfer rows, mixed and bucketed by length, without end."""
    rows, place = lesson.rows, accelerator(lesson.device).device
    for epoch, some in stream(rows.train, rows.transfer, rows.encoded.lengths, lesson.training.batch_tokens, share, lesson.seed):
        yield collate(rows.encoded, some, rows.pad_id, place, epoch)


def rows_read(rows: Pool, training: Training, seed: int) -> np.ndarray:
    """The rows that stand in the batches of a training that listens to the teacher, and in those of its calibration, in ascending order."""
    stream_of = stream(rows.train, rows.transfer, rows.encoded.lengths, training.batch_tokens, training.transfer_share, seed)
    return np.unique(np.concatenate([some for _, some in islice(stream_of, max(training.steps, CALIBRATION_BATCHES))]))
