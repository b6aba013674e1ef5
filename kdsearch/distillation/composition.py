"""A recipe at work: the sum of its losses, each in comparable units, weighted by where the training stands."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.candidate import Recipe, Term
from kdsearch.distillation import losses
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes, guess, signals_of, view
from kdsearch.distillation.matching import matched, plan, require_plain, shares
from kdsearch.tasks.batches import Batch

Signals = dict[str, Tensor]
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "grow": lambda progress: progress,
    "decay": lambda progress: 1 - progress,
}
BALANCES = ("fixed", "logits", "equal")
SCALES = ("guess", "raw")
HARD = "hard"
NEARLY_NOTHING = 1e-3
"""A balanced loss counts as at least this share of its unit, so that one that is learned already is not blown up."""


class Composition(nn.Module):
    """sum over losses k of weight_k(p) * factor_k * loss_k / unit_k, one value per example [batch]; k the labels and every term.

    weight_k(p): its weight times 1, p ("grow") or 1 - p ("decay"), p the share of the training that is done; 0 out of its stage.
    unit_k: what guessing scores (:meth:`calibrate`), or 1 for the scale "raw". It depends on the teacher alone, so a weight means the
    same for every student, knowledge type and temperature.
    factor_k: 1; balance "equal": 1 / loss_k, so that every loss counts its weight; balance "logits": sum of the logits' terms / loss_k
    for the terms that look at layers, so that each counts its weight times as much as the logits. No gradient goes through a factor.

    Its parameters are the projections W [teacher width, student width], one for each term that needs one, shared by the matched layers
    (TinyBERT, equation 8). They start as the identity on the leading channels, which is what the leading slice copies.

    Reference: Lu et al. 2022, arXiv 2206.14366, section 3; balance "logits": Muralidharan et al., *Compact Language Models via Pruning
    and Knowledge Distillation* (Minitron), 2024, arXiv 2407.14679, section 3; stages: Jiao et al., *TinyBERT*, 2019, arXiv 1909.10351.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes, seed: int = 0) -> None:
        super().__init__()
        self.recipe, self.shapes, self.seed = recipe, shapes, seed
        self.terms = {term.name: term for term in recipe.terms}
        self.means: dict[str, Tensor] = {}  # of the losses that counted last, over their batch
        self.units = {HARD: math.log(shapes.classes), **dict.fromkeys(self.terms, 1.0)}
        self.student_signals, self.teacher_signals = (self._signals(self.terms, of_teacher) for of_teacher in (False, True))
        wide, narrow = shapes.teacher.width, shapes.student.width
        self.projections = nn.ModuleList()
        self.projection_of: dict[str, int] = {}
        for name, term in self.terms.items():
            if KNOWLEDGE[term.knowledge].projected and wide != narrow:
                self.projection_of[name] = len(self.projections)
                projection = nn.Linear(narrow, wide, bias=False)
                nn.init.eye_(projection.weight)
                self.projections.append(projection)

    def forward(self, student: Signals, teacher: Signals, batch: Batch, progress: float = 0.0) -> Tensor:
        """The loss of each row, given both models' signals and the share of the training that is done."""
        weights = self.weights(progress)
        values = {name: self.loss(name, student, teacher, batch, progress) for name in weights}
        self.means = {name: found.detach().mean() for name, found in values.items()}
        factors = self.factors(weights, self.means)
        total = torch.zeros(len(batch.labels), device=batch.labels.device)
        for name, found in values.items():
            total = total + weights[name] * factors[name] * found
        return total

    def loss(self, name: str, student: Signals, teacher: Signals, batch: Batch, progress: float) -> Tensor:
        """One loss [batch], in its unit, not weighted."""
        if name == HARD:
            found = per_labelled(losses.hard(student["logits"], batch.labels), batch.labels)
        else:
            found = self._term(self.terms[name], student, teacher, batch, progress)
        return found / self.units[name] if self.recipe.scale == "guess" else found

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of every loss that counts at this share of the training."""
        recipe = self.recipe
        given = {HARD: (recipe.hard_weight, recipe.hard_schedule), **{n: (term.weight, term.schedule) for n, term in self.terms.items()}}
        now = {name: weight * SCHEDULES[schedule](progress) for name, (weight, schedule) in given.items()}
        return {name: weight for name, weight in now.items() if weight > 0 and self._in_stage(name, progress)}

    def guessing(self, name: str) -> float:
        """What a student scores in a loss that says the teacher's mean everywhere, as :meth:`loss` counts it."""
        return 1.0 if self.recipe.scale == "guess" else self.units[name]

    def factors(self, weights: dict[str, float], means: dict[str, Tensor]) -> dict[str, Any]:
        """What balances the losses, given their means over the batch."""
        if self.recipe.balance == "fixed":
            return dict.fromkeys(weights, 1.0)
        inverse = {name: 1 / mean.clamp(min=NEARLY_NOTHING * self.guessing(name)) for name, mean in means.items()}
        if self.recipe.balance == "equal":
            return {**inverse}
        logits = sum((weights[name] * means[name] for name in weights if name != HARD and self._of_prediction(name)), torch.zeros(()))
        # Without a loss on the logits (in the first stage, or with labels only in a batch that has none) nothing is balanced.
        return {name: 1.0 if self._of_prediction(name) or not logits > 0 else logits * inverse[name] for name in weights}

    def wanted(self, progress: float) -> tuple[frozenset[str], frozenset[str]]:
        """The student's and the teacher's signals that count at this share of the training."""
        active = [name for name in self.weights(progress) if name != HARD]
        return self._signals(active, of_teacher=False), self._signals(active, of_teacher=True)

    @torch.no_grad()
    def calibrate(self, told: Iterable[tuple[Signals, Batch]]) -> None:
        """Set the unit of every loss: its mean over what the teacher told, for a student that says the teacher's mean everywhere.

        The unit of the labels is the cross-entropy of even odds, ln C. A loss that needs labels is measured on batches that have some.
        """
        found: dict[str, list[float]] = {name: [] for name in self.terms}
        for teacher, batch in told:
            labelled = bool((batch.labels >= 0).any())
            for name, term in self.terms.items():
                if labelled or "labels" not in KNOWLEDGE[term.knowledge].wants:
                    found[name].append(self._guessing(term, teacher, batch))
        means = {name: sum(units) / len(units) for name, units in found.items() if units}
        # A teacher that says the same everywhere leaves nothing to be learned, nor to be divided by.
        self.units |= {name: mean if mean > torch.finfo(torch.float32).eps else 1.0 for name, mean in means.items()}

    def _term(self, term: Term, student: Signals, teacher: Signals, batch: Batch, progress: float) -> Tensor:
        knowledge, (matching, loss) = KNOWLEDGE[term.knowledge], self._bound(term, batch, progress)
        if knowledge.view == "logits":
            found = loss(student["logits"], teacher["logits"])
            return per_labelled(found, batch.labels) if "labels" in knowledge.wants else found
        index = self.projection_of.get(term.name)
        project = nn.Identity() if index is None else self.projections[index]
        if knowledge.view == "embedding":
            return loss(project(student["hidden.embedding"]), teacher["hidden.embedding"])
        shape = self.shapes
        pairs = plan(matching, shape.student.layers, shape.teacher.layers, self.seed, batch.epoch)
        of_student = {i: view(knowledge.view, student, i, shape.student, batch, project) for i in {pair.student for pair in pairs}}
        of_teacher = {j: view(knowledge.view, teacher, j, shape.teacher, batch) for j in {pair.teacher for pair in pairs}}
        if knowledge.view == "layers":
            require_plain(matching, pairs)
            stacked = (torch.stack([of_student[pair.student] for pair in pairs]), torch.stack([of_teacher[pair.teacher] for pair in pairs]))
            return loss(*stacked)
        return matched(matching, pairs, loss, of_student, of_teacher)

    def _guessing(self, term: Term, teacher: Signals, batch: Batch) -> float:
        knowledge, (matching, loss) = KNOWLEDGE[term.knowledge], self._bound(term, batch, 0.0)
        kind, shape = knowledge.view, self.shapes
        if kind in ("logits", "embedding"):
            told = teacher["logits" if kind == "logits" else "hidden.embedding"]
            found = loss(guess(kind, told, batch), told)
            return float((per_labelled(found, batch.labels) if "labels" in knowledge.wants else found).mean())
        of_layer = shares(matching, shape.student.layers, shape.teacher.layers)
        states = {j: view(kind, teacher, j, shape.teacher, batch) for j in of_layer}
        if kind == "layers":
            return float(
                loss(torch.stack([guess(kind, told, batch) for told in states.values()]), torch.stack(list(states.values()))).mean()
            )
        return sum(share * float(loss(guess(kind, states[j], batch), states[j]).mean()) for j, share in of_layer.items())

    def _bound(self, term: Term, batch: Batch, progress: float) -> tuple[str, Callable[..., Tensor]]:
        """The matching, and the loss of (student, teacher) with the batch's mask and labels and this moment's knobs."""
        knowledge = KNOWLEDGE[term.knowledge]
        knobs = {**knowledge.knobs, **dict(term.knobs)}
        matching, end = knobs.pop("matching", ""), knobs.pop("temperature_end", None)
        if end is not None:
            knobs["temperature"] += (end - knobs["temperature"]) * progress
        given = {"mask": batch.attention_mask, "labels": batch.labels}
        knobs |= {name: given[name] for name in knowledge.wants}
        return matching, lambda of_student, of_teacher: knowledge.loss(of_student, of_teacher, **knobs)

    def _of_prediction(self, name: str) -> bool:
        return name == HARD or KNOWLEDGE[self.terms[name].knowledge].of_prediction

    def _in_stage(self, name: str, progress: float) -> bool:
        return self.recipe.switch is None or self._of_prediction(name) == (progress >= self.recipe.switch)

    def _signals(self, names: Iterable[str], of_teacher: bool) -> frozenset[str]:
        own = set() if of_teacher else {"logits"}
        return frozenset(own.union(*(signals_of(self.terms[name], self.shapes, of_teacher) for name in names)))


def per_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Values [batch] that are 0 in rows without a label, scaled so that their mean over the batch is the mean over its labelled rows."""
    labelled = (labels >= 0).sum()
    return values * (len(labels) / labelled.clamp(min=1))
