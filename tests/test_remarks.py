from dataclasses import replace

import pytest

from kdsearch import remarks
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement, Record
from kdsearch.study_file import Search


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
        (
            BASELINES[:1],
            Search(minutes=0.1),
            [
                "The front is empty: the budget went into 1 hand-made baseline, before any candidate; give more of it, "
                "or set search.baselines: false.",
                "The budget is used up: 0.5 of 0.1 minutes. To go on, raise --minutes.",
            ],
        ),
        (BASELINES, Search(), ["The front is empty: so far only 2 hand-made baselines were trained, no candidate of the search."]),
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
    assert remarks.after_run(known, plan, 30.0 * len(known)) == expected


def test_the_effort_is_shared_out_whole_and_held_against_the_matrix_products_alone() -> None:
    found = Measurement(COMPLETE, flops=32e6, steps=100, stages={"training": 30.0, "scoring": 6.0, "rest": 1.0})
    known = [Record(0, {}, found, 0), Record(1, {}, found, 0), Record(2, {}, found, 0, duplicate_of=0), record(3, REFUSED, 0.1)]
    # 3 x 1e6 FLOPs a token x 1000 tokens x 100 steps, twice, at 1e11 a second: 6 of 120 seconds
    said = remarks.on_effort(known, 120.0, 1e11, 32, 1000)
    assert (
        said == "Time: training 50%, rest 40%, scoring 10%. At the machine's full rate the training's matrix products alone take 5% of it."
    )
    assert remarks.on_effort(known[3:], 120.0, 1e11, 32, 1000) is None


def test_a_front_that_is_not_confirmed_is_told_as_such() -> None:
    said = remarks.on_confirmation(3, False, "studies/x")
    assert said == "The front is by short distillations; `kdsearch confirm studies/x` trains its students in full, with seeds."
    assert remarks.on_confirmation(0, False, "studies/x") is None
    assert remarks.on_confirmation(3, True, "studies/x") is None


def test_what_was_imported_uses_up_no_budget_and_took_no_time() -> None:
    imported = [replace(record(trial), imported_from=f"trial {trial} of old") for trial in range(3)]
    assert remarks.after_run([*imported, record(3)], Search(trials=2), 0.0) == []
    assert remarks.after_run([*imported, record(3), record(4)], Search(trials=2), 0.0)[0].startswith("The budget is used up: 2 of 2 trials")
    spent = replace(imported[0], measurement=replace(imported[0].measurement, stages={"training": 30.0}, flops=1.0, steps=1))
    assert remarks.on_effort([spent], 60.0, 1e9, 1.0, 1) is None
