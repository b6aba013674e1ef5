import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import pareto

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from optuna._hypervolume import compute_hypervolume

# A coarse grid, so that ties and copies are the rule and not the exception.
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=0, max_size=12)
REFERENCE = (2.0, 5.0)


def split(points):
    return np.array([a for a, _ in points], dtype=float), np.array([t for _, t in points], dtype=float)


def dominates(p, q):
    return p[0] >= q[0] and p[1] <= q[1] and p != q


@given(POINTS)
def test_front_is_what_brute_force_finds(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.front(*split(points)).tolist() == expected


@given(POINTS)
def test_hypervolume_is_the_number_of_dominated_unit_cells(points):
    cells = sum(any(a >= high and t <= low for a, t in points) for high in range(3, 7) for low in range(1, 5))
    assert pareto.hypervolume(*split(points), REFERENCE) == pytest.approx(cells)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.5, 1), st.floats(0.01, 1)), min_size=1, max_size=20))
def test_hypervolume_agrees_with_optuna(points):
    accuracy, latency = split(points)
    losses = np.stack([-accuracy, latency], axis=1)
    expected = compute_hypervolume(losses, np.array([-0.5, 1.0]))
    assert pareto.hypervolume(accuracy, latency, (0.5, 1.0)) == pytest.approx(expected, abs=1e-12)


def test_copies_stay_and_ties_are_exact():
    #          A copy  copy  slower tie  less accurate tie
    accuracy = [0.8, 0.8, 0.8, 0.7]
    latency = [1.0, 1.0, 1.1, 1.0]
    assert pareto.front(accuracy, latency).tolist() == [True, True, False, False]


@pytest.mark.parametrize("bad", [(np.nan, 1.0), (0.9, np.nan), (np.inf, 1.0), (0.9, -np.inf)])
def test_a_point_that_is_not_finite_is_never_on_the_front(bad):
    accuracy, latency = split([bad, (0.5, 2.0)])
    assert pareto.front(accuracy, latency).tolist() == [False, True]
    assert pareto.picks(accuracy, latency) == {"knee": 1, "fastest": 1, "best": 1}


def test_points_worse_than_the_reference_add_nothing():
    assert pareto.hypervolume([0.4, 0.9], [0.5, 1.5], (0.5, 1.0)) == 0.0
    assert pareto.hypervolume([], [], (0.5, 1.0)) == 0.0


def test_knee_is_the_bend():
    latency = [0.1, 0.2, 0.4, 0.8]
    assert pareto.knee([0.60, 0.85, 0.87, 0.88], latency) == 1
    assert pareto.knee([0.60, 0.62, 0.86, 0.88], latency) == 2


@given(POINTS.filter(lambda points: len(points) > 0), st.floats(0.1, 10))
def test_knee_does_not_depend_on_units(points, factor):
    accuracy, latency = split(points)
    assert pareto.front(accuracy, latency)[pareto.knee(accuracy, latency)]
    bend = pareto.knee([0.60, 0.85, 0.87, 0.88], np.array([0.1, 0.2, 0.4, 0.8]) * factor)
    assert bend == 1


@pytest.mark.parametrize(
    ("accuracy", "latency", "expected"),
    [
        ([0.7], [1.0], 0),
        ([0.7, 0.9], [1.0, 2.0], 1),
        ([0.7, 0.71, 0.9], [1.0, 1.9, 2.0], 2),  # convex: no point above the chord
        ([0.9, 0.9], [1.0, 1.0], 0),  # copies: the earlier one
    ],
)
def test_knee_without_a_bend_is_the_most_accurate_point(accuracy, latency, expected):
    assert pareto.knee(accuracy, latency) == expected


def test_knee_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one finite point"):
        pareto.knee([np.nan], [1.0])


def test_picks_and_limits():
    accuracy, latency = [0.6, 0.85, 0.87, 0.5], [0.1, 0.2, 0.8, 0.3]
    assert pareto.picks(accuracy, latency) == {"knee": 1, "fastest": 0, "best": 2}
    assert pareto.picks([], []) == {}
