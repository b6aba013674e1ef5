"""Knowledge types: what of the two models each compares, by which loss, and how it is taken out of a forward pass.

To add one: write its loss (a pure function in losses/) and its row in KNOWLEDGE. Its knobs are the loss's own keyword parameters with
their defaults; the contract suite runs over every row.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from kdsearch.candidate import Architecture, Recipe, Term
from kdsearch.distillation import losses
from kdsearch.distillation.losses import QKV
from kdsearch.distillation.losses.contract import pairs as token_pairs
from kdsearch.distillation.matching import plan, required_layers
from kdsearch.students.families import architecture_of, classes_of, family_of
from kdsearch.tasks.batches import Batch

PROJECTIONS = ("query", "key", "value")
INPUTS = ("student", "teacher", "mask", "labels")


@dataclass(frozen=True)
class Shapes:
    """The two models that a recipe compares; ``attention``: whether their family lets queries, keys and values be seen."""

    student: Architecture
    teacher: Architecture
    classes: int
    attention: bool = True


@dataclass(frozen=True)
class Knowledge:
    """One knowledge type. ``view`` is what of a model the loss compares; ``projected``: the student's states go through a learned W
    first where the widths differ; ``matching`` is the default of a loss that looks at layers."""

    loss: Callable[..., Tensor]
    view: str
    projected: bool = False
    matching: str = "uniform"

    @property
    def of_prediction(self) -> bool:
        """Whether it teaches the answer itself (logits) and not what leads to it."""
        return self.view == "logits"

    @property
    def of_tokens(self) -> bool:
        """Whether token k of the student is compared with token k of the teacher, and not one vector per text."""
        return self.view not in ("logits", "pooled")

    @cached_property
    def wants(self) -> frozenset[str]:
        """Which inputs besides student and teacher the loss takes: mask, labels."""
        return frozenset(inspect.signature(self.loss).parameters) & {"mask", "labels"}

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """The loss's own knobs with their defaults; beside them the matching where layers are compared, and where a temperature goes."""
        parameters = inspect.signature(self.loss).parameters
        own = {name: parameter.default for name, parameter in parameters.items() if name not in INPUTS}
        own |= {"temperature_end": None} if "temperature" in own else {}
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


def shapes_of(student: Architecture, teacher: PretrainedConfig) -> Shapes:
    """A student and its teacher."""
    return Shapes(student, architecture_of(teacher), classes_of(teacher), family_of(teacher).attention_path is not None)


def view(kind: str, signals: dict[str, Tensor], layer: int, shape: Architecture, batch: Batch, project: nn.Module | None = None) -> Any:
    """What a loss compares of one block: hidden states, their mean over tokens, attention scores, or queries, keys and values.

    A teacher that tokenises otherwise tells its own ``mask`` among its signals.
    """
    if kind in ("scores", "qkv"):
        q, k, *v = (_by_head(signals[f"{name}.{layer}"], shape) for name in SIGNALS[kind])
        return losses.scores(q, k) if kind == "scores" else QKV(q, k, v[0])
    states = signals[f"hidden.{layer}"]
    if kind == "pooled":
        return losses.mean_token(states, signals.get("mask", batch.attention_mask))
    return project(states) if project is not None else states


def guess(kind: str, told: Any, batch: Batch) -> Any:
    """What a student would say that looks at nothing: the teacher's mean over the batch, in every row and at every token.

    Means are over rows for what a row has once, over tokens for states, and per head over pairs of tokens for attention scores.
    """
    if isinstance(told, QKV):
        return QKV(*(guess(kind, part, batch) for part in told))
    told = told.float()
    if kind in ("logits", "pooled"):
        return told.mean(dim=0).expand_as(told)
    mask = batch.attention_mask.bool()
    valid = {"scores": token_pairs(mask)[:, None], "qkv": mask[:, None, :, None]}.get(kind, mask[:, :, None])
    over = {"scores": (0, 2, 3), "qkv": (0, 2)}.get(kind, (0, 1))
    return (told.masked_fill(~valid, 0).sum(dim=over, keepdim=True) / valid.sum(dim=over, keepdim=True).clamp(min=1)).expand_as(told)


def signals_of(term: Term, shapes: Shapes, of_teacher: bool) -> set[str]:
    """What one of the two models must tell for this term.

    Raises:
        ValueError: it asks for queries, keys or values of a family that does not show them.
    """
    knowledge = KNOWLEDGE[term.knowledge]
    if not shapes.attention and knowledge.view in ("scores", "qkv"):
        raise ValueError(
            "needs a teacher whose queries and keys can be seen, and this one's family computes attention out of sight; "
            "use knowledge of states (hidden_mse, cos, nst ..) or logits"
        )
    if knowledge.view == "logits":
        return {"logits"}
    if knowledge.view == "embedding":
        return {"hidden.embedding"}
    matching = dict(term.knobs).get("matching", knowledge.matching)
    sizes = shapes.student.layers, shapes.teacher.layers
    # Every redrawn plan pairs every student layer, so that the first plan names all of the student's.
    blocks = required_layers(matching, *sizes) if of_teacher else {pair.student for pair in plan(matching, *sizes)}
    return {f"{kind}.{block}" for kind in SIGNALS[knowledge.view] for block in blocks}


def teacher_signals(recipe: Recipe, shapes: Shapes) -> frozenset[str]:
    """What the teacher must tell for this recipe and student: the cache holds nothing that no candidate can use."""
    return frozenset(signal for term in recipe.terms for signal in signals_of(term, shapes, of_teacher=True))


def _by_head(values: Tensor, shape: Architecture) -> Tensor:
    """[batch, heads, seq, head size] of a captured projection, or of a cached one [batch, seq, width]."""
    return values if values.ndim == 4 else values.unflatten(2, (shape.heads, shape.head_size)).transpose(1, 2)
