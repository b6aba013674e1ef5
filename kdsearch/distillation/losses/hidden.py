"""Losses on hidden states H of shape (batch, seq, dim). Where the sizes differ, the caller projects the student first (H_s W)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdsearch.distillation.losses.contract import (
    Mask,
    PerExample,
    first_token,
    in_float32,
    masked_mean,
    pairs,
    require_equal,
    require_positive,
    without_padding,
)

Hidden = Float[Tensor, "batch seq dim"]
StudentHidden = Float[Tensor, "batch seq student_dim"]
TeacherHidden = Float[Tensor, "batch seq teacher_dim"]


@in_float32
def hidden_mse(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """Mean over tokens and channels of (H_s - H_t)^2.

    Reference: Jiao et al., *TinyBERT: Distilling BERT for Natural Language Understanding*, 2019, arXiv 1909.10351, equation 8;
    Romero et al., *FitNets: Hints for Thin Deep Nets*, 2014, arXiv 1412.6550, equation 3.
    """
    _require_aligned(student, teacher)
    gap = without_padding(student - teacher.detach(), mask)  # once, and not of both: these are the largest tensors of a step
    return gap.square().sum(dim=(1, 2)) / (mask.sum(dim=1) * gap.shape[2]).clamp(min=1)


def embedding_mse(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """Mean over tokens and channels of (E_s - E_t)^2: :func:`hidden_mse` of the output of the embedding layer.

    Reference: Jiao et al., *TinyBERT: Distilling BERT for Natural Language Understanding*, 2019, arXiv 1909.10351, equation 9.
    """
    return hidden_mse(student, teacher, mask)


@in_float32
def cos(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """Mean over tokens of 1 - cos(h_s, h_t): only the direction counts, not the scale.

    Reference: Sanh, Debut, Chaumond, Wolf, *DistilBERT, a distilled version of BERT*, 2019, arXiv 1910.01108, section 3.
    """
    student, teacher = _aligned(student, teacher, mask)
    return masked_mean(1 - functional.cosine_similarity(student, teacher, dim=2), mask.bool())


@in_float32
def pkd(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """|| h_s / |h_s| - h_t / |h_t| ||^2 of [CLS], the first token. Published without the final layer: match by ``uniform_but_last``.

    Reference: Sun, Cheng, Gan, Liu, *Patient Knowledge Distillation for BERT Model Compression*, 2019, arXiv 1908.09355, section 3.2.
    """
    student, teacher = _aligned(student, teacher, mask)
    student, teacher = (functional.normalize(first_token(states, mask), dim=1) for states in (student, teacher))
    return (student - teacher).square().sum(dim=1)


@in_float32
def normalised_mse(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """MSE(O_t, O_s) / MSE(O_t, 0), each over one example's tokens: 0 for a perfect block, 1 for a block that is always 0.

    Reference: Bercovich et al., *Puzzle: Distillation-Based NAS for Inference-Optimized LLMs*, 2024, arXiv 2411.19146, section 3.
    """
    student, teacher = _aligned(student, teacher, mask)
    smallest = torch.finfo(teacher.dtype).tiny
    return (student - teacher).square().sum(dim=(1, 2)) / teacher.square().sum(dim=(1, 2)).clamp(min=smallest)


@in_float32
def nst(student: StudentHidden, teacher: TeacherHidden, mask: Mask) -> PerExample:
    """Mean over pairs of tokens of (H_s H_s^T / d_S - H_t H_t^T / d_T)^2; any sizes, no projection.

    Reference: Huang, Wang, *Like What You Like: Knowledge Distill via Neuron Selectivity Transfer*, 2017, arXiv 1707.01219, section 4.
    """
    student, teacher = _same_tokens(student, teacher, mask)
    student_gram, teacher_gram = (states @ states.mT / states.shape[2] for states in (student, teacher))
    return masked_mean((student_gram - teacher_gram).square(), pairs(mask))


def gram(student: Hidden, teacher: Hidden, mask: Mask) -> PerExample:
    """Mean over pairs of channels of (H_s^T H_s / L - H_t^T H_t / L)^2, L the tokens of the example: :func:`fsp` of one layer."""
    return fsp((student, student), (teacher, teacher), mask)


@in_float32
def fsp(student: tuple[Hidden, Hidden], teacher: tuple[Hidden, Hidden], mask: Mask) -> PerExample:
    """Mean over pairs of channels of (S1^T S2 / L - T1^T T2 / L)^2: how features flow from a first layer to a second one.

    Reference: Yim, Joo, Bae, Kim, *A Gift from Knowledge Distillation*, 2017, CVPR, equations 1 and 2.
    """
    (s1, t1), (s2, t2) = (_aligned(*states, mask) for states in zip(student, teacher, strict=True))
    tokens = mask.sum(dim=1).clamp(min=1)[:, None, None]
    return (s1.mT @ s2 / tokens - t1.mT @ t2 / tokens).square().mean(dim=(1, 2))


@in_float32
def infonce(student: Hidden, teacher: Hidden, mask: Mask, temperature: float = 0.1) -> PerExample:
    """Mean over tokens j of -log(exp(cos(s_j, t_j) / tau) / sum over k of exp(cos(s_k, t_j) / tau)), k the tokens of the same example.

    Each teacher token is to be told from the example's others. The minimum is not 0; log(tokens) is the value of guessing.

    Reference: van den Oord, Li, Vinyals, *Representation Learning with Contrastive Predictive Coding*, 2018, arXiv 1807.03748, equation 4.
    """
    require_positive("temperature", temperature)
    student, teacher = (functional.normalize(states, dim=2) for states in _aligned(student, teacher, mask))
    cosines = (teacher @ student.mT / temperature).masked_fill(~pairs(mask), torch.finfo(student.dtype).min)
    return masked_mean(-cosines.log_softmax(dim=2).diagonal(dim1=1, dim2=2), mask.bool())


def _require_aligned(student: Tensor, teacher: Tensor) -> None:
    fix = "project the student's states to the teacher's size, or use nst or ckd"
    require_equal("hidden size", student.shape[2], teacher.shape[2], fix)
    _require_same_length(student, teacher)


def _require_same_length(student: Tensor, teacher: Tensor) -> None:
    require_equal("sequence length", student.shape[1], teacher.shape[1], "tokenise both alike, or compare pooled states")


def _same_tokens(student: Tensor, teacher: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Both without padding, the teacher without gradient."""
    _require_same_length(student, teacher)
    return without_padding(student, mask), without_padding(teacher.detach(), mask)


def _aligned(student: Tensor, teacher: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """:func:`_same_tokens` of states that are also equally wide."""
    _require_aligned(student, teacher)
    return _same_tokens(student, teacher, mask)
