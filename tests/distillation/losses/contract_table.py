"""Every loss as one row: how it is called, what it compares, its value written independently. A new loss is a new row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsearch.distillation import losses
from kdsearch.distillation.losses import QKV
from tests.distillation.losses import reference


@dataclass(frozen=True)
class Sizes:
    """Two sizes (student, teacher) where they may differ."""

    batch: int = 6
    seq: int = 5
    classes: int = 4
    layers: int = 3
    heads: tuple[int, int] = (2, 4)
    head_size: tuple[int, int] = (6, 9)


@dataclass(frozen=True)
class Batch:
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Row:
    """``compares``: logits, hidden, pooled, layers, scores or qkv; ``free``: student and teacher may differ in size or heads."""

    loss: Callable[[Any, Any, Batch], Tensor]
    compares: str
    reference: Callable[[Any, Any, Batch], np.ndarray] | None
    free: bool = False
    equal_is_zero: bool = True


def _hidden(loss, of_one, free=False, equal_is_zero=True):
    written = reference.per_example(of_one)
    return Row(lambda s, t, b: loss(s, t, b.mask), "hidden", lambda s, t, b: written(s, t, b.mask), free, equal_is_zero)


def _masked(loss, written, compares, free, **knobs):
    return Row(lambda s, t, b: loss(s, t, b.mask, **knobs), compares, lambda s, t, b: written(s, t, b.mask, **knobs), free)


def _logits(loss, written, **knobs):
    return Row(lambda s, t, b: loss(s, t, **knobs), "logits", lambda s, t, b: written(s, t, **knobs))


def _dkd(function):
    return lambda s, t, b: function(s, t, b.labels, alpha=1.5, beta=4.0, temperature=2.0)


def _mean_head(written):
    return lambda s, t, mask: written(s.mean(axis=1, keepdims=True), t.mean(axis=1, keepdims=True), mask)


def _ckd(s, t, mask, window, angle):
    of_words = [reference.word_relation(a, b, mask, window, angle) for a, b in zip(s, t, strict=True)]
    return np.mean(of_words, axis=0) + reference.layer_relation(s, t, mask, angle)


TABLE: dict[str, Row] = {
    "hard": Row(lambda s, t, b: losses.hard(s, b.labels), "logits", lambda s, t, b: reference.hard(s, b.labels), equal_is_zero=False),
    "kd": _logits(losses.kd, reference.kd, temperature=3.0),
    "kl": Row(lambda s, t, b: losses.kl(teacher=t, student=s), "logits", lambda s, t, b: reference.kd(s, t, 1.0)),
    "reverse_kl": _logits(losses.reverse_kl, lambda s, t, temperature: reference.kd(t, s, temperature), temperature=2.0),
    "jsd": _logits(losses.jsd, reference.jsd),
    "logit_mse": _logits(losses.logit_mse, reference.logit_mse),
    "dkd": Row(_dkd(losses.dkd), "logits", _dkd(reference.dkd)),
    "dist": Row(lambda s, t, b: losses.dist(s, t, beta=2.0, gamma=3.0), "logits", None),
    "hidden_mse": _hidden(losses.hidden_mse, reference.hidden_mse),
    "embedding_mse": _hidden(losses.embedding_mse, reference.hidden_mse),
    "cos": _hidden(losses.cos, reference.cos),
    "pkd": _hidden(losses.pkd, reference.pkd),
    "normalised_mse": _hidden(losses.normalised_mse, reference.normalised_mse),
    "nst": _hidden(losses.nst, reference.nst, free=True),
    "gram": _hidden(losses.gram, reference.gram),
    "fsp": Row(
        lambda s, t, b: losses.fsp((s, s), (t, t), b.mask), "hidden", lambda s, t, b: reference.per_example(reference.gram)(s, t, b.mask)
    ),
    "infonce": _hidden(losses.infonce, reference.infonce, equal_is_zero=False),
    "attention_mse": _masked(losses.attention_mse, reference.attention_mse, "scores", free=False),
    "attention_kl": _masked(losses.attention_kl, reference.attention_kl, "scores", free=False),
    "attention_mean": _masked(losses.attention_mean, _mean_head(reference.attention_kl), "scores", free=True),
    "attention_mean_mse": _masked(losses.attention_mean_mse, _mean_head(reference.attention_mse), "scores", free=True),
    "minilm": _masked(losses.minilm, reference.minilm, "qkv", free=False),
    "minilmv2": _masked(losses.minilmv2, reference.minilmv2, "qkv", free=True, relation_heads=6),
    "rkd": Row(lambda s, t, b: losses.rkd(s, t), "pooled", lambda s, t, b: reference.rkd(s, t, 25.0, 50.0), free=True),
    "similarity": Row(lambda s, t, b: losses.similarity(s, t), "pooled", lambda s, t, b: reference.similarity(s, t), free=True),
    "word_relation": _masked(losses.word_relation, reference.word_relation, "hidden", free=True, window=3, angle=2.0),
    "layer_relation": _masked(losses.layer_relation, reference.layer_relation, "layers", free=True, angle=2.0),
    "ckd": _masked(losses.ckd, _ckd, "layers", free=True, window=5, angle=0.5),
}
PADDED = [name for name, row in TABLE.items() if row.compares not in {"logits", "pooled"}]


def draw(row: Row, sizes: Sizes, seed: int) -> tuple[Any, Any, Batch]:
    """Student, teacher and batch of a row; at least one token and one missing label per batch."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(sizes.batch, sizes.seq, generator=rng) < 0.7
    mask[torch.arange(sizes.batch), torch.randint(sizes.seq, (sizes.batch,), generator=rng)] = True
    labels = torch.randint(sizes.classes, (sizes.batch,), generator=rng)
    labels[0] = -100
    return _side(row, sizes, 0, rng), _side(row, sizes, 1 if row.free else 0, rng), Batch(mask, labels)


def _side(row: Row, sizes: Sizes, side: int, rng: torch.Generator) -> Any:
    heads, size = sizes.heads[side], sizes.head_size[side]
    if row.compares == "scores":  # one common number of heads cannot be drawn by head size
        shape = (sizes.batch, heads, sizes.seq, sizes.seq)
    else:
        shape = {
            "logits": (sizes.batch, sizes.classes),
            "hidden": (sizes.batch, sizes.seq, heads * size),
            "pooled": (sizes.batch, heads * size),
            "layers": (sizes.layers, sizes.batch, sizes.seq, heads * size),
            "qkv": (sizes.batch, heads, sizes.seq, size),
        }[row.compares]
    if row.compares == "qkv":
        return QKV(*(torch.randn(shape, generator=rng) for _ in range(3)))
    return 2 * torch.randn(shape, generator=rng)


def each(function: Callable[[Tensor], Any], side: Any) -> Any:
    """The function on every tensor of a side."""
    return QKV(*map(function, side)) if isinstance(side, QKV) else function(side)


def leaves(side: Any) -> tuple[Tensor, ...]:
    return tuple(side) if isinstance(side, QKV) else (side,)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()
