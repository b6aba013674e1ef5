"""ModernBERT: norms before attention and FFN, rotary positions, local and global layers, a gated FFN, fused projections.

The first layer has no norm before its attention (the embeddings are normalised), so a layer that starts in another place gains or loses
that norm. Which layers are local is kept by place: a student's layer attends as far as the teacher's layer of the same number.
"""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm


def layer(config: PretrainedConfig) -> Roles:
    """Attention and gated FFN, each behind its norm; Wi holds the FFN's input, then its gate."""
    return {
        **norm("attn_norm", bias=config.norm_bias),
        **linear("attn.Wqkv", "heads+heads+heads", "width", config.attention_bias),
        **linear("attn.Wo", "width", "heads", config.attention_bias),
        **norm("mlp_norm", bias=config.norm_bias),
        **linear("mlp.Wi", "ffn+ffn", "width", config.mlp_bias),
        **linear("mlp.Wo", "width", "ffn", config.mlp_bias),
    }


def around(config: PretrainedConfig) -> Roles:
    """Embeddings, the last norm, and the two layers of the head."""
    return {
        "model.embeddings.tok_embeddings.weight": ("vocabulary", "width"),
        **norm("model.embeddings.norm", bias=config.norm_bias),
        **norm("model.final_norm", bias=config.norm_bias),
        **linear("head.dense", "pooled", "width", config.classifier_bias),
        **norm("head.norm", "pooled", config.norm_bias),
        **linear("classifier", "classes", "pooled"),
    }


FAMILIES = {
    "modernbert": Family(
        layers="num_hidden_layers",
        width="hidden_size",
        heads="num_attention_heads",
        ffn="intermediate_size",
        layer_path="model.layers",
        embedding_path="model.embeddings.tok_embeddings",
        attention_path="attn",
        layer=layer,
        around=around,
        per_row=("head.dense.weight", "classifier.weight"),
        positions=None,
        rotary=True,
        pre_norm=True,
        absent=("model.layers.0.attn_norm.weight", "model.layers.0.attn_norm.bias"),
    )
}
