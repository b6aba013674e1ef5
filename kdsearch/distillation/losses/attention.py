"""Losses on attention: on the scores of (query, key) pairs, and on the relations among queries, keys and values."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kdsearch.distillation.losses.contract import Mask, PerExample, in_float32, masked_mean, pairs, require_equal

Heads = Float[Tensor, "batch heads seq head_size"]
Scores = Float[Tensor, "batch heads seq seq"]
StudentScores = Float[Tensor, "batch student_heads seq seq"]
TeacherScores = Float[Tensor, "batch teacher_heads seq seq"]


class QKV(NamedTuple):
    """Queries, keys and values of one attention block, before any mask; keys and values repeated where heads share them."""

    q: Heads
    k: Heads
    v: Heads


@in_float32
def scores(q: Heads, k: Heads) -> Scores:
    """Q K^T / sqrt(d_h), before the softmax and before any mask: what the published losses compare.

    Reference: Vaswani et al., *Attention Is All You Need*, 2017, arXiv 1706.03762, equation 1.
    """
    return q @ k.mT / q.shape[3] ** 0.5


@in_float32
def attention_mse(student: Scores, teacher: Scores, mask: Mask) -> PerExample:
    """Mean over heads and pairs of tokens of (A_s - A_t)^2 of the scores before the softmax.

    Padding is known by the mask and never by value: a genuine score may be as negative as it likes.

    Raises:
        ValueError: different numbers of heads.

    Reference: Jiao et al., *TinyBERT: Distilling BERT for Natural Language Understanding*, 2019, arXiv 1909.10351, equation 7.
    """
    _same_heads(student, teacher)
    valid = pairs(mask)[:, None]
    return masked_mean((student.masked_fill(~valid, 0) - teacher.detach().masked_fill(~valid, 0)).square(), valid)


@in_float32
def attention_kl(student: Scores, teacher: Scores, mask: Mask) -> PerExample:
    """Mean over heads and queries of KL(softmax(A_t) || softmax(A_s)) over keys; takes the scores before the softmax.

    Raises:
        ValueError: different numbers of heads.

    Reference: Wang et al., *MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression*, 2020, arXiv 2002.10957, section 3.1.
    """
    _same_heads(student, teacher)
    # The smallest number instead of -inf: a row without any key stays finite.
    padding = ~pairs(mask)[:, None]
    masked = (a.masked_fill(padding, torch.finfo(a.dtype).min) for a in (student, teacher.detach()))
    return masked_mean(_Divergence.apply(*masked), mask.bool()[:, None, :])


class _Divergence(torch.autograd.Function):
    """KL(softmax(a_t) || softmax(a_s)) over the last axis, its gradient softmax(a_s) - softmax(a_t) by hand: a third of autograd's time."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        p = log_p.exp()
        ctx.save_for_backward(log_q, p)
        return (p * log_p.sub_(log_q)).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_q, p = ctx.saved_tensors
        return (log_q.exp() - p).mul_(gradients[0].unsqueeze(-1)), None


def attention_mean(student: StudentScores, teacher: TeacherScores, mask: Mask) -> PerExample:
    """:func:`attention_kl` of the mean over heads, so that any numbers of heads compare. The mean: a sum would carry mass H.

    Reference: Lu et al., *Knowledge Distillation of Transformer-based Language Models Revisited*, 2022, arXiv 2206.14366, section 3.
    """
    return attention_kl(_mean_head(student), _mean_head(teacher), mask)


def attention_mean_mse(student: StudentScores, teacher: TeacherScores, mask: Mask) -> PerExample:
    """:func:`attention_mse` of the mean over heads, so that any numbers of heads compare.

    Reference: Lu et al., *Knowledge Distillation of Transformer-based Language Models Revisited*, 2022, arXiv 2206.14366, section 3.
    """
    return attention_mse(_mean_head(student), _mean_head(teacher), mask)


def minilm(student: QKV, teacher: QKV, mask: Mask) -> PerExample:
    """KL(A_t || A_s) + KL(VR_t || VR_s), A = softmax(Q K^T / sqrt(d_h)), VR = softmax(V V^T / sqrt(d_h)). Made for the last layer.

    Raises:
        ValueError: different numbers of heads.

    Reference: Wang et al., *MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression*, 2020, arXiv 2002.10957,
    sections 3.1 and 3.2.
    """
    of_attention = attention_kl(scores(student.q, student.k), scores(teacher.q, teacher.k), mask)
    return of_attention + attention_kl(scores(student.v, student.v), scores(teacher.v, teacher.v), mask)


def minilmv2(student: QKV, teacher: QKV, mask: Mask, relation_heads: int = 12) -> PerExample:
    """Sum over X in Q, K, V of KL(R_t^X || R_s^X), R^X = softmax(X X^T / sqrt(d_r)) in each of A_r relation heads. Any heads, any sizes.

    Raises:
        ValueError: a hidden size that the relation heads do not divide.

    Reference: Wang et al., *MiniLMv2: Multi-Head Self-Attention Relation Distillation*, 2020, arXiv 2012.15828, section 3.
    """
    total = torch.zeros(len(mask), device=mask.device)
    for of_student, of_teacher in zip(student, teacher, strict=True):
        s, t = _relation_heads(of_student, relation_heads, "student"), _relation_heads(of_teacher, relation_heads, "teacher")
        total = total + attention_kl(scores(s, s), scores(t, t), mask)
    return total


def _relation_heads(x: Heads, relation_heads: int, whose: str) -> Float[Tensor, "batch relation_heads seq relation_size"]:
    """Heads concatenated, then split anew: (batch, H, seq, d_h) -> (batch, seq, H d_h) -> (batch, A_r, seq, d / A_r)."""
    size = x.shape[1] * x.shape[3]
    if relation_heads < 1 or size % relation_heads:
        fits = [n for n in range(1, size + 1) if size % n == 0]
        nearest = min(fits, key=lambda n: abs(n - relation_heads))
        raise ValueError(f"relation_heads must divide the {whose}'s hidden size; got {relation_heads} for {size}; the nearest is {nearest}")
    return x.transpose(1, 2).flatten(2).unflatten(2, (relation_heads, -1)).transpose(1, 2)


def _mean_head(a: Scores) -> Float[Tensor, "batch 1 seq seq"]:
    # Upcast here already: a mean of bfloat16 scores would be rounded before the loss sees it.
    return a.float().mean(dim=1, keepdim=True)


def _same_heads(student: Tensor, teacher: Tensor) -> None:
    fix = "keep the heads and shrink the head size, or use attention_mean or minilmv2, which any number of heads allows"
    require_equal("number of heads", student.shape[1], teacher.shape[1], fix)
    require_equal("sequence length", student.shape[2], teacher.shape[2], "tokenise both alike")
