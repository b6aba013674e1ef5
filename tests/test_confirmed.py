import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdsearch.candidate import Candidate, Recipe, Training, from_dict
from kdsearch.confirmed import Job, Store, Student, document, students
from kdsearch.records import COMPLETE, FAILED, Measurement, Record
from tests import tiny

REFERENCE = (0.5, 1.0)
KD = Candidate(tiny.SHAPE, distillation=tiny.recipe("kd", 0.5))


def measured(accuracy: float, latency: float = 0.3, error: float = 0.01, over: float = -0.1) -> Measurement:
    sizes = {"parameters": round(1e6 * latency), "flops": 1e8 * latency}
    return Measurement(
        COMPLETE,
        "parameters 9 exceeds the limit 8; latency_relative 0.6 exceeds the limit 0.5" if over > 0 else None,
        accuracy=accuracy,
        accuracy_se=error,
        divergence=0.1,
        latency_relative=latency,
        violations=(over,),
        **sizes,
    )


def record(trial: int, accuracy: float, latency: float, candidate: Candidate = KD, baseline: str | None = None) -> Record:
    own = replace(candidate, training=Training(1e-4 * (1 + trial))) if baseline is None else candidate
    return Record(trial, own.to_dict(), measured(accuracy, latency), 0, baseline)


ABLE = [record(3, 0.7, 0.1), record(4, 0.8, 0.3), record(5, 0.82, 0.5), record(6, 0.815, 0.51)]
YARDSTICK = record(0, 0.6, 0.4, Candidate(tiny.SHAPE), "no-kd")


def roles(found: list[Student]) -> dict[str, str]:
    return {one.name: one.role for one in found}


def test_the_knee_and_its_twin_are_always_trained() -> None:
    assert roles(students(ABLE, 4, [YARDSTICK], 9, REFERENCE)) == {
        "4": "front", "3": "front", "5": "front", "6": "near the front", "0": "baseline no-kd", "no-kd twin of 4": "no-kd twin of 4",
    }  # fmt: skip
    found = students(ABLE, 5, [], 1, REFERENCE)
    assert [one.name for one in found] == ["5", "no-kd twin of 5"]
    assert found[1].candidate == replace(found[0].candidate, distillation=Recipe("none", 1.0))
    assert found[1].short is None


def test_a_twin_that_is_another_student_is_trained_once() -> None:
    twin = replace(from_dict(ABLE[1].candidate), distillation=Recipe("no-kd"))
    found = students(ABLE, 4, [replace(YARDSTICK, candidate=twin.to_dict())], 1, REFERENCE)
    assert roles(found) == {"4": "front", "0": "baseline no-kd, no-kd twin of 4"}
    assert found[1].twin_of == 4
    own = students([replace(ABLE[0], candidate=Candidate(tiny.SHAPE).to_dict())], 3, [], 1, REFERENCE)
    assert roles(own) == {"3": "front"}
    assert own[0].twin_of is None


def test_a_baseline_without_a_trial_that_is_another_student_is_trained_once() -> None:
    knee, twin = from_dict(ABLE[1].candidate), replace(from_dict(ABLE[1].candidate), distillation=Recipe("no-kd"))
    found = students(ABLE, 4, [], 1, REFERENCE, {"same": knee, "no-kd": twin, "other": Candidate(tiny.SHAPE)})
    assert [one.role for one in found] == ["front, baseline same", "baseline no-kd, no-kd twin of 4", "baseline other"]
    assert [one.twin_of for one in found] == [None, 4, None]
    assert [one.name for one in found] == ["4", "baseline no-kd, no-kd twin of 4", "baseline other"]
    assert [one.yardstick for one in found] == [False, True, True]


def test_a_baseline_on_the_front_stands_there_once() -> None:
    best = replace(ABLE[1], baseline="distilbert")
    assert roles(students([ABLE[0], best], 3, [best], 5, REFERENCE))["4"] == "front, baseline distilbert"


def jobs(*seeds: int, found: list[Student] | None = None) -> list[Job]:
    return [Job(one, seed, 50) for seed in seeds for one in found or students(ABLE, 4, [], 3, REFERENCE)]


def test_what_is_kept_is_not_missing_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    store, todo = Store(tmp_path), jobs(1, 2)
    assert store.missing(todo) == todo
    for job in todo[:3]:
        store.add(job, measured(0.8))
    store.add(todo[3], Measurement(FAILED, reason="planted"))
    with (tmp_path / "confirmed.jsonl").open("a") as stream:
        stream.write('{"student": "4", "see')
    again = Store(tmp_path)
    assert again.missing(todo) == todo[3:]  # one that failed is tried again
    again.add(todo[4], measured(0.7))
    lines = [json.loads(line) for line in (tmp_path / "confirmed.jsonl").read_text().splitlines()]
    assert [(line["student"], line["seed"], line["of"]) for line in lines] == [(job.student.name, job.seed, job.steps) for job in todo[:5]]
    assert Store(tmp_path).missing([replace(job, steps=60) for job in todo]) == [replace(job, steps=60) for job in todo]


