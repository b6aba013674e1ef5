from dataclasses import replace
from typing import Any

import pytest

from kdsearch import remarks
from kdsearch.budget import Spent, Work
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement, Record
from kdsearch.study_file import Search, StudySpec


def record(trial: int, state: str = COMPLETE, over: float = 0.0, reason: str | None = None, baseline: str | None = None) -> Record:
    return Record(trial, {}, Measurement(state, reason=reason, seconds=30.0, violations=(over,)), 0, baseline)


BASELINES = [record(0, over=1.0, baseline="no-kd"), record(1, over=1.0, baseline="distilbert")]
SLOW = record(2, REFUSED, 0.4, "latency_relative 0.7 exceeds the limit 0.5")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (record(7), None),
        (
            record(7, over=0.1, reason="accuracy_relative 0.8 is below the limit 0.9"),
            "Trial 7 breaks a limit of the study (accuracy_relative",
        ),
        (SLOW, "Trial 2 was refused (latency_relative 0.7 exceeds the limit 0.5); it is distilled all the same."),
        (record(7, FAILED, reason="MemoryError: planted"), "Trial 7 failed (MemoryError: planted); it is"),
    ],
)
def test_what_speaks_against_a_pick(found: Record, expected: str | None) -> None:
    said = remarks.on_pick(found)
    assert said is None if expected is None else (said or "").startswith(expected)


@pytest.mark.parametrize(
    ("known", "plan", "expected"),
    [
        ([], Search(), []),
        ([*BASELINES, record(2)], Search(), []),
        ([record(0)], Search(minutes=0.1), ["The budget is used up: 0.5 of 0.1 minutes. To go on, raise --minutes."]),
        (
            BASELINES,
            Search(),
            ["The front is empty: no student is trained and inside the limits; go on, or change the limits or the space."],
        ),
        (
            [*BASELINES, SLOW],
            Search(),
            [
                "The front is empty: no student is trained and inside the limits (the last: latency_relative 0.7 exceeds the limit 0.5); "
                "go on, or change the limits or the space."
            ],
        ),
        ([record(0), record(1)], Search(trials=2), ["The budget is used up: 2 of 2 trials. To go on, raise --trials."]),
        (
            [record(0), record(1), record(2)],
            Search(trials=2, minutes=1.5),
            ["The budget is used up: 1.5 of 1.5 minutes and 3 of 2 trials. To go on, raise --minutes and --trials."],
        ),
    ],
)
def test_what_a_run_ends_with(known: list[Record], plan: Search, expected: list[str]) -> None:
    assert remarks.after_run(known, plan, Spent(30.0 * len(known))) == expected


def test_a_run_ends_with_its_flops_and_with_the_minutes_that_are_the_finalists() -> None:
    known, plan = [record(0), record(1)], Search(minutes=8, flops=1e15, trials=2)
    assert remarks.after_run(known, plan, Spent(100.0, 0.0, 1.023e15)) == [
        "The budget is used up: 2 of 2 trials and 1.02e+15 of 1e+15 flops. To go on, raise --trials and --flops."
    ]
    plan = Search(minutes=8, flops=1e15)
    assert remarks.after_run(known, plan, Spent(300.0, 181.0, 1e14)) == [
        "The budget is used up: 8.02 of 8 minutes (3.02 of them kept for the finalists). To go on, raise --minutes."
    ]
    assert remarks.after_run(known, plan, Spent(300.0, 179.0, 9.99e14)) == []


def spec(**search: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "x", "teacher": {"model": "m"}, "task": {"data": "d"}, "space": "s", "search": search})


def test_finalists_that_take_most_of_the_minutes_are_told_before_the_run() -> None:
    assert remarks.on_finalists(14, 480.0, spec(minutes=10, finalists=3)) is None
    assert remarks.on_finalists(14, 600.0, spec(minutes=10, finalists=3)) == (
        "The finalists' 14 trainings of 3000 steps take about 10 min by arithmetic, more than 80% of the 10 that are given: "
        "2 min are searched, and then they are trained all the same. Raise search.minutes to 12.5 or more, or lower search.finalists, "
        "search.finalist_seeds or train.steps."
    )


def test_a_teacher_whose_answers_use_up_the_flops_is_told() -> None:
    assert remarks.on_teacher_flops(1e15, Search()) is None
    assert remarks.on_teacher_flops(1e15, Search(flops=1.1e15)) is None
    said = remarks.on_teacher_flops(1e15, Search(flops=1e15))
    assert said == "search.flops: must exceed those of the teacher's answers, 1e+15, which are charged once; the value is 1e+15; raise it"


def test_the_effort_is_shared_out_whole_and_held_against_the_matrix_products_alone() -> None:
    found = Measurement(COMPLETE, flops=32e6, steps=100, stages={"training": 30.0, "scoring": 6.0, "rest": 1.0})
    known = [Record(0, {}, found, 0), Record(1, {}, found, 0), Record(2, {}, found, 0, duplicate_of=0), record(3, REFUSED, 0.1)]
    # 3 x 1e6 FLOPs a token x 1000 tokens x 100 steps, twice, at 1e11 a second: 6 of 120 seconds
    said = remarks.on_effort(known, 120.0, 1e11, Work(1000, 32, 1e20))
    assert (
        said == "Time: training 50%, rest 40%, scoring 10%. At the machine's full rate the training's matrix products alone take 5% of it."
    )
    assert remarks.on_effort(known[3:], 120.0, 1e11, Work(1000, 32)) is None


def test_a_front_that_is_not_confirmed_is_told_as_such() -> None:
    said = remarks.on_confirmation(3, 3, "studies/x")
    assert said == "The front is by short distillations; `kdsearch confirm studies/x` trains its students in full, with seeds."
    assert remarks.on_confirmation(0, 3, "studies/x") is None
    assert remarks.on_confirmation(0, 0, "studies/x") is None
    some = remarks.on_confirmation(1, 3, "studies/x")
    assert some is not None
    assert some.startswith("1 of the front's 3 students were not trained in full yet; `kdsearch confirm studies/x`")


def test_who_cannot_be_picked_after_a_confirmation_is_told() -> None:
    assert remarks.on_picks(0, 3) is None
    said = remarks.on_picks(2, 3)
    assert said is not None
    assert "2 of the 3 on the front by short distillations are not" in said


def test_what_was_imported_uses_up_no_budget_and_took_no_time() -> None:
    imported = [replace(record(trial), imported_from=f"trial {trial} of old") for trial in range(3)]
    assert remarks.after_run([*imported, record(3)], Search(trials=2), Spent()) == []
    (said,) = remarks.after_run([*imported, record(3), record(4)], Search(trials=2), Spent())
    assert said.startswith("The budget is used up: 2 of 2 trials")
    spent = replace(imported[0], measurement=replace(imported[0].measurement, stages={"training": 30.0}, flops=1.0, steps=1))
    assert remarks.on_effort([spent], 60.0, 1e9, Work()) is None
