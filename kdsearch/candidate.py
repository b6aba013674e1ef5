"""What a trial proposes: architecture, initialization, distillation recipe and training knobs, as frozen plain data."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

OTHER_MODELS = ("pretrained", "distilled")
COMPOSITION = ("hard_schedule", "switch", "balance", "scale")


@dataclass(frozen=True)
class Architecture:
    """The student's shape. Width is heads x head_size, so a width that its heads do not divide cannot be written down.

    What is None stays as the teacher's: ``kv_heads``, the heads of keys and values (as many heads share one); ``embedding``, the width of
    factorised embeddings; ``positions``, the longest sequence in tokens; ``vocabulary``, the number of tokens, those that the task's texts
    use most.
    """

    layers: int
    heads: int
    head_size: int
    ffn_ratio: float
    kv_heads: int | None = None
    embedding: int | None = None
    positions: int | None = None
    vocabulary: int | None = None

    @property
    def width(self) -> int:
        """Hidden size d of the residual stream."""
        return self.heads * self.head_size

    @property
    def ffn(self) -> int:
        """Number of feed-forward neurons per layer, rounded to a multiple of 8."""
        return max(8, round(self.ffn_ratio * self.width / 8) * 8)


@dataclass(frozen=True)
class Initialization:
    """Which teacher layers (by name, or one for each student layer) start the student's, and how a wider tensor is cut to a narrower.

    ``model`` is what a student starts from in the teacher's place where ``layers`` is "pretrained" (a model folder or a Hub id) or
    "distilled" (an export of an earlier study); without meaning otherwise.
    """

    layers: str | tuple[int, ...] = "uniform"
    width: str = "slice"
    model: str | None = None

    @property
    def other_model(self) -> str | None:
        """The model that the student starts from, where it is not the teacher."""
        return self.model if self.layers in OTHER_MODELS else None


@dataclass(frozen=True)
class Term:
    """One distillation loss of a recipe: the knowledge type, its weight over the training, and the knobs that only this type has.

    ``label`` tells two terms of one knowledge type apart; it is no part of what is trained.
    """

    knowledge: str
    weight: float = 1.0
    knobs: tuple[tuple[str, Any], ...] = ()
    schedule: str = "constant"
    label: str = ""

    @property
    def name(self) -> str:
        """What the term is called: its label, else its knowledge type."""
        return self.label or self.knowledge


@dataclass(frozen=True)
class Recipe:
    """Total loss = hard_weight * cross-entropy with the labels + sum over terms of weight * loss (Lu et al. 2022, section 3).

    ``hard_schedule``: how the labels' weight goes over the training, as ``schedule`` of a term.
    ``switch``: share of the steps in which intermediate knowledge is trained alone; after it labels and logits alone. None: no stages.
    ``balance``: "fixed" weights, or weights set anew at every step by the losses' current values ("logits", "equal").
    ``scale``: "guess" divides every loss by what guessing would score, "raw" leaves the published losses as they are.
    ``name`` is the branch of the search space that proposed it; it is a label, not part of what is trained.
    """

    name: str
    hard_weight: float = 1.0
    terms: tuple[Term, ...] = ()
    hard_schedule: str = "constant"
    switch: float | None = None
    balance: str = "fixed"
    scale: str = "guess"


@dataclass(frozen=True)
class Training:
    """Knobs of the optimizer that are searched beside the recipe."""

    learning_rate: float = 3e-4


@dataclass(frozen=True)
class Candidate:
    """Everything that a trial proposes; two equal candidates train the same student."""

    architecture: Architecture
    initialization: Initialization = field(default_factory=Initialization)
    distillation: Recipe = field(default_factory=lambda: Recipe("none"))
    training: Training = field(default_factory=Training)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data, the form that stands in ``trials.jsonl``; inverse of :func:`from_dict`."""
        recipe, start = self.distillation, self.initialization
        told: dict[str, Any] = {"name": recipe.name, "hard_weight": recipe.hard_weight, **_chosen(recipe, COMPOSITION)}
        for term in recipe.terms:
            told[term.name] = {"weight": term.weight, **_chosen(term, ("schedule",)), **dict(term.knobs)}
            if term.label:
                told[term.name]["knowledge"] = term.knowledge
        return {
            "architecture": {name: value for name, value in asdict(self.architecture).items() if value is not None},
            "initialization": {"layers": start.layers, "width": start.width, **({"model": start.model} if start.other_model else {})},
            "distillation": told,
            "training": asdict(self.training),
        }

    def key(self) -> str:
        """Content hash of what is trained, whatever path of the space led to it; a knob written out at its default counts as chosen."""
        recipe = replace(self.distillation, terms=_without_labels(self.distillation.terms))
        content = replace(self, distillation=recipe).to_dict()
        del content["distillation"]["name"]
        canonical = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def from_dict(data: dict[str, Any]) -> Candidate:
    """Candidate from nested plain data; inverse of :meth:`Candidate.to_dict`.

    In ``distillation`` every key that is no field of :class:`Recipe` is a term: a knowledge type with its weight and knobs, or any label
    with the type as ``knowledge`` among them.

    Raises:
        TypeError: a section has a key that does not exist or lacks one that must be given.
    """
    recipe = dict(data.get("distillation", {"name": "none"}))
    own = {name: recipe.pop(name) for name in ("hard_weight", *COMPOSITION) if name in recipe}
    name = recipe.pop("name", "custom")
    return Candidate(
        architecture=Architecture(**data["architecture"]),
        initialization=Initialization(**{key: _frozen(value) for key, value in data.get("initialization", {}).items()}),
        distillation=Recipe(name, terms=tuple(_term(key, dict(value or {})) for key, value in recipe.items()), **own),
        training=Training(**data.get("training", {})),
    )


def _term(name: str, knobs: dict[str, Any]) -> Term:
    knowledge, weight, schedule = knobs.pop("knowledge", name), knobs.pop("weight", 1.0), knobs.pop("schedule", "constant")
    label = name if name != knowledge else ""
    return Term(knowledge, weight, tuple(sorted((knob, _frozen(value)) for knob, value in knobs.items())), schedule, label)


def _chosen(item: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that differ from their defaults: a record names what was chosen, and a new field changes no old key."""
    defaults = {field.name: field.default for field in fields(item)}
    return {name: getattr(item, name) for name in names if getattr(item, name) != defaults[name]}


def _without_labels(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms that count, in one order, with labels only where one knowledge type comes twice, and without knobs that are left open."""
    counting = [replace(term, knobs=tuple(knob for knob in term.knobs if knob[1] is not None)) for term in terms if term.weight != 0]
    ordered = sorted(counting, key=lambda term: json.dumps(_canonical([term.knowledge, term.weight, term.schedule, term.knobs])))
    before = [[other.knowledge for other in ordered[:index]].count(term.knowledge) for index, term in enumerate(ordered)]
    return tuple(replace(term, label=f"{term.knowledge} {n + 1}" if n else "") for term, n in zip(ordered, before, strict=True))


def _frozen(value: Any) -> Any:
    """Lists (of matched layers) as tuples, so that a candidate can be hashed."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _canonical(value: Any) -> Any:
    """Equal numbers get equal text: 1 and 1.0 are the same knob."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
