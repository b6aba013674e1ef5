"""RoBERTa and XLM-RoBERTa: BERT with a head of its own and positions counted from the padding's id + 1, which is 2 in every such model."""

from dataclasses import replace

from transformers import PretrainedConfig

from kdsearch.students.families import bert
from kdsearch.students.families.family import Roles, linear


def around(config: PretrainedConfig) -> Roles:
    """Embeddings and the two layers of the head."""
    return {
        **bert.embeddings("roberta.embeddings", config),
        **linear("classifier.dense", "pooled", "width"),
        **linear("classifier.out_proj", "classes", "pooled"),
    }


ROBERTA = replace(
    bert.FAMILIES["bert"],
    layer_path="roberta.encoder.layer",
    embedding_path="roberta.embeddings.word_embeddings",
    around=around,
    per_row=("classifier.dense.weight", "classifier.out_proj.weight"),
    position_offset=2,
)
FAMILIES = {"roberta": ROBERTA, "xlm-roberta": ROBERTA}
