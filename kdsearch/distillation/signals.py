"""What a model tells on a batch, by name: ``logits``, ``hidden.K``, ``query.K``, ``key.K``, ``value.K`` of block K (0-indexed).

``hidden.K`` is the output of block K, and ``hidden.embedding`` what enters block 0 (Hugging Face's list of hidden states starts with it).
In families with norms before each block the last one is behind the final norm, as in that list.
Queries, keys and values are seen by a function registered with transformers' AttentionInterface, without patching, in every family that
attends through it; the others (``attention_path`` is None) compute attention out of sight.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from kdsearch.distillation.first_token import at_first_token
from kdsearch.students.families import depth_of, family_of
from kdsearch.tasks.batches import Batch

CAPTURE = "kdsearch_capture"
PROJECTIONS = ("query", "key", "value")


def observe(model: PreTrainedModel, batch: Batch, signals: frozenset[str]) -> dict[str, Tensor]:
    """The named signals of one forward pass; where none is of the last block, that one is computed no further than the answer needs it.

    Shapes: logits [batch, classes], hidden [batch, seq, width], query, key and value [batch, heads, seq, head size]. A key or value that
    several heads share is told once for each.

    Raises:
        ValueError: queries, keys or values of a family that does not show them.
    """
    wants_hidden = any(signal.startswith("hidden.") for signal in signals)
    blocks = {int(signal.partition(".")[2]) for signal in signals if signal.startswith(PROJECTIONS)}
    last = f".{depth_of(model.config) - 1}"
    alone = (
        nullcontext()
        if any(signal.endswith(last) for signal in signals)
        else at_first_token(model, batch.attention_mask, capture_attention)
    )
    with capturing(model, blocks) as stores, alone, _precision(model):
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=wants_hidden)
    outputs: dict[str, Tensor] = {}
    for signal in signals:
        kind, _, block = signal.partition(".")
        if kind == "logits":
            outputs[signal] = found.logits
        elif kind == "hidden":
            outputs[signal] = found.hidden_states[0 if block == "embedding" else int(block) + 1]
        else:
            outputs[signal] = stores[int(block)][kind]
    return outputs


def _precision(model: PreTrainedModel) -> AbstractContextManager:
    """Whatever precision is set around, but float32 for a family that cannot do with less."""
    return nullcontext() if family_of(model.config).autocast else torch.autocast(model.device.type, enabled=False)


@contextmanager
def explicit_attention(model: PreTrainedModel) -> Iterator[None]:
    """While open, a model on a CPU attends by explicit matrix products: the same values, and under bf16 1.2 to 3 times as fast as SDPA.

    On other devices, and in families that attend in their own way, nothing changes. (Short rows; at 512 tokens and more SDPA needs less
    memory.)
    """
    before = str(model.config._attn_implementation)
    if model.device.type != "cpu" or before == CAPTURE or family_of(model.config).attention_path is None:
        yield
        return
    model.set_attn_implementation(CAPTURE)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def capturing(model: PreTrainedModel, blocks: set[int]) -> Iterator[dict[int, dict[str, Tensor]]]:
    """While open, a forward pass leaves q, k, v of these blocks in the yielded dictionaries; with no block asked for, nothing changes."""
    stores: dict[int, dict[str, Tensor]] = {block: {} for block in blocks}
    if not blocks:
        yield stores
        return
    family, before = family_of(model.config), str(model.config._attn_implementation)
    if family.attention_path is None:
        raise ValueError(
            f"queries, keys and values of {model.config.model_type} models cannot be seen: the family computes attention out of sight"
        )
    modules = {block: model.get_submodule(f"{family.layer_path}.{block}.{family.attention_path}") for block in blocks}
    if before != CAPTURE:
        model.set_attn_implementation(CAPTURE)
    for block, module in modules.items():
        module.captured = stores[block]  # pyright: ignore[reportArgumentType] - a plain attribute, not a parameter
    try:
        yield stores
    finally:
        for module in modules.values():
            del module.captured
        if before != CAPTURE:
            model.set_attn_implementation(before)


def capture_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attention by explicit matrix products, which leaves q, k, v where :func:`capturing` asks."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    store = getattr(module, "captured", None)
    if store is not None:
        store.update(query=query, key=key, value=value)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.dropout(torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(CAPTURE, capture_attention)
AttentionMaskInterface.register(CAPTURE, eager_mask)
