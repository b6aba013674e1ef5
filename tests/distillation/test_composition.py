from dataclasses import replace
from typing import Any

import pytest
import torch

from kdsearch.candidate import Candidate, Initialization, Recipe, Term
from kdsearch.distillation.composition import Composition, per_labelled
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes, teacher_signals
from kdsearch.distillation.signals import observe
from kdsearch.students.build import build
from kdsearch.tasks.batches import Batch
from tests import tiny

CLASSES = 3  # dkd and dist need so many
TEACHER = tiny.teacher(classes=CLASSES)
NARROW = tiny.narrower()  # as many heads as the teacher, half as wide
LENGTHS = [7, 12, 3, 9]
LABELS = [0, -100, 2, 1]
NOT_ZERO_AT_EQUALITY = {"infonce"}  # its minimum is above 0


def models(student_shape=NARROW, knowledge: str = "kd", **knobs: Any):
    """Student, composition with random projections, for one knowledge type alone."""
    student = build(TEACHER, Candidate(student_shape, Initialization("last")), seed=0)
    composition = Composition(tiny.recipe(knowledge, **knobs), Shapes(student_shape, tiny.SHAPE, CLASSES))
    return student, composition


def value(student: torch.nn.Module, composition: Composition, batch: Batch) -> torch.Tensor:
    of_student = observe(student, batch, composition.student_signals)
    return composition(of_student, observe(TEACHER, batch, composition.teacher_signals), batch)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_each_knowledge_teaches_the_student_and_its_projection_but_not_the_teacher(knowledge: str) -> None:
    student, composition = models(knowledge=knowledge)
    TEACHER.zero_grad()
    found = value(student, composition, tiny.batch(LENGTHS, labels=LABELS))
    assert found.shape == (len(LENGTHS),)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found.detach() > -1e-6).all()
    found.mean().backward()
    assert bool(composition.projections) == KNOWLEDGE[knowledge].projected
    learning = [*student.bert.embeddings.parameters(), *composition.parameters()]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in learning if weight.grad is not None)
    assert student.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert all(weight.grad.abs().sum() > 0 for weight in composition.parameters())
    assert all(weight.grad is None for weight in TEACHER.parameters())


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(knowledge: str) -> None:
    student, composition = models(tiny.SHAPE, knowledge)
    assert not composition.projections
    found = value(student, composition, tiny.batch(LENGTHS, labels=LABELS)).detach()
    if knowledge in NOT_ZERO_AT_EQUALITY:
        assert (found > 1e-3).all()
    else:
        torch.testing.assert_close(found, torch.zeros(4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_padding_changes_nothing_from_end_to_end(knowledge: str) -> None:
    student, composition = models(knowledge=knowledge)
    narrow, wide = (value(student, composition, tiny.batch(LENGTHS, width, labels=LABELS)).detach() for width in (12, 24))
    torch.testing.assert_close(narrow, wide, rtol=1e-4, atol=1e-5)
    assert narrow.abs().max() > 1e-4


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_cached_outputs_in_bfloat16_by_token_serve_as_well(knowledge: str) -> None:
    student, composition = models(knowledge=knowledge)
    batch = tiny.batch(LENGTHS, labels=LABELS)
    of_student, of_teacher = observe(student, batch, composition.student_signals), observe(TEACHER, batch, composition.teacher_signals)
    merged = {name: tensor.transpose(1, 2).flatten(2) if tensor.ndim == 4 else tensor for name, tensor in of_teacher.items()}
    cached = {name: tensor if name == "logits" else tensor.bfloat16() * batch.attention_mask[:, :, None] for name, tensor in merged.items()}
    exact, rounded = (composition(of_student, outputs, batch).detach() for outputs in (of_teacher, cached))
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)


def test_the_parts_are_weighted_and_added() -> None:
    student, _ = models()
    batch = tiny.batch(LENGTHS, labels=LABELS)
    terms = (Term("kd", 0.5, (("temperature", 3.0),)), Term("hidden_mse", 2.0))
    shapes = Shapes(NARROW, tiny.SHAPE, CLASSES)

    def of(recipe: Recipe) -> torch.Tensor:
        return value(student, Composition(recipe, shapes), batch)

    alone = [of(Recipe("x", 0.0, (replace(term, weight=1.0),))) for term in terms]
    together = of(Recipe("x", 0.3, terms))
    torch.testing.assert_close(together, 0.3 * of(Recipe("x", 1.0)) + 0.5 * alone[0] + 2.0 * alone[1])


def test_labels_alone_are_cross_entropy_over_the_labelled_rows() -> None:
    student, _ = models()
    batch = tiny.batch(LENGTHS, labels=LABELS)
    composition = Composition(Recipe("labels", 1.0, scale="raw"), Shapes(NARROW, tiny.SHAPE, CLASSES))
    found = value(student, composition, batch)
    logits = observe(student, batch, frozenset({"logits"}))["logits"]
    torch.testing.assert_close(found.mean(), torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=-100))
    assert found[1] == 0


