"""What a trial proposes: architecture, initialization, distillation recipe and training knobs, as frozen plain data."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """The student's shape. Width is heads x head_size, so a width that its heads do not divide cannot be written down."""

    layers: int
    heads: int
    head_size: int
    ffn_ratio: float

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
    """Which teacher layers start the student's layers, and how a narrower tensor is cut out of a wider one."""

    layers: str = "uniform"
    width: str = "slice"


@dataclass(frozen=True)
class Term:
    """One distillation loss of a recipe: the knowledge type, its weight, and the knobs that only this type has."""

    knowledge: str
    weight: float = 1.0
    knobs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Total loss = hard_weight * cross-entropy with the labels + sum over terms of weight * loss (Lu et al. 2022, section 3).

    ``name`` is the branch of the search space that proposed it; it is a label, not part of what is trained.
    """

    name: str
    hard_weight: float = 1.0
    terms: tuple[Term, ...] = ()


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
        recipe: dict[str, Any] = {"name": self.distillation.name, "hard_weight": self.distillation.hard_weight}
        for term in self.distillation.terms:
            recipe[term.knowledge] = {"weight": term.weight, **dict(term.knobs)}
        return {
            "architecture": asdict(self.architecture),
            "initialization": asdict(self.initialization),
            "distillation": recipe,
            "training": asdict(self.training),
        }

    def key(self) -> str:
        """Content hash of what is trained: equal for equal students, whatever path of the space led to them."""
        content = self.to_dict()
        del content["distillation"]["name"]
        canonical = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def from_dict(data: dict[str, Any]) -> Candidate:
    """Candidate from nested plain data; inverse of :meth:`Candidate.to_dict`.

    In ``distillation`` every key except ``name`` and ``hard_weight`` is a knowledge type with its weight and knobs.

    Raises:
        TypeError: a section has a key that does not exist or lacks one that must be given.
    """
    recipe = dict(data.get("distillation", {"name": "none"}))
    name, hard_weight = recipe.pop("name", "custom"), recipe.pop("hard_weight", 1.0)
    return Candidate(
        architecture=Architecture(**data["architecture"]),
        initialization=Initialization(**data.get("initialization", {})),
        distillation=Recipe(name, hard_weight, tuple(_term(k, dict(v or {})) for k, v in recipe.items())),
        training=Training(**data.get("training", {})),
    )


def _term(knowledge: str, knobs: dict[str, Any]) -> Term:
    weight = knobs.pop("weight", 1.0)
    return Term(knowledge, weight, tuple(sorted(knobs.items())))


def _canonical(value: Any) -> Any:
    """Equal numbers get equal text: 1 and 1.0 are the same knob."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
