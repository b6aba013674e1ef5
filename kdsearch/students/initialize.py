"""Where a student's weights come from: which teacher layers, and which indices of a wider tensor's axes make a narrower one's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from kdsearch.candidate import OTHER_MODELS, Initialization
from kdsearch.students import rotation
from kdsearch.students.families import axis_size, depth_of, family_of, sizes_of, tensors_of
from kdsearch.students.importance import Calibration, top

BY_PLACE = ("random", "first", "last", "uniform", "every_kth", "block_mean")
BY_MEASURE = ("important", "removal")
LAYERS = (*BY_PLACE, *BY_MEASURE, *OTHER_MODELS)
WIDTHS = ("slice", "importance", "pca")
Keep = dict[str, np.ndarray]


def teacher_layers(
    choice: str | Sequence[int], student: int, teacher: int, calibration: Calibration | None = None
) -> list[tuple[int, ...]]:
    """The teacher layers whose mean starts each of the student's n layers, 0-indexed of N; empty for ``random``.

    first [0 .. n-1]; last [N-n .. N-1]; uniform round((i + 1) N / n) - 1, which always ends with the teacher's last layer;
    every_kth [0, k, 2 k ..], k = N // n (layer jumping); or a list of them.
    block_mean: the layers behind uniform's previous one up to uniform's own, so that all of them take part.
    important: the n of highest block importance; removal: those that are left when the least missed are dropped; both in their order.
    pretrained, distilled: uniform, of the model that stands in the teacher's place.

    DistilBERT (Sanh et al. 2019) and TinyBERT (Jiao et al. 2020) take every N/n-th layer, DistilXLSR (Wang et al. 2023) jumps or lists,
    Kolesnikova et al. (2022, arXiv 2205.02340) take means, Muralidharan et al. (2024, arXiv 2407.14679) the important ones.

    Raises:
        ValueError: no such choice, a list of another length than n, an entry that is no teacher layer, or no calibration to choose by.
    """
    if isinstance(choice, list | tuple):
        return [(layer,) for layer in _listed(choice, student, teacher)]
    ends = [int(np.floor((i + 1) * teacher / student + 0.5)) - 1 for i in range(student)]
    match choice:
        case "random":
            return []
        case "first":
            chosen = list(range(student))
        case "last":
            chosen = list(range(teacher - student, teacher))
        case "uniform" | "pretrained" | "distilled":
            chosen = ends
        case "every_kth":
            chosen = [i * (teacher // student) for i in range(student)]
        case "block_mean":
            return [tuple(range(start + 1, end + 1)) for start, end in zip([-1, *ends], ends, strict=False)]
        case "important" | "removal":
            chosen = _measured(choice, student, teacher, calibration)
        case _:
            raise ValueError(f"initialization.layers must be one of {', '.join(LAYERS)}, or a list; the value is {choice!r}")
    return [(layer,) for layer in chosen]


@torch.no_grad()
def initialize(
    student: PreTrainedModel, teacher: PreTrainedModel, initialization: Initialization, calibration: Calibration | None = None
) -> None:
    """Copy into the student, in place, the teacher's embeddings, chosen layers, norms and head, each cut to the student's shape.

    ``random`` keeps the family's own initialisation (normal, 0.02) in the layers and still inherits everything else.

    Raises:
        ValueError: layers or width are chosen by a calibration, and there is none.
    """
    family, wide, narrow = family_of(teacher.config), teacher.config, student.config
    chosen = teacher_layers(initialization.layers, depth_of(narrow), depth_of(wide), calibration)
    scores = None if initialization.width == "slice" else calibration
    if initialization.width != "slice" and scores is None:
        raise ValueError(f"initialization.width {initialization.width!r} needs a calibration of the teacher")
    # Embeddings that no matrix projects are projected by the identity: a student that does project them starts with its part of it.
    source = {
        family.projection: torch.eye(sizes_of(wide)["width"]),
        **{name: weight.cpu() for name, weight in teacher.state_dict().items()},
    }
    keeps = {layers: keep_of(wide, narrow, layers, scores) for layers in {(), *chosen}}
    roles, sizes = tensors_of(narrow), sizes_of(wide)
    if initialization.width == "pca":
        assert scores is not None
        width = sizes_of(narrow)["width"]
        source = rotation.rotated(teacher, source, {**tensors_of(wide), **roles}, scores, width)
        keeps = {layers: {**keep, "width": np.arange(width)} for layers, keep in keeps.items()}
    for name, target in student.state_dict().items():
        layers, origins = _origins(name, f"{family.layer_path}.", chosen)
        found = [source[origin] for origin in origins if origin in source]
        if found:
            mean = found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
            target.copy_(cut(mean, roles[name], keeps[layers], sizes).to(target))


def keep_of(teacher: PretrainedConfig, student: PretrainedConfig, layers: Sequence[int] = (), scores: Calibration | None = None) -> Keep:
    """By role, which indices of the teacher's axis make the student's, in the mean of some teacher layers; none: outside of the layers.

    Without scores the leading ones; of heads the leading heads, and in each the dimensions of :func:`kept_dimensions`. With scores the
    highest of these layers' sums; channels of the residual stream are the same everywhere.
    """
    sizes = sizes_of(student)
    leading = {role: np.arange(size) for role, size in sizes.items()}
    if scores is None:
        return {**leading, **keep_heads(teacher, student, *leading_heads(teacher, student))}
    channels = {"width": scores.width, "embedding": scores.embedding if len(scores.embedding) else scores.width, "pooled": scores.pooled}
    best = {role: top(values, sizes[role]) for role, values in channels.items() if len(values)}
    # A table that all layers share (MPNet's relative positions) has a column for each head: one choice of heads for all of them.
    shared = any("each_head" in roles for roles in family_of(teacher).around(teacher).values())
    among = range(depth_of(teacher)) if shared or not layers else layers
    if layers:
        best["ffn"] = top(scores.ffn[list(layers)].sum(0), sizes["ffn"])
    heads, kv_heads = important_heads(teacher, student, scores.heads[list(among)].sum(0))
    return {**leading, **best, **keep_heads(teacher, student, heads, kv_heads, scores.dimensions[list(among)].sum(0))}


def keep_heads(
    teacher: PretrainedConfig, student: PretrainedConfig, heads: np.ndarray, kv_heads: np.ndarray, scores: np.ndarray | None = None
) -> Keep:
    """The roles that have heads in them, given the teacher's heads [heads] and key-value heads [kv_heads] that are kept, in that order.

    ``scores`` [teacher's heads, head size] choose the dimensions of each head, where neither rotary positions nor shared keys tie them.
    """
    size, family = _head_size(teacher), family_of(teacher)
    dimensions = np.tile(kept_dimensions(teacher, student), (sizes_of(teacher)["each_head"], 1))
    if scores is not None and not family.rotary and not family.kv_heads:
        dimensions = np.stack([top(score, _head_size(student)) for score in scores])
    of_head = dimensions[heads]
    return {
        "heads": (heads[:, None] * size + of_head).ravel(),
        "kv_heads": (kv_heads[:, None] * size + dimensions[kv_heads]).ravel(),
        "each_head": heads,
        "qkv_by_head": ((heads[:, None, None] * 3 + np.arange(3)[:, None]) * size + of_head[:, None]).ravel(),
    }


def important_heads(teacher: PretrainedConfig, student: PretrainedConfig, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`leading_heads`, by the teacher's scores [heads]: the best groups, and in each the best heads, all in their order."""
    (_, group), (kept, kept_group) = _grouped(teacher), _grouped(student)
    if kept_group > group:
        heads = top(scores, kept)
        return heads, heads[::kept_group] // group
    groups = top(scores.reshape(-1, group).sum(1), kept // kept_group)
    return np.concatenate([top(scores[first : first + group], kept_group) + first for first in groups * group]), groups


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


def _measured(choice: str, student: int, teacher: int, calibration: Calibration | None) -> list[int]:
    if calibration is None or (choice == "removal" and not calibration.dropped):
        raise ValueError(f"initialization.layers {choice!r} needs a calibration of the teacher that has measured it")
    if choice == "important":
        return top(calibration.blocks, student).tolist()
    return sorted({*range(teacher)} - {*calibration.dropped[: teacher - student]})


def _origins(name: str, prefix: str, chosen: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[str]]:
    """The teacher layers and the teacher's names of a student tensor; no name where a layer starts at random."""
    if not name.startswith(prefix):
        return (), [name]
    number, _, rest = name.removeprefix(prefix).partition(".")
    layers = chosen[int(number)] if chosen else ()
    return layers, [f"{prefix}{layer}.{rest}" for layer in layers]


def _grouped(config: PretrainedConfig) -> tuple[int, int]:
    """Heads, and how many share their keys and values."""
    sizes = sizes_of(config)
    return sizes["each_head"], sizes["heads"] // sizes["kv_heads"]


def _head_size(config: PretrainedConfig) -> int:
    sizes = sizes_of(config)
    return sizes["heads"] // sizes["each_head"]
