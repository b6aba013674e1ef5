"""BERT. Its layer is that of RoBERTa and ELECTRA too."""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm


def layer(_: PretrainedConfig) -> Roles:
    """Attention and FFN, each with its LayerNorm behind it."""
    return {
        **linear("attention.self.query", "heads", "width"),
        **linear("attention.self.key", "heads", "width"),
        **linear("attention.self.value", "heads", "width"),
        **linear("attention.output.dense", "width", "heads"),
        **norm("attention.output.LayerNorm"),
        **linear("intermediate.dense", "ffn", "width"),
        **linear("output.dense", "width", "ffn"),
        **norm("output.LayerNorm"),
    }


def embeddings(path: str, config: PretrainedConfig, axis: str = "width") -> Roles:
    """Words, positions and token types, added and normalised."""
    return {
        f"{path}.word_embeddings.weight": ("vocabulary", axis),
        f"{path}.position_embeddings.weight": ("positions", axis),
        f"{path}.token_type_embeddings.weight": (config.type_vocab_size, axis),
        **norm(f"{path}.LayerNorm", axis),
    }


def around(config: PretrainedConfig) -> Roles:
    """Embeddings, pooler and classifier."""
    return {
        **embeddings("bert.embeddings", config),
        **linear("bert.pooler.dense", "pooled", "width"),
        **linear("classifier", "classes", "pooled"),
    }


FAMILIES = {
    "bert": Family(
        layers="num_hidden_layers",
        width="hidden_size",
        heads="num_attention_heads",
        ffn="intermediate_size",
        layer_path="bert.encoder.layer",
        embedding_path="bert.embeddings.word_embeddings",
        attention_path="attention.self",
        layer=layer,
        around=around,
        per_row=("bert.pooler.dense.weight", "classifier.weight"),
        first_token="projected",
    )
}
