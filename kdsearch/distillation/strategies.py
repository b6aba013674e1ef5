"""Recipes as data: every knowledge type by name, what it looks at, and what it needs; and the sum of a recipe's terms.

To add a knowledge type: write its loss (a pure function in losses/) and its row in KNOWLEDGE. Its knobs are the loss's own keyword
parameters with their defaults; the contract suite runs over every row.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.candidate import Architecture, Recipe, Term
from kdsearch.distillation import losses
from kdsearch.distillation.losses import QKV
from kdsearch.distillation.matching import matched, plan, required_layers
from kdsearch.errors import unknown
from kdsearch.tasks.batches import Batch

PROJECTIONS = ("query", "key", "value")
INPUTS = ("student", "teacher", "mask", "labels")


@dataclass(frozen=True)
class Shapes:
    """The two models that a recipe compares."""

    student: Architecture
    teacher: Architecture
    classes: int


@dataclass(frozen=True)
class Knowledge:
    """One knowledge type. ``view`` is what of a model the loss compares; ``projected``: the student's states go through a learned W
    first where the widths differ; ``matching`` is the default of a loss that looks at layers."""

    loss: Callable[..., Tensor]
    view: str
    projected: bool = False
    matching: str = "uniform"

    @property
    def knobs(self) -> dict[str, Any]:
        """The loss's own knobs with their defaults, and the matching where layers are compared."""
        parameters = inspect.signature(self.loss).parameters
        own = {name: parameter.default for name, parameter in parameters.items() if name not in INPUTS}
        return own if self.view in ("logits", "embedding") else {"matching": self.matching, **own}


KNOWLEDGE = {
    "kd": Knowledge(losses.kd, "logits"),
    "reverse_kl": Knowledge(losses.reverse_kl, "logits"),
    "jsd": Knowledge(losses.jsd, "logits"),
    "logit_mse": Knowledge(losses.logit_mse, "logits"),
    "dkd": Knowledge(losses.dkd, "logits"),
    "dist": Knowledge(losses.dist, "logits"),
    "embedding_mse": Knowledge(losses.embedding_mse, "embedding", projected=True),
    "hidden_mse": Knowledge(losses.hidden_mse, "hidden", projected=True),
    "cos": Knowledge(losses.cos, "hidden", projected=True),
    "pkd": Knowledge(losses.pkd, "hidden", projected=True, matching="uniform_but_last"),
    "normalised_mse": Knowledge(losses.normalised_mse, "hidden", projected=True),
    "gram": Knowledge(losses.gram, "hidden", projected=True),
    "infonce": Knowledge(losses.infonce, "hidden", projected=True),
    "nst": Knowledge(losses.nst, "hidden"),
    "rkd": Knowledge(losses.rkd, "pooled", matching="last_only"),
    "similarity": Knowledge(losses.similarity, "pooled", matching="last_only"),
    "attention_mse": Knowledge(losses.attention_mse, "scores"),
    "attention_kl": Knowledge(losses.attention_kl, "scores"),
    "attention_mean": Knowledge(losses.attention_mean, "scores"),
    "attention_mean_mse": Knowledge(losses.attention_mean_mse, "scores"),
    "minilm": Knowledge(losses.minilm, "qkv", matching="last_only"),
    "minilmv2": Knowledge(losses.minilmv2, "qkv", matching="last_only"),
    "ckd": Knowledge(losses.ckd, "layers"),
}

SIGNALS = {
    "hidden": ("hidden",),
    "pooled": ("hidden",),
    "layers": ("hidden",),
    "scores": ("query", "key"),
    "qkv": PROJECTIONS,
}


