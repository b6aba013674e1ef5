"""GPT-2: a decoder with fused projections whose weights are stored transposed (Conv1D: [into, out])."""

from transformers import PretrainedConfig

from kdsearch.students.families.family import Family, Roles, norm


def layer(_: PretrainedConfig) -> Roles:
    """Attention and FFN, each behind its LayerNorm."""
    return {
        **norm("ln_1"),
        **_transposed("attn.c_attn", "width", "heads+heads+heads"),
        **_transposed("attn.c_proj", "heads", "width"),
        **norm("ln_2"),
        **_transposed("mlp.c_fc", "width", "ffn"),
        **_transposed("mlp.c_proj", "ffn", "width"),
    }


def around(_: PretrainedConfig) -> Roles:
    """Embeddings, the last norm, and the scores of every token, of which the last one counts."""
    return {
        "transformer.wte.weight": ("vocabulary", "width"),
        "transformer.wpe.weight": ("positions", "width"),
        **norm("transformer.ln_f"),
        "score.weight": ("classes", "width"),
    }


def _transposed(name: str, into: str, out: str) -> Roles:
    return {f"{name}.weight": (into, out), f"{name}.bias": (out,)}


FAMILIES = {
    "gpt2": Family(
        layers="n_layer",
        width="n_embd",
        heads="n_head",
        ffn="n_inner",
        layer_path="transformer.h",
        embedding_path="transformer.wte",
        attention_path="attn",
        layer=layer,
        around=around,
        positions="n_positions",
        pre_norm=True,
        pads=True,
    )
}
