from typing import Any

import pytest

from kdsearch import planned
from kdsearch.planned import Costs
from kdsearch.study_file import StudySpec

# A step of a candidate is 3 x 100 x 1e6 FLOPs, 0.3 s; the proxy's 100 steps are 30 s.
COSTS = Costs(rate=1e9, candidates=[0.5e6, 1.5e6], baselines=[2e6, 4e6], teacher=4e10)


def study(**search: Any) -> StudySpec:
    content = {"name": "x", "teacher": {"model": "m"}, "task": {"data": "d"}, "space": "s", "search": {"rungs": (), **search}}
    return StudySpec.model_validate({**content, "proxy": {"steps": 100, "batch_tokens": 100}, "train": {"steps": 200, "batch_tokens": 200}})


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"minutes": 10}, (20, "minutes")),
        ({"minutes": 10, "trials": 7}, (7, "trials")),
        ({"minutes": 10, "trials": 20}, (20, "trials")),
        ({"minutes": 10, "trials": 21}, (20, "minutes")),
        ({"minutes": 10, "flops": 4e10 + 5.5 * 3e10}, (5, "flops")),
        ({"minutes": 10, "flops": 1e10}, (0, "flops")),
        ({"minutes": 10, "rungs": (0.25,), "eta": 3.0}, (40, "minutes")),  # a quarter, and a third of the rest: half the steps
    ],
)
def test_the_budget_that_ends_first_says_how_many_candidates(search: dict[str, Any], expected: tuple[int, str]) -> None:
    plan = planned.plan(study(**search), COSTS)
    assert (plan.candidates, plan.limit) == expected


def test_as_many_go_on_behind_a_rung_as_eta_says() -> None:
    plan = planned.plan(study(minutes=10, rungs=(0.3, 0.4), eta=2.0), COSTS)
    assert plan.seconds == pytest.approx(30 * (0.3 + 0.1 / 2 + 0.6 / 4))
    assert plan.candidates == 40
    assert plan.behind == {30: 20, 40: 10}


def test_finalists_take_their_part_of_the_minutes_and_the_flops_are_those_of_all() -> None:
    plan = planned.plan(study(minutes=40, finalists=2, finalist_seeds=2), COSTS)
    # a full training of 200 steps of twice the tokens is four of the proxy: 1.2e11; of the baselines 2.4e11 and 4.8e11
    assert plan.trainings == 10
    assert plan.finalist_flops == pytest.approx(2 * (3 * 1.2e11 + 7.2e11))
    assert plan.finalists == pytest.approx(2160)
    assert plan.candidates == int((2400 - 1920) / 30)  # more than four fifths is not kept
    assert plan.search_flops == pytest.approx(4e10 + 16 * 3e10)
    assert plan.teacher_flops == 4e10
    longer = planned.plan(study(minutes=60, finalists=2, finalist_seeds=2), COSTS)
    assert longer.candidates == int((3600 - 2160) / 30)
    assert planned.plan(study(minutes=60), COSTS).finalist_flops == planned.plan(study(minutes=60), COSTS).trainings == 0
