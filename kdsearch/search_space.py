"""A space, walked: suggest(space, trial) --> Candidate, its inverse, and every value, branch or shape that it may give.

A parameter is named by its key path, with the branch in it: ``distillation.kd.hard_weight`` exists in no other branch.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, Protocol

from kdsearch.candidate import Architecture, Candidate, from_dict
from kdsearch.errors import UserError
from kdsearch.space_file import SCALARS, SECTIONS, Choice, Float, Int, OneOf, SearchSpace, Tree

MOST_COMBINED, MOST_TOGETHER = 16, 2000


class Trial(Protocol):
    """What is used of Optuna's Trial, FixedTrial and FrozenTrial."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...  # noqa: D102

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...  # noqa: D102

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...  # noqa: D102


def for_classes(space: SearchSpace, classes: int) -> SearchSpace:
    """The space without the branches that need more classes than the task has.

    Raises:
        UserError: no branch is left of a one_of.
    """
    return replace(space, tree={section: _for_classes(value, classes, section) for section, value in space.tree.items()})


def suggest(space: SearchSpace, trial: Trial) -> Candidate:
    """A candidate of the space; what is drawn is asked of the trial, so a FixedTrial or FrozenTrial gives the same candidate back."""
    return _candidate({section: _suggest(trial, section, value) for section, value in space.tree.items()})


def sample(space: SearchSpace, pick: Callable[[str, Int | Float | Choice | OneOf], Any]) -> Candidate:
    """A candidate whose values are given by ``pick(name, domain)``; for a OneOf it gives the branch's name."""
    return _candidate({section: _sample(pick, section, value) for section, value in space.tree.items()})


def given(space: SearchSpace, params: dict[str, Any]) -> Candidate | None:
    """The candidate of these parameters; None where some are left to a sampler."""
    try:
        return sample(space, lambda name, _: params[name])
    except KeyError:
        return None


def parameters_of(space: SearchSpace, candidate: Candidate) -> tuple[dict[str, Any], list[str]]:
    """The parameters by which a trial gets the same student (the inverse of suggest), and the sections in which the space does not have it.

    A branch may be called otherwise than where the candidate comes from. What it leaves open is at the low end of its domain.
    """
    found, missing = dict[str, Any](), list[str]()
    for section in SECTIONS:
        values = next(_ways(section, space.tree.get(section, {}), candidate), None)
        if values is None:
            missing.append(section)
        else:
            found |= {name: _category(value) for name, value in values.items()}
    return found, missing


def smallest_shapes(space: SearchSpace) -> list[Architecture]:
    """Of each branch of the architecture the shape with the lowest value of each domain: no student of the space is below all of them."""
    return [Architecture(**{key: _smallest(value) for key, value in body.items()}) for _, body in _architectures(space)]


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
    return (shape for _, shape in each_asked(space))


def each_asked(space: SearchSpace) -> Iterator[tuple[dict[str, Any], Architecture]]:
    """The same, each after the parameters by which a trial gets it."""
    for branch, body in _architectures(space):
        path, taken = ("architecture", {}) if branch is None else (f"architecture.{branch}", {"architecture": branch})
        for values in itertools.product(*(_combined(value) for value in body.values())):
            shape = dict(zip(body, values, strict=True))
            asked = {f"{path}.{key}": shape[key] for key, value in body.items() if isinstance(value, Int | Float | Choice)}
            yield {**taken, **asked}, Architecture(**shape)


def depths(space: SearchSpace) -> list[int]:
    """Every number of layers that a student of the space may have."""
    found: list[int] = []
    for layers in domains(space, "layers"):
        found += range(layers.low, layers.high + 1, layers.step) if isinstance(layers, Int) else _combined(layers)
    return list(dict.fromkeys(found))


def vocabularies(space: SearchSpace) -> list[int | None]:
    """Every vocabulary that a student of the space may have; None is the teacher's own."""
    return list(dict.fromkeys(size for domain in domains(space, "vocabulary") for size in _combined(domain)))


