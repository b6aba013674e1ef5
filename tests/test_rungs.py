import math
import random

import numpy as np
import pytest

from kdsearch import pareto, rungs
from kdsearch.rungs import Rungs


def points(seed: int, count: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(draw.uniform(0.05, 0.7), draw.uniform(0.05, 0.5)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("eta", [2.0, 3.0, 4.0])
def test_those_on_the_rung_s_front_always_go_on_and_of_the_others_the_best_share(seed: int, eta: float) -> None:
    found = points(seed, 30)
    for index, (divergence, latency) in enumerate(found):
        others = [*found[:index], *found[index + 1 :]]
        on_front = not any(far <= divergence and slow <= latency for far, slow in others)
        if on_front:
            assert Rungs(eta, {10: others}).goes_on(10, divergence, latency)
    kept = sum(Rungs(eta, {10: [*found[:i], *found[i + 1 :]]}).goes_on(10, *found[i]) for i in range(30))
    front = int(pareto.front([-far for far, _ in found], [slow for _, slow in found]).sum())
    assert abs(kept - max(math.ceil(30 / eta), front)) <= 2  # one more or less where two of a front are equally far from the others


@pytest.mark.parametrize("seed", range(20))
def test_what_another_dominates_never_stands_before_it(seed: int) -> None:
    found = np.array(points(seed, 40))
    order = rungs.ranking(-found[:, 0], found[:, 1])
    assert sorted(order) == list(range(40))
    place = {index: position for position, index in enumerate(order)}
    for i in range(40):
        for j in range(40):
            if i != j and (found[i] <= found[j]).all():
                assert place[i] < place[j]


def test_the_fastest_is_not_stopped_by_a_bad_start_nor_the_closest_by_its_latency() -> None:
    others = [(0.2, 0.3), (0.21, 0.31), (0.22, 0.32), (0.23, 0.33)]
    assert Rungs(4.0, {5: others}).goes_on(5, 0.69, 0.1)
    assert Rungs(4.0, {5: others}).goes_on(5, 0.1, 0.5)
    assert not Rungs(4.0, {5: others}).goes_on(5, 0.69, 0.34)


def test_within_a_front_its_ends_come_first_and_neighbours_last() -> None:
    # One front; index 2 stands right beside index 1.
    accuracy, latency = np.array([0.9, 0.8, 0.799, 0.5]), np.array([4.0, 2.0, 1.99, 1.0])
    assert rungs.ranking(accuracy, latency)[:2] == [3, 0]
    assert rungs.ranking(accuracy, latency)[3] in (1, 2)


def test_alone_or_among_equals_everyone_goes_on() -> None:
    assert Rungs(3.0, {5: ()}).goes_on(5, 0.6, 0.4)
    assert Rungs(3.0, {5: [(0.5, 0.3)] * 5}).goes_on(5, 0.5, 0.3)


def test_what_is_not_finite_is_ranked_last() -> None:
    found = np.array([math.nan, 0.5, 0.6])
    assert rungs.ranking(found, np.array([1.0, 2.0, 3.0]))[-1] == 0
    assert not Rungs(2.0, {5: [(0.1, 0.2), (0.2, 0.3)]}).goes_on(5, math.nan, 0.1)


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [
        ((0.25, 0.5), 200, (50, 100)),
        ((0.5, 0.25), 200, (50, 100)),
        ((0.01,), 10, ()),
        ((0.99,), 10, ()),
        ((), 200, ()),
        ((0.3, 0.301), 100, (30,)),
        ((0.1, 0.5), 100, (25, 50)),  # none before 25 steps
        ((0.25,), 50, (25,)),
        ((0.25, 0.5), 20, ()),
    ],
)
def test_rungs_are_shares_of_the_steps(shares: tuple[float, ...], steps: int, expected: tuple[int, ...]) -> None:
    assert rungs.at(shares, steps) == expected
