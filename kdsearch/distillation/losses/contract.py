"""What every loss of this package promises: float32, one value per example, nothing from padding, a refusal that names the fix."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

Mask = Bool[Tensor, "batch seq"] | Integer[Tensor, "batch seq"]
"""1 for a token, 0 for padding: Hugging Face's attention_mask as it is."""

PerExample = Float[Tensor, " batch"]
"""One value per example: weights and the mean are the caller's, and are the same for every loss."""

Parameters = ParamSpec("Parameters")


def in_float32(loss: Callable[Parameters, Tensor]) -> Callable[Parameters, Tensor]:
    """The loss, computed in float32 whatever the dtype of its inputs.

    Autocast is switched off inside: it would turn the matrix products of Gram matrices and scores back into bfloat16.
    """

    @wraps(loss)
    def computed(*args: Parameters.args, **knobs: Parameters.kwargs) -> Tensor:
        device = next(value.device.type for value in _tensors((*args, *knobs.values())))
        with torch.autocast(device, enabled=False):
            return loss(*map(_upcast, args), **{name: _upcast(value) for name, value in knobs.items()})  # pyright: ignore[reportCallIssue]

    return computed


def masked_mean(values: Float[Tensor, " batch *rest"], valid: Bool[Tensor, " batch *any"]) -> PerExample:
    """Mean over the valid entries of each example; 0 where an example has none.

    Args:
        values: anything per example.
        valid: which entries count; broadcast against ``values``.
    """
    # Counted before it is broadcast: writing out a mask as large as the values took longer than the loss.
    entries = valid.flatten(1).sum(1) * (values[0].numel() // valid[0].numel())
    return values.masked_fill(~valid, 0).flatten(1).sum(1) / entries.clamp(min=1)


def without_padding(states: Float[Tensor, "batch seq dim"], mask: Mask) -> Float[Tensor, "batch seq dim"]:
    """The states with padding set to 0: filled, not multiplied, so that inf and NaN of padding go too, also from the gradient."""
    return states.masked_fill(~mask.bool()[:, :, None], 0)


def pairs(mask: Mask) -> Bool[Tensor, "batch seq seq"]:
    """Which (query, key) pairs stand for two tokens."""
    return mask.bool()[:, :, None] & mask.bool()[:, None, :]


def first_token(states: Float[Tensor, "batch seq dim"], mask: Mask) -> Float[Tensor, "batch dim"]:
    """State of the first token that is not padding: [CLS] of an encoder, whichever side is padded."""
    return states[torch.arange(len(states), device=states.device), mask.int().argmax(dim=1)]


def mean_token(states: Float[Tensor, "batch seq dim"], mask: Mask) -> Float[Tensor, "batch dim"]:
    """Mean state of the tokens of each example, padding excluded."""
    return without_padding(states.float(), mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def require_equal(what: str, student: int, teacher: int, fix: str) -> None:
    """Refuse sizes that a loss cannot compare."""
    if student != teacher:
        raise ValueError(f"student and teacher must have the same {what}; got {student} and {teacher}; {fix}")


def require_at_least(what: str, value: int, least: int, fix: str) -> None:
    """Refuse a size under which a loss says nothing."""
    if value < least:
        raise ValueError(f"{what} must be at least {least}; got {value}; {fix}")


def require_positive(what: str, value: float) -> None:
    """Refuse a scale that is divided by."""
    if not value > 0:
        raise ValueError(f"{what} must be greater than 0; got {value}; 1 leaves the loss as it is")


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Tensor)]


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return tuple(map(_upcast, value)) if isinstance(value, tuple) else value
