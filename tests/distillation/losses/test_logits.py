import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.distillation import losses
from tests.distillation.losses import reference


def logits(seed: int, batch: int = 16, classes: int = 5, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, batch, classes, generator=rng)
    return student, teacher


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(3, 8), temperature=st.floats(0.5, 10))
def test_kd_is_target_part_plus_weighted_other_part(seed: int, classes: int, temperature: float):
    student, teacher = logits(seed, classes=classes)
    labels = torch.arange(16) % classes
    target = losses.dkd(student, teacher, labels, alpha=1.0, beta=0.0, temperature=temperature)
    others = losses.dkd(student, teacher, labels, alpha=0.0, beta=1.0, temperature=temperature)
    p_label = (teacher / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(target + (1 - p_label) * others, losses.kd(student, teacher, temperature), rtol=1e-3, atol=1e-5)


def test_kd_of_a_large_temperature_is_half_the_variance_of_the_difference_of_logits():
    student, teacher = logits(0)
    limit = (student - teacher).var(dim=1, correction=0) / 2
    torch.testing.assert_close(losses.kd(student, teacher, 100.0), limit, rtol=0.03, atol=2e-3)


def test_kd_of_one_temperature_is_the_divergence_for_ranking():
    student, teacher = logits(1)
    assert torch.equal(losses.kd(student, teacher), losses.kl(teacher=teacher, student=student))
    assert torch.equal(losses.reverse_kl(student, teacher), losses.kl(teacher=student, student=teacher))


def test_kd_gradient_is_temperature_times_the_difference_of_probabilities():
    student, teacher = logits(2)
    student.requires_grad_()
    losses.kd(student, teacher, 4.0).sum().backward()
    torch.testing.assert_close(student.grad, 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.kd, losses.reverse_kl, losses.jsd])
def test_certain_teachers_give_finite_values(loss):
    """The published slip: the logarithm of what is a logarithm already is NaN."""
    student = torch.tensor([[200.0, 0.0, -200.0], [0.0, 0.0, 0.0]], requires_grad=True)
    values = loss(student, torch.tensor([[-200.0, 0.0, 200.0], [500.0, 0.0, -500.0]]))
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 2.0, 100.0]))
def test_jsd_is_symmetric_and_at_most_ln_2(seed: int, scale: float):
    student, teacher = logits(seed, scale=scale)
    values = losses.jsd(student, teacher)
    torch.testing.assert_close(values, losses.jsd(teacher, student), rtol=1e-4, atol=1e-6)
    assert values.max() <= math.log(2) + 1e-6


def test_jsd_of_disjoint_certainties_is_ln_2():
    apart = torch.tensor([[100.0, -100.0]])
    torch.testing.assert_close(losses.jsd(apart, -apart), torch.tensor([math.log(2)]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(3, 12))
def test_the_mean_of_dist_is_the_published_loss(seed: int, batch: int):
    student, teacher = logits(seed, batch=batch)
    published = reference.dist_mean(student.double().numpy(), teacher.double().numpy(), beta=2.0, gamma=3.0)
    np.testing.assert_allclose(losses.dist(student, teacher, beta=2.0, gamma=3.0).mean(), published, rtol=1e-3, atol=1e-4)


def test_dist_does_not_see_a_positive_affine_map_of_the_probabilities():
    student, teacher = logits(3)
    flatter = (0.3 * student.softmax(1) + 0.7 / 5).log()  # still probabilities
    torch.testing.assert_close(losses.dist(flatter, teacher), losses.dist(student, teacher), rtol=1e-3, atol=1e-5)
    assert losses.dist(flatter, student).abs().max() < 1e-5


def test_dist_of_a_batch_of_one_compares_classes_only():
    student, teacher = logits(4, batch=1)
    torch.testing.assert_close(losses.dist(student, teacher, beta=1.0, gamma=5.0), losses.dist(student, teacher, beta=1.0, gamma=0.0))


@pytest.mark.parametrize("loss", [losses.hard, lambda s, y: losses.dkd(s, s.detach() + torch.randn_like(s), y)])
def test_an_unlabelled_row_gives_0_and_no_gradient(loss):
    student = torch.randn(3, 4, requires_grad=True)
    values = loss(student, torch.tensor([1, -100, 3]))
    values.sum().backward()
    assert values[1] == 0
    assert (values[[0, 2]] > 0).all()
    assert student.grad is not None
    assert (student.grad[1] == 0).all()
    assert torch.equal(loss(student, torch.full((3,), -100)), torch.zeros(3))


def test_dkd_is_continuous_at_the_ends_of_its_knobs():
    student, teacher = logits(5)
    labels = torch.arange(16) % 5
    for knob in ("alpha", "beta"):
        ends = losses.dkd(student, teacher, labels, temperature=4.0, **{knob: 0.0})
        near = losses.dkd(student, teacher, labels, temperature=4.0, **{knob: 1e-6})
        torch.testing.assert_close(ends, near, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "classes", "message"),
    [
        (losses.kd, 1, r"at least 2; got 1; use logit_mse"),
        (losses.jsd, 1, r"at least 2; got 1; use logit_mse"),
        (losses.dist, 2, r"at least 3; got 2; use kd"),
        (lambda s, t: losses.dkd(s, t, torch.zeros(4, dtype=torch.long)), 2, r"at least 3; got 2; use kd"),
        (lambda s, t: losses.kd(s, t, temperature=0.0), 3, r"temperature must be greater than 0; got 0.0"),
    ],
)
def test_refusals_name_rule_values_and_fix(loss, classes: int, message: str):
    with pytest.raises(ValueError, match=message):
        loss(torch.randn(4, classes), torch.randn(4, classes))


@pytest.mark.parametrize("loss", [losses.kd, losses.reverse_kl, losses.jsd, losses.logit_mse, losses.dist])
@pytest.mark.usefixtures("as_installed")
def test_unlike_numbers_of_classes_are_refused_and_not_broadcast(loss):
    with pytest.raises(ValueError, match="same number of classes; got 1 and 3; give both the labels"):
        loss(torch.randn(4, 1), torch.randn(4, 3))
