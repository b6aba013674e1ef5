"""search_spaces/*.yaml --> SearchSpace: domains as frozen plain data. A domain may stand wherever a candidate has a value.

    layers: {int: [1, 6]}                          whole number, ends included; optional step, log
    learning_rate: {float: [1e-4, 1e-3], log: true}
    heads: {choice: [2, 4, 12]}
    one_of: {none: {...}, kd: {...}}               a named branch; only its own knobs are sampled

``within: {parameters: 4e6, share: 0.05, embeddings: false}`` beside the domains of ``architecture`` keeps the shapes of about that size;
:mod:`kdsearch.within` lists them when the teacher is known.
A branch with ``least_classes: 3`` is left out of the search where the task has fewer. A section may be ``{include: FILE}``, or a list of
files: the section of the same name of other spaces, their branches together. All mistakes are reported together, by key path.
"""

import json
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdsearch import yaml_file
from kdsearch.candidate import Architecture, Initialization, Recipe, Training
from kdsearch.errors import UserError, unknown

Tree = dict[str, Any]
SECTIONS = {"architecture": Architecture, "initialization": Initialization, "distillation": None, "training": Training}
SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True)
class Float:
    """Real numbers from low to high, uniform or (log) uniform in the exponent."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of these values; a list among them is sampled by its JSON text (Optuna's categories are scalars)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class OneOf:
    """One of these named branches, each with domains of its own, and the fewest classes that a branch needs."""

    branches: dict[str, Tree]
    least_classes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Within:
    """Of the shapes of these domains those whose number of parameters, with or without word embeddings, is within a share of a target."""

    domains: Tree
    parameters: float
    share: float = 0.05
    embeddings: bool = True


@dataclass(frozen=True)
class SearchSpace:
    """The domains of a search-space file; ``content`` is the file's own text as data, for the record."""

    tree: Tree
    content: dict[str, Any]


def load(path: Path) -> SearchSpace:
    """The space that a file describes.

    Raises:
        UserError: all mistakes of the file, each with its key path.
    """
    content = yaml_file.load(path)  # its mistakes name the file themselves
    try:
        return parse({section: _included(section, value, path.parent) for section, value in content.items()})
    except UserError as error:
        raise UserError([f"{path}: {message}" for message in error.messages]) from None


def parse(content: dict[str, Any]) -> SearchSpace:
    """Space from nested plain data.

    Raises:
        UserError: all mistakes, each with its key path.
    """
    messages = [unknown("key", key, list(SECTIONS)) for key in content if key not in SECTIONS]
    if "architecture" not in content:
        messages.append("'architecture' is missing; add layers, heads, head_size and ffn_ratio")
    tree: Tree = {}
    for section, value in content.items():
        if section in SECTIONS:
            target, body = _parted(value) if section == "architecture" else (None, value)
            tree[section] = _parse(body, section, messages)
            messages += _section_mistakes(SECTIONS[section], section, tree[section])
            wrong = _within_mistakes(target, tree[section]) if target is not None else []
            messages += wrong
            if target is not None and not wrong:
                tree[section] = Within(tree[section], **target)
    if messages:
        raise UserError(messages)
    return SearchSpace(tree, content)


def _included(section: str, value: Any, folder: Path) -> Any:
    """A section as it is, or for ``{include: FILE or list of files}`` those files' sections of the same name, their branches together."""
    if not isinstance(value, dict) or set(value) != {"include"}:
        return value
    files = value["include"] if isinstance(value["include"], list) else [value["include"]]
    parts: list[dict[str, Any]] = []
    for file in files:
        part = yaml_file.load(folder / str(file)).get(section)
        if not isinstance(part, dict) or (len(files) > 1 and not isinstance(part.get("one_of"), dict)):
            raise UserError(
                f"{section}: include: '{file}' has no section '{section}'{' with one_of' if len(files) > 1 else ''} to take over"
            )
        parts.append(part)
    if len(files) == 1:
        return parts[0]
    branches: dict[str, Any] = {}
    for file, part in zip(files, parts, strict=True):
        for name, body in part["one_of"].items():
            if branches.setdefault(name, body) != body:
                raise UserError(f"{section}: include: '{file}' has another branch '{name}' than a file before it; rename one")
    return {"one_of": branches}


def _parse(value: Any, path: str, messages: list[str]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, (*SCALARS, list)):
            return value
        messages.append(f"{path}: must be a number, a text, a list or a domain; the value is {value!r}")
        return None
    kinds = [kind for kind in ("int", "float", "choice", "one_of") if kind in value]
    if not kinds:
        return {str(key): _parse(item, f"{path}.{key}", messages) for key, item in value.items()}
    kind, options = kinds[0], {key: item for key, item in value.items() if key != kinds[0]}
    allowed = {"int": ("log", "step"), "float": ("log",), "choice": (), "one_of": ()}[kind]
    messages += [f"{path}: {unknown(f'option of {kind}', key, allowed)}" for key in options if key not in allowed]
    if kind == "one_of":
        return _parse_one_of(value[kind], path, messages)
    if kind == "choice":
        return _parse_choice(value[kind], path, messages)
    return _parse_range(kind, value[kind], {key: options[key] for key in allowed if key in options}, path, messages)


