"""Model families that students can be made of. A family is data: its config's names of depth, width, heads and FFN, and its tensors.

To add one: a row in FAMILIES; the tests in tests/students run over every row.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from kdsearch.candidate import Architecture
from kdsearch.cost import Fixed
from kdsearch.errors import UserError, unknown


@dataclass(frozen=True)
class Family:
    """Names of one model type. Rows of ``per_head`` projections are (head, head dimension), and so are columns of ``from_heads``."""

    layers: str
    width: str
    heads: str
    ffn: str
    encoder: str
    layer_path: str
    attention_path: str
    embedding_path: str
    per_head: tuple[str, ...]
    from_heads: tuple[str, ...]


FAMILIES = {
    "bert": Family(
        layers="num_hidden_layers",
        width="hidden_size",
        heads="num_attention_heads",
        ffn="intermediate_size",
        encoder="bert",
        layer_path="bert.encoder.layer",
        attention_path="attention.self",
        embedding_path="bert.embeddings.word_embeddings",
        per_head=("attention.self.query", "attention.self.key", "attention.self.value"),
        from_heads=("attention.output.dense",),
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model config.

    Raises:
        UserError: the model type is not known.
    """
    if config.model_type not in FAMILIES:
        raise UserError(
            f"teacher.model: {unknown('model type', config.model_type, list(FAMILIES))}; "
            "to add one, write its row in kdsearch/students/families.py"
        )
    return FAMILIES[config.model_type]


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The shape of a model, as a student's would be written."""
    family = family_of(config)
    width, heads = getattr(config, family.width), getattr(config, family.heads)
    return Architecture(getattr(config, family.layers), heads, width // heads, getattr(config, family.ffn) / width)


def classes_of(config: PretrainedConfig) -> int:
    """Number of classes of a classifier's head."""
    return len(config.id2label or {})


def fixed_of(config: PretrainedConfig) -> Fixed:
    """What every student keeps of its teacher's config."""
    return Fixed(config.vocab_size, config.max_position_embeddings, config.type_vocab_size, classes_of(config))


def narrow(config: PretrainedConfig, architecture: Architecture) -> PretrainedConfig:
    """The teacher's config with the student's depth, width, heads, FFN size and vocabulary.

    Token ids that a smaller vocabulary does not have become None; ``students.vocabulary.with_vocabulary`` gives the new ones.
    """
    family = family_of(config)
    changed: dict[str, Any] = config.to_dict()
    changed |= {
        family.layers: architecture.layers,
        family.width: architecture.width,
        family.heads: architecture.heads,
        family.ffn: architecture.ffn,
    }
    if (size := architecture.vocabulary) is not None:
        changed["vocab_size"] = size
        changed |= {key: None for key, value in changed.items() if key.endswith("_token_id") and isinstance(value, int) and value >= size}
    return type(config).from_dict(changed)


def mistakes(architecture: Architecture, config: PretrainedConfig) -> list[str]:
    """Why no student of this shape can be cut out of this teacher; empty when one can. Rule, value and fix each."""
    teacher, neurons, messages = architecture_of(config), getattr(config, family_of(config).ffn), []
    for name in ("layers", "heads", "head_size"):
        value, most = getattr(architecture, name), getattr(teacher, name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            messages.append(f"architecture.{name}: must be a whole number above 0; the value is {value!r}; correct the search space")
        elif value > most:
            messages.append(
                f"architecture.{name}: must not exceed the teacher's {most}; the value is {value}; lower it in the search space"
            )
    ratio = architecture.ffn_ratio
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < float("inf"):
        messages.append(f"architecture.ffn_ratio: must be a number above 0; the value is {ratio!r}; correct the search space")
    elif not messages and architecture.ffn > neurons:
        messages.append(
            f"architecture.ffn_ratio: at width {architecture.width} it must leave at most the teacher's {neurons} neurons; "
            f"the value is {ratio}, which makes {architecture.ffn}; lower it in the search space"
        )
    return messages
