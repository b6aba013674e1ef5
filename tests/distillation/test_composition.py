import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdsearch.candidate import Candidate, Initialization, Recipe, Term
from kdsearch.distillation.composition import Composition, per_labelled
from kdsearch.distillation.knowledge import Shapes, teacher_signals
from kdsearch.distillation.signals import observe
from kdsearch.students.build import build
from kdsearch.tasks.batches import Batch
from tests import tiny

CLASSES = 3  # dkd and dist need so many
TEACHER = tiny.teacher(classes=CLASSES)
NARROW = tiny.narrower()  # as many heads as the teacher, half as wide
LENGTHS = [7, 12, 3, 9]
LABELS = [0, -100, 2, 1]


def models(student_shape=NARROW, knowledge: str = "kd", **knobs: Any):
    """Student, composition with random projections, for one knowledge type alone."""
    student = build(TEACHER, Candidate(student_shape, Initialization("last")), seed=0)
    composition = Composition(tiny.recipe(knowledge, **knobs), Shapes(student_shape, tiny.SHAPE, CLASSES))
    return student, composition


def value(student: torch.nn.Module, composition: Composition, batch: Batch) -> torch.Tensor:
    of_student = observe(student, batch, composition.student_signals)
    return composition(of_student, observe(TEACHER, batch, composition.teacher_signals), batch)


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


def unit_of(knowledge: str, batch: Batch, **knobs: Any) -> float:
    composition = Composition(tiny.recipe(knowledge, **knobs), Shapes(NARROW, tiny.SHAPE, CLASSES))
    composition.calibrate([(observe(TEACHER, batch, composition.teacher_signals), batch)])
    return composition.units[knowledge]


def test_the_unit_of_kd_is_the_divergence_of_the_mean_logits() -> None:
    batch = tiny.batch(LENGTHS)
    logits = observe(TEACHER, batch, frozenset({"logits"}))["logits"].detach().double()
    p, q = (logits / 3).softmax(dim=1), (logits.mean(dim=0) / 3).softmax(dim=0)
    assert unit_of("kd", batch, temperature=3.0) == pytest.approx(9 * float((p * (p / q).log()).sum(dim=1).mean()), rel=1e-4)


def test_the_unit_of_hidden_mse_is_the_variance_of_the_states_over_tokens() -> None:
    batch = tiny.batch([6, 6, 6, 6])  # rows of one length, so that a mean over rows is one over tokens
    states = observe(TEACHER, batch, frozenset({"hidden.1", "hidden.3"}))
    variances = [float(found.detach().double().flatten(0, 1).var(dim=0, correction=0).mean()) for found in states.values()]
    assert unit_of("hidden_mse", batch, matching="uniform") == pytest.approx(sum(variances) / 2, rel=1e-4)


def test_the_unit_of_attention_kl_is_what_even_attention_lacks() -> None:
    batch = tiny.batch([5, 5, 5])
    found = observe(TEACHER, batch, frozenset({"query.3", "key.3"}))
    p = (found["query.3"] @ found["key.3"].mT / 12**0.5).detach().double().softmax(dim=3)
    assert unit_of("attention_kl", batch, matching="last_only") == pytest.approx(float((p * (p * 5).log()).sum(dim=3).mean()), rel=1e-4)


def test_units_are_means_over_the_batches_and_of_labels_over_those_that_have_some() -> None:
    first, second, bare = (
        tiny.batch([5, 5], labels=[0, 1]),
        tiny.batch([7, 7], seed=2, labels=[2, 0]),
        tiny.batch([6, 6], seed=3, labels=[-100, -100]),
    )
    for knowledge, used in (("logit_mse", (first, second, bare)), ("dkd", (first, second))):
        composition = Composition(tiny.recipe(knowledge), Shapes(NARROW, tiny.SHAPE, CLASSES))
        composition.calibrate((observe(TEACHER, batch, composition.teacher_signals), batch) for batch in (first, second, bare))
        assert composition.units[knowledge] == pytest.approx(np.mean([unit_of(knowledge, batch) for batch in used]), rel=1e-4)


