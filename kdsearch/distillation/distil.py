"""One distillation: a student, a recipe, what the teacher said on each batch, a number of steps."""

from collections.abc import Callable, Iterator

from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.candidate import Candidate
from kdsearch.distillation.loop import Progress, accelerator, fit
from kdsearch.distillation.signals import observe
from kdsearch.distillation.strategies import Composition, Shapes
from kdsearch.students.families import family_of
from kdsearch.study_file import Training
from kdsearch.tasks.batches import Batch, collate, stream
from kdsearch.tasks.pool import Pool

TeacherOf = Callable[[frozenset[str], Batch], dict[str, Tensor]]


def distil(
    student: PreTrainedModel,
    candidate: Candidate,
    shapes: Shapes,
    rows: Pool,
    teacher_of: TeacherOf,
    training: Training,
    seed: int,
    device: str,
    progress: Progress,
) -> list[float]:
    """Train the student in place, dropout off; the loss of every step.

    The seed decides the order of the rows, which is the same for every candidate. Word embeddings stay as they are unless
    ``training.train_embeddings``: they are most of a small student's parameters and what it inherits from the teacher.
    """
    helper = accelerator(device)
    composition = Composition(candidate.distillation, shapes).to(helper.device)
    student.to(helper.device).eval()
    student.get_submodule(family_of(student.config).embedding_path).requires_grad_(training.train_embeddings)

    def loss_of(batch: Batch, _: int) -> Tensor:
        of_student = observe(student, batch, composition.student_signals)
        of_teacher = teacher_of(composition.teacher_signals, batch)
        return composition(of_student, of_teacher, batch)

    # Labels alone learn nothing from text without labels.
    share = training.transfer_share if candidate.distillation.terms else 0.0
    losses = fit(
        [student, composition],
        loss_of,
        batches(rows, training, share, seed, device),
        training.steps,
        candidate.training.learning_rate,
        training.warmup,
        device,
        lambda step: progress("distilling", step, training.steps),
    )
    student.requires_grad_(True)
    return losses


def batches(rows: Pool, training: Training, share: float, seed: int, device: str) -> Iterator[Batch]:
    """Labelled and transfer rows, mixed and bucketed by length, without end."""
    place = accelerator(device).device
    lengths = rows.encoded.lengths
    for some in stream(rows.train, rows.transfer, lengths, training.batch_tokens, share, seed):
        yield collate(rows.encoded, some, rows.pad_id, place)