class Composition(nn.Module):
    """hard_weight * cross-entropy + sum over terms of weight * loss, one value per example [batch] (Lu et al. 2022, section 3).

    Its parameters are the projections W [teacher width, student width], one for each term that needs one, shared by the matched layers
    (TinyBERT, equation 8). They start as the identity on the leading channels, which is what the leading slice copies.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes) -> None:
        super().__init__()
        self.recipe, self.shapes = recipe, shapes
        self.student_signals = frozenset({"logits"} | _signals(recipe, shapes, of_teacher=False))
        self.teacher_signals = teacher_signals(recipe, shapes)
        wide, narrow = shapes.teacher.width, shapes.student.width
        self.projections = nn.ModuleDict()
        for term in recipe.terms:
            if KNOWLEDGE[term.knowledge].projected and wide != narrow:
                self.projections[term.knowledge] = projection = nn.Linear(narrow, wide, bias=False)
                nn.init.eye_(projection.weight)

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of each row, given both models' signals."""
        total = self.recipe.hard_weight * per_labelled(losses.hard(student["logits"], batch.labels), batch.labels)
        for term in self.recipe.terms:
            total = total + term.weight * self.term(term, student, teacher, batch)
        return total

    def term(self, term: Term, student: dict[str, Tensor], teacher: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss [batch] of one term, not weighted."""
        knowledge, knobs = KNOWLEDGE[term.knowledge], {**KNOWLEDGE[term.knowledge].knobs, **dict(term.knobs)}
        matching = knobs.pop("matching", None)
        wants = inspect.signature(knowledge.loss).parameters
        knobs |= {name: value for name, value in (("mask", batch.attention_mask), ("labels", batch.labels)) if name in wants}

        def loss(of_student: Any, of_teacher: Any) -> Tensor:
            return knowledge.loss(of_student, of_teacher, **knobs)

        if knowledge.view == "logits":
            found = loss(student["logits"], teacher["logits"])
            return per_labelled(found, batch.labels) if "labels" in wants else found
        project = self.projections[term.knowledge] if term.knowledge in self.projections else nn.Identity()
        if knowledge.view == "embedding":
            return loss(project(student["hidden.embedding"]), teacher["hidden.embedding"])
        pairs = plan(matching, self.shapes.student.layers, self.shapes.teacher.layers)
        of_student = {i: view(knowledge.view, student, i, self.shapes.student, batch, project) for i in {pair.student for pair in pairs}}
        of_teacher = {j: view(knowledge.view, teacher, j, self.shapes.teacher, batch) for j in {pair.teacher for pair in pairs}}
        if knowledge.view == "layers":
            return loss(
                torch.stack([of_student[pair.student] for pair in pairs]), torch.stack([of_teacher[pair.teacher] for pair in pairs])
            )
        return matched(matching, pairs, loss, of_student, of_teacher)


def view(kind: str, signals: dict[str, Tensor], layer: int, shape: Architecture, batch: Batch, project: nn.Module | None = None) -> Any:
    """What a loss compares of one block: hidden states, their mean over tokens, attention scores, or queries, keys and values."""
    if kind in ("scores", "qkv"):
        q, k, *v = (_by_head(signals[f"{name}.{layer}"], shape) for name in SIGNALS[kind])
        return losses.scores(q, k) if kind == "scores" else QKV(q, k, v[0])
    states = signals[f"hidden.{layer}"]
    if kind == "pooled":
        return losses.mean_token(states, batch.attention_mask)
    return project(states) if project is not None else states


def per_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Values [batch] that are 0 in rows without a label, scaled so that their mean over the batch is the mean over its labelled rows."""
    labelled = (labels >= 0).sum()
    return values * (len(labels) / labelled.clamp(min=1))


def teacher_signals(recipe: Recipe, shapes: Shapes) -> frozenset[str]:
    """What the teacher must tell for this recipe and student: the cache holds nothing that no candidate can use."""
    return frozenset(_signals(recipe, shapes, of_teacher=True))


def recipe_mistakes(recipe: Recipe, shapes: Shapes) -> list[str]:
    """Why a recipe cannot be used on these models: unknown names, knobs out of range, sizes that a loss cannot compare.

    Every term is tried on a tiny batch of these models' own sizes, so what a loss refuses in training it refuses here.
    """
    weights = [("hard_weight", recipe.hard_weight), *((f"{term.knowledge}.weight", term.weight) for term in recipe.terms)]
    messages = [
        f"{name}: must be a number, 0 or more; the value is {value!r}; correct it"
        for name, value in weights
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf")
    ]
    for term in recipe.terms:
        if term.knowledge not in KNOWLEDGE:
            messages.append(unknown("knowledge type", term.knowledge, list(KNOWLEDGE)))
            continue
        known = KNOWLEDGE[term.knowledge].knobs
        messages += [f"{term.knowledge}: {unknown('knob', name, [*known, 'weight'])}" for name, _ in term.knobs if name not in known]
    if not messages and not any(value > 0 for _, value in weights):
        messages.append("hard_weight and every term's weight are 0: nothing would be learned; raise one")
    if not messages:
        messages += [message for term in recipe.terms for message in _refusals(term, shapes)]
    return [f"distillation.{recipe.name}: {message}" for message in messages]


def _refusals(term: Term, shapes: Shapes) -> list[str]:
    alone = Recipe("trial", 0.0, (term,))
    try:
        composition = Composition(alone, shapes)
        mask = torch.ones(2, 4, dtype=torch.long)
        batch = Batch(mask, mask, torch.zeros(2, dtype=torch.long), rows=torch.arange(2).numpy())
        student = {signal: _blank(signal, shapes.student, shapes.classes) for signal in composition.student_signals}
        teacher = {signal: _blank(signal, shapes.teacher, shapes.classes) for signal in composition.teacher_signals}
        with torch.no_grad():
            composition.term(term, student, teacher, batch)
    except (ValueError, TypeError, LookupError) as error:
        return [f"{term.knowledge}: {error}"]
    return []


def _blank(signal: str, shape: Architecture, classes: int) -> Tensor:
    return torch.zeros(2, classes) if signal == "logits" else torch.zeros(2, 4, shape.width)


def _signals(recipe: Recipe, shapes: Shapes, of_teacher: bool) -> set[str]:
    found: set[str] = set()
    for term in recipe.terms:
        knowledge = KNOWLEDGE[term.knowledge]
        if knowledge.view == "logits":
            found.add("logits")
        elif knowledge.view == "embedding":
            found.add("hidden.embedding")
        else:
            matching = dict(term.knobs).get("matching", knowledge.matching)
            sizes = shapes.student.layers, shapes.teacher.layers
            blocks = required_layers(matching, *sizes) if of_teacher else {pair.student for pair in plan(matching, *sizes)}
            found |= {f"{kind}.{block}" for kind in SIGNALS[knowledge.view] for block in blocks}
    return found


def _by_head(values: Tensor, shape: Architecture) -> Tensor:
    """[batch, heads, seq, head size] of a captured projection, or of a cached one [batch, seq, width]."""
    return values if values.ndim == 4 else values.unflatten(2, (shape.heads, shape.head_size)).transpose(1, 2)
