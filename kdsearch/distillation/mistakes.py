"""Why a recipe cannot be used on two models: names, ranges, stages, and sizes that a loss cannot compare."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdsearch.candidate import Architecture, Recipe, Term
from kdsearch.distillation.composition import BALANCES, HARD, SCALES, SCHEDULES, Composition
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes
from kdsearch.errors import unknown
from kdsearch.tasks.batches import Batch


def recipe_mistakes(recipe: Recipe, shapes: Shapes) -> list[str]:
    """Why a recipe cannot be used on these models, all of it; empty when it can. Rule, value and fix each.

    Every term is tried on a tiny batch of these models' own sizes, so what a loss refuses in training it refuses here.
    """
    weights = [("hard_weight", recipe.hard_weight), *((f"{term.name}.weight", term.weight) for term in recipe.terms)]
    messages = [
        f"{name}: must be a number, 0 or more; the value is {value!r}; correct it"
        for name, value in weights
        if not _is_number(value) or not 0 <= value < float("inf")
    ]
    messages += _option_mistakes(recipe)
    messages += [message for term in recipe.terms for message in _knob_mistakes(term)]
    if not messages:
        messages = _part_mistakes(recipe)
    if not messages:
        messages += [message for term in recipe.terms for message in _refusals(term, shapes)]
    return [f"distillation.{recipe.name}: {message}" for message in messages]


def token_mistakes(recipe: Recipe, vocabulary: object, lossless: int) -> list[str]:
    """The terms that cannot be used on a student of this vocabulary because it splits words otherwise than its teacher does."""
    known = [name for name, knowledge in KNOWLEDGE.items() if not knowledge.of_tokens]
    return [
        f"distillation.{recipe.name}: {term.name}: compares token by token, and with architecture.vocabulary {vocabulary} the student "
        f"tokenises the task's texts otherwise than the teacher; use {', '.join(known)}, or a vocabulary of at least {lossless}, or null"
        for term in recipe.terms
        if KNOWLEDGE[term.knowledge].of_tokens
    ]


def _knob_mistakes(term: Term) -> list[str]:
    if not isinstance(term.knowledge, str) or term.knowledge not in KNOWLEDGE:
        return [unknown("knowledge type", term.knowledge, list(KNOWLEDGE))]
    known = KNOWLEDGE[term.knowledge].knobs
    messages = [f"{term.name}: {unknown('knob', name, [*known, 'weight', 'schedule'])}" for name, _ in term.knobs if name not in known]
    return messages + [
        f"{term.name}.{name}: must be a finite number, 0 or more; the value is {value!r}; correct it"
        for name, value in term.knobs
        if name in known and name != "matching" and value is not None and (not _is_number(value) or not 0 <= value < float("inf"))
    ]


def _option_mistakes(recipe: Recipe) -> list[str]:
    options = [
        ("balance", recipe.balance, BALANCES),
        ("scale", recipe.scale, SCALES),
        ("hard_schedule", recipe.hard_schedule, tuple(SCHEDULES)),
        *((f"{term.name}.schedule", term.schedule, tuple(SCHEDULES)) for term in recipe.terms),
    ]
    messages = [
        f"{name}: must be one of {', '.join(known)}; the value is {value!r}; correct it"
        for name, value, known in options
        if not isinstance(value, str) or value not in known
    ]
    if recipe.switch is not None and not (_is_number(recipe.switch) and 0 < recipe.switch < 1):
        messages.append(
            f"switch: must be the share of the steps before the second stage, between 0 and 1; the value is {recipe.switch!r}; "
            "leave it out (or null) to train everything together"
        )
    return messages


def _part_mistakes(recipe: Recipe) -> list[str]:
    """A recipe, or a stage or balance of it, that would have nothing to work with."""
    layers = [term.name for term in recipe.terms if term.weight > 0 and not KNOWLEDGE[term.knowledge].of_prediction]
    logits = [term.name for term in recipe.terms if term.weight > 0 and KNOWLEDGE[term.knowledge].of_prediction]
    if not layers and not logits and not recipe.hard_weight > 0:
        return ["hard_weight and every term's weight are 0: nothing would be learned; raise one"]
    messages = []
    if recipe.switch is not None and not layers:
        messages.append("switch: the first stage needs a term that looks at layers, with a weight above 0; add one, or leave switch out")
    if recipe.switch is not None and not logits and not recipe.hard_weight > 0:
        messages.append("switch: the second stage needs the labels or a term on logits, with a weight above 0; add one")
    if recipe.balance == "logits" and not logits:
        messages.append("balance: 'logits' needs a term on logits, with a weight above 0, to balance the others against; add kd")
    if HARD in (term.name for term in recipe.terms):
        messages.append(f"'{HARD}' is the name of the labels' own loss; give the term another label")
    return messages


@cache
def _refusals(term: Term, shapes: Shapes) -> list[str]:
    """What the term's loss says to these sizes; a term stands in many recipes of a space, and is tried once."""
    alone = Recipe("trial", 0.0, (term,))
    try:
        composition = Composition(alone, shapes)
        mask = torch.ones(2, 4, dtype=torch.long)
        batch = Batch(mask, mask, torch.zeros(2, dtype=torch.long), rows=torch.arange(2).numpy())
        student = {signal: _blank(signal, shapes.student, shapes.classes) for signal in composition.student_signals}
        teacher = {signal: _blank(signal, shapes.teacher, shapes.classes) for signal in composition.teacher_signals}
        with torch.no_grad():
            for progress in (0.0, 1.0):
                composition.loss(term.name, student, teacher, batch, progress)
    except (ValueError, TypeError, LookupError) as error:
        return [f"{term.name}: {error}"]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _blank(signal: str, shape: Architecture, classes: int) -> Tensor:
    return torch.zeros(2, classes) if signal == "logits" else torch.zeros(2, 4, shape.width)
