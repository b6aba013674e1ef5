import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdsearch.tasks import metrics

LOGITS = arrays(np.float32, (5, 3), elements=st.floats(-20, 20, width=32))


def test_accuracy_and_its_standard_error() -> None:
    share, error = metrics.accuracy(np.array([0, 1, 1, 0, 1]), np.array([0, 1, 1, 1, 0]))
    assert share == pytest.approx(0.6)
    assert error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


def test_the_standard_errors_are_the_spread_of_repeated_measurements() -> None:
    random = np.random.default_rng(0)
    shares = [metrics.accuracy((random.random(200) < 0.8).astype(int), np.ones(200)) for _ in range(2000)]
    assert np.std([share for share, _ in shares]) == pytest.approx(np.mean([error for _, error in shares]), rel=0.06)
    means = [metrics.mean(random.exponential(size=100)) for _ in range(2000)]
    assert np.std([value for value, _ in means]) == pytest.approx(np.mean([error for _, error in means]), rel=0.06)


def test_one_value_has_no_standard_error() -> None:
    value, error = metrics.mean(np.array([3.0]))
    assert value == 3.0
    assert np.isnan(error)


@given(LOGITS, LOGITS)
def test_kl_is_that_of_torch_never_negative_and_0_at_equality(teacher: np.ndarray, student: np.ndarray) -> None:
    found = metrics.kl(teacher, student)
    log_p, log_q = (torch.from_numpy(logits).double().log_softmax(1) for logits in (teacher, student))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found >= -1e-12).all()
    np.testing.assert_array_equal(metrics.kl(teacher, teacher), 0)


def test_kl_names_the_teacher_first() -> None:
    sure, open_ = np.array([[5.0, 0.0]]), np.array([[0.0, 0.0]])
    p = 1 / (1 + np.exp(-5))
    assert metrics.kl(sure, open_)[0] == pytest.approx(p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))
    assert metrics.kl(sure, open_)[0] != pytest.approx(metrics.kl(open_, sure)[0], rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 5), st.floats(-2, 2), st.integers(0, 100))
def test_the_calibrated_divergence_does_not_see_confidence_nor_a_preference_for_a_class(factor, bias, seed):
    random = np.random.default_rng(seed)
    teacher = random.normal(size=(200, 3))
    student = teacher + 0.5 * random.normal(size=teacher.shape)
    found = metrics.calibrated_kl(teacher, student)
    assert metrics.calibrated_kl(teacher, factor * student + np.array([bias, 0.0, -bias])) == pytest.approx(found, abs=2e-4)
    assert -1e-9 <= found <= metrics.kl(teacher, student).mean() + 1e-9
    assert metrics.calibrated_kl(teacher, factor * teacher + bias) == pytest.approx(0, abs=2e-4)


def test_who_answers_the_opposite_is_as_far_as_who_says_nothing() -> None:
    teacher = np.random.default_rng(0).normal(size=(200, 2))
    assert metrics.calibrated_kl(teacher, -teacher) == pytest.approx(metrics.calibrated_kl(teacher, np.zeros_like(teacher)), abs=1e-6)


def test_log_loss_of_a_fair_guess_is_the_logarithm_of_the_classes():
    middle, error = metrics.log_loss(np.zeros((10, 4)), np.arange(10) % 4)
    assert middle == pytest.approx(np.log(4))
    assert error == pytest.approx(0)
