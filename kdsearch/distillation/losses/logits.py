"""Losses on the logits z of C classes. For logits per token, flatten the tokens into the batch and take ``masked_mean`` of the result."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdsearch.distillation.losses.contract import PerExample, in_float32, require_at_least, require_equal, require_positive

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, " batch"]
UNLABELLED = -100
SMALLEST_NORM = 1e-6
"""Under this norm a vector counts as constant: its direction is noise, and the gradient of that direction would explode."""


@in_float32
def hard(student: Logits, labels: Labels) -> PerExample:
    """Cross-entropy with the labels: -log softmax(z_s)[y]; 0 for a row that has no label (y = -100)."""
    return functional.cross_entropy(student, labels, ignore_index=UNLABELLED, reduction="none")


@in_float32
def kd(student: Logits, teacher: Logits, temperature: float = 1.0) -> PerExample:
    """tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)).

    tau^2 keeps the gradient's scale; for large tau the loss tends to the variance over classes of z_s - z_t, halved.

    Reference: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv 1503.02531, section 2.
    """
    _comparable(student, teacher, temperature)
    return temperature**2 * _divergence(_log_softmax(teacher.detach(), temperature), _log_softmax(student, temperature))


def kl(*, teacher: Logits, student: Logits) -> PerExample:
    """KL(softmax(z_t) || softmax(z_s)), in nats: the score by which students are ranked. Not symmetric, so both sides are named."""
    return kd(student, teacher)


@in_float32
def reverse_kl(student: Logits, teacher: Logits, temperature: float = 1.0) -> PerExample:
    """tau^2 KL(softmax(z_s / tau) || softmax(z_t / tau)): the student is not asked to cover every class of the teacher.

    Reference: Gu, Dong, Wei, Huang, *MiniLLM: Knowledge Distillation of Large Language Models*, 2023, arXiv 2306.08543, equation 1.
    """
    _comparable(student, teacher, temperature)
    return temperature**2 * _divergence(_log_softmax(student, temperature), _log_softmax(teacher.detach(), temperature))


@in_float32
def jsd(student: Logits, teacher: Logits) -> PerExample:
    """1/2 KL(p || m) + 1/2 KL(q || m), with p and q the two softmaxes and m = (p + q) / 2. Symmetric, at most ln 2.

    Reference: Lin, *Divergence Measures Based on the Shannon Entropy*, 1991, IEEE Transactions on Information Theory 37(1), section IV.
    """
    _comparable(student, teacher)
    p, q = _log_softmax(student), _log_softmax(teacher.detach())
    m = torch.logaddexp(p, q) - math.log(2)
    return (_divergence(p, m) + _divergence(q, m)) / 2


@in_float32
def logit_mse(student: Logits, teacher: Logits) -> PerExample:
    """Mean over classes of (z_s - z_t)^2; with one output, the distillation loss of a regression.

    Reference: Ba, Caruana, *Do Deep Nets Really Need to be Deep?*, 2014, arXiv 1312.6184, section 2.
    """
    _same_classes(student, teacher)
    return (student - teacher.detach()).square().mean(dim=1)


@in_float32
def dkd(student: Logits, teacher: Logits, labels: Labels, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 1.0) -> PerExample:
    """tau^2 (alpha TCKD + beta NCKD); 0 for a row that has no label (y = -100).

    TCKD is the KL of (p_y, 1 - p_y), NCKD the KL among the other classes; KD = TCKD + (1 - p_y of the teacher) NCKD.

    Raises:
        ValueError: fewer than 3 classes, where NCKD is identically 0.

    Reference: Zhao, Cui, Song, Qiu, Liang, *Decoupled Knowledge Distillation*, 2022, arXiv 2203.08679, section 3.
    """
    _comparable(student, teacher, temperature, classes=3)
    target = labels.clamp(min=0)
    teacher_target, teacher_others = _decoupled(teacher.detach() / temperature, target)
    student_target, student_others = _decoupled(student / temperature, target)
    loss = alpha * _divergence(teacher_target, student_target) + beta * _divergence(teacher_others, student_others)
    return temperature**2 * loss.masked_fill(labels == UNLABELLED, 0)


@in_float32
def dist(student: Logits, teacher: Logits, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> PerExample:
    """tau^2 (beta (1 - pearson over classes) + gamma (1 - pearson over the batch)) of the probabilities softmax(z / tau).

    The batch term of class c is 1 - pearson = mean over examples of (u - v)^2 / 2 for u, v of mean 0 and variance 1: each example gets
    its own square, so that the mean over examples is the published loss. It says little for batches under 8 and nothing for 1.
    Both terms stay the same when the probabilities change by a positive affine map.

    Raises:
        ValueError: fewer than 3 classes, where the correlation over classes is +-1 and has no gradient.

    Reference: Huang, You, Wang, Qian, Xu, *Knowledge Distillation from A Stronger Teacher*, 2022, arXiv 2205.10536, section 3.
    """
    _comparable(student, teacher, temperature, classes=3)
    p, q = (student / temperature).softmax(dim=1), (teacher.detach() / temperature).softmax(dim=1)
    over_classes = _unpearson(p, q, dim=1).sum(dim=1)
    over_batch = len(p) * _unpearson(p, q, dim=0).mean(dim=1)
    return temperature**2 * (beta * over_classes + gamma * over_batch)


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits / temperature).log_softmax(dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> PerExample:
    """KL(p || q) from the logarithms of both."""
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _decoupled(logits: Logits, target: Labels) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch others"]]:
    """Log-probabilities of (target, not target), and of the other classes among themselves."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(1, columns + (columns >= target[:, None]))
    binary = torch.stack([logits.gather(1, target[:, None])[:, 0], others.logsumexp(dim=1)], dim=1)
    return binary.log_softmax(dim=1), others.log_softmax(dim=1)


def _unpearson(p: Logits, q: Logits, dim: int) -> Logits:
    """Terms whose sum over ``dim`` is 1 - pearson(p, q): (u - v)^2 / 2 for u, v of mean 0 and norm 1."""
    u, v = (functional.normalize(x - x.mean(dim, keepdim=True), dim=dim, eps=SMALLEST_NORM) for x in (p, q))
    return (u - v).square() / 2


def _same_classes(student: Tensor, teacher: Tensor) -> None:
    require_equal("number of classes", student.shape[1], teacher.shape[1], "give both the labels of the task, in one order")


def _comparable(student: Tensor, teacher: Tensor, temperature: float = 1.0, classes: int = 2) -> None:
    _same_classes(student, teacher)
    require_positive("temperature", temperature)
    fix = "use logit_mse, which any number of classes allows" if classes == 2 else "use kd, which 2 classes allow"
    require_at_least("the number of classes of this loss", student.shape[1], classes, fix)
