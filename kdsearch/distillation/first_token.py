"""The last layer at the first token alone, which is all that most encoders' classifiers read of it: exact, and nearly a layer's work less.

Keys and values still come from every token. What is saved is the query, the attention's output and the whole FFN of all tokens but one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from kdsearch.students.families import depth_of, family_of

Attend = Callable[..., tuple[Tensor, Tensor]]


def reads_first_token(config: PretrainedConfig) -> bool:
    """Whether a classifier of this config reads its last layer at the first token only, by a layer that can be computed there alone."""
    # The convolution of a DeBERTa-v2 stands behind its first layer and looks at the neighbours.
    convolved = getattr(config, "conv_kernel_size", 0) > 0 and depth_of(config) == 1
    return family_of(config).first_token is not None and not convolved and not getattr(config, "is_decoder", False)


@contextmanager
def at_first_token(model: PreTrainedModel, mask: Tensor, attend: Attend) -> Iterator[None]:
    """While open, the last layer puts out [batch, 1, width]: what it would say of the first token of these rows, mask [batch, seq].

    ``attend(module, query, key, value, additive mask, scaling)`` is an attention function of transformers. With dropout nothing changes.
    """
    layer = model.get_submodule(f"{family_of(model.config).layer_path}.{depth_of(model.config) - 1}")
    if model.training or not reads_first_token(model.config):
        yield
        return
    layer.forward = _forward(model, layer, mask, attend)
    try:
        yield
    finally:
        del layer.forward


def _forward(model: PreTrainedModel, layer: nn.Module, mask: Tensor, attend: Attend) -> Callable[..., Any]:
    """The forward pass of a post-norm layer x --> norm(y + FFN(y)), y = norm(x + attention(x)), at the first token."""
    config, family = model.config, family_of(model.config)
    names = dict.fromkeys(name.rpartition(".")[0] for name in family.layer(config))
    parts = [layer.get_submodule(name) for name in names if name]
    # A family's table of a layer starts with its queries, keys and values, and ends with these.
    output, norm, up, down, last_norm = parts[-5:]
    activate = ACT2FN[getattr(config, "hidden_act", None) or config.activation]

    def attended(states: Tensor, *given: Any, **named: Any) -> Tensor:
        if family.first_token != "projected":
            return layer.get_submodule(str(family.first_token))(states, *given, **named)[0][:, :1]
        query, key, value = (
            part(some).unflatten(-1, (getattr(config, family.heads), -1)).transpose(1, 2)
            for part, some in zip(parts, (states[:, :1], states, states), strict=False)
        )
        away = (mask[:, None, None] == 0) * torch.finfo(torch.float32).min
        # MPNet gives its layers a bias of relative positions beside the mask; others give None there or nothing.
        bias = given[1][:, :, :1] if len(given) > 1 and given[1] is not None else 0
        return attend(layer, query, key, value, away + bias, query.shape[-1] ** -0.5)[0].flatten(2)

    def forward(states: Tensor, *given: Any, **named: Any) -> Any:
        first = norm(states[:, :1] + output(attended(states, *given, **named)))
        first = last_norm(first + down(activate(up(first))))
        # Families that attend in their own way put out a tuple.
        return first if family.attention_path else (first, None)

    return forward
