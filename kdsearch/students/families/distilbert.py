"""DistilBERT: BERT without token types and pooler, under other names."""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, linear, norm


def layer(_: PretrainedConfig) -> Roles:
    """Attention and FFN, each with its LayerNorm behind it."""
    return {
        **linear("attention.q_lin", "heads", "width"),
        **linear("attention.k_lin", "heads", "width"),
        **linear("attention.v_lin", "heads", "width"),
        **linear("attention.out_lin", "width", "heads"),
        **norm("sa_layer_norm"),
        **linear("ffn.lin1", "ffn", "width"),
        **linear("ffn.lin2", "width", "ffn"),
        **norm("output_layer_norm"),
    }


def around(_: PretrainedConfig) -> Roles:
    """Embeddings and the two layers of the head."""
    return {
        "distilbert.embeddings.word_embeddings.weight": ("vocabulary", "width"),
        "distilbert.embeddings.position_embeddings.weight": ("positions", "width"),
        **norm("distilbert.embeddings.LayerNorm"),
        **linear("pre_classifier", "pooled", "width"),
        **linear("classifier", "classes", "pooled"),
    }


FAMILIES = {
    "distilbert": Family(
        layers="n_layers",
        width="dim",
        heads="n_heads",
        ffn="hidden_dim",
        layer_path="distilbert.transformer.layer",
        embedding_path="distilbert.embeddings.word_embeddings",
        attention_path="attention",
        layer=layer,
        around=around,
        per_row=("pre_classifier.weight", "classifier.weight"),
        first_token="projected",
    )
}
