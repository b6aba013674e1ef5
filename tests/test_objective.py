import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsearch import guard, objective, records, workbench
from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Term
from kdsearch.distillation.distil import Lesson
from kdsearch.distillation.knowledge import view
from kdsearch.errors import UserError
from kdsearch.machine import held_memory
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, REFUSED
from kdsearch.rungs import Rungs
from kdsearch.students.build import build
from kdsearch.study_file import Limits, Training
from kdsearch.tasks.batches import collate
from tests import teaching, tiny


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workbench.Bench:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return teaching.bench(tmp_path)


@pytest.fixture
def spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workbench.Bench:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return teaching.spelled_bench(tmp_path)


def of_size(size: int | None, *knowledge: str) -> Candidate:
    recipe = Recipe("tried", 0.5, tuple(Term(one) for one in knowledge))
    return Candidate(Architecture(2, 2, 6, 1, vocabulary=size), Initialization("last"), recipe)


def test_a_student_of_other_tokens_learns_from_logits_and_pooled_states(spelled: workbench.Bench) -> None:
    found = objective.evaluate(Order(of_size(130, "kd", "rkd", "similarity"), 0), spelled)
    assert (found.state, found.reason, found.violations) == (COMPLETE, None, (0.0,))
    whole = objective.evaluate(Order(of_size(None, "kd"), 0), spelled)
    assert (whole.parameters or 0) - (found.parameters or 0) == 12 * (len(tiny.SPELLED) - 130)
    assert spelled.reading(130).changed > 0
    assert spelled.reading(130) is spelled.reading(130)


def test_what_compares_token_by_token_is_refused_before_training_only_where_tokens_differ(spelled: workbench.Bench) -> None:
    told: list[Any] = []
    found = objective.evaluate(Order(of_size(130, "kd", "hidden_mse"), 0, True), spelled, progress=lambda *event: told.append(event))
    assert (found.state, found.violations, told) == (REFUSED, (1.0,), [])
    assert "tried: hidden_mse: compares token by token, and with architecture.vocabulary 130 the student" in (found.reason or "")
    assert f"a vocabulary of at least {spelled.ranking.lossless}" in (found.reason or "")
    enough = objective.evaluate(Order(of_size(spelled.ranking.lossless, "kd", "hidden_mse"), 0), spelled)
    assert (enough.state, spelled.reading(spelled.ranking.lossless).changed) == (COMPLETE, 0)
    student = build(spelled.reading(130).teacher, of_size(130), 0)
    with pytest.raises(UserError, match="hidden_mse: compares token by token"):
        objective.train(student, of_size(130, "hidden_mse"), spelled, Training(steps=1), 0)


