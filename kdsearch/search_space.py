"""search_spaces/*.yaml --> suggest(space, trial) --> Candidate. A domain may stand wherever a candidate has a value.

    layers: {int: [1, 6]}                          whole number, ends included; optional step, log
    learning_rate: {float: [1e-4, 1e-3], log: true}
    heads: {choice: [2, 4, 12]}
    one_of: {none: {...}, kd: {...}}               a named branch; only its own knobs are sampled

A parameter is named by its key path, with the branch in it: ``distillation.kd.hard_weight`` exists in no other branch.
A branch with ``least_classes: 3`` is left out of the search where the task has fewer. A section may be ``{include: FILE}``, or a list of
files: the section of the same name of other spaces, their branches together.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from kdsearch import yaml_file
from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Training, from_dict
from kdsearch.errors import UserError, unknown

Tree = dict[str, Any]
SECTIONS = {"architecture": Architecture, "initialization": Initialization, "distillation": None, "training": Training}
MOST_COMBINED, MOST_TOGETHER = 16, 2000
SCALARS = (str, int, float, bool, type(None))


class Trial(Protocol):
    """What is used of Optuna's Trial, FixedTrial and FrozenTrial."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...  # noqa: D102

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...  # noqa: D102

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...  # noqa: D102


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
class SearchSpace:
    """The domains of a search-space file; ``content`` is the file's own text as data, for the record."""

    tree: Tree
    content: dict[str, Any]


def load(path: Path) -> SearchSpace:
    """The space that a file describes.

    Raises:
        UserError: all mistakes of the file, each with its key path.
    """
    try:
        return parse({section: _included(section, value, path.parent) for section, value in yaml_file.load(path).items()})
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
            tree[section] = _parse(value, section, messages)
            messages += _section_mistakes(section, tree[section])
    if messages:
        raise UserError(messages)
    return SearchSpace(tree, content)


def for_classes(space: SearchSpace, classes: int) -> SearchSpace:
    """The space without the branches that need more classes than the task has.

    Raises:
        UserError: no branch is left of a one_of.
    """
    return SearchSpace({section: _for_classes(value, classes, section) for section, value in space.tree.items()}, space.content)


def suggest(space: SearchSpace, trial: Trial) -> Candidate:
    """A candidate of the space; what is drawn is asked of the trial, so a FixedTrial or FrozenTrial gives the same candidate back."""
    return from_dict({section: _suggest(trial, section, value) for section, value in space.tree.items()})


def sample(space: SearchSpace, pick: Callable[[str, Int | Float | Choice | OneOf], Any]) -> Candidate:
    """A candidate whose values are given by ``pick(name, domain)``; for a OneOf it gives the branch's name."""
    return from_dict({section: _sample(pick, section, value) for section, value in space.tree.items()})


def smallest(space: SearchSpace) -> Candidate:
    """The candidate with the lowest value of each architecture domain: no student of the space has fewer parameters."""
    return sample(space, lambda _, domain: _smallest(domain))


def each_branch(space: SearchSpace) -> Iterator[Candidate]:
    """Candidates in which every branch and every choice of the space occurs, and every combination of the choices of one mapping.

    What stands together in a mapping (a term's knowledge, matching and knobs) works together; other domains are at their high ends, so that
    a weight of 0 is met alone and never in the company of all the others.
    """
    seen: dict[str, Int | Float | Choice | OneOf] = {}
    forced: dict[str, Any] = {}

    def note(name: str, domain: Int | Float | Choice | OneOf) -> Any:
        seen.setdefault(name, domain)
        return forced.get(name, _highest(domain))

    yield sample(space, note)
    done: set[str] = set()
    while todo := [name for name in seen if name not in done]:
        for name in todo:
            done.add(name)
            for value in _options(seen[name]):
                forced = {**_branches_to(name, seen), name: value}
                yield sample(space, note)
    groups: dict[str, list[str]] = {}
    for name, domain in seen.items():
        if isinstance(domain, Choice):
            groups.setdefault(name.rpartition(".")[0], []).append(name)
    for names in groups.values():
        options = [_options(seen[name]) for name in names]
        if len(names) > 1 and math.prod(map(len, options)) <= MOST_TOGETHER:
            for values in itertools.product(*options):
                forced = {**_branches_to(names[0], seen), **dict(zip(names, values, strict=True))}
                yield sample(space, note)


