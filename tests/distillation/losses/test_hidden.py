import math

import pytest
import torch

from kdsearch.distillation import losses

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def states(seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(2, 4, dim, generator=torch.Generator().manual_seed(seed))


def test_values_on_paper():
    student, teacher = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 0]])
    assert losses.hidden_mse(student, teacher, mask).item() == pytest.approx(2.5)
    assert losses.cos(student, teacher, mask).item() == pytest.approx(1.0)
    assert losses.pkd(student, teacher, mask).item() == pytest.approx(2.0)
    assert losses.normalised_mse(student, teacher, mask).item() == pytest.approx(5 / 4)


@pytest.mark.parametrize("loss", [losses.cos, losses.pkd, losses.infonce])
def test_the_scale_of_a_state_does_not_count(loss):
    torch.testing.assert_close(loss(3 * states(0), states(1), MASK), loss(states(0), states(1), MASK))


def test_normalised_mse_is_1_for_a_block_that_is_always_0_and_does_not_see_a_common_scale():
    teacher = states(1)
    torch.testing.assert_close(losses.normalised_mse(torch.zeros_like(teacher), teacher, MASK), torch.ones(2))
    torch.testing.assert_close(
        losses.normalised_mse(5 * states(0), 5 * teacher, MASK), losses.normalised_mse(states(0), teacher, MASK), rtol=1e-5, atol=1e-6
    )


def test_nst_sees_no_rotation_of_the_channels_and_gram_no_rotation_of_the_tokens():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3))).Q
    assert losses.nst(states(0) @ rotation, states(0), MASK).abs().max() < 1e-5
    assert losses.gram(states(0)[:, [2, 0, 1, 3]], states(0), MASK).abs().max() < 1e-5
    assert losses.gram(states(0) @ rotation, states(0), MASK).min() > 1e-3


def test_infonce_of_states_all_alike_is_the_logarithm_of_the_number_of_tokens():
    alike = torch.ones(2, 4, 6)
    torch.testing.assert_close(losses.infonce(alike, states(0), MASK), torch.tensor([math.log(3), math.log(4)]))


def test_fsp_relates_two_layers():
    flow = losses.fsp((states(0), states(1)), (states(0), states(2)), MASK)
    assert losses.fsp((states(0), states(1)), (states(0), states(1)), MASK).abs().max() == 0
    assert flow.min() > 0.01


@pytest.mark.parametrize(
    "loss", [losses.hidden_mse, losses.cos, losses.pkd, losses.normalised_mse, losses.nst, losses.gram, losses.infonce]
)
def test_nan_in_padding_reaches_neither_value_nor_gradient(loss):
    student = states(0).masked_fill(MASK[:, :, None] == 0, math.nan).requires_grad_()
    values = loss(student, states(1).masked_fill(MASK[:, :, None] == 0, math.inf), MASK)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("loss", [losses.hidden_mse, losses.embedding_mse, losses.cos, losses.pkd, losses.normalised_mse, losses.gram])
def test_unlike_sizes_are_refused(loss):
    with pytest.raises(ValueError, match="same hidden size; got 3 and 6; project"):
        loss(states(0, dim=3), states(1), MASK)
    with pytest.raises(ValueError, match="same sequence length; got 3 and 4; tokenise"):
        loss(states(0)[:, :3], states(1), MASK)


def test_pooled_states_leave_padding_out():
    hidden = states(0)
    torch.testing.assert_close(losses.mean_token(hidden, MASK)[0], hidden[0, :3].mean(dim=0))
    assert torch.equal(losses.first_token(hidden, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])), hidden[[0, 1], [1, 0]])
