"""Parameters, FLOPs and bytes of a classifier, by arithmetic over its family's table of tensors, before anything is built."""

from math import prod

from transformers import PretrainedConfig

from kdsearch.students.families import axis_size, depth_of, family_of, sizes_of, tensors_of

LOOKED_UP = ("vocabulary", "positions")


def parameters(config: PretrainedConfig) -> int:
    """Number of parameters, exact (a test compares with the built model): the sum over tensors of the product of their axes."""
    sizes = sizes_of(config)
    return sum(prod(axis_size(role, sizes) for role in roles) for roles in tensors_of(config).values())


def embeddings(config: PretrainedConfig) -> int:
    """Number of parameters that are word embeddings."""
    sizes = sizes_of(config)
    return sum(prod(axis_size(role, sizes) for role in roles) for roles in tensors_of(config).values() if roles[0] == "vocabulary")


def flops(config: PretrainedConfig, batch_size: int, sequence_length: int) -> float:
    """Floating-point operations of one forward pass, two per multiply-add.

    Every matrix once for each of the B L tokens, or once a row in the head; attention N (2 L d) per token; what the family adds.
    Tables that are looked up cost nothing, nor do rotations by position.
    """
    family, sizes, layers = family_of(config), sizes_of(config), depth_of(config)
    total, tokens = 0, batch_size * sequence_length
    for name, roles in tensors_of(config).items():
        if len(roles) < 2 or isinstance(roles[0], int) or roles[0] in LOOKED_UP or name.endswith(family.per_pass):
            continue
        times = batch_size if name in family.per_row else tokens
        total += 2 * times * prod(axis_size(role, sizes) for role in roles)
    total += layers * 2 * tokens * 2 * sequence_length * sizes["heads"]
    return float(total + (layers * family.pass_flops(config, batch_size, sequence_length) if family.pass_flops else 0))


def weight_bytes(count: int) -> int:
    """Bytes of the saved weights at float32."""
    return 4 * count