def test_the_scale_decides_whether_a_loss_is_divided_by_its_unit() -> None:
    student, batch = models()[0], tiny.batch(LENGTHS, labels=LABELS)
    for knowledge in ("kd", "cos", "minilm"):
        found = {}
        for scale in ("raw", "guess"):
            composition = Composition(replace(tiny.recipe(knowledge), scale=scale), Shapes(NARROW, tiny.SHAPE, CLASSES))
            composition.calibrate([(observe(TEACHER, batch, composition.teacher_signals), batch)])
            found[scale] = value(student, composition, batch).detach()
        torch.testing.assert_close(found["guess"] * composition.units[knowledge], found["raw"])
    hard = Composition(Recipe("labels"), Shapes(NARROW, tiny.SHAPE, CLASSES))
    raw = Composition(Recipe("labels", scale="raw"), Shapes(NARROW, tiny.SHAPE, CLASSES))
    torch.testing.assert_close(value(student, hard, batch) * math.log(3), value(student, raw, batch))


def test_a_temperature_goes_linearly_to_its_end() -> None:
    student, batch = models()[0], tiny.batch(LENGTHS, labels=LABELS)
    shapes = Shapes(NARROW, tiny.SHAPE, CLASSES)
    moving = Composition(replace(tiny.recipe("kd", temperature=6.0, temperature_end=2.0), scale="raw"), shapes)
    of_student, of_teacher = observe(student, batch, moving.student_signals), observe(TEACHER, batch, moving.teacher_signals)
    for progress, temperature in ((0.0, 6.0), (0.25, 5.0), (1.0, 2.0)):
        still = Composition(replace(tiny.recipe("kd", temperature=temperature), scale="raw"), shapes)
        torch.testing.assert_close(moving(of_student, of_teacher, batch, progress), still(of_student, of_teacher, batch))


def test_random_layers_are_drawn_anew_in_every_epoch_from_the_seed() -> None:
    student, batch = models()[0], tiny.batch(LENGTHS, labels=LABELS)

    def drawn(seed: int) -> list[float]:
        recipe = replace(tiny.recipe("hidden_mse", matching="random"), scale="raw")
        composition = Composition(recipe, Shapes(NARROW, tiny.SHAPE, CLASSES), seed)
        found = observe(student, batch, composition.student_signals), observe(TEACHER, batch, composition.teacher_signals)
        return [round(float(composition(*found, replace(batch, epoch=epoch)).detach().mean()), 5) for epoch in range(8)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) > 2


def test_only_what_counts_in_a_stage_is_asked_for() -> None:
    terms = (Term("kd"), Term("cos", knobs=(("matching", "last_only"),)), Term("minilm"), Term("embedding_mse", 0.0))
    composition = Composition(Recipe("stages", 1.0, terms, switch=0.4), Shapes(NARROW, tiny.SHAPE, CLASSES))
    qkv = {f"{name}.{{}}" for name in ("query", "key", "value")}
    first = ({"logits", "hidden.1", *(name.format(1) for name in qkv)}, {"hidden.3", *(name.format(3) for name in qkv)})
    assert composition.wanted(0.39) == first
    assert composition.wanted(0.4) == ({"logits"}, {"logits"})
    assert composition.weights(0.39) == {"cos": 1.0, "minilm": 1.0}
    assert composition.weights(0.4) == {"hard": 1.0, "kd": 1.0}


def test_a_loss_that_is_learned_already_is_not_blown_up_by_balance() -> None:
    """A student that equals the teacher in a layer has nothing to gain there: its factor stays below a thousandth of a unit's inverse."""
    batch = tiny.batch(LENGTHS, labels=LABELS)
    composition = Composition(Recipe("x", 1.0, (Term("cos"),), balance="equal"), Shapes(tiny.SHAPE, tiny.SHAPE, CLASSES))
    found = observe(TEACHER, batch, composition.student_signals)
    composition.calibrate([(found, batch)])
    assert composition.factors({"cos": 1.0}, {"cos": torch.tensor(0.0)})["cos"] == pytest.approx(1000)
    assert composition(found, found, batch).isfinite().all()


@pytest.mark.parametrize("balance", ["equal", "logits"])
def test_a_batch_without_labels_is_still_taught_by_its_layers(balance: str) -> None:
    student, batch = models()[0], tiny.batch(LENGTHS, labels=[-100] * 4)
    composition = Composition(Recipe("x", 1.0, (Term("dkd"), Term("cos")), balance=balance), Shapes(NARROW, tiny.SHAPE, CLASSES))
    found = value(student, composition, batch)
    assert found.isfinite().all()
    assert (found > 0).all()
