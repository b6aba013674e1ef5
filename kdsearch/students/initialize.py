"""Where a student's weights come from: which teacher layers, and how a wider tensor is cut to a narrower one."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.candidate import Architecture, Initialization
from kdsearch.students.families import Family, architecture_of, family_of

LAYERS = ("random", "first", "last", "uniform")
WIDTHS = ("slice",)


def teacher_layers(name: str, student: int, teacher: int) -> list[int]:
    """The teacher layer that starts each student layer, 0-indexed; empty for ``random``.

    first [0 .. n-1]; last [N-n .. N-1]; uniform round((i + 1) N / n) - 1, which always ends with the teacher's last layer.
    DistilBERT (Sanh et al. 2019) and TinyBERT (Jiao et al. 2020) take every N/n-th layer.
    """
    match name:
        case "random":
            return []
        case "first":
            return list(range(student))
        case "last":
            return list(range(teacher - student, teacher))
        case "uniform":
            return [int(np.floor((i + 1) * teacher / student + 0.5)) - 1 for i in range(student)]
    raise ValueError(f"initialization.layers must be one of {', '.join(LAYERS)}; the value is {name!r}")


@torch.no_grad()
def initialize(student: PreTrainedModel, teacher: PreTrainedModel, initialization: Initialization) -> None:
    """Copy into the student, in place, the teacher's embeddings, chosen layers, pooler and head, each cut to the student's shape.

    ``random`` keeps the family's own initialisation (normal, 0.02) in the layers and still inherits embeddings, pooler and head.
    Attention rows are cut per head: the first heads, and of each its first dimensions. Everything else keeps its leading slice.
    """
    family = family_of(teacher.config)
    shapes = architecture_of(teacher.config), architecture_of(student.config)
    chosen = teacher_layers(initialization.layers, shapes[1].layers, shapes[0].layers)
    source = teacher.state_dict()
    for name, target in student.state_dict().items():
        origin = _origin(name, family, chosen)
        if origin in source:
            target.copy_(cut(source[origin], name, family, *shapes, tuple(target.shape)).to(target))


def cut(tensor: Tensor, name: str, family: Family, teacher: Architecture, student: Architecture, shape: tuple[int, ...]) -> Tensor:
    """The student's part of a teacher tensor: leading slice of each axis, and of an axis of heads the leading slice within each head."""
    if any(f".{part}." in name for part in family.per_head):
        tensor = tensor.unflatten(0, (teacher.heads, teacher.head_size))[: student.heads, : student.head_size].flatten(0, 1)
    if any(f".{part}.weight" in name for part in family.from_heads):
        tensor = tensor.unflatten(1, (teacher.heads, teacher.head_size))[:, : student.heads, : student.head_size].flatten(1, 2)
    return tensor[tuple(slice(size) for size in shape)]


def _origin(name: str, family: Family, chosen: list[int]) -> str | None:
    """The teacher's name of a student tensor, or None where a layer starts at random."""
    prefix = f"{family.layer_path}."
    if not name.startswith(prefix):
        return name
    layer, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{chosen[int(layer)]}.{rest}" if chosen else None
