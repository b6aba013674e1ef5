"""Llama and its like (Mistral, Qwen2): decoders with RMSNorm, rotary positions, a gated FFN and grouped-query attention.

A classifier has no output embeddings, so whether a config ties them makes no difference.
"""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm


def layer(config: PretrainedConfig) -> Roles:
    """Attention and gated FFN, each behind its norm."""
    # Llama's and Mistral's projections have biases as the config says (Mistral's never says so); Qwen2's always, but not the output's.
    qwen = config.model_type == "qwen2"
    bias, ffn_bias = getattr(config, "attention_bias", False), getattr(config, "mlp_bias", False)
    return {
        **norm("input_layernorm", bias=False),
        **linear("self_attn.q_proj", "heads", "width", bias or qwen),
        **linear("self_attn.k_proj", "kv_heads", "width", bias or qwen),
        **linear("self_attn.v_proj", "kv_heads", "width", bias or qwen),
        **linear("self_attn.o_proj", "width", "heads", bias),
        **norm("post_attention_layernorm", bias=False),
        **linear("mlp.gate_proj", "ffn", "width", ffn_bias),
        **linear("mlp.up_proj", "ffn", "width", ffn_bias),
        **linear("mlp.down_proj", "width", "ffn", ffn_bias),
    }


def around(_: PretrainedConfig) -> Roles:
    """Embeddings, the last norm, and the scores of every token, of which the last one counts."""
    return {
        "model.embed_tokens.weight": ("vocabulary", "width"),
        **norm("model.norm", bias=False),
        "score.weight": ("classes", "width"),
    }


LLAMA = Family(
    layers="num_hidden_layers",
    width="hidden_size",
    heads="num_attention_heads",
    ffn="intermediate_size",
    layer_path="model.layers",
    embedding_path="model.embed_tokens",
    attention_path="self_attn",
    layer=layer,
    around=around,
    kv_heads="num_key_value_heads",
    positions=None,
    rotary=True,
    rms=True,
    pre_norm=True,
    pads=True,
)

FAMILIES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA}