def test_a_training_of_another_student_or_under_other_conditions_does_not_count(tmp_path: Path) -> None:
    store, job = Store(tmp_path), jobs(1)[0]
    store.add(job, measured(0.8))
    other = replace(job.student, candidate=replace(job.student.candidate, training=Training(0.5)))  # that number's trial in another study
    todo = [replace(job, student=other), replace(job, under="another teacher")]
    assert Store(tmp_path).missing([job, *todo]) == todo
    assert document(Store(tmp_path), todo, 10, REFERENCE)["students"][0]["seeds"] == 0


def test_a_baseline_that_is_best_and_no_trial_stands_on_the_front_and_is_no_pick(tmp_path: Path) -> None:
    found = students(ABLE, 4, [], 3, REFERENCE, {"no-kd": Candidate(tiny.SHAPE)})
    store, todo = Store(tmp_path), jobs(1, found=found)
    for job in todo:
        best = job.student.name == "baseline no-kd"
        store.add(job, measured(0.95 if best else 0.8, 0.05 if best else 0.3))
    told = document(store, todo, 300, REFERENCE)
    assert [row["student"] for row in told["students"] if row["on_front"]] == ["baseline no-kd"]
    assert set(told["picks"].values()) <= {3, 4, 5}
    assert told["picks"]
    assert (
        "These trainings have 50 steps, the short distillations 300: what they say of students is worth less than these."
        in told["sentences"]
    )
    assert not any("worth less" in said for said in document(store, todo, 50, REFERENCE)["sentences"])
    assert "The baseline no-kd stands on this front and is no trial of the search, so that no pick is it." in told["sentences"]


def test_errors_hold_the_seeds_and_the_rows(tmp_path: Path) -> None:
    store, todo = Store(tmp_path), jobs(1, 2, 3)
    accuracies = {"4": (0.80, 0.82, 0.81), "3": (0.7, 0.7, 0.7), "5": (0.83, 0.83, 0.83), "no-kd twin of 4": (0.78, 0.78, 0.78)}
    for job in todo:
        latency = {"3": 0.1, "5": 0.5}.get(job.student.name, 0.2 + 0.01 * job.seed)
        store.add(job, measured(accuracies[job.student.name][job.seed - 1], latency))
    found = document(store, todo, 300, REFERENCE)
    rows = {row["student"]: row for row in found["students"]}
    assert rows["4"]["accuracy"] == pytest.approx(0.81)
    assert rows["4"]["accuracy_se"] == pytest.approx(math.sqrt(np.var([0.8, 0.82, 0.81], ddof=1) / 3 + 0.01**2))
    assert rows["4"]["latency_relative"] == 0.22
    assert rows["3"]["accuracy_se"] == pytest.approx(0.01)
    assert [row["student"] for row in found["students"]][::3] == ["3", "5"]  # fastest first
    assert {name for name, row in rows.items() if row["on_front"]} == {"3", "4", "5"}
    assert found["fidelity"]["count"] == 3  # the twin has no short distillation
    assert found["fidelity"]["proxy"]["tau"]["value"] == pytest.approx(1.0)
    assert found["fidelity"]["regret"] == pytest.approx(0.0)
    assert found["seeds"] == [1, 2, 3]
    error = 100 * math.hypot(rows["4"]["accuracy_se"], 0.01)
    assert (
        f"Trial 4 without distillation, on the labels alone, has 0.780: distillation is worth +3.0 points, ± {error:.1f} at "
        "most: both answer the same rows." in found["sentences"]
    )
    assert json.loads(json.dumps(found)) == {**found, "fidelity": {**found["fidelity"], "reference": [0.5, 1.0]}}


def test_who_breaks_a_limit_in_most_trainings_stands_on_no_front(tmp_path: Path) -> None:
    store, todo = Store(tmp_path), jobs(1, 2, 3)
    for job in todo:
        over = {"5": (0.1, -0.1, 0.1), "4": (0.1, -0.1, -0.1)}.get(job.student.name, (-0.1,) * 3)[job.seed - 1]
        store.add(job, measured({"5": 0.9, "4": 0.8}.get(job.student.name, 0.7), 0.3, over=over))
    rows = {row["student"]: row for row in document(store, todo, 300, REFERENCE)["students"]}
    assert (rows["5"]["feasible"], rows["5"]["on_front"]) == (False, False)
    assert (rows["4"]["feasible"], rows["4"]["on_front"]) == (True, True)
    assert (rows["5"]["breaks"], rows["4"]["breaks"]) == ("parameters, latency_relative", "")  # one seed of 4 did, by chance


def test_what_is_not_trained_is_told_as_such(tmp_path: Path) -> None:
    store, todo = Store(tmp_path), jobs(1, 2)
    for job in todo:
        if job.student.name == "3" or (job.student.name, job.seed) == ("4", 1):
            store.add(job, measured(0.8))
    found = document(store, todo, 300, REFERENCE)
    assert {row["student"]: row["seeds"] for row in found["students"]} == {"3": 2, "4": 1, "5": 0, "no-kd twin of 4": 0}
    assert found["students"][-1]["accuracy"] is None
    assert found["fidelity"]["count"] == 1
    empty = document(Store(tmp_path / "none"), todo, 10, REFERENCE)
    assert empty["fidelity"]["regret"] is empty["fidelity"]["ceiling"] is None
    assert empty["sentences"] == ["0 students were trained in full: too few, or too much alike, to say how well the proxy ranks."]
