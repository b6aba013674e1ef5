import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import regression


def test_slopes_and_hc3_errors_equal_the_textbook_formula():
    rng = np.random.default_rng(0)
    columns, n = rng.normal(size=(25, 3)) * [1, 10, 0.01] + [0, 100, 5], 25
    response = columns @ [2.0, -0.1, 30.0] + 7 + rng.normal(size=n) * (1 + columns[:, 0] ** 2)
    design = np.column_stack([np.ones(n), columns])
    bread = np.linalg.inv(design.T @ design)
    slopes = bread @ design.T @ response
    residual = (response - design @ slopes) / (1 - np.diag(design @ bread @ design.T))
    error = np.sqrt(np.diag(bread @ (design.T * residual**2) @ design @ bread))
    found = regression.fit(columns, response)
    np.testing.assert_allclose(found.effect, slopes[1:], rtol=1e-8)
    np.testing.assert_allclose(found.margin, 2.0796138447 * error[1:], rtol=1e-8)  # t(0.975) at 21 degrees of freedom
    assert found.freedom == 21


def test_dropped_columns_name_the_ones_they_are_made_of():
    rng = np.random.default_rng(1)
    a, b, c = rng.normal(size=(3, 30))
    found = regression.fit(np.stack([a, b, 3 * a - 1, np.full(30, 0.1), a + b, c], axis=1), a + c)
    assert found.tied == {2: (0,), 3: (), 4: (0, 1)}
    assert np.isnan(found.effect[[2, 3, 4]]).all()
    np.testing.assert_allclose(found.effect[[0, 1, 5]], [1, 0, 1], atol=1e-10)
    assert found.freedom == 30 - 1 - 3


def test_a_slope_that_rests_on_one_observation_has_no_interval_and_spoils_no_other():
    rng = np.random.default_rng(2)
    a, alone = rng.normal(size=30), np.eye(30)[7]
    response = a + rng.normal(size=30)
    both, without = regression.fit(np.stack([a, alone], axis=1), response), regression.fit(np.delete(a, 7)[:, None], np.delete(response, 7))
    assert np.isnan(both.margin[1])
    assert np.isnan(both.p_value[1])
    np.testing.assert_allclose(both.margin[0], without.margin[0], rtol=1e-8)


def test_a_response_that_does_not_vary_shows_nothing():
    found = regression.fit(np.random.default_rng(3).normal(size=(20, 2)), np.full(20, 83.1))
    assert found.effect.tolist() == [0, 0]
    assert found.p_value.tolist() == [1, 1]


def test_no_columns_and_no_freedom():
    assert regression.fit(np.zeros((5, 0)), np.arange(5.0)).freedom == 4
    saturated = regression.fit(np.eye(3)[:, :2], np.arange(3.0))
    assert saturated.freedom == 0
    assert np.isnan(saturated.p_value).all()


def test_holm_by_hand():
    assert regression.holm([0.04, 0.01, float("nan"), 0.03]) == pytest.approx([0.06, 0.03, float("nan"), 0.06], nan_ok=True)
    assert regression.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_raises_keeps_order_and_is_at_most_bonferroni(p_values):
    corrected = regression.holm(p_values)
    assert all(p <= q <= min(1.0, len(p_values) * p) + 1e-12 for p, q in zip(p_values, corrected, strict=True))
    assert all(q1 <= q2 for p1, q1 in zip(p_values, corrected, strict=True) for p2, q2 in zip(p_values, corrected, strict=True) if p1 <= p2)
