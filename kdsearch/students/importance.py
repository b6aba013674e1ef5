"""What the teacher's activations on calibration texts say of its heads, neurons, channels and layers.

Reference: Muralidharan et al., *Compact Language Models via Pruning and Knowledge Distillation* (Minitron), 2024, arXiv 2407.14679.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdsearch.students.families import depth_of, family_of, sizes_of, tensors_of
from kdsearch.tasks.batches import Batch

EMPTY = np.zeros(0)
SCORED = ("heads", "ffn", "embedding", "pooled")  # by what the matrix behind them reads


@dataclass(frozen=True)
class Calibration:
    """Scores of a teacher's parts, each the L2 norm over texts of the mean over their tokens of |activation|; 0: it never says anything.

    heads [layers, heads] of ||Attn_i(X)||_2; dimensions [layers, heads, head size] of what each of its dimensions puts out; ffn [layers,
    neurons] behind the activation; width [channels] behind the norms, summed over layers; embedding and pooled, where there are any.
    blocks [layers]: block importance 1 - E[cos(X_i, X_{i+1})], over tokens.
    second [width, width] and mean [width] of the tokens behind each norm, before its scale and shift, by the norm's name; if asked for.
    dropped: the layers in the order in which they are missed least (:mod:`kdsearch.students.removal`); if asked for.
    """

    heads: np.ndarray
    dimensions: np.ndarray
    ffn: np.ndarray
    width: np.ndarray
    blocks: np.ndarray
    embedding: np.ndarray = field(default_factory=lambda: EMPTY)
    pooled: np.ndarray = field(default_factory=lambda: EMPTY)
    second: dict[str, np.ndarray] = field(default_factory=dict)
    mean: dict[str, np.ndarray] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()


@torch.inference_mode()
def calibrate(model: PreTrainedModel, batches: Iterable[Batch], moments: bool = False) -> Calibration:
    """Scores from forward passes over some batches; ``moments`` asks for ``second`` and ``mean`` too."""
    depth, heads = depth_of(model.config), sizes_of(model.config)["each_head"]
    totals: dict[str, Tensor] = {}
    with _watched(model, moments) as seen:
        for batch in batches:
            seen.clear()
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            for name, value in _sums(seen, batch.attention_mask, heads):
                totals[name] = totals[name] + value if name in totals else value
    found = {name: value.cpu().numpy() for name, value in totals.items()}

    def score(kind: str) -> np.ndarray:
        return np.sqrt(np.stack([found[f"{kind} {layer}"] for layer in range(depth)]))

    tokens = {name.removeprefix("count "): value for name, value in found.items() if name.startswith("count ")}
    return Calibration(
        heads=score("heads"),
        dimensions=score("dimensions").reshape(depth, heads, -1),
        ffn=score("ffn"),
        width=sum((np.sqrt(value) for name, value in found.items() if name.startswith("width ")), np.zeros(())),
        blocks=np.array([1 - found[f"cosine {layer}"] / found[f"tokens {layer}"] for layer in range(depth)]),
        embedding=np.sqrt(found.get("embedding None", EMPTY)),
        pooled=np.sqrt(found.get("pooled None", EMPTY)),
        second={name: found[f"second {name}"] / count for name, count in tokens.items()},
        mean={name: found[f"sum {name}"] / count for name, count in tokens.items()},
    )


def top(scores: np.ndarray, kept: int) -> np.ndarray:
    """Indices of the highest scores, in their own order; the first ones of equal scores."""
    return np.sort(np.argsort(-scores, kind="stable")[:kept])


def input_role(module: nn.Module, roles: tuple[str | int, ...]) -> str | int | None:
    """What a matrix reads, given the roles of its weight's axes; None for a norm, a table or a convolution."""
    if isinstance(module, Conv1D):
        return roles[0]
    return roles[1] if isinstance(module, nn.Linear) else None


def module_of(model: PreTrainedModel, tensor: str) -> nn.Module:
    """The module that a tensor of the state dict belongs to."""
    return model.get_submodule(tensor.rpartition(".")[0])


def is_norm(model: PreTrainedModel, name: str, roles: tuple[str | int, ...]) -> bool:
    """Whether a tensor of the state dict is the scale of a norm of the residual stream."""
    return roles == ("width",) and name.endswith(".weight") and not isinstance(module_of(model, name), nn.Linear | Conv1D)


def normalised(module: nn.Module, values: Tensor, rms: bool) -> Tensor:
    """What a norm makes of its input before its scale and shift."""
    eps = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), 0.0)
    centred = values if rms else values - values.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


@contextmanager
def _watched(model: PreTrainedModel, moments: bool) -> Iterator[dict[str, Any]]:
    """While open, a forward pass leaves in the yielded dictionary what is scored: "kind layer" --> activations."""
    seen: dict[str, Any] = {}
    hooks = list(_hooks(model, moments, seen))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(model: PreTrainedModel, moments: bool, seen: dict[str, Any]) -> Iterator[Any]:
    family = family_of(model.config)
    prefix = f"{family.layer_path}."

    def noting(key: str, told: Callable[..., Any]) -> Callable[..., None]:
        return lambda *event: seen.__setitem__(key, told(*event))

    for name, roles in tensors_of(model.config).items():
        if not name.endswith(".weight"):
            continue
        module, layer = module_of(model, name), name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else None
        if (kind := input_role(module, roles)) in SCORED:
            yield module.register_forward_pre_hook(noting(f"{kind} {layer}", lambda _, inputs: inputs[0]))
        if is_norm(model, name, roles) and layer is not None:
            yield module.register_forward_hook(noting(f"width {name}", lambda _, inputs, output: output))
        if is_norm(model, name, roles) and moments:
            told = noting(f"normalised {name}", lambda norm, inputs: normalised(norm, inputs[0], family.rms))
            yield module.register_forward_pre_hook(told)
    for layer in range(depth_of(model.config)):
        told = noting(f"block {layer}", lambda _, inputs, output: (inputs[0], output[0] if isinstance(output, tuple) else output))
        yield model.get_submodule(f"{prefix}{layer}").register_forward_hook(told)


def _sums(seen: dict[str, Any], mask: Tensor, heads: int) -> Iterator[tuple[str, Tensor]]:
    """What is added up over batches; padding does not count."""
    real = mask.bool()
    for key, values in seen.items():
        kind, _, rest = key.partition(" ")
        if kind == "block":
            before, after = (states[real].double() for states in values)
            yield f"cosine {rest}", torch.cosine_similarity(before, after, dim=1).sum()
            yield f"tokens {rest}", real.sum()
        elif kind == "normalised":
            # the norm of a table of relative positions sees no tokens
            tokens = (values[real] if values.shape[:2] == mask.shape else values.flatten(0, -2)).double()
            yield f"second {rest}", tokens.T @ tokens
            yield f"sum {rest}", tokens.sum(0)
            yield f"count {rest}", torch.tensor(len(tokens))
        elif kind == "heads":
            yield f"heads {rest}", _squares(values.unflatten(-1, (heads, -1)).norm(dim=-1), mask)
            yield f"dimensions {rest}", _squares(values, mask)
        else:
            yield key, _squares(values, mask)


def _squares(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over texts of the square of the mean over tokens of |value| [n]; of a pooled value [batch, n] there is one a text."""
    size = values.abs().double()
    if size.ndim == 3:
        size = (size * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return size.square().sum(0)
