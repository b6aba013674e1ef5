"""Which teacher layer teaches which student layer, and how the losses of the matched layers become one value per example.

Layers are blocks, counted from 0; the output of the embedding is no block. A matching has two halves:

    rule     (student layers, teacher layers) --> pairs (student, teacher, weight); the weights of a plan sum to 1
    combine  (pairs, loss, states of both)    --> one value per example

The weights sum to 1 whatever the depth: a sum over matches would make deep students pay more than shallow ones.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor


class Pair(NamedTuple):
    """This student layer learns from this teacher layer, with this share of the loss."""

    student: int
    teacher: int
    weight: float = 1.0


States = Mapping[int, Any] | Sequence[Any]
"""What the loss compares, by layer: hidden states (batch, seq, dim), scores, or a tuple of queries, keys and values."""

Loss = Callable[[Any, Any], Tensor]
"""loss(student state, teacher state) --> one value per example; mask and knobs already bound."""

Rule = Callable[[int, int, random.Random], list[Pair]]
Combine = Callable[[Sequence[Pair], Loss, States, States], Tensor]


@dataclass(frozen=True)
class Matching:
    """A rule and how its pairs are combined; ``redrawn``: the rule draws anew every epoch, so any teacher layer can be needed."""

    rule: Rule
    combine: Combine
    redrawn: bool = False


def plan(matching: str | Sequence[Sequence[float]], student_layers: int, teacher_layers: int, seed: int = 0, epoch: int = 0) -> list[Pair]:
    """Weighted pairs of a named matching, or of an explicit list of (student, teacher) or (student, teacher, weight); -1 is the last.

    Returns:
        Pairs in the order of the student's layers; their weights sum to 1. Equal arguments give equal pairs, in every process.

    Raises:
        ValueError: unknown name, layers that do not exist, or a student too deep for the matching.

    Example:
        >>> [pair.teacher for pair in plan("uniform", 5, 12)]
        [1, 4, 6, 9, 11]
    """
    if isinstance(matching, str):
        pairs = named(matching).rule(student_layers, teacher_layers, random.Random(f"{seed} {epoch}"))
    elif not isinstance(matching, Sequence):
        named(str(matching))
        pairs = []
    else:
        pairs = _explicit(matching, student_layers, teacher_layers)
    total = sum(pair.weight for pair in pairs)
    return [pair._replace(weight=pair.weight / total) for pair in sorted(pairs)]


def required_layers(matching: str | Sequence[Sequence[float]], student_layers: int, teacher_layers: int) -> set[int]:
    """Teacher layers that the matching can ever ask for: those whose states have to be cached."""
    if isinstance(matching, str) and named(matching).redrawn:
        return set(range(teacher_layers))
    return {pair.teacher for pair in plan(matching, student_layers, teacher_layers)}


def shares(matching: str | Sequence[Sequence[float]], student_layers: int, teacher_layers: int) -> dict[int, float]:
    """How much of the loss each of :func:`required_layers` teaches; they sum to 1, and are equal where the plan is redrawn."""
    needed = sorted(required_layers(matching, student_layers, teacher_layers))
    if isinstance(matching, str) and named(matching).redrawn:
        return {layer: 1 / len(needed) for layer in needed}
    pairs = plan(matching, student_layers, teacher_layers)
    return {layer: sum(pair.weight for pair in pairs if pair.teacher == layer) for layer in needed}


def matched(
    matching: str | Sequence[Sequence[float]], pairs: Sequence[Pair], loss: Loss, student: States, teacher: States
) -> Float[Tensor, " batch"]:
    """The loss over all matched layers, one value per example.

    Args:
        matching: the name or the list that ``pairs`` were planned from.
        pairs: the :func:`plan` of this epoch.
        loss: of one student state and one teacher state.
        student: state by layer, projected where the loss needs equal sizes.
        teacher: state by layer; only :func:`required_layers` need be there.
    """
    combine = named(matching).combine if isinstance(matching, str) else weighted_losses
    # Autocast would round the mixes of layers and the flow of a transport; what is compared is float32.
    with torch.autocast(_device(student[pairs[0].student]), enabled=False):
        return combine(pairs, loss, student, teacher)


def _device(state: Any) -> str:
    return (state if isinstance(state, Tensor) else state[0]).device.type


def require_plain(matching: str | Sequence[Sequence[float]], pairs: Sequence[Pair]) -> None:
    """Refuse, for a loss of all matched layers at once, what only a loss of each pair can do: mixing, transport, unequal weights."""
    combine = named(matching).combine if isinstance(matching, str) else weighted_losses
    if combine is not weighted_losses or len({round(pair.weight, 6) for pair in pairs}) > 1:
        raise ValueError(f"this loss stacks the matched layers, which needs pairs of equal weight; got {matching!r}; use uniform")


# --- rules: which pairs -----------------------------------------------------------------------------------------------------------


def uniform(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Student i learns from teacher round((i + 1) N_T / N_S) - 1, halves rounded up: the last layer from the last, always.

    Also called skip or gap: 12 -> 4 gives 2, 5, 8, 11. Floor division would send 12 -> 5 to 1, 3, 5, 7, 9.

    Reference: Jiao et al., *TinyBERT*, 2019, arXiv 1909.10351, section 3.
    """
    return [Pair(i, max(0, (2 * (i + 1) * teacher_layers + student_layers) // (2 * student_layers) - 1)) for i in range(student_layers)]


def uniform_but_last(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """:func:`uniform` without the student's last layer, which the logits teach; a student of one layer keeps it.

    Reference: Sun et al., *Patient Knowledge Distillation*, 2019, arXiv 1908.09355, section 3.2 (PKD-Skip).
    """
    pairs = uniform(student_layers, teacher_layers)
    return pairs[:-1] or pairs


def first(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Student i learns from teacher i."""
    _at_most(student_layers, teacher_layers, "first")
    return [Pair(i, i) for i in range(student_layers)]


def last(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Student i learns from teacher N_T - N_S + i: the teacher's last layers, in their order."""
    _at_most(student_layers, teacher_layers, "last")
    return [Pair(i, teacher_layers - student_layers + i) for i in range(student_layers)]


def last_only(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """The last layer learns from the last (MiniLM: Wang et al. 2020, arXiv 2002.10957)."""
    return [Pair(student_layers - 1, teacher_layers - 1)]


def last2(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Layer last - 2 learns from layer last - 2, that is N - 3 counted from 0: the two behind it are too specialised to be copied.

    A model with fewer than three layers takes part with its layer 0.

    Reference: Lu et al. 2022, arXiv 2206.14366; Muralidharan et al., *Minitron*, 2024, arXiv 2407.14679, section 3.
    """
    return [Pair(max(0, student_layers - 3), max(0, teacher_layers - 3))]


def all_to_one(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Every student layer learns from one teacher layer, here the last (Yu, Wen, Mou 2025, arXiv 2502.04499)."""
    return [Pair(i, teacher_layers - 1) for i in range(student_layers)]


def reverse(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """The teacher layers of :func:`uniform` in reverse: a control that should lose (Yu, Wen, Mou 2025: it hardly does)."""
    return [Pair(i, pair.teacher) for i, pair in enumerate(reversed(uniform(student_layers, teacher_layers)))]


def drawn(student_layers: int, teacher_layers: int, rng: random.Random) -> list[Pair]:
    """As many teacher layers as the student has, drawn without repetition and kept in order.

    Reference: Haidar et al., *RAIL-KD: RAndom Intermediate Layer Mapping for Knowledge Distillation*, 2021, arXiv 2109.10164, section 3.
    """
    _at_most(student_layers, teacher_layers, "random")
    return [Pair(i, j) for i, j in enumerate(sorted(rng.sample(range(teacher_layers), student_layers)))]


def groups(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Consecutive teacher layers in as many groups as the student has layers, each ending at the layer that :func:`uniform` names."""
    _at_most(student_layers, teacher_layers, "block_mean")
    ends = [-1, *(pair.teacher for pair in uniform(student_layers, teacher_layers))]
    return [Pair(i, j, 1 / (ends[i + 1] - ends[i])) for i in range(student_layers) for j in range(ends[i] + 1, ends[i + 1] + 1)]


def everything(student_layers: int, teacher_layers: int, _: random.Random | None = None) -> list[Pair]:
    """Every student layer with every teacher layer."""
    return [Pair(i, j) for i in range(student_layers) for j in range(teacher_layers)]


# --- combining: one value per example ---------------------------------------------------------------------------------------------


def weighted_losses(pairs: Sequence[Pair], loss: Loss, student: States, teacher: States) -> Tensor:
    """Sum over pairs of weight * loss(student, teacher)."""
    return torch.stack([weight * loss(student[i], teacher[j]) for i, j, weight in pairs]).sum(dim=0)


def loss_of_mean(pairs: Sequence[Pair], loss: Loss, student: States, teacher: States) -> Tensor:
    """Each student layer against the weighted mean of its teacher layers (Kolesnikova et al. 2022, arXiv 2205.02340)."""
    total = torch.zeros(())
    for i in sorted({pair.student for pair in pairs}):
        share = sum(pair.weight for pair in pairs if pair.student == i)
        mean = sum(pair.weight / share * _mixable(teacher[pair.teacher]) for pair in pairs if pair.student == i)
        total = share * loss(student[i], mean) + total
    return total


def loss_by_transport(pairs: Sequence[Pair], loss: Loss, student: States, teacher: States) -> Tensor:
    """Sum of flow_ij * loss_ij, with the cheapest flow that uses every layer of both sides alike: N_S N_T losses and one small LP.

    Reference: Li et al., *BERT-EMD: Many-to-Many Layer Mapping with Earth Mover's Distance*, 2020, arXiv 2010.06133, section 3.
    """
    rows, columns = _layers(pairs)
    losses = torch.stack([torch.stack([loss(student[i], teacher[j]) for j in columns]) for i in rows])
    flow = transport(losses.detach().mean(dim=2).double().cpu().numpy())
    return torch.einsum("ij,ijb->b", torch.as_tensor(flow, dtype=losses.dtype, device=losses.device), losses)


def loss_of_attention(pairs: Sequence[Pair], loss: Loss, student: States, teacher: States) -> Tensor:
    """Each student layer against the mix of all teacher layers that its [CLS] vector attends to (:func:`attention`).

    Reference: Passban, Wu, Rezagholizadeh, Liu, *ALP-KD: Attention-Based Layer Projection for Knowledge Distillation*, 2020,
    arXiv 2012.14022, section 3.
    """
    rows, columns = _layers(pairs)
    taught = torch.stack([_mixable(teacher[j]) for j in columns], dim=1)
    vectors = torch.stack([_mixable(student[i])[:, 0] for i in rows], dim=1)
    weights = attention(vectors, taught[:, :, 0])
    mixes = torch.einsum("bij,bj...->bi...", weights, taught)
    return torch.stack([loss(student[i], mixes[:, n]) for n, i in enumerate(rows)]).mean(dim=0)


def attention(
    student: Float[Tensor, "batch student_layers dim"], teacher: Float[Tensor, "batch teacher_layers dim"]
) -> Float[Tensor, "batch student_layers teacher_layers"]:
    """softmax over teacher layers of s_i . t_j / sqrt(dim): rows sum to 1; no gradient, so that weights follow the states, not the loss.

    The published dot product is not scaled, so that its softmax picks a single layer as the vectors grow wider. Without gradient the
    student cannot lower its loss by choosing an easier teacher layer instead of learning.
    """
    if student.shape[2] != teacher.shape[2]:
        sizes = f"{student.shape[2]} and {teacher.shape[2]}"
        raise ValueError(f"matching 'attention' compares vectors of one size; got {sizes}; project the student's states first")
    return (student.detach().float() @ teacher.detach().float().mT / student.shape[2] ** 0.5).softmax(dim=2)


def transport(
    costs: Float[np.ndarray, "student_layers teacher_layers"],
    student_mass: Float[np.ndarray, " student_layers"] | None = None,
    teacher_mass: Float[np.ndarray, " teacher_layers"] | None = None,
) -> Float[np.ndarray, "student_layers teacher_layers"]:
    """Flow >= 0 with row sums ``student_mass`` and column sums ``teacher_mass`` (both uniform by default) of least total cost.

    Raises:
        ValueError: costs that are not finite.
    """
    rows, columns = costs.shape
    if not np.isfinite(costs).all():
        raise ValueError("costs must be finite to be transported; got NaN or infinity; lower the learning rate, or use uniform")
    row_mass = np.full(rows, 1 / rows) if student_mass is None else student_mass
    column_mass = np.full(columns, 1 / columns) if teacher_mass is None else teacher_mass
    marginals = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    # The flow is the same for scaled costs, and scaled costs stay clear of the solver's absolute tolerances.
    scaled = costs.ravel() / max(np.abs(costs).max(), np.finfo(float).tiny)
    found = linprog(scaled, A_eq=marginals, b_eq=np.concatenate([row_mass, column_mass]), bounds=(0, None), method="highs")
    if found.x is None:
        raise ValueError(f"masses must be >= 0 and have one sum; got {row_mass} and {column_mass}; divide each by its sum")
    return found.x.reshape(rows, columns)


MATCHINGS: dict[str, Matching] = {
    "uniform": Matching(uniform, weighted_losses),
    "uniform_but_last": Matching(uniform_but_last, weighted_losses),
    "first": Matching(first, weighted_losses),
    "last": Matching(last, weighted_losses),
    "last_only": Matching(last_only, weighted_losses),
    "last2": Matching(last2, weighted_losses),
    "all_to_one": Matching(all_to_one, weighted_losses),
    "reverse": Matching(reverse, weighted_losses),
    "random": Matching(drawn, weighted_losses, redrawn=True),
    "block_mean": Matching(groups, loss_of_mean),
    "emd": Matching(everything, loss_by_transport),
    "attention": Matching(everything, loss_of_attention),
}


def named(name: str) -> Matching:
    """The matching of that name."""
    if name not in MATCHINGS:
        raise ValueError(f"matching must be one of {', '.join(MATCHINGS)} or a list of [student, teacher, weight]; got '{name}'")
    return MATCHINGS[name]


def _explicit(entries: Sequence[Sequence[float]], student_layers: int, teacher_layers: int) -> list[Pair]:
    """Listed pairs with listed weights (DistilXLSR: Wang et al. 2023); -1 is a model's last layer, so that a list fits any depth."""
    if any(len(entry) not in (2, 3) or any(int(layer) != layer for layer in entry[:2]) for entry in entries):
        raise ValueError(
            f"a list of matches needs [student, teacher] or [student, teacher, weight], layers as whole numbers; got {entries}"
        )
    named_layers = [Pair(int(entry[0]), int(entry[1]), *map(float, entry[2:3])) for entry in entries]
    pairs = [Pair(_from_end(p.student, student_layers), _from_end(p.teacher, teacher_layers), p.weight) for p in named_layers]
    inside = [0 <= p.student < student_layers and 0 <= p.teacher < teacher_layers and p.weight > 0 for p in pairs]
    if not all(inside) or not pairs:
        wrong = [tuple(p) for p, right in zip(named_layers, inside, strict=True) if not right]
        limits = f"student layers 0 to {student_layers - 1}, teacher layers 0 to {teacher_layers - 1}, weights greater than 0"
        fix = "count blocks from 0 without the embedding, or from the end by -1, -2"
        raise ValueError(f"a list of matches needs {limits}; got {wrong or 'no pair'}; {fix}")
    return pairs


def _from_end(layer: int, layers: int) -> int:
    return layer + layers if layer < 0 else layer


def _layers(pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """The student's and the teacher's layers that take part, in order."""
    return sorted({pair.student for pair in pairs}), sorted({pair.teacher for pair in pairs})


def _at_most(student_layers: int, teacher_layers: int, name: str) -> None:
    if student_layers > teacher_layers:
        depths = f"{student_layers} and {teacher_layers} layers"
        raise ValueError(f"matching '{name}' needs a student no deeper than its teacher; got {depths}; use uniform")


def _mixable(state: Any) -> Tensor:
    if not isinstance(state, Tensor) or state.ndim != 3:
        kind = f"a tensor of {state.ndim} axes" if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(f"this matching mixes hidden states of layers, (batch, seq, dim); got {kind}; use a matching of pairs, as uniform")
    return state.float()