def domains(space: SearchSpace, key: str) -> list[Any]:
    """What stands under a key of the architecture: once, or once for each branch; None where it is left out."""
    return [body.get(key) for _, body in _architectures(space)]


def _architectures(space: SearchSpace) -> list[tuple[str | None, Tree]]:
    """Domains of the architecture, each with the name of its branch; None: there are no branches."""
    tree = space.tree["architecture"]
    return list(tree.branches.items()) if isinstance(tree, OneOf) else [(None, tree)]


def _candidate(told: Tree) -> Candidate:
    """Of a recipe the branch's name is a part; of the other sections it is not."""
    recipe = {"distillation": told["distillation"]} if "distillation" in told else {}
    return from_dict({section: {key: item for key, item in values.items() if key != "name"} for section, values in told.items()} | recipe)


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


def _smallest(domain: Any) -> Any:
    """The lowest, a value itself; beside whole numbers, null stands for the teacher's own, which is not below any of them."""
    if not isinstance(domain, Int | Float | Choice):
        return domain
    numbers = [option for option in _options(domain) if option is not None]
    return min(numbers) if numbers and all(isinstance(option, int | float) for option in numbers) else _lowest(domain)


def _highest(domain: Int | Float | Choice | OneOf) -> Any:
    options = _options(domain)
    return max(options) if isinstance(domain, Int | Float) else options[0]


def _ways(section: str, tree: Any, candidate: Candidate) -> Iterator[dict[str, Any]]:
    """The values by which a section gives what the candidate has there: once, or for each branch that does, the one of its name first."""
    own = _written_out(candidate)[section]
    branches: Tree = tree.branches if isinstance(tree, OneOf) else {"": tree}
    for branch in sorted(branches, key=lambda name: name != own.get("name")):
        values = {section: branch} if branch else {}
        if _read_off(f"{section}.{branch}" if branch else section, branches[branch], own, values):
            given = _sample(lambda name, _, values=values: values[name], section, tree)
            if _candidate({**candidate.to_dict(), section: given}).key() == candidate.key():
                yield values


def _written_out(candidate: Candidate) -> dict[str, dict[str, Any]]:
    """A candidate with its defaults, in the form of a space: every term of the recipe stands under its name."""
    told = asdict(candidate)
    del told["distillation"]["terms"]
    for term in candidate.distillation.terms:
        told["distillation"][term.name] = {"weight": term.weight, "schedule": term.schedule, **dict(term.knobs)}
    return told


def _read_off(name: str, domain: Any, own: Any, values: dict[str, Any]) -> bool:
    """Note the value of every parameter of a domain that gives what is written; False: there is none. Fixed values are not compared."""
    match domain:
        case Int() | Float() | Choice():
            fitting = _fitting(domain, json.loads(json.dumps(own)))
            values.update((name, value) for value in fitting[:1])
            return bool(fitting)
        case OneOf(branches):
            branch = own.get("name") if isinstance(own, dict) else None
            values[name] = branch
            return branch in branches and _read_off(f"{name}.{branch}", branches[branch], own, values)
        case dict():
            inside = own if isinstance(own, dict) else {}
            return all(_read_off(f"{name}.{key}", item, inside.get(key), values) for key, item in domain.items())
    return True


def _fitting(domain: Int | Float | Choice, own: Any) -> list[Any]:
    """The values of a domain that say the same; of what is left open its ends or choices."""
    match domain:
        case Choice(options) if own is not None or None in options:
            return [option for option in options if option == own]
        case _ if own is None:
            return _options(domain)
        case Int(low, high, step):
            return [int(own)] if _is_number(own) and low <= own <= high and (own - low) % step == 0 else []
        case Float(low, high):
            return [float(own)] if _is_number(own) and low <= own <= high else []
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
