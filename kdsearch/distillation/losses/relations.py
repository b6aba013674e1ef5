"""Losses on relations: among the examples of a batch, the words of an example, the layers of a word. Any two sizes compare.

Where the relation is among examples, the value of an example is the mean over its row: the mean over examples is the published loss.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kdsearch.distillation.losses.contract import Mask, PerExample, in_float32, masked_mean, pairs, require_equal, without_padding

StudentPooled = Float[Tensor, "batch student_dim"]
TeacherPooled = Float[Tensor, "batch teacher_dim"]
StudentWords = Float[Tensor, "batch seq student_dim"]
TeacherWords = Float[Tensor, "batch seq teacher_dim"]
StudentLayers = Float[Tensor, "layers batch seq student_dim"]
TeacherLayers = Float[Tensor, "layers batch seq teacher_dim"]
SMALLEST_NORM = 1e-6
"""Two points nearer than this have no direction: the gradient of the direction between them would explode."""


@in_float32
def rkd(student: StudentPooled, teacher: TeacherPooled, distance: float = 25.0, angle: float = 50.0) -> PerExample:
    """distance * Huber(D_s, D_t) + angle * Huber(cos_s, cos_t): D pairwise distances over their mean, cos the angles of all triples.

    Needs batch^3 numbers for the angles. A batch of 1 has no relation, and of 2 only one distance: the value is 0.

    Reference: Park W., Kim, Lu, Cho, *Relational Knowledge Distillation*, 2019, arXiv 1904.05068, sections 3.2.1 and 3.2.2.
    """
    teacher, everyone = teacher.detach(), torch.ones(len(student), dtype=torch.bool, device=student.device)
    of_distance = _distance_error(student, teacher, everyone).mean(dim=1)
    of_angle = _angle_error(student, _all(student), teacher, _all(teacher)).mean(dim=(1, 2))
    return distance * of_distance + angle * of_angle


@in_float32
def similarity(student: StudentPooled, teacher: TeacherPooled) -> PerExample:
    """Mean over pairs of examples of (G_s - G_t)^2, G the batch x batch Gram matrix with rows of norm 1. Depends on the batch size.

    Reference: Tung, Mori, *Similarity-Preserving Knowledge Distillation*, 2019, arXiv 1907.09682, section 3.
    """
    student_gram, teacher_gram = (functional.normalize(x @ x.T, dim=1, eps=SMALLEST_NORM) for x in (student, teacher.detach()))
    return (student_gram - teacher_gram).square().mean(dim=1)


@in_float32
def word_relation(student: StudentWords, teacher: TeacherWords, mask: Mask, window: int = 21, angle: float = 1.0) -> PerExample:
    """Huber(D_s, D_t) over pairs of words + angle * Huber(cos_s, cos_t) over triples within a window around the middle word.

    Args:
        window: odd number of neighbouring words whose angles count; 2 seq - 1 takes all of them.
        angle: weight of the angles.

    Reference: Park G., Kim, Yang, *Distilling Linguistic Context for Language Model Compression*, 2021, arXiv 2109.08359, section 3 (WR).
    """
    _same_tokens(student.shape[1], teacher.shape[1])
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of words, one of them in the middle; got {window}; use {max(window, 0) + 1}")
    student, teacher = without_padding(student, mask), without_padding(teacher.detach(), mask)
    of_distance = masked_mean(_distance_error(student, teacher, mask.bool()), pairs(mask))
    near = _neighbours(mask.bool()[:, :, None], window)[..., 0] & mask.bool()[:, :, None]
    error = _angle_error(student, _neighbours(student, window), teacher, _neighbours(teacher, window))
    return of_distance + angle * masked_mean(error, near[:, :, :, None] & near[:, :, None, :])


@in_float32
def layer_relation(student: StudentLayers, teacher: TeacherLayers, mask: Mask, angle: float = 1.0) -> PerExample:
    """Huber(D_s, D_t) + angle * Huber(cos_s, cos_t) among the layers of each word: how it moves from layer to layer; mean over words.

    Args:
        student: as many layers as the teacher's, in matched order; with one layer the value is 0.
        angle: weight of the angles.

    Reference: Park G., Kim, Yang, *Distilling Linguistic Context for Language Model Compression*, 2021, arXiv 2109.08359, section 3 (LTR).
    """
    require_equal("number of layers", len(student), len(teacher), "stack the matched layers of both, pair by pair")
    _same_tokens(student.shape[2], teacher.shape[2])
    s, t = (torch.stack([without_padding(layer, mask) for layer in x], dim=2) for x in (student, teacher.detach()))
    every_layer = torch.ones(s.shape[:3], dtype=torch.bool, device=s.device)
    of_distance = _distance_error(s, t, every_layer).mean(dim=(2, 3))
    of_angle = _angle_error(s, _all(s), t, _all(t)).mean(dim=(2, 3, 4))
    return masked_mean(of_distance + angle * of_angle, mask.bool())


def ckd(student: StudentLayers, teacher: TeacherLayers, mask: Mask, window: int = 21, angle: float = 1.0) -> PerExample:
    """Mean over layers of :func:`word_relation` + :func:`layer_relation`; any sizes, any heads, the same tokens.

    Reference: Park G., Kim, Yang, *Distilling Linguistic Context for Language Model Compression*, 2021, arXiv 2109.08359, section 3.
    """
    of_layers = layer_relation(student, teacher, mask, angle)
    of_words = [word_relation(s, t, mask, window, angle) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(of_words).mean(dim=0) + of_layers


Points = Float[Tensor, "*group points dim"]
Neighbours = Float[Tensor, "*group points window dim"]


def _distance_error(student: Tensor, teacher: Tensor, valid: Bool[Tensor, "*group points"]) -> Tensor:
    return functional.smooth_l1_loss(_distances(student, valid), _distances(teacher, valid), reduction="none")


def _distances(points: Points, valid: Bool[Tensor, "*group points"]) -> Float[Tensor, "*group points points"]:
    """Euclidean distances over the mean of those that are not 0; without the shortcut by products, which is wrong for near points."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(~(valid[..., :, None] & valid[..., None, :]), 0)
    mean = distances.sum(dim=(-2, -1), keepdim=True) / (distances > 0).sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return distances / mean.clamp(min=SMALLEST_NORM)


def _angle_error(student: Tensor, student_near: Tensor, teacher: Tensor, teacher_near: Tensor) -> Tensor:
    return functional.smooth_l1_loss(_cosines(student, student_near), _cosines(teacher, teacher_near), reduction="none")


def _cosines(points: Points, near: Neighbours) -> Float[Tensor, "*group points window window"]:
    """Cosine of the angle at each point between every two of its neighbours."""
    directions = functional.normalize(near - points.unsqueeze(-2), dim=-1, eps=SMALLEST_NORM)
    return directions @ directions.mT


def _all(points: Points) -> Neighbours:
    """Every point is a neighbour of every point."""
    return points.unsqueeze(-3).expand(*points.shape[:-1], *points.shape[-2:])


def _neighbours(words: Tensor, window: int) -> Tensor:
    """(batch, seq, dim) -> (batch, seq, window, dim): the words around each word, 0 beyond the ends."""
    reach = window // 2
    return functional.pad(words, (0, 0, reach, reach)).unfold(1, window, 1).transpose(2, 3)


def _same_tokens(student: int, teacher: int) -> None:
    require_equal("sequence length", student, teacher, "tokenise both alike, or relate pooled states by rkd")
