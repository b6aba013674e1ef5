from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.candidate import Recipe
from kdsearch.finalists import contributions, finalists, twin_without_kd
from kdsearch.pareto import front
from kdsearch.records import COMPLETE, REFUSED, Measurement, Record
from tests import tiny


def record(trial: int, accuracy: float, latency: float, error: float = 0.01, **more: object) -> Record:
    found = Measurement(COMPLETE, accuracy=accuracy, accuracy_se=error, latency_relative=latency)
    return replace(Record(trial, {}, found, 0), **more)


FRONT = [record(0, 0.70, 0.1), record(1, 0.80, 0.3), record(2, 0.81, 0.5)]


def trials(found: list[Record]) -> list[int]:
    return [one.trial for one in found]


def test_the_front_comes_first_by_what_it_would_lose() -> None:
    # without 0: (0.70 - 0) * 0.2 = 0.14; without 1: 0.1 * 0.2 = 0.02; without 2: 0.01 * 0.5 = 0.005
    assert trials(finalists(FRONT, 10)) == [0, 1, 2]
    assert trials(finalists(FRONT, 2)) == [0, 1]
    assert trials(finalists(FRONT, 2, reference=(0.69, 1.0))) == [1, 2]  # 0 now loses 0.01 * 0.2
    np.testing.assert_allclose(contributions([0.7, 0.8, 0.81], [0.1, 0.3, 0.5], (0.0, 1.0)), [0.14, 0.02, 0.005])


def test_behind_the_front_overlapping_intervals_come_nearest_first() -> None:
    behind = [
        record(3, 0.765, 0.31),  # 0.035 behind: overlaps
        record(4, 0.755, 0.31),  # 0.045: does not
        record(5, 0.69, 0.2),  # held against the front as fast as it, 0.70
        record(6, 0.791, 0.6, error=0.0),  # 0.019 behind, within 1.96 x 0.01
        record(7, 0.785, 0.6, error=0.0),  # 0.025, is not
    ]
    assert trials(finalists([*behind, *FRONT], 10)) == [0, 1, 2, 5, 6, 3]
    assert trials(finalists([*behind, *FRONT], 4)) == [0, 1, 2, 5]


def test_who_cannot_stand_on_a_front_is_no_finalist() -> None:
    measured = FRONT[1].measurement
    others = [
        replace(FRONT[1], trial=3, duplicate_of=1),
        replace(FRONT[1], trial=4, measurement=replace(measured, accuracy=0.99, violations=(0.1,))),
        replace(FRONT[1], trial=5, measurement=Measurement(REFUSED)),
        record(6, 0.79, 0.3, baseline="distilbert"),  # a near neighbour that is trained in any case
        record(7, 0.81, 0.5, baseline="no-kd"),  # as good as one of the front
    ]
    assert sorted(trials(finalists([*FRONT, *others], 10))) == [0, 1, 2, 7]
    assert finalists([], 3) == []


@given(st.lists(st.tuples(st.floats(0.1, 0.99), st.floats(0.01, 0.99)), min_size=1, max_size=12), st.integers(1, 14))
def test_so_many_of_the_front_as_fit_and_never_another_before_them(points: list[tuple[float, float]], count: int) -> None:
    found = finalists([record(trial, *point) for trial, point in enumerate(points)], count)
    on = set(np.flatnonzero(front(*zip(*points, strict=True))))
    chosen = trials(found)
    assert len(set(chosen)) == len(chosen) <= count
    assert set(chosen[: len(on)]) <= on
    assert len(on & set(chosen)) == min(len(on), count)


def test_the_twin_differs_in_its_recipe_alone() -> None:
    candidate = replace(tiny.same_shape(), distillation=tiny.recipe("kd", 0.3))
    twin = twin_without_kd(candidate)
    assert twin.distillation == Recipe("none", 1.0)
    assert replace(twin, distillation=candidate.distillation) == candidate
    assert twin_without_kd(twin) == twin