def test_the_teacher_is_asked_about_the_same_rows_on_its_own_tokens(spelled: workbench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons: list[Lesson] = []
    monkeypatch.setattr(objective, "distil", lambda student, candidate, shapes, lesson, goes_on: lessons.append(lesson) or [])
    for size in (None, 130):
        student = build(spelled.reading(size).teacher, of_size(size), 0)
        objective.train(student, of_size(size, "rkd"), spelled, Training(steps=1, batch_tokens=256), 0)
    rows = spelled.rows.train[:6]
    batches = [collate(one.rows.encoded, rows, one.rows.pad_id, torch.device("cpu")) for one in lessons]
    assert batches[1].attention_mask.sum() > batches[0].attention_mask.sum()  # smaller pieces
    signals = frozenset({"logits", "hidden.3"})
    expected, told = (one.teacher_of(signals, batch) for one, batch in zip(lessons, batches, strict=True))
    assert torch.equal(told["logits"], expected["logits"])
    pooled = [view("pooled", signals, 3, tiny.SHAPE, batch) for signals, batch in zip((expected, told), batches, strict=True)]
    torch.testing.assert_close(*pooled)
    assert torch.equal(told["mask"], batches[0].attention_mask)


def narrow(recipe: Recipe) -> Candidate:
    return Candidate(Architecture(2, 2, 6, 1), Initialization("last"), recipe)


def test_a_candidate_is_measured_trained_and_scored(bench: workbench.Bench) -> None:
    found = objective.evaluate(Order(narrow(Recipe("kd", 0.5, (Term("kd"),))), 0), bench)
    assert (found.state, found.reason, found.steps) == (COMPLETE, None, 4)
    assert found.accuracy is not None
    assert 0 <= found.accuracy <= 1
    assert found.divergence is not None
    assert found.divergence > 0
    assert found.latency_relative is not None
    assert found.parameters == sum(
        weight.numel()
        for weight in tiny.teacher(hidden_size=12, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16).parameters()
    )


@pytest.mark.parametrize("limits", [Limits(parameters=10), Limits(latency_ms=1e-6)])
def test_what_breaks_a_limit_is_refused_untrained_unless_it_is_a_yardstick(bench: workbench.Bench, limits: Limits) -> None:
    bench = replace(bench, spec=bench.spec.model_copy(update={"limits": limits}))
    candidate, told = narrow(Recipe("kd", 0.5, (Term("kd"),))), []
    found = objective.evaluate(Order(candidate, 0), bench, progress=lambda *event: told.append(event))
    assert (found.state, found.accuracy, told) == (REFUSED, None, [])
    assert found.reason is not None
    assert "exceeds the limit" in found.reason
    yardstick = objective.evaluate(Order(candidate, 0, True), bench)
    assert yardstick.state == COMPLETE
    assert max(yardstick.violations) > 0


def test_a_recipe_that_these_two_models_cannot_use_is_refused_before_anything_is_built(bench: workbench.Bench) -> None:
    told = []
    impossible = narrow(Recipe("heads", 0.5, (Term("minilmv2", knobs=(("relation_heads", 5),)),)))
    found = objective.evaluate(Order(impossible, 0), bench, progress=lambda *event: told.append(event))
    assert (found.state, found.accuracy, found.latency_ms, told) == (REFUSED, None, None, [])
    assert found.reason is not None
    assert "relation_heads must divide the student's hidden size; got 5 for 12" in found.reason


def test_too_little_accuracy_breaks_a_limit_after_training(bench: workbench.Bench) -> None:
    candidate, found = narrow(Recipe("none")), {}
    for share in (0.01, 1.0):
        bench.facts["teacher"]["accuracy"] = 1.0
        limited = replace(
            bench, spec=bench.spec.model_copy(update={"limits": Limits(latency_ms=1e6, latency_relative=None, accuracy_relative=share)})
        )
        found[share] = objective.evaluate(Order(candidate, 0), limited)
        assert found[share].state == COMPLETE
        assert len(found[share].violations) == 2
    assert max(found[0.01].violations) < 0
    assert found[1.0].violations[1] == pytest.approx(1 / found[1.0].accuracy - 1)
    words = objective.broken(replace(found[1.0], accuracy=0.5), limited)
    assert words == "accuracy_relative 0.5 is below the limit 1"


def test_at_a_rung_a_student_has_the_weights_that_it_would_end_with(bench: workbench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "ROWS_AT_RUNGS", 1)
    training = Training(steps=6, batch_tokens=256, warmup=0.0)
    order = Order(of_size(None, "kd"), 0, rungs=Rungs(1.0, {3: (), 6: ()}), training=training)
    averaged = objective.evaluate(order, bench)
    falling = objective.evaluate(replace(order, training=training.model_copy(update={"schedule": "linear"})), bench)
    for found in (averaged, falling):
        assert found.state == COMPLETE
        assert found.rungs["6"]["divergence"] == found.divergence != found.rungs["3"]["divergence"]
    assert averaged.divergence != falling.divergence


def test_both_stages_of_a_recipe_are_trained(bench: workbench.Bench) -> None:
    """The head learns in the second stage only, the layers in both."""
    recipe = Recipe("stages", 1.0, (Term("hidden_mse", 1.0, (("matching", "last_only"),)),), switch=0.5)
    heads = []

    def keep(*_: object) -> bool:
        heads.append(student.classifier.weight.clone())
        return True

    student = build(bench.teacher, narrow(recipe), 0)
    objective.train(
        student,
        narrow(recipe),
        bench,
        Training(steps=4, batch_tokens=256),
        0,
        keep,
    )
    first, second, third, fourth = heads
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(third, fourth)


def test_memory_is_measured_where_it_is_limited_and_what_takes_too_much_is_refused_untimed(bench: workbench.Bench) -> None:
    candidate = narrow(Recipe("none"))
    assert objective.evaluate(Order(candidate, 0), bench).memory_bytes is None
    found = {}
    for megabytes in (1e-3, 1e3):
        limited = replace(bench, spec=bench.spec.model_copy(update={"limits": Limits(latency_ms=1e6, memory_megabytes=megabytes)}))
        found[megabytes] = objective.evaluate(Order(candidate, 0), limited)
    few, many = found.values()
    assert (few.state, few.latency_ms, many.state, few.memory_bytes) == (REFUSED, None, COMPLETE, many.memory_bytes)
    assert few.bytes < few.memory_bytes
    assert few.reason == f"memory_megabytes {few.memory_bytes / 1e6:.4g} exceeds the limit 0.001"
    assert few.violations == (0.0, pytest.approx(few.memory_bytes / 1e3 - 1))
    assert max(many.violations) < 0
    yardstick = objective.evaluate(
        Order(candidate, 0, True), replace(limited, spec=limited.spec.model_copy(update={"limits": Limits(memory_megabytes=1e-3)}))
    )
    assert yardstick.state == COMPLETE
    assert yardstick.violations[0] > 0


def test_a_student_that_needs_too_much_memory_fails_with_what_it_takes(bench: workbench.Bench) -> None:
    candidate, told = narrow(Recipe("kd", 0.5, (Term("kd"),))), []
    for most in (1e6, held_memory() + 4e5, held_memory() + 1e10):  # less than is held; enough to build (0.3 MB), hardly to train; plenty
        guarded, since = replace(bench, most_bytes=most), len(told)
        found = records.measured(objective.evaluate, Order(candidate, 0), guarded, lambda *event: told.append(event))
        if most < 1e7:
            assert found.state == FAILED
            assert re.match(r"TooMuchMemoryError: [\d,]+ parameters need at least .* GB to train, and beside the", found.reason or "")
            assert len(told) == since
    assert found.state == COMPLETE


def test_memory_is_watched_while_a_student_trains(bench: workbench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held, told = iter([0, 0, 0, 2e9]), []
    monkeypatch.setattr(guard, "held_memory", lambda: next(held))
    found = records.measured(
        objective.evaluate, Order(narrow(Recipe("kd", 0.5, (Term("kd"),))), 0), replace(bench, most_bytes=1e9), lambda *e: told.append(e)
    )
    assert found.state == FAILED
    assert found.reason is not None
    assert found.reason.startswith("TooMuchMemoryError: the process holds 2 GB, more than the 1 GB of a trial; a smaller student, fewer")
    assert len(told) == 1


def test_a_gpu_that_is_full_fails_the_trial_alone(bench: workbench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(narrow(Recipe("none")), 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            objective, "distil", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
        )
        found = records.measured(objective.evaluate, order, bench)
    assert (found.state, found.reason) == (FAILED, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert objective.evaluate(order, bench).state == COMPLETE