def each_architecture(space: SearchSpace) -> Iterator[Architecture]:
    """Every combination of the architecture's choices; of a wide or real range, its ends."""
    tree = space.tree["architecture"]
    for values in itertools.product(*(_combined(value) for value in tree.values())):
        yield Architecture(**dict(zip(tree, values, strict=True)))


def choices(space: SearchSpace, section: str) -> dict[str, list[Any]]:
    """By name, the values of each domain of a section that has no branches; of a wide or real range, its ends."""
    tree = space.tree[section]
    return {f"{section}.{key}": _combined(value) for key, value in tree.items() if isinstance(value, Int | Float | Choice)}


def depths(space: SearchSpace) -> list[int]:
    """Every number of layers that a student of the space may have."""
    layers = space.tree["architecture"]["layers"]
    return list(range(layers.low, layers.high + 1, layers.step)) if isinstance(layers, Int) else _combined(layers)


def vocabularies(space: SearchSpace) -> list[int | None]:
    """Every vocabulary that a student of the space may have; None is the teacher's own."""
    return _combined(space.tree["architecture"].get("vocabulary"))


def _combined(value: Any) -> list[Any]:
    match value:
        case Int(low, high, step) if (high - low) // step < MOST_COMBINED:
            return list(range(low, high + 1, step))
        case Int() | Float() | Choice():
            return _options(value)
    return [value]


def _for_classes(value: Any, classes: int, path: str) -> Any:
    if isinstance(value, OneOf):
        kept = {name: body for name, body in value.branches.items() if value.least_classes.get(name, 0) <= classes}
        if not kept:
            raise UserError(f"{path}: every branch needs more than the task's {classes} classes; add one that does not")
        return OneOf({name: _for_classes(body, classes, f"{path}.{name}") for name, body in kept.items()})
    return {key: _for_classes(item, classes, f"{path}.{key}") for key, item in value.items()} if isinstance(value, dict) else value


def _branches_to(name: str, seen: dict[str, Any]) -> dict[str, str]:
    """The branches that must be taken for a parameter to exist: its name starts with their path."""
    wanted = {}
    for other, domain in seen.items():
        if isinstance(domain, OneOf):
            wanted.update((other, branch) for branch in domain.branches if name.startswith(f"{other}.{branch}."))
    return wanted


def _options(domain: Int | Float | Choice | OneOf) -> list[Any]:
    match domain:
        case Choice(values):
            return list(values)
        case OneOf(branches):
            return list(branches)
        case _:
            return [domain.low, domain.high]


def _lowest(domain: Int | Float | Choice | OneOf) -> Any:
    options = _options(domain)
    return min(options) if all(isinstance(option, int | float) for option in options) else options[0]


def _smallest(domain: Int | Float | Choice | OneOf) -> Any:
    """The lowest; beside whole numbers, null stands for the teacher's own, which is not below any of them."""
    numbers = [option for option in _options(domain) if option is not None]
    return min(numbers) if numbers and all(isinstance(option, int | float) for option in numbers) else _lowest(domain)


def _highest(domain: Int | Float | Choice | OneOf) -> Any:
    options = _options(domain)
    return max(options) if isinstance(domain, Int | Float) else options[0]


def _suggest(trial: Trial, name: str, value: Any) -> Any:
    match value:
        case Int(low, high, step, log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case Float(low, high, log):
            return trial.suggest_float(name, low, high, log=log)
        case Choice(values):
            texts = {_category(item): item for item in values}
            return texts[trial.suggest_categorical(name, list(texts))]
        case OneOf(branches):
            branch = trial.suggest_categorical(name, list(branches))
            return {"name": branch, **_suggest(trial, f"{name}.{branch}", branches[branch])}
        case dict():
            return {key: _suggest(trial, f"{name}.{key}", item) for key, item in value.items()}
        case _:
            return value


def _sample(pick: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    match value:
        case OneOf(branches):
            branch = pick(name, value)
            return {"name": branch, **_sample(pick, f"{name}.{branch}", branches[branch])}
        case Int() | Float() | Choice():
            return pick(name, value)
        case dict():
            return {key: _sample(pick, f"{name}.{key}", item) for key, item in value.items()}
        case _:
            return value


def _category(value: Any) -> Any:
    return value if isinstance(value, SCALARS) else json.dumps(value)


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


def _section_mistakes(section: str, tree: Any) -> list[str]:
    """Keys that a section does not have, and keys that it lacks. What a recipe may hold, distillation.mistakes knows."""
    kind = SECTIONS[section]
    if kind is None:
        return _recipe_mistakes(section, tree)
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
