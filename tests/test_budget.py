from dataclasses import replace
from pathlib import Path

import pytest

from kdsearch import budget, check, session
from kdsearch.budget import Full, Work
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement, Record
from kdsearch.study_file import Search, StudySpec
from tests import tiny

SPEC = StudySpec.model_validate(
    {
        "name": "x",
        "teacher": {"model": "m"},
        "task": {"data": "d"},
        "space": "s",
        "target": {"batch_size": 2, "sequence_length": 16},
        "proxy": {"batch_tokens": 1000},
    }
)
FACTS = {
    "teacher": {"flops": 64e6},
    "task": {"train": 50, "transfer": 30, "validation": 15, "held_out": 5, "test": 1000, "tokens_per_row": 12.5, "told_tokens": 1250},
}


def trial(seconds: float, steps: int = 100, training: float | None = None, state: str = COMPLETE) -> Measurement:
    return Measurement(state, steps=steps, seconds=seconds, stages={} if training is None else {"training": training}, flops=32e6)


def test_a_trial_is_charged_as_far_as_it_came_and_the_teacher_once_for_all_rows_that_it_answers() -> None:
    how = budget.work(SPEC, FACTS)
    assert how == Work(1000, 32, 2e6 * 100 * 12.5)
    assert budget.trial_flops(trial(1.0), how) == 3 * 1e6 * 1000 * 100
    assert budget.trial_flops(trial(1.0, steps=25, state=STOPPED), how) == 3 * 1e6 * 1000 * 25
    assert budget.trial_flops(Measurement(REFUSED, flops=32e6), how) == budget.trial_flops(Measurement(REFUSED), how) == 0
    known = [Record(0, {}, trial(1.0), 0, "no-kd"), Record(1, {}, trial(1.0, 25), 0), Record(2, {}, trial(1.0), 0, duplicate_of=0)]
    assert budget.trained_flops(known, how) == pytest.approx(3e9 * 125)
    assert budget.flops(known, how) == pytest.approx(3e9 * 125 + 2.5e9)
    assert budget.flops([], how) == 2.5e9
    assert budget.used_up(known, Search(flops=3.77e11), how)
    assert not budget.used_up(known, Search(flops=3.78e11), how)
    assert not budget.used_up(known, Search(), how)


def test_a_full_training_takes_its_steps_at_the_trial_s_pace_and_the_rest_once() -> None:
    full = Full(students=1, seeds=1, steps=1000, heavier=2.0)
    assert budget.seconds_in_full(trial(13.0, 100, training=10.0), full) == pytest.approx(10.0 / 100 * 1000 * 2 + 3.0)
    assert budget.seconds_in_full(trial(10.0, 100), full) == pytest.approx(200.0)


def test_who_is_not_found_yet_counts_as_the_mean_of_those_who_are() -> None:
    full = Full(students=5, seeds=2, steps=1000)
    chosen, others = [trial(10.0), trial(20.0)], [trial(90.0)]
    assert budget.seconds_for_finalists(chosen, [], [], [*chosen, *others], full) == pytest.approx(2 * (100 + 200 + 3 * 150))
    assert budget.seconds_for_finalists(chosen, others, [], [*chosen, *others], full) == pytest.approx(2 * (100 + 200 + 3 * 150 + 900))
    assert budget.seconds_for_finalists([], [], [], [*chosen, *others], full) == pytest.approx(2 * 5 * 400)
    assert budget.seconds_for_finalists([], [], [1e6], [trial(5.0, 0)], full) == budget.seconds_for_finalists([], [], [], [], full) == 0.0
    assert budget.seconds_for_finalists([], [], [], [trial(10.0)] * 7, full) == pytest.approx(2 * 5 * 100)
    many = [trial(10.0)] * 6  # a baseline that is a finalist too: no fewer than there are
    assert budget.seconds_for_finalists(many, [], [], many, full) == pytest.approx(2 * 6 * 100)
    side_by_side = [budget.seconds_for_finalists(chosen, [], [], chosen, replace(full, workers=count)) for count in (2, 100)]
    assert side_by_side == pytest.approx([750, 150])  # no more at once than there are trainings


def test_who_has_no_trial_counts_by_the_line_of_seconds_over_flops() -> None:
    full = Full(students=2, seeds=1, steps=1000)
    line = [replace(trial(2.0 + flops), flops=flops * 1e6) for flops in (1.0, 2.0, 4.0)]  # a fixed cost, and one that grows
    assert budget.seconds_by_flops(9e6, line, full) == pytest.approx(10 * 11.0)
    assert budget.seconds_for_finalists(line[:2], [], [9e6, 1e6], line, full) == pytest.approx(10 * (3.0 + 4.0 + 11.0 + 3.0))
    falling = [replace(one, flops=10e6 - (one.flops or 0.0)) for one in line]
    unknown = [replace(one, flops=None) for one in line]
    for some in (falling, unknown, [line[1], line[1]], [replace(line[0], steps=0), line[1]]):
        assert budget.seconds_by_flops(9e6, some, full) == pytest.approx(
            sum(10 * one.seconds for one in some if one.steps) / sum(one.steps > 0 for one in some)
        )


def test_a_fifth_of_the_minutes_is_searched_in_any_case() -> None:
    plan = Search(minutes=10)
    assert [budget.seconds_kept(seconds, plan) for seconds in (0.0, 100.0, 480.0, 481.0, 1e6)] == [0.0, 100.0, 480.0, 480.0, 480.0]


def test_a_study_goes_on_with_another_budget_and_not_with_another_search(tmp_path: Path) -> None:
    content = tiny.study(tmp_path)

    def fingerprint(**search: object) -> dict[str, object]:
        return session.fingerprint(check.open_files(tiny.write_yaml(tmp_path / "study.yaml", {**content, "search": search})))

    first = fingerprint()
    budgets = {"minutes": 1, "trials": 3, "flops": 1e15, "finalists": 3, "finalist_seeds": 1, "workers": 2}
    assert all(fingerprint(**{name: value}) == first for name, value in budgets.items())
    assert fingerprint(eta=2) != first