@pytest.mark.parametrize("knowledge", [None, "kd", "dkd"])
def test_a_batch_without_any_label_gives_no_nan(knowledge: str | None) -> None:
    student, _ = models()
    batch = tiny.batch(LENGTHS, labels=[-100] * 4)
    recipe = Recipe("labels", 1.0) if knowledge is None else tiny.recipe(knowledge, hard_weight=1.0)
    found = value(student, Composition(recipe, Shapes(NARROW, tiny.SHAPE, CLASSES)), batch)
    found.mean().backward()
    assert found.isfinite().all()
    assert (found.detach().abs().sum() > 0) == (knowledge == "kd")
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in student.parameters())


def test_the_mean_over_a_batch_is_the_mean_over_its_labelled_rows() -> None:
    values, labels = torch.tensor([4.0, 0.0, 2.0, 0.0]), torch.tensor([1, -100, 0, -100])
    assert per_labelled(values, labels).mean() == 3.0
    assert torch.equal(per_labelled(values, torch.tensor([0, 1, 0, 1])), values)
    assert torch.equal(per_labelled(torch.zeros(4), torch.full((4,), -100)), torch.zeros(4))


def test_the_projection_starts_as_the_leading_channels() -> None:
    _, composition = models(knowledge="hidden_mse")
    states = torch.randn(2, 3, 24)
    projected = composition.projections[0](states)
    assert torch.equal(projected[..., :24], states)
    assert torch.equal(projected[..., 24:], torch.zeros(2, 3, 24))


@pytest.mark.parametrize(
    ("knowledge", "knobs", "expected"),
    [
        ("kd", {}, {"logits"}),
        ("embedding_mse", {}, {"hidden.embedding"}),
        ("hidden_mse", {"matching": "last_only"}, {"hidden.3"}),
        ("hidden_mse", {"matching": "uniform"}, {"hidden.1", "hidden.3"}),
        ("pkd", {}, {"hidden.1"}),  # uniform without the last layer
        ("hidden_mse", {"matching": "random"}, {f"hidden.{block}" for block in range(4)}),
        ("hidden_mse", {"matching": [[0, 2], [1, 3]]}, {"hidden.2", "hidden.3"}),
        ("attention_kl", {"matching": "last_only"}, {"query.3", "key.3"}),
        ("minilmv2", {}, {"query.3", "key.3", "value.3"}),
        ("rkd", {}, {"hidden.3"}),
    ],
)
def test_the_teacher_is_asked_for_no_more_than_is_used(knowledge: str, knobs: dict[str, Any], expected: set[str]) -> None:
    recipe, shapes = tiny.recipe(knowledge, **knobs), Shapes(NARROW, tiny.SHAPE, CLASSES)
    assert teacher_signals(recipe, shapes) == expected
    student, composition = models(knowledge=knowledge, **knobs)
    batch = tiny.batch(LENGTHS)
    used: set[str] = set()

    class Watched(dict):
        def __getitem__(self, signal: str) -> torch.Tensor:
            used.add(signal)
            return super().__getitem__(signal)

    of_teacher = Watched(observe(TEACHER, batch, composition.teacher_signals))
    composition(observe(student, batch, composition.student_signals), of_teacher, batch)
    assert used == expected if knobs.get("matching") != "random" else used <= expected


def test_a_recipe_of_labels_alone_asks_the_teacher_nothing() -> None:
    assert teacher_signals(Recipe("labels", 1.0), Shapes(NARROW, tiny.SHAPE, CLASSES)) == frozenset()
