"""One distillation: a student, a recipe, what the teacher said on each batch, a number of steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.candidate import Candidate
from kdsearch.distillation.loop import Progress, Schedule, accelerator, fit
from kdsearch.distillation.signals import observe
from kdsearch.distillation.strategies import Composition, Shapes
from kdsearch.students.families import family_of
from kdsearch.study_file import Training
from kdsearch.tasks.batches import Batch, collate, stream
from kdsearch.tasks.pool import Pool

TeacherOf = Callable[[frozenset[str], Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class Lesson:
    """What every student of a study is taught with: the rows, what the teacher said on them, how long, in which order, and where."""

    rows: Pool
    teacher_of: TeacherOf
    training: Training
    seed: int
    device: str


def distil(student: PreTrainedModel, candidate: Candidate, shapes: Shapes, lesson: Lesson, progress: Progress) -> list[float]:
    """Train the student in place, dropout off; the loss of every step.

    The seed decides the order of the rows, which is the same for every candidate. Word embeddings stay as they are unless
    ``training.train_embeddings``: they are most of a small student's parameters and what it inherits from the teacher.
    """
    training, helper = lesson.training, accelerator(lesson.device)
    composition = Composition(candidate.distillation, shapes).to(helper.device)
    student.to(helper.device).eval()
    student.get_submodule(family_of(student.config).embedding_path).requires_grad_(training.train_embeddings)

    def loss_of(batch: Batch, _: int) -> Tensor:
        of_student = observe(student, batch, composition.student_signals)
        of_teacher = lesson.teacher_of(composition.teacher_signals, batch)
        return composition(of_student, of_teacher, batch)

    # Labels alone learn nothing from text without labels.
    share = training.transfer_share if candidate.distillation.terms else 0.0
    losses = fit(
        [student, composition],
        loss_of,
        batches(lesson, share),
        Schedule(training.steps, candidate.training.learning_rate, training.warmup),
        lesson.device,
        lambda step: progress("distilling", step, training.steps),
    )
    student.requires_grad_(True)
    return losses


def batches(lesson: Lesson, share: float) -> Iterator[Batch]:
    """Labelled and transfer rows, mixed and bucketed by length, without end."""
    rows, place = lesson.rows, accelerator(lesson.device).device
    for some in stream(rows.train, rows.transfer, rows.encoded.lengths, lesson.training.batch_tokens, share, lesson.seed):
        yield collate(rows.encoded, some, rows.pad_id, place)