def _parse_one_of(branches: Any, path: str, messages: list[str]) -> Any:
    if not isinstance(branches, dict) or not branches or not all(isinstance(body, dict) for body in branches.values()):
        messages.append(
            f"{path}: one_of must map the name of each branch to its knobs (an empty branch is {{}}); the value is {branches!r}"
        )
        return None
    least = {str(name): body["least_classes"] for name, body in branches.items() if "least_classes" in body}
    wrong = [name for name, value in least.items() if isinstance(value, bool) or not isinstance(value, int) or value < 2]
    messages += [f"{path}.{name}.least_classes: must be a whole number, 2 or more; the value is {least[name]!r}" for name in wrong]
    bodies = {str(name): {key: value for key, value in body.items() if key != "least_classes"} for name, body in branches.items()}
    return OneOf({name: _parse(body, f"{path}.{name}", messages) for name, body in bodies.items()}, least)


def _parse_choice(values: Any, path: str, messages: list[str]) -> Any:
    if not isinstance(values, list) or not values:
        messages.append(f"{path}: choice must be a list of at least one value; the value is {values!r}")
        return None
    if len({json.dumps(value) for value in values}) < len(values):
        messages.append(f"{path}: a choice must not name a value twice; the value is {values!r}")
    return Choice(tuple(values))


def _parse_range(kind: str, ends: Any, options: dict[str, Any], path: str, messages: list[str]) -> Any:
    numbers = (int,) if kind == "int" else (int, float)
    if not (isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, numbers) and not isinstance(end, bool) for end in ends)):
        messages.append(f"{path}: {kind} must be [low, high], two numbers of that type; the value is {ends!r}")
        return None
    if ends[0] > ends[1]:
        messages.append(f"{path}: low must not exceed high; the value is {ends!r}; swap them")
        return None
    if options.get("log") and ends[0] <= 0:
        messages.append(f"{path}: a log range must start above 0; the value is {ends!r}")
        return None
    if options.get("log") and options.get("step", 1) != 1:
        messages.append(f"{path}: log and step exclude each other (Optuna); drop one")
        return None
    return Int(*ends, **options) if kind == "int" else Float(float(ends[0]), float(ends[1]), **options)


def _parted(value: Any) -> tuple[Any, Any]:
    """What ``within`` says of an architecture, None where it is not given, and the domains beside it."""
    if not isinstance(value, dict) or "within" not in value:
        return None, value
    return value["within"] or {}, {key: item for key, item in value.items() if key != "within"}


def _within_mistakes(target: Any, domains: Any) -> list[str]:
    path = "architecture.within"
    if not isinstance(target, dict) or "parameters" not in target:
        return [f"{path}: must hold parameters, and may hold share and embeddings; the value is {target!r}"]
    known = [item.name for item in fields(Within) if item.name != "domains"]
    messages = [f"{path}: {unknown('key', key, known)}" for key in target if key not in known]
    count, share, embeddings = target["parameters"], target.get("share", 0.05), target.get("embeddings", True)
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 < count < math.inf:
        messages.append(f"{path}.parameters: must be a number above 0; the value is {count!r}; correct it")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        messages.append(f"{path}.share: must lie between 0 and 1; the value is {share!r}; 0.05 is 5 % to either side")
    if not isinstance(embeddings, bool):
        messages.append(f"{path}.embeddings: must be true, or false to leave word embeddings out; the value is {embeddings!r}; correct it")
    if isinstance(domains, OneOf):
        messages.append(f"{path}: lists the shapes of domains, and one_of lists them by itself; drop one of the two")
    elif isinstance(domains, dict):
        messages += [
            f"architecture.{key}: beside within, a domain must be an int or a choice, since every shape is counted; write a choice"
            for key, value in domains.items()
            if isinstance(value, Float | OneOf | dict)
        ]
    return messages


def _section_mistakes(kind: Any, section: str, tree: Any) -> list[str]:
    """Keys that a section does not have, and keys that it lacks. What a recipe may hold, distillation.mistakes knows."""
    if kind is None:
        return _recipe_mistakes(section, tree)
    if isinstance(tree, OneOf):
        return [message for name, body in tree.branches.items() for message in _section_mistakes(kind, f"{section}.{name}", body)]
    if not isinstance(tree, dict):
        return [f"{section}: must hold keys and values; the value is {tree!r}"]
    names = [item.name for item in fields(kind)]
    required = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    mistakes = [f"{section}: {unknown('key', key, names)}" for key in tree if key not in names]
    return mistakes + [f"{section}.{key} is missing; add it" for key in required if key not in tree]


def _recipe_mistakes(path: str, tree: Any) -> list[str]:
    if isinstance(tree, OneOf):
        return [message for name, body in tree.branches.items() for message in _recipe_mistakes(f"{path}.{name}", body)]
    if not isinstance(tree, dict):
        return [f"{path}: must be a recipe or one_of several; the value is {tree!r}"]
    own = {item.name for item in fields(Recipe)}
    terms = {key: value.values if isinstance(value, Choice) else (value,) for key, value in tree.items() if key not in own}
    return [
        f"{path}.{key}: must hold knobs, or be {{}} for the defaults; the value is {value!r}"
        for key, values in terms.items()
        for value in values
        if not isinstance(value, dict | None)
    ]
