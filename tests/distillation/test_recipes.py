"""One contract, every recipe: knowledge types, matchings, schedules, balances, stages, and the named recipes of the literature."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdsearch.candidate import Candidate, Initialization, Recipe, Term, from_dict
from kdsearch.distillation.composition import HARD, Composition
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes
from kdsearch.distillation.matching import MATCHINGS
from kdsearch.distillation.mistakes import recipe_mistakes
from kdsearch.distillation.signals import observe
from kdsearch.students.build import build
from kdsearch.tasks.batches import Batch
from tests import tiny
from tests.distillation.recipe_cases import CASES, NAMED, NOT_ZERO_AT_EQUALITY, knows

CLASSES = 3  # dkd and dist need so many
TEACHER = tiny.teacher(classes=CLASSES)
NARROW = tiny.narrower(layers=3)
SHAPES = Shapes(NARROW, tiny.SHAPE, CLASSES)
LENGTHS, LABELS = [7, 12, 3, 9], [0, -100, 2, 1]
MOMENTS = (0.05, 0.5, 0.95)

every_case = pytest.mark.parametrize("recipe", CASES.values(), ids=CASES)


def student_of(shape=NARROW) -> torch.nn.Module:
    return build(TEACHER, Candidate(shape, Initialization("last")), seed=0)


def calibrated(recipe: Recipe, shapes: Shapes = SHAPES) -> Composition:
    composition = Composition(recipe, shapes, seed=1)
    other = tiny.batch([5, 8, 11, 6, 9], seed=4, labels=[0, 1, 2, 1, 0])
    composition.calibrate([(observe(TEACHER, other, composition.teacher_signals), other)])
    return composition


def signals(composition: Composition, student: torch.nn.Module, batch: Batch) -> tuple[dict, dict]:
    return observe(student, batch, composition.student_signals), observe(TEACHER, batch, composition.teacher_signals)


def value(composition: Composition, student: torch.nn.Module, batch: Batch, progress: float) -> torch.Tensor:
    return composition(*signals(composition, student, batch), batch, progress)


def rows(batch: Batch, order: list[int]) -> Batch:
    return Batch(batch.input_ids[order], batch.attention_mask[order], batch.labels[order], batch.rows[order], batch.epoch)


@every_case
def test_it_is_accepted(recipe: Recipe) -> None:
    assert recipe_mistakes(recipe, SHAPES) == []


@every_case
def test_it_comes_back_from_json(recipe: Recipe) -> None:
    candidate = Candidate(NARROW, distillation=recipe)
    back = from_dict(json.loads(json.dumps(candidate.to_dict())))
    assert back == candidate
    assert back.key() == candidate.key()
    assert hash(back) == hash(candidate)


@every_case
@pytest.mark.parametrize("progress", MOMENTS)
def test_finite_float32_values_one_for_each_row(recipe: Recipe, progress: float) -> None:
    found = value(calibrated(recipe), student_of(), tiny.batch(LENGTHS, labels=LABELS), progress)
    assert found.shape == (len(LENGTHS),)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found > -1e-5).all()
    assert found.sum() > 1e-4


@every_case
def test_a_student_that_is_the_teacher_has_nothing_to_learn_but_the_labels(recipe: Recipe) -> None:
    """With any matching that pairs equal layers; those that do not (reverse, random, ...) compare unlike layers of equal models."""
    alike = {"uniform", "uniform_but_last", "first", "last", "last_only", "last2", "emd"}
    knobs = [{**KNOWLEDGE[term.knowledge].knobs, **dict(term.knobs)}.get("matching", "uniform") for term in recipe.terms]
    composition = calibrated(replace(recipe, hard_weight=0.0), Shapes(tiny.SHAPE, tiny.SHAPE, CLASSES))
    assert not composition.projections
    for progress in MOMENTS:
        found = value(composition, TEACHER, tiny.batch(LENGTHS, labels=LABELS), progress).detach()
        if any(term.knowledge in NOT_ZERO_AT_EQUALITY for term in recipe.terms) or not all(
            isinstance(m, str) and m in alike for m in knobs
        ):
            assert found.isfinite().all()
        else:
            torch.testing.assert_close(found, torch.zeros(4), rtol=0, atol=2e-3)


@every_case
def test_the_gradient_reaches_student_and_projections_and_never_the_teacher(recipe: Recipe) -> None:
    student, composition, batch = student_of(), calibrated(recipe), tiny.batch(LENGTHS, labels=LABELS)
    of_student, of_teacher = signals(composition, student, batch)
    told = {name: tensor.detach().clone().requires_grad_() for name, tensor in of_teacher.items()}
    sum(composition(of_student, told, batch, progress).mean() for progress in MOMENTS).backward()
    assert all(tensor.grad is None for tensor in told.values())
    words = student.bert.embeddings.word_embeddings.weight.grad
    assert words is not None
    assert words.isfinite().all()
    assert words.abs().sum() > 0
    for weight in composition.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.abs().sum() > 0


@every_case
def test_the_order_of_the_rows_does_not_matter(recipe: Recipe) -> None:
    student, composition, batch, order = student_of(), calibrated(recipe), tiny.batch(LENGTHS, labels=LABELS), [2, 0, 3, 1]
    for progress in MOMENTS:
        found, shuffled = (value(composition, student, some, progress).detach() for some in (batch, rows(batch, order)))
        torch.testing.assert_close(shuffled, found[order], rtol=1e-3, atol=1e-5)


@every_case
def test_padding_does_not_matter(recipe: Recipe) -> None:
    student, composition = student_of(), calibrated(recipe)
    narrow, wide = (tiny.batch(LENGTHS, width, labels=LABELS) for width in (12, 24))
    other = replace(wide, input_ids=torch.where(wide.attention_mask.bool(), wide.input_ids, torch.full_like(wide.input_ids, 9)))
    for progress in MOMENTS:
        found = [value(composition, student, batch, progress).detach() for batch in (narrow, wide, other)]
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-5)


@every_case
def test_bfloat16_is_within_tolerance_of_float32(recipe: Recipe) -> None:
    """The student under autocast, the teacher's outputs as they are cached."""
    student, composition, batch = student_of(), calibrated(recipe), tiny.batch(LENGTHS, labels=LABELS)
    of_student, of_teacher = signals(composition, student, batch)
    merged = {name: tensor.transpose(1, 2).flatten(2) if tensor.ndim == 4 else tensor for name, tensor in of_teacher.items()}
    cached = {name: tensor if name == "logits" else tensor.bfloat16() * batch.attention_mask[:, :, None] for name, tensor in merged.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = observe(student, batch, composition.student_signals)
        low = [composition(rounded, cached, batch, progress).mean() for progress in MOMENTS]
    exact = [composition(of_student, of_teacher, batch, progress).mean() for progress in MOMENTS]
    assert all(one.dtype == torch.float32 for one in low)
    torch.testing.assert_close(torch.stack(low), torch.stack(exact), rtol=0.1, atol=0.02)


@every_case
def test_it_is_the_sum_that_it_says(recipe: Recipe) -> None:
    """A transcription in NumPy: weights over the training, units, factors, stages; the losses themselves have references of their own."""
    student, composition, batch = student_of(), calibrated(recipe), tiny.batch(LENGTHS, labels=LABELS)
    of_student, of_teacher = signals(composition, student, batch)
    prediction = {HARD} | {term.name for term in recipe.terms if KNOWLEDGE[term.knowledge].view == "logits"}
    ramps = {"constant": lambda p: 1.0, "grow": lambda p: p, "decay": lambda p: 1 - p}  # a new schedule is transcribed here, as a loss is
    parts = {HARD: (recipe.hard_weight, recipe.hard_schedule)} | {term.name: (term.weight, term.schedule) for term in recipe.terms}
    for progress in MOMENTS:
        active = {
            name: weight * ramps[schedule](progress)
            for name, (weight, schedule) in parts.items()
            if recipe.switch is None or (name in prediction) == (progress >= recipe.switch)
        }
        losses = {
            name: composition.loss(name, of_student, of_teacher, batch, progress).detach().double().numpy()
            for name, weight in active.items()
            if weight > 0
        }
        of_logits = sum(active[name] * losses[name].mean() for name in losses if name in prediction - {HARD})
        expected = np.zeros(len(LENGTHS))
        for name, found in losses.items():
            factor = 1.0
            if recipe.balance == "equal":
                factor = 1 / found.mean()
            elif recipe.balance == "logits" and name not in prediction:
                factor = of_logits / found.mean()
            expected += active[name] * factor * found
        assert expected.shape == composition(of_student, of_teacher, batch, progress).shape
        np.testing.assert_allclose(composition(of_student, of_teacher, batch, progress).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@every_case
def test_only_what_it_asked_for_is_looked_at(recipe: Recipe) -> None:
    student, composition, batch = student_of(), calibrated(recipe), tiny.batch(LENGTHS, labels=LABELS)
    for progress in MOMENTS:
        of_student, of_teacher = composition.wanted(progress)
        assert of_student <= composition.student_signals
        assert of_teacher <= composition.teacher_signals
        found = composition(observe(student, batch, of_student), observe(TEACHER, batch, of_teacher), batch, progress)
        torch.testing.assert_close(found, value(composition, student, batch, progress), rtol=1e-4, atol=1e-6)


KNOBS = {
    "temperature": (0.5, 20.0),
    "alpha": (0.0, 4.0),
    "beta": (0.0, 8.0),
    "gamma": (0.0, 4.0),
    "distance": (0.0, 50.0),
    "angle": (0.0, 50.0),
}
"""Ends between which every loss is to be continuous, by the knob's name."""


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_every_real_knob_has_ends_and_the_loss_is_continuous_up_to_them(name: str) -> None:
    student, batch = student_of(), tiny.batch(LENGTHS, labels=LABELS)
    real = {knob for knob, default in KNOWLEDGE[name].knobs.items() if isinstance(default, float)}
    assert real <= set(KNOBS)
    case = CASES[f"knowledge {name}"]

    def at(knob: str, setting: float) -> torch.Tensor:
        term = case.terms[0]
        changed = replace(term, knobs=tuple(sorted({**dict(term.knobs), knob: setting}.items())))
        return value(calibrated(replace(case, terms=(changed,), scale="raw")), student, batch, 0.5).detach()

    for knob in real:
        for end, step in zip(KNOBS[knob], (1e-4, -1e-4), strict=True):
            torch.testing.assert_close(at(knob, end + step), at(knob, end), rtol=2e-2, atol=2e-3)


FIXED = {name: recipe for name, recipe in CASES.items() if recipe.balance == "fixed" and recipe.terms}


@pytest.mark.parametrize("recipe", FIXED.values(), ids=FIXED)
def test_a_weight_that_goes_to_0_leaves_the_others_as_they_are(recipe: Recipe) -> None:
    student, batch = student_of(), tiny.batch(LENGTHS, labels=LABELS)
    for index, term in enumerate(recipe.terms):
        rest = (*recipe.terms[:index], *recipe.terms[index + 1 :])
        almost, none = (replace(recipe, hard_weight=1.0, terms=(replace(term, weight=weight), *rest)) for weight in (1e-7, 0.0))
        for progress in MOMENTS:
            found = [value(calibrated(one), student, batch, progress).detach() for one in (almost, none)]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_named_recipes_are_those_of_the_literature_and_say_what_they_leave_out() -> None:
    first = ["hinton", "distilbert", "pkd", "tinybert", "minilm", "minilmv2", "mobile", "rkd"]
    wanted = [*first, "ckd", "alp", "emd", "rail", "minitron", "puzzle_gkd", "ofa_compress"]
    assert set(NAMED) == {*wanted, "none"}
    text = (tiny.REPOSITORY / "search_spaces" / "recipes.yaml").read_text(encoding="utf-8")
    comments = dict(reversed(block) for block in re.findall(r"((?:^    #.*\n)+)^    (\w+):$", text, re.MULTILINE))
    for name in wanted:
        assert "arXiv" in comments[name], name
        assert "Not: " in comments[name], name


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("name", [name for name, row in KNOWLEDGE.items() if "matching" in row.knobs])
@pytest.mark.usefixtures("as_installed")
def test_any_knowledge_with_any_matching_is_refused_by_name_or_works(name: str, matching: str) -> None:
    term = knows(Term(name))
    recipe = Recipe("tried", 0.0, (replace(term, knobs=tuple(sorted({**dict(term.knobs), "matching": matching}.items()))),))
    messages = recipe_mistakes(recipe, SHAPES)
    if messages:
        assert all("got" in message and re.search("use|project", message) for message in messages)
    else:
        assert value(calibrated(recipe), student_of(), tiny.batch(LENGTHS, labels=LABELS), 0.5).isfinite().all()


def test_the_weight_of_the_labels_may_go_to_0_without_a_jump() -> None:
    """The published slip: with hard weight 1 - alpha, tau^2 was dropped where alpha is 0, and the loss jumped 16-fold at tau = 4."""
    student, batch = student_of(), tiny.batch(LENGTHS, labels=LABELS)
    recipe = replace(CASES["recipe hinton"], scale="raw")
    found = [value(calibrated(replace(recipe, hard_weight=weight)), student, batch, 0.5).detach() for weight in (0.0, 1e-6, 1e-4)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-3)
