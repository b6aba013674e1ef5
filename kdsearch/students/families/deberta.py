"""DeBERTa, DeBERTa-v2 and -v3: attention over contents and relative positions, which the family computes itself, out of sight.

Positions are not an axis here: the table of relative positions, or the buckets they fall in, would come to mean something else.
Embeddings may be narrower than the width (``embedding_size``), which matters for a vocabulary of 128,000.
"""

from dataclasses import replace

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm

PATH = "deberta.embeddings"


def layer(config: PretrainedConfig) -> Roles:
    """Of DeBERTa: queries, keys and values are fused head by head."""
    relative = _relative(config)
    return {
        "attention.self.in_proj.weight": ("qkv_by_head", "width"),
        "attention.self.q_bias": ("heads",),
        "attention.self.v_bias": ("heads",),
        **(linear("attention.self.pos_proj", "heads", "width", bias=False) if "c2p" in relative else {}),
        **(linear("attention.self.pos_q_proj", "heads", "width") if "p2c" in relative else {}),
        **_rest_of_layer(),
    }


def layer_v2(config: PretrainedConfig) -> Roles:
    """Of DeBERTa-v2 and -v3: the relative positions may share the projections of the contents (v3 does)."""
    own = [] if getattr(config, "share_att_key", False) else _relative(config)
    return {
        **linear("attention.self.query_proj", "heads", "width"),
        **linear("attention.self.key_proj", "heads", "width"),
        **linear("attention.self.value_proj", "heads", "width"),
        **(linear("attention.self.pos_key_proj", "heads", "width") if "c2p" in own else {}),
        **(linear("attention.self.pos_query_proj", "heads", "width") if "p2c" in own else {}),
        **_rest_of_layer(),
    }


def around(config: PretrainedConfig) -> Roles:
    """Embeddings, what the layers share, pooler and classifier."""
    factorised = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size
    axis, types = "embedding" if factorised else "width", config.type_vocab_size
    return {
        f"{PATH}.word_embeddings.weight": ("vocabulary", axis),
        **({f"{PATH}.position_embeddings.weight": ("positions", axis)} if config.position_biased_input else {}),
        **({f"{PATH}.token_type_embeddings.weight": (types, axis)} if types > 0 else {}),
        **(linear(f"{PATH}.embed_proj", "width", "embedding", bias=False) if factorised else {}),
        **norm(f"{PATH}.LayerNorm"),
        **({"deberta.encoder.rel_embeddings.weight": (2 * _span(config), "width")} if config.relative_attention else {}),
        **linear("pooler.dense", "pooled", "width"),
        **linear("classifier", "classes", "pooled"),
    }


def around_v2(config: PretrainedConfig) -> Roles:
    """As before, with a norm of the relative positions and a convolution behind the first layer where the config has them."""
    kernel = getattr(config, "conv_kernel_size", 0)
    convolution: Roles = {"deberta.encoder.conv.conv.weight": ("width", "width", kernel), "deberta.encoder.conv.conv.bias": ("width",)}
    return {
        **around(config),
        **(norm("deberta.encoder.LayerNorm") if "layer_norm" in getattr(config, "norm_rel_ebd", "none").lower() else {}),
        **({**convolution, **norm("deberta.encoder.conv.LayerNorm")} if kernel > 0 else {}),
    }


def pass_flops(config: PretrainedConfig, batch_size: int, sequence_length: int) -> int:
    """For c2p and p2c each: the relative positions projected once, 2 (2 k) d^2, and compared with every token, 2 B L (2 k) d."""
    span = _span(config) if config.model_type == "deberta-v2" else min(sequence_length, _span(config))
    width, kinds = config.hidden_size, len(_relative(config))
    return kinds * 2 * 2 * span * width * (width + batch_size * sequence_length)


def _rest_of_layer() -> Roles:
    return {
        **linear("attention.output.dense", "width", "heads"),
        **norm("attention.output.LayerNorm"),
        **linear("intermediate.dense", "ffn", "width"),
        **linear("output.dense", "width", "ffn"),
        **norm("output.LayerNorm"),
    }


def _relative(config: PretrainedConfig) -> list[str]:
    return [kind for kind in ("c2p", "p2c") if config.relative_attention and kind in (config.pos_att_type or [])]


def _span(config: PretrainedConfig) -> int:
    """k: relative positions from -k to k - 1 are told apart, or as many buckets of them."""
    most = config.max_relative_positions if config.max_relative_positions >= 1 else config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1) if config.model_type == "deberta-v2" else -1
    return buckets if buckets > 0 else most


V1 = Family(
    layers="num_hidden_layers",
    width="hidden_size",
    heads="num_attention_heads",
    ffn="intermediate_size",
    layer_path="deberta.encoder.layer",
    embedding_path=f"{PATH}.word_embeddings",
    attention_path=None,
    layer=layer,
    around=around,
    per_row=("pooler.dense.weight", "classifier.weight"),
    first_token="attention.self",
    embedding="embedding_size",
    positions=None,
    autocast=False,  # v1 masks bf16 scores with float32's lowest number
    head_size="attention_head_size",
    also_width=("pooler_hidden_size",),
    projection=f"{PATH}.embed_proj.weight",
    per_pass=("attention.self.pos_proj.weight", "attention.self.pos_q_proj.weight"),
    pass_flops=pass_flops,
)
V2 = replace(
    V1,
    autocast=True,
    layer=layer_v2,
    around=around_v2,
    per_pass=("attention.self.pos_key_proj.weight", "attention.self.pos_query_proj.weight"),
)
FAMILIES = {"deberta": V1, "deberta-v2": V2}
