from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdsearch.candidate import Candidate, Initialization, Recipe, Term, Training
from kdsearch.distillation.composition import Composition
from kdsearch.distillation.distil import Lesson, batches, distil, rows_read
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.loop import Schedule, telling
from kdsearch.distillation.signals import observe
from kdsearch.inference import predict
from kdsearch.students.build import build
from kdsearch.study_file import Training as Length
from kdsearch.tasks import metrics
from kdsearch.tasks.pool import Pool
from tests import tiny

TEACHER = tiny.teacher()
LENGTH = Length(steps=40, batch_tokens=512)
KD = Recipe("kd", 0.0, (Term("kd"), Term("hidden_mse", 0.3)))


@pytest.fixture
def rows(tmp_path: Path) -> Pool:
    return tiny.rows(tmp_path)


def ask_teacher(signals, batch):
    with torch.no_grad():
        return observe(TEACHER, batch, signals)


def trained(rows: Pool, recipe: Recipe = KD, length: Length = LENGTH, seed: int = 0):
    candidate = Candidate(tiny.narrower(), Initialization("uniform"), recipe, Training(3e-3))
    student = build(TEACHER, candidate, seed=0)
    shapes, told = Shapes(candidate.architecture, tiny.SHAPE, 2), []
    after = telling(lambda *event: told.append(event), "distilling", length.steps)
    losses = distil(student, candidate, shapes, Lesson(rows, ask_teacher, length, seed, "cpu"), after)
    return student, losses, told


def divergence(student: torch.nn.Module, rows: Pool) -> float:
    """Mean KL to the teacher on rows that were not trained on."""
    teacher, found = (predict(model, rows.encoded, rows.held_out, rows.pad_id, "cpu") for model in (TEACHER, student))
    return metrics.mean(metrics.kl(teacher, found))[0]


def test_distilling_brings_the_student_nearer_to_the_teacher(rows: Pool) -> None:
    before = build(TEACHER, Candidate(tiny.narrower()), seed=0)
    student, losses, told = trained(rows)
    assert divergence(student, rows) < 0.7 * divergence(before, rows)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert told == [("distilling", step, 40) for step in range(1, 41)]


@pytest.mark.parametrize(
    ("schedule", "switch", "expected"), [("averaged", None, (True, 0)), ("averaged", 0.3, (True, 12)), ("linear", 0.3, (False, 12))]
)
def test_the_study_s_schedule_is_followed_and_a_second_stage_starts_where_the_recipe_does(
    schedule: Any, switch: float | None, expected: tuple[bool, int], rows: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Schedule] = []
    monkeypatch.setattr("kdsearch.distillation.distil.fit", lambda *arguments: given.append(arguments[3]) or [])
    trained(rows, replace(KD, switch=switch), LENGTH.model_copy(update={"schedule": schedule}))
    assert [(one.averaged, one.restart) for one in given] == [expected]
    counted = [step for step in range(40) if switch and (step + 0.5) / 40 >= switch]
    assert counted[:1] in ([], [expected[1]])


@pytest.mark.parametrize(("scale", "balance", "calls"), [("guess", "fixed", 1), ("raw", "equal", 1), ("raw", "fixed", 1)])
def test_units_are_measured_before_training(scale: str, balance: str, calls: int, rows: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, calibrate = [], Composition.calibrate

    def watched(self: Composition, told: Iterable[Any]) -> None:
        calibrate(self, told)
        measured.append(self.units)

    monkeypatch.setattr(Composition, "calibrate", watched)
    trained(rows, replace(KD, scale=scale, balance=balance), LENGTH.model_copy(update={"steps": 1}))
    assert len(measured) == calls
    assert all(units["kd"] != 1 and units["hidden_mse"] != 1 for units in measured)


def test_the_end_of_the_training_is_that_of_its_schedules(rows: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    moments, forward = [], Composition.forward

    def watched(self: Composition, *args: Any) -> Any:
        moments.append(args[3])
        return forward(self, *args)

    monkeypatch.setattr(Composition, "forward", watched)
    trained(rows, length=LENGTH.model_copy(update={"steps": 4}))
    assert moments == [0.125, 0.375, 0.625, 0.875]


def test_equal_seeds_give_equal_students_and_other_seeds_others(rows: Pool) -> None:
    short = LENGTH.model_copy(update={"steps": 4})
    (one, of_one, _), (again, of_again, _), (other, of_other, _) = (trained(rows, length=short, seed=seed) for seed in (0, 0, 1))
    assert of_one == of_again
    assert of_one != of_other
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_word_embeddings_are_trained_only_when_the_study_says_so(train_embeddings: bool, rows: Pool) -> None:
    before = build(TEACHER, Candidate(tiny.narrower()), seed=0)
    student, _, _ = trained(rows, length=LENGTH.model_copy(update={"steps": 3, "train_embeddings": train_embeddings}))
    words = [model.bert.embeddings.word_embeddings.weight for model in (before, student)]
    assert torch.equal(*words) == (not train_embeddings)
    same = {name for (name, a), b in zip(before.named_parameters(), student.parameters(), strict=True) if torch.equal(a, b)}
    assert same == (set() if train_embeddings else {"bert.embeddings.word_embeddings.weight"})
    assert all(weight.requires_grad for weight in student.parameters())


def test_the_teacher_learns_nothing_and_dropout_is_off(rows: Pool) -> None:
    before = {name: weight.clone() for name, weight in TEACHER.state_dict().items()}
    student, _, _ = trained(rows, length=LENGTH.model_copy(update={"steps": 2}))
    assert all(torch.equal(weight, before[name]) for name, weight in TEACHER.state_dict().items())
    assert not student.training


def test_labels_alone_take_no_text_without_labels_and_no_word_of_the_teacher(rows: Pool) -> None:
    asked = []

    def refuse(signals, batch):
        asked.append((signals, batch.labels))
        return {}

    candidate = Candidate(tiny.narrower(), distillation=Recipe("no-kd", 1.0))
    student = build(TEACHER, candidate, seed=0)
    lesson = Lesson(rows, refuse, LENGTH.model_copy(update={"steps": 5}), 0, "cpu")
    distil(student, candidate, Shapes(tiny.narrower(), tiny.SHAPE, 2), lesson)
    assert {signals for signals, _ in asked} == {frozenset()}
    assert all((labels >= 0).all() for _, labels in asked)


@pytest.mark.parametrize(("seed", "steps"), [(0, 6), (5, 6), (5, 1)])
def test_the_rows_that_a_training_reads_are_known_before(rows: Pool, seed: int, steps: int) -> None:
    length = LENGTH.model_copy(update={"steps": steps, "batch_tokens": 64, "transfer_share": 0.25})
    read = rows_read(rows, length, seed)
    seen = np.concatenate([batch.rows for batch in islice(batches(Lesson(rows, ask_teacher, length, seed, "cpu"), 0.25), max(4, steps))])
    assert read.tolist() == sorted(set(seen.tolist()))
    assert len(read) < len(rows.train) + len(rows.transfer)


def test_labelled_and_transfer_rows_are_mixed_by_their_share(rows: Pool) -> None:
    some = list(islice(batches(Lesson(rows, ask_teacher, LENGTH, 0, "cpu"), 0.25), 60))
    seen = np.concatenate([batch.rows for batch in some])
    assert set(seen) <= {*rows.train, *rows.transfer}
    assert np.isin(seen, rows.transfer).mean() == pytest.approx(0.25, abs=0.05)
    labels = torch.cat([batch.labels for batch in some]).numpy()
    assert ((labels < 0) == np.isin(seen, rows.transfer)).all()
