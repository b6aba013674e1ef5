"""Where a student's weights come from: which teacher layers, and which indices of a wider tensor's axes make a narrower one's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from kdsearch.candidate import Initialization
from kdsearch.students.families import axis_size, depth_of, family_of, sizes_of, tensors_of

LAYERS = ("random", "first", "last", "uniform", "every_kth")
WIDTHS = ("slice",)
Keep = dict[str, np.ndarray]


def teacher_layers(choice: str | Sequence[int], student: int, teacher: int) -> list[int]:
    """The teacher layer that starts each of the student's n layers, 0-indexed of N; empty for ``random``.

    first [0 .. n-1]; last [N-n .. N-1]; uniform round((i + 1) N / n) - 1, which always ends with the teacher's last layer;
    every_kth [0, k, 2 k ..], k = N // n (layer jumping); or a list of them.
    DistilBERT (Sanh et al. 2019) and TinyBERT (Jiao et al. 2020) take every N/n-th layer, DistilXLSR (Wang et al. 2023) jumps or lists.

    Raises:
        ValueError: no such choice, a list of another length than n, or an entry that is no teacher layer.
    """
    match choice:
        case "random":
            return []
        case "first":
            return list(range(student))
        case "last":
            return list(range(teacher - student, teacher))
        case "uniform":
            return [int(np.floor((i + 1) * teacher / student + 0.5)) - 1 for i in range(student)]
        case "every_kth":
            return [i * (teacher // student) for i in range(student)]
        case list() | tuple():
            return _listed(choice, student, teacher)
    raise ValueError(f"initialization.layers must be one of {', '.join(LAYERS)}, or a list; the value is {choice!r}")


@torch.no_grad()
def initialize(student: PreTrainedModel, teacher: PreTrainedModel, initialization: Initialization) -> None:
    """Copy into the student, in place, the teacher's embeddings, chosen layers, norms and head, each cut to the student's shape.

    ``random`` keeps the family's own initialisation (normal, 0.02) in the layers and still inherits everything else.
    """
    family, wide, narrow = family_of(teacher.config), teacher.config, student.config
    chosen = teacher_layers(initialization.layers, depth_of(narrow), depth_of(wide))
    # Embeddings that no matrix projects are projected by the identity: a student that does project them starts with its part of it.
    source = {family.projection: torch.eye(sizes_of(wide)["width"]), **teacher.state_dict()}
    keeps = {layer: keep_of(wide, narrow, layer) for layer in {None, *chosen}}
    roles, sizes = tensors_of(narrow), sizes_of(wide)
    for name, target in student.state_dict().items():
        layer, origin = _origin(name, f"{family.layer_path}.", chosen)
        if origin in source:
            target.copy_(cut(source[origin], roles[name], keeps[layer], sizes).to(target))


def keep_of(teacher: PretrainedConfig, student: PretrainedConfig, layer: int | None = None) -> Keep:
    """By role, which indices of the teacher's axis make the student's, in the tensors of a teacher layer; None: outside of the layers.

    The leading ones; of heads the leading heads, and in each the dimensions of :func:`kept_dimensions`.
    """
    leading = {role: np.arange(size) for role, size in sizes_of(student).items()}
    return {**leading, **keep_heads(teacher, student, *leading_heads(teacher, student))}


def keep_heads(teacher: PretrainedConfig, student: PretrainedConfig, heads: np.ndarray, kv_heads: np.ndarray) -> Keep:
    """The roles that have heads in them, given the teacher's heads [heads] and key-value heads [kv_heads] that are kept, in that order."""
    size, dimensions = _head_size(teacher), kept_dimensions(teacher, student)
    return {
        "heads": (heads[:, None] * size + dimensions).ravel(),
        "kv_heads": (kv_heads[:, None] * size + dimensions).ravel(),
        "each_head": heads,
        "qkv_by_head": ((heads[:, None, None] * 3 + np.arange(3)[:, None]) * size + dimensions).ravel(),
    }


def leading_heads(teacher: PretrainedConfig, student: PretrainedConfig) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's heads and key-value heads that start the student's.

    The leading groups, and in each the leading heads, so that a head keeps its keys and values. Where the student's groups are larger than
    the teacher's, the leading heads, each group with the keys and values of its first head.
    """
    (_, group), (kept, kept_group) = _grouped(teacher), _grouped(student)
    if kept_group > group:
        return np.arange(kept), np.arange(0, kept, kept_group) // group
    first = np.arange(kept // kept_group)
    return (first[:, None] * group + np.arange(kept_group)).ravel(), first


def kept_dimensions(teacher: PretrainedConfig, student: PretrainedConfig) -> np.ndarray:
    """Which dimensions of a head are kept: the leading ones.

    Under rotary positions evenly spaced pairs (j, j + head_size / 2), so that a kept pair turns as fast as before: pair j of h' turns
    at theta^(-2 j / h'), which is the speed of the teacher's pair j h / h'.
    """
    size, kept = _head_size(teacher), _head_size(student)
    if not family_of(teacher).rotary:
        return np.arange(kept)
    pairs = np.arange(kept // 2) * size // kept
    return np.concatenate([pairs, pairs + size // 2])


def cut(tensor: Tensor, roles: tuple[str | int, ...], keep: Keep, sizes: dict[str, int]) -> Tensor:
    """The student's part of a teacher tensor, axis by axis; ``sizes`` are those of the teacher's roles."""
    for axis, role in enumerate(roles):
        if isinstance(role, int):
            continue
        parts = role.split("+")
        starts = np.cumsum([0, *(axis_size(part, sizes) for part in parts)])
        index = np.concatenate([start + keep[part] for start, part in zip(starts, parts, strict=False)])
        if not np.array_equal(index, np.arange(tensor.shape[axis])):
            tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def _listed(choice: Sequence[int], student: int, teacher: int) -> list[int]:
    if len(choice) != student:
        raise ValueError(
            f"initialization.layers: a list must name one teacher layer for each of the student's {student}; the value is {list(choice)}; "
            "give as many, or fix architecture.layers"
        )
    wrong = [item for item in choice if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < teacher]
    if wrong:
        raise ValueError(
            f"initialization.layers: a list must hold teacher layers, 0 to {teacher - 1}; the value is {list(choice)}; correct it"
        )
    return list(choice)


def _origin(name: str, prefix: str, chosen: list[int]) -> tuple[int | None, str | None]:
    """The teacher layer and the teacher's name of a student tensor; no name where a layer starts at random."""
    if not name.startswith(prefix):
        return None, name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return (chosen[int(number)], f"{prefix}{chosen[int(number)]}.{rest}") if chosen else (None, None)


def _grouped(config: PretrainedConfig) -> tuple[int, int]:
    """Heads, and how many share their keys and values."""
    sizes = sizes_of(config)
    return sizes["each_head"], sizes["heads"] // sizes["kv_heads"]


def _head_size(config: PretrainedConfig) -> int:
    sizes = sizes_of(config)
    return sizes["heads"] // sizes["each_head"]
