"""Model families that students can be made of: every file here that has FAMILIES adds its model types.

To add one: a file that describes it (``family.py`` says what a description holds), and its tiny config in tests/students/tiny_families.py.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from transformers import PretrainedConfig

from kdsearch.candidate import Architecture
from kdsearch.errors import UserError, unknown
from kdsearch.students.families.family import Family, Roles

FAMILIES: dict[str, Family] = {
    model_type: family
    for module in iter_modules(__path__)
    for model_type, family in getattr(import_module(f"{__name__}.{module.name}"), "FAMILIES", {}).items()
}
EXCLUDED = {
    "albert": "ALBERT's layers share one set of weights, so there is no layer to drop or to copy; take a BERT, RoBERTa or DeBERTa teacher",
}
SIZES = ("layers", "heads", "head_size")
OPTIONAL = ("kv_heads", "embedding", "positions")


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model config.

    Raises:
        UserError: the model type is not known, or no student can be made of it.
    """
    if config.model_type in EXCLUDED:
        raise UserError(f"teacher.model: model type '{config.model_type}' cannot be searched: {EXCLUDED[config.model_type]}")
    if config.model_type not in FAMILIES:
        raise UserError(
            f"teacher.model: {unknown('model type', config.model_type, list(FAMILIES))}; "
            "to add one, describe it in one file in kdsearch/students/families/ (CONTRIBUTING.md, 'Adding a model family')"
        )
    return FAMILIES[config.model_type]


def teacher_mistakes(config: PretrainedConfig) -> list[str]:
    """Why no student can be made of a model with this config; empty when one can."""
    try:
        family = family_of(config)
    except UserError as error:
        return error.messages
    messages = []
    width, heads = getattr(config, family.width), getattr(config, family.heads)
    head_size = getattr(config, family.head_size, None) or width // heads
    if heads * head_size != width:
        messages.append(
            f"teacher.model: heads x head size must be the width; its config has {heads} x {head_size} and {width}; take another teacher"
        )
    if family.pads and config.pad_token_id is None:
        messages.append(
            f"teacher.model: the config of {config.model_type} models must name its padding, whose tokens its classifier leaves out; "
            "pad_token_id is missing; set it to the tokenizer's"
        )
    return messages


def tensors_of(config: PretrainedConfig) -> Roles:
    """Every tensor of the classifier that a config builds, by its name in the state dict, with the role of each axis."""
    family = family_of(config)
    inside = {f"{family.layer_path}.{n}.{name}": roles for n in range(depth_of(config)) for name, roles in family.layer(config).items()}
    return {name: roles for name, roles in {**family.around(config), **inside}.items() if name not in family.absent}


def sizes_of(config: PretrainedConfig) -> dict[str, int]:
    """Size of the axis of each role."""
    family = family_of(config)
    width, heads = getattr(config, family.width), getattr(config, family.heads)
    return {
        "width": width,
        "embedding": getattr(config, family.embedding, width) if family.embedding else width,
        "heads": width,
        "kv_heads": width // heads * (getattr(config, family.kv_heads) if family.kv_heads else heads),
        "each_head": heads,
        "qkv_by_head": 3 * width,
        "ffn": getattr(config, family.ffn) or 4 * width,  # GPT-2 may leave it open
        "pooled": width,
        "vocabulary": config.vocab_size,
        "positions": config.max_position_embeddings,
        "classes": classes_of(config),
    }


def axis_size(role: str | int, sizes: dict[str, int]) -> int:
    """Size of an axis, given those of the roles; a number is its own size."""
    return role if isinstance(role, int) else sum(sizes[part] for part in role.split("+"))


def depth_of(config: PretrainedConfig) -> int:
    """Number of layers."""
    return getattr(config, family_of(config).layers)


def longest(config: PretrainedConfig) -> int:
    """The longest sequence that a model reads, in tokens."""
    return config.max_position_embeddings - family_of(config).position_offset


def classes_of(config: PretrainedConfig) -> int:
    """Number of classes of a classifier's head."""
    return len(config.id2label or {})


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The shape of a model, as a student's would be written; what its family does not choose is None, and embeddings not factorised too."""
    family, sizes = family_of(config), sizes_of(config)
    width, heads = sizes["width"], sizes["each_head"]
    return Architecture(
        layers=depth_of(config),
        heads=heads,
        head_size=width // heads,
        ffn_ratio=sizes["ffn"] / width,
        kv_heads=getattr(config, family.kv_heads) if family.kv_heads else None,
        embedding=sizes["embedding"] if sizes["embedding"] != width else None,
        positions=longest(config) if family.positions else None,
    )


