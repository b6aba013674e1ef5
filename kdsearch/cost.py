"""Parameters, FLOPs and bytes of a BERT-like encoder with a classification head, by arithmetic, before anything is built."""

from dataclasses import dataclass

from kdsearch.candidate import Architecture


@dataclass(frozen=True)
class Fixed:
    """What a student keeps from its teacher: vocabulary, positions, token types, and the task's number of classes."""

    vocabulary: int
    positions: int
    token_types: int
    classes: int


def parameters(architecture: Architecture, fixed: Fixed) -> int:
    """Number of parameters, exact (a test compares with the built model).

    V is the student's vocabulary.
    Embeddings (V + P + T) d + 2 d; per layer 4 (d^2 + d) + 2 d f + f + d + 4 d; pooler d^2 + d; head (d + 1) C.
    """
    d, f = architecture.width, architecture.ffn
    embeddings = ((architecture.vocabulary or fixed.vocabulary) + fixed.positions + fixed.token_types) * d + 2 * d
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    return embeddings + architecture.layers * layer + d * d + d + (d + 1) * fixed.classes


def flops(architecture: Architecture, fixed: Fixed, batch_size: int, sequence_length: int) -> float:
    """Floating-point operations of one forward pass, two per multiply-add: N (4 d^2 + 2 d f + 2 L d) per token, plus pooler and head."""
    d, f, length = architecture.width, architecture.ffn, sequence_length
    per_token = architecture.layers * (4 * d * d + 2 * d * f + 2 * length * d)
    return 2.0 * batch_size * (length * per_token + d * d + d * fixed.classes)


def weight_bytes(count: int) -> int:
    """Bytes of the saved weights at float32."""
    return 4 * count
