"""Everything that can be known to be wrong before any work is done and before anything is written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from kdsearch import cost, samplers, search_space, space_file, starts, study_file, teacher, within
from kdsearch.candidate import OTHER_MODELS, Architecture, Recipe
from kdsearch.distillation.knowledge import shapes_of
from kdsearch.distillation.mistakes import recipe_mistakes, token_mistakes
from kdsearch.errors import UserError
from kdsearch.resources import cache_folder
from kdsearch.space_file import SearchSpace
from kdsearch.students import reading, rotation, vocabulary
from kdsearch.students.families import depth_of, longest, narrow
from kdsearch.students.families import mistakes as shape_mistakes
from kdsearch.students.initialize import LAYERS, WIDTHS, teacher_layers
from kdsearch.study_file import StudySpec
from kdsearch.target.latency import measure
from kdsearch.tasks import data
from kdsearch.tasks.batches import LENGTH_STEP


@dataclass(frozen=True)
class Study:
    """A study that passed every check: its file's folder, its spec, its space, and where its results go."""

    base: Path
    spec: StudySpec
    space: SearchSpace
    folder: Path


def open_files(path: Path, out: Path | None = None, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study file and the space it names, and look at what they name; nothing is written.

    ``overrides`` replace keys of the ``search`` section (the command line's options).

    Raises:
        UserError: all mistakes at once.
    """
    base = path.parent.resolve()
    right, messages = study_file.read(path)
    space, space_messages = _load_space(right["space"], path, base) if "space" in right else (None, [])
    messages += space_messages
    teacher_messages = teacher.mistakes(right["teacher"], base) if "teacher" in right else []
    messages += [f"{path}: {message}" for message in teacher_messages]
    task_messages = data.mistakes(right["task"], base) if "task" in right else []
    messages += [f"{path}: {message}" for message in task_messages]
    messages += [f"{path}: {message}" for message in _device_mistakes(right)]
    if "teacher" in right and not teacher_messages:
        # The head gets the task's classes, whatever the model was trained for.
        classes = data.classes(right["task"], base) if "task" in right and not task_messages else []
        messages += [f"{path}: {message}" for message in (teacher.head_mistakes(right["teacher"], base, classes) if classes else [])]
        known = {"num_labels": len(classes)} if classes else {}
        try:
            space = search_space.for_classes(space, known["num_labels"]) if space and known else space
        except UserError as error:
            messages += [f"{right['space']}: {message}" for message in error.messages]
            space = None
        config = AutoConfig.from_pretrained(teacher.source(right["teacher"], base), **known)
        space, shape_messages = within.listed(space, config) if space else (None, [])
        messages += [f"{right['space']}: {message}" for message in shape_messages]
        messages += [f"{path}: {message}" for message in length_mistakes(right, config)]
        messages += [f"{right['space']}: {message}" for message in (_mistakes_of(space, right, config, base) if space else [])]
        if space and "task" in right and not messages:
            messages += [f"{right['space']}: {message}" for message in vocabulary_mistakes(space, right["teacher"], right["task"], base)]
        if space and "limits" in right and not messages:
            messages += [f"{path}: {message}" for message in limit_mistakes(right["limits"], space, config)]
    folder = out.resolve() if out else base / right.get("name", path.stem)
    messages += _folder_mistakes("output folder", folder, "choose another with --out")
    messages += _folder_mistakes("cache folder", cache_folder(), "set KDSEARCH_CACHE to another")
    if messages:
        raise UserError(list(dict.fromkeys(messages)))
    spec = StudySpec(**right)
    assert space is not None
    spec = study_file.changed(spec, overrides or {})
    samplers.refuse_unusable(spec.search, space)
    return Study(base, spec, space, folder)


def from_facts(facts: dict[str, Any], folder: Path) -> Study:
    """A study as its folder recorded it; before there were schedules, every rate fell."""
    spec = {**facts["spec"], "proxy": {"schedule": "linear", **facts["spec"].get("proxy", {})}}
    space = search_space.for_classes(space_file.parse(facts["space"]), len(facts["task"]["classes"]))
    return Study(Path(facts["base"]), StudySpec.model_validate(spec), space, folder)


def refuse_unreachable(study: Study, path: Path) -> None:
    """Time the smallest students of the space, with random weights, and refuse latency limits that none of them can meet.

    Raises:
        UserError: each such limit with what was measured.
    """
    limits = study.spec.limits
    if limits.latency_ms is None and (limits.latency_relative or 1.0) >= 1.0:
        return
    config = AutoConfig.from_pretrained(teacher.source(study.spec.teacher, study.base))
    whole, messages = AutoModelForSequenceClassification.from_config(config).eval(), []
    for smallest in _smallest_by_depth(study, config):
        found = measure(AutoModelForSequenceClassification.from_config(smallest).eval(), whole, study.spec.target)
        rows = [("latency_ms", limits.latency_ms, found.ms_low), ("latency_relative", limits.latency_relative, found.relative_low)]
        messages = [
            f"{path}: limits.{name}: the smallest student of the space takes {value:.3g}, above the limit {limit:.3g}; "
            "raise it or widen the space"
            for name, limit, value in rows
            if limit is not None and value > limit
        ]
        if not messages:
            return
    raise UserError(messages)


def _smallest_by_depth(study: Study, config: PretrainedConfig) -> list[PretrainedConfig]:
    """Of each depth that is smallest in some branch the student of the fewest FLOPs, shallow ones first: with as many, they are faster."""
    target, best = study.spec.target, {}
    for shape in search_space.smallest_shapes(study.space):
        narrowed = narrow(config, shape)
        flops = cost.flops(narrowed, target.batch_size, target.sequence_length)
        if shape.layers not in best or flops < best[shape.layers][0]:
            best[shape.layers] = flops, narrowed
    return [best[depth][1] for depth in sorted(best)]


def _mistakes_of(space: SearchSpace, right: dict[str, Any], config: PretrainedConfig, base: Path) -> list[str]:
    return space_mistakes(space, config) + position_mistakes(right, space) + start_mistakes(space, right["teacher"], config, base)


def space_mistakes(space: SearchSpace, config: PretrainedConfig) -> list[str]:
    """Why some candidate of the space could not be built or distilled: every architecture of its choices, with every recipe."""
    shapes, candidates = list(search_space.each_architecture(space)), list(search_space.each_branch(space))
    messages = [message for shape in shapes for message in shape_mistakes(shape, config)]
    for candidate in candidates:
        start, rate = candidate.initialization, candidate.training.learning_rate
        messages += _layer_mistakes(start.layers, shapes, config)
        if start.width not in WIDTHS:
            messages.append(f"initialization.width: must be one of {', '.join(WIDTHS)}; the value is {start.width!r}; correct it")
        messages += rotation.mistakes(config) if start.width == "pca" else []
        if not isinstance(rate, int | float) or not 0 < rate < 1:
            messages.append(f"training.learning_rate: must lie between 0 and 1; the value is {rate!r}; correct it")
    if not messages:
        recipes = {str(candidate.distillation): candidate.distillation for candidate in candidates}
        messages = [message for recipe in recipes.values() for message in _recipe_mistakes(recipe, shapes, config)]
    return list(dict.fromkeys(messages))


def start_mistakes(space: SearchSpace, spec: study_file.Teacher, config: PretrainedConfig, base: Path) -> list[str]:
    """Models named in the teacher's place from which some student of the space could not start."""
    drawn = {candidate.initialization for candidate in search_space.each_branch(space) if candidate.initialization.layers in OTHER_MODELS}
    if not drawn:
        return []
    shapes, tokenizer = list(search_space.each_architecture(space)), teacher.load_tokenizer(spec, base)
    return [message for start in sorted(drawn, key=str) for message in starts.mistakes(start, shapes, config, tokenizer, base)]


def _layer_mistakes(choice: Any, shapes: list[Architecture], config: PretrainedConfig) -> list[str]:
    if isinstance(choice, str) and choice in LAYERS:
        return []
    if not isinstance(choice, tuple):
        return [f"initialization.layers: must be one of {', '.join(LAYERS)}, or a list; the value is {choice!r}; correct it"]
    try:
        for depth in sorted({shape.layers for shape in shapes if isinstance(shape.layers, int)}):
            teacher_layers(choice, depth, depth_of(config))
    except ValueError as error:
        return [str(error)]
    return []


def _lengths(right: dict[str, Any]) -> dict[str, int]:
    return {
        "task.max_length": right["task"].max_length if "task" in right else 0,
        "target.sequence_length": right["target"].sequence_length if "target" in right else 0,
    }


def vocabulary_mistakes(space: SearchSpace, spec: study_file.Teacher, task: study_file.Task, base: Path) -> list[str]:
    """Sizes of the vocabulary that cannot be made, or with which no recipe of the space could be used; the texts are read for it."""
    sizes = [size for size in search_space.vocabularies(space) if size is not None]
    if any(isinstance(domain, space_file.Int | space_file.Float) for domain in search_space.domains(space, "vocabulary")):
        return [
            "architecture.vocabulary: must be null, a size or a choice of these, since the texts are tokenised for each; write a choice"
        ]
    if not sizes:
        return []
    tokenizer = teacher.load_tokenizer(spec, base)
    try:
        ranking = reading.rank(tokenizer, data.load(task, base), task.max_length)
    except UserError as error:
        return error.messages
    least, config = vocabulary.reduce(tokenizer, ranking.tokens[: ranking.needed]), AutoConfig.from_pretrained(teacher.source(spec, base))
    messages = [message for size in sizes for message in vocabulary.mistakes(size, ranking)]
    messages += vocabulary.padding_mistakes(config, least, tokenizer)
    recipes = {str(candidate.distillation): candidate.distillation for candidate in search_space.each_branch(space)}
    if not messages and (smallest := min(sizes)) < ranking.lossless:
        tried = [token_mistakes(recipe, smallest, ranking.lossless) for recipe in recipes.values()]
        messages = [message for found in tried for message in found] if all(tried) else []
    return messages


def _recipe_mistakes(recipe: Recipe, shapes: list[Architecture], config: PretrainedConfig) -> list[str]:
    """Those of the first student that cannot be distilled so; what a loss compares has nothing to do with the FFN."""
    ordered = sorted(shapes, key=lambda shape: shape.layers)
    shallowest = {(shape.heads, shape.head_size): shape for shape in reversed(ordered)}
    deepest = {(shape.heads, shape.head_size): shape for shape in ordered}
    distinct = dict.fromkeys([*shallowest.values(), *deepest.values()])
    tried = (recipe_mistakes(recipe, shapes_of(shape, config)) for shape in distinct)
    return next((found for found in tried if found), [])


def length_mistakes(right: dict[str, Any], config: PretrainedConfig) -> list[str]:
    """Sequences of the study that are longer than the teacher's positions; batches are padded to a multiple of 4."""
    lengths = _lengths(right)
    most = longest(config) // LENGTH_STEP * LENGTH_STEP
    return [
        f"{name}: must not exceed the teacher's {most} positions; the value is {value}; lower it"
        for name, value in lengths.items()
        if value > most
    ]


def position_mistakes(right: dict[str, Any], space: SearchSpace) -> list[str]:
    """Students of the space that could not read the study's sequences."""
    name, value = max(_lengths(right).items(), key=lambda item: item[1])
    least = -(-value // LENGTH_STEP) * LENGTH_STEP
    found = {shape.positions for shape in search_space.each_architecture(space) if isinstance(shape.positions, int)}
    return [
        f"architecture.positions: must be at least {least} for {name} {value} (batches are padded to a multiple of {LENGTH_STEP}); "
        f"the value is {positions}; raise it or lower {name}"
        for positions in sorted(found)
        if positions < least
    ]


def limit_mistakes(limits: study_file.Limits, space: SearchSpace, config: PretrainedConfig) -> list[str]:
    """Limits that not even the smallest student of the space can meet."""
    count = min(cost.parameters(narrow(config, shape)) for shape in search_space.smallest_shapes(space))
    weights = cost.weight_bytes(count) / 1e6  # of memory it needs more
    rows = [
        ("parameters", limits.parameters, count),
        ("megabytes", limits.megabytes, weights),
        ("memory_megabytes", limits.memory_megabytes, weights),
    ]
    return [
        f"limits.{name}: the smallest student of the space has {value:,.4g}, above the limit {limit:,.4g}; raise it or widen the space"
        for name, limit, value in rows
        if limit is not None and value > limit
    ]


def _load_space(name: str, path: Path, base: Path) -> tuple[SearchSpace | None, list[str]]:
    """The space that a study file names, or none and what is wrong with it."""
    place = next((place for place in (base / name, Path(name)) if place.is_file()), None)
    if place is None:
        return None, [
            f"{path}: space: '{name}' is no file (looked in {' and '.join(dict.fromkeys([str(base), str(Path.cwd())]))}); name "
            "a search space, such as one of kdsearch's own search_spaces/"
        ]
    try:
        return space_file.load(place), []
    except UserError as error:
        return None, error.messages


def _device_mistakes(right: dict[str, Any]) -> list[str]:
    if "target" not in right or right["target"].device != "cuda" or torch.cuda.is_available():
        return []
    return ["target.device: 'cuda' needs a GPU that torch sees, and there is none; use cpu, or install the CUDA build of torch"]


def _folder_mistakes(what: str, folder: Path, fix: str) -> list[str]:
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir():
        return [f"{what}: {nearest} is a file, not a folder; {fix}"]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [f"{what}: {folder} cannot be written (no permission in {nearest}); {fix}"]
    return []