def narrow(config: PretrainedConfig, architecture: Architecture) -> PretrainedConfig:
    """The teacher's config with the student's sizes; what the architecture leaves open stays as the teacher's.

    Embeddings left open stay as narrow as the teacher's where those are factorised, and are as wide as the student where they are not.
    Token ids that a smaller vocabulary does not have become None; ``students.vocabulary.with_vocabulary`` gives the new ones.
    """
    family, sizes = family_of(config), sizes_of(config)
    changed: dict[str, Any] = config.to_dict()
    changed |= {
        family.layers: architecture.layers,
        family.width: architecture.width,
        family.heads: architecture.heads,
        family.ffn: architecture.ffn,
    }
    if family.kv_heads:
        changed[family.kv_heads] = architecture.kv_heads or architecture.heads // _group(config)
    if family.embedding and (architecture.embedding or family.embedding in changed):
        factorised = sizes["embedding"] != sizes["width"]
        changed[family.embedding] = architecture.embedding or (sizes["embedding"] if factorised else architecture.width)
    if family.positions and architecture.positions:
        changed[family.positions] = architecture.positions + family.position_offset
    if changed.get(family.head_size):
        changed[family.head_size] = architecture.head_size
    if (size := architecture.vocabulary) is not None:
        changed["vocab_size"] = size
        changed |= {key: None for key, value in changed.items() if key.endswith("_token_id") and isinstance(value, int) and value >= size}
    changed |= {name: architecture.width for name in family.also_width if name in changed}
    changed |= {name: changed[name][: architecture.layers] for name in family.per_layer if changed.get(name)}
    return type(config).from_dict(changed)


def mistakes(architecture: Architecture, config: PretrainedConfig) -> list[str]:
    """Why no student of this shape can be cut out of this teacher; empty when one can. Rule, value and fix each."""
    teacher, sizes, messages = architecture_of(config), sizes_of(config), []
    for name in (*SIZES, *OPTIONAL):
        value, most = getattr(architecture, name), getattr(teacher, name)
        if name == "embedding" and family_of(config).embedding:
            most = sizes["embedding"]
        if value is None and name in OPTIONAL:
            continue
        if most is None:
            messages.append(f"architecture.{name}: is no choice for {config.model_type} models; the value is {value!r}; remove the key")
        elif isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            messages.append(f"architecture.{name}: must be a whole number above 0; the value is {value!r}; correct the search space")
        elif value > most:
            messages.append(
                f"architecture.{name}: must not exceed the teacher's {most}; the value is {value}; lower it in the search space"
            )
    ratio, neurons = architecture.ffn_ratio, sizes["ffn"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < float("inf"):
        messages.append(f"architecture.ffn_ratio: must be a number above 0; the value is {ratio!r}; correct the search space")
    elif not messages and architecture.ffn > neurons:
        messages.append(
            f"architecture.ffn_ratio: at width {architecture.width} it must leave at most the teacher's {neurons} neurons; "
            f"the value is {ratio}, which makes {architecture.ffn}; lower it in the search space"
        )
    return messages or _combination_mistakes(architecture, config)


def _combination_mistakes(architecture: Architecture, config: PretrainedConfig) -> list[str]:
    """What is wrong with sizes of which each alone is possible."""
    family, sizes, messages = family_of(config), sizes_of(config), []
    heads, kv_heads, group = architecture.heads, architecture.kv_heads, _group(config)
    if kv_heads and heads % kv_heads:
        messages.append(f"architecture.kv_heads: must divide the heads; the values are {kv_heads} and {heads}; correct the search space")
    if not kv_heads and heads % group:
        messages.append(
            f"architecture.heads: must be a multiple of {group}, as many as share keys and values in the teacher; the value is {heads}; "
            "correct it, or give kv_heads"
        )
    if family.rotary and architecture.head_size % 2:
        messages.append(
            f"architecture.head_size: must be even, as rotary positions turn pairs of dimensions; the value is {architecture.head_size}; "
            "correct the search space"
        )
    factorised = sizes["embedding"] if sizes["embedding"] != sizes["width"] else None
    if factorised and (architecture.embedding or factorised) == architecture.width:
        messages.append(
            f"architecture.embedding: must not be the width, where {config.model_type} models have no projection to inherit the teacher's; "
            f"both are {architecture.width}; give another embedding or head_size"
        )
    return messages


def _group(config: PretrainedConfig) -> int:
    """Heads that share their keys and values."""
    sizes = sizes_of(config)
    return sizes["heads"] // sizes["kv_heads"]
