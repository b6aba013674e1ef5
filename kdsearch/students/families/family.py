"""What a family is: names in its config, its modules, and one table of its tensors with what each axis of them is made of.

The axes (roles) that a tensor may have:

    width         the residual stream
    embedding     the token vectors, where they are narrower than the width (factorised) and projected to it
    heads         queries, and what attention puts out: heads x head size, (head, dimension); also keys and values without kv_heads
    kv_heads      keys and values, where several heads share one of them
    each_head     one number a head
    qkv_by_head   queries, keys and values fused head by head: (head, which of the three, dimension)
    ffn           feed-forward neurons
    pooled        the neurons of the classification head
    vocabulary, positions, classes
    a number      an axis that every student keeps whole

``heads+heads+heads`` is an axis of several parts, one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig

Roles = dict[str, tuple[str | int, ...]]


@dataclass(frozen=True)
class Family:
    """One model type. The first names are fields of its config; paths lead from the classifier to its modules.

    kv_heads: None where every head has keys and values of its own.
    embedding: None where token vectors are always as wide as the residual stream.
    positions: None where a shorter maximum length saves nothing, or would change what a position means.
    position_offset: the first so many rows of the position table stand for no position.
    head_size, also_width, per_layer: further fields to be kept consistent where the config has them; per_layer ones list a value a layer.
    rotary: queries and keys are turned by their position, dimension j together with j + head_size / 2.
    rms: norms divide by the root mean square and do not subtract the mean.
    pre_norm: the norms stand before attention and FFN, and one more behind the last layer; otherwise behind each of the two.
    Then a norm stands in the tables before the matrices that read it.
    autocast: False where transformers' code fails under bf16 autocast, so that the model always computes in float32.
    pads: the classifier looks for the last token that is not padding, so the config must name the padding.

    attention_path: the module in a layer that attends through transformers' AttentionInterface; None where the family does not.
    first_token: where the classifier reads the first token only, how the last layer can be computed there alone if it is post-norm:
    "projected" where its first three matrices make queries, keys and values and attention is plain; else the path of the module that
    attends, which then runs on all tokens. None where the classifier reads more, or it is not known.
    layer, around: the tensors of one layer by their names in it, and all others by their full names.
    absent: full names of the table that exist in no model.
    projection: the matrix from factorised embeddings to the width.
    per_row: matrices that are applied once a row and not to every token.
    per_pass, pass_flops: matrices of a layer that see no tokens, and the operations of one layer that the tensors do not tell,
    pass_flops(config, batch size, sequence length).
    """

    layers: str
    width: str
    heads: str
    ffn: str
    layer_path: str
    embedding_path: str
    attention_path: str | None
    layer: Callable[[PretrainedConfig], Roles]
    around: Callable[[PretrainedConfig], Roles]
    per_row: tuple[str, ...] = ()
    first_token: str | None = None
    kv_heads: str | None = None
    embedding: str | None = None
    positions: str | None = "max_position_embeddings"
    position_offset: int = 0
    head_size: str = "head_dim"
    also_width: tuple[str, ...] = ()
    per_layer: tuple[str, ...] = ("layer_types",)
    rotary: bool = False
    rms: bool = False
    pre_norm: bool = False
    autocast: bool = True
    pads: bool = False
    absent: tuple[str, ...] = ()
    projection: str = ""
    per_pass: tuple[str, ...] = ()
    pass_flops: Callable[[PretrainedConfig, int, int], int] | None = None


def linear(name: str, out: str | int, into: str | int, bias: bool = True) -> Roles:
    """The tensors of nn.Linear: weight [out, into] and bias [out]."""
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, axis: str = "width", bias: bool = True) -> Roles:
    """The tensors of a norm: its scale, and for LayerNorm its shift."""
    return {f"{name}.weight": (axis,), **({f"{name}.bias": (axis,)} if bias else {})}
