"""MPNet: BERT with one table of relative position biases for all layers; it computes attention itself, so nothing of that can be seen."""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm


def layer(_: PretrainedConfig) -> Roles:
    """Attention and FFN, each with its LayerNorm behind it."""
    return {
        **linear("attention.attn.q", "heads", "width"),
        **linear("attention.attn.k", "heads", "width"),
        **linear("attention.attn.v", "heads", "width"),
        **linear("attention.attn.o", "width", "heads"),
        **norm("attention.LayerNorm"),
        **linear("intermediate.dense", "ffn", "width"),
        **linear("output.dense", "width", "ffn"),
        **norm("output.LayerNorm"),
    }


def around(config: PretrainedConfig) -> Roles:
    """Embeddings, relative positions and the two layers of the head."""
    return {
        "mpnet.embeddings.word_embeddings.weight": ("vocabulary", "width"),
        "mpnet.embeddings.position_embeddings.weight": ("positions", "width"),
        **norm("mpnet.embeddings.LayerNorm"),
        "mpnet.encoder.relative_attention_bias.weight": (config.relative_attention_num_buckets, "each_head"),
        **linear("classifier.dense", "pooled", "width"),
        **linear("classifier.out_proj", "classes", "pooled"),
    }


FAMILIES = {
    "mpnet": Family(
        layers="num_hidden_layers",
        width="hidden_size",
        heads="num_attention_heads",
        ffn="intermediate_size",
        layer_path="mpnet.encoder.layer",
        embedding_path="mpnet.embeddings.word_embeddings",
        attention_path=None,
        layer=layer,
        around=around,
        per_row=("classifier.dense.weight", "classifier.out_proj.weight"),
        first_token="projected",
        position_offset=2,
    )
}
