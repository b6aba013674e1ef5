"""ELECTRA: BERT with embeddings that may be narrower than the residual stream, projected to it after their norm."""

from dataclasses import replace

from transformers import PretrainedConfig

from kdsearch.students.families import bert
from kdsearch.students.families.family import Roles, linear


def around(config: PretrainedConfig) -> Roles:
    """Embeddings, their projection where it is there, and the two layers of the head."""
    factorised = config.embedding_size != config.hidden_size
    return {
        **bert.embeddings("electra.embeddings", config, "embedding" if factorised else "width"),
        **(linear("electra.embeddings_project", "width", "embedding") if factorised else {}),
        **linear("classifier.dense", "pooled", "width"),
        **linear("classifier.out_proj", "classes", "pooled"),
    }


FAMILIES = {
    "electra": replace(
        bert.FAMILIES["bert"],
        embedding="embedding_size",
        layer_path="electra.encoder.layer",
        embedding_path="electra.embeddings.word_embeddings",
        around=around,
        per_row=("classifier.dense.weight", "classifier.out_proj.weight"),
        projection="electra.embeddings_project.weight",
    )
}
