import pytest
import torch

from kdsearch.distillation import losses
from kdsearch.distillation.losses import QKV

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def qkv(seed: int, heads: int = 4, head_size: int = 6) -> QKV:
    rng = torch.Generator().manual_seed(seed)
    return QKV(*torch.randn(3, 2, heads, 4, head_size, generator=rng))


def test_scores_are_the_scaled_products_before_the_softmax():
    x = qkv(0)
    assert losses.scores(x.q, x.k)[1, 2, 0, 3].item() == pytest.approx((x.q[1, 2, 0] @ x.k[1, 2, 3]).item() / 6**0.5, rel=1e-5)


def test_very_negative_scores_of_tokens_count():
    """The published slip: scores under -100 taken for padding and set to 0."""
    student, teacher = torch.full((1, 1, 1, 1), -500.0), torch.full((1, 1, 1, 1), -510.0)
    assert losses.attention_mse(student, teacher, torch.ones(1, 1, dtype=torch.long)).item() == 100


def test_attention_mse_sees_the_order_of_heads_and_attention_mean_does_not():
    a = losses.scores(qkv(0).q, qkv(0).k)
    turned = a.flip(1)
    assert losses.attention_mse(turned, a, MASK).min() > 0.1
    assert losses.attention_mean(turned, a, MASK).abs().max() < 1e-6
    assert losses.attention_mean_mse(turned, a, MASK).abs().max() < 1e-6


def test_attention_mean_does_not_grow_with_the_number_of_heads():
    s, t = losses.scores(qkv(0).q, qkv(0).k), losses.scores(qkv(1).q, qkv(1).k)
    torch.testing.assert_close(losses.attention_mean(s.repeat(1, 3, 1, 1), t, MASK), losses.attention_mean(s, t, MASK))


def test_attention_kl_does_not_see_a_shift_of_a_query_s_scores():
    a = losses.scores(qkv(0).q, qkv(0).k)
    assert losses.attention_kl(a + torch.randn(2, 4, 4, 1), a, MASK).abs().max() < 1e-5


def test_attention_kl_is_finite_for_scores_far_apart():
    far = torch.tensor([[[[1e4, -1e4], [-1e4, 1e4]]]])
    assert losses.attention_kl(far, -far, torch.ones(1, 2, dtype=torch.long)).isfinite().all()


def test_minilm_compares_the_values_too():
    student = qkv(0)
    values_only = losses.minilm(student._replace(v=qkv(1).v), student, MASK)
    assert values_only.min() > 0.01
    assert losses.minilm(student, student, MASK).abs().max() < 1e-6


def test_minilmv2_does_not_see_a_rotation_within_each_relation_head():
    teacher, rng = qkv(0), torch.Generator().manual_seed(9)
    blocks = [torch.linalg.qr(torch.randn(3, 3, generator=rng)).Q for _ in range(8)]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        flat = x.transpose(1, 2).flatten(2) @ torch.block_diag(*blocks)
        return flat.unflatten(2, (4, 6)).transpose(1, 2)

    student = QKV(*map(rotated, teacher))
    assert losses.minilmv2(student, teacher, MASK, relation_heads=8).abs().max() < 1e-5
    assert losses.minilmv2(student, teacher, MASK, relation_heads=12).min() > 1e-3


def test_minilmv2_does_not_see_how_the_width_is_split_into_heads():
    a = qkv(0, heads=2, head_size=12)
    b = QKV(*(x.transpose(1, 2).flatten(2).unflatten(2, (6, 4)).transpose(1, 2) for x in a))
    assert losses.minilmv2(a, b, MASK, relation_heads=3).abs().max() < 1e-5


@pytest.mark.parametrize("relation_heads", [0, 7])
def test_minilmv2_refuses_relation_heads_that_do_not_divide(relation_heads: int):
    with pytest.raises(ValueError, match=rf"must divide the student's hidden size; got {relation_heads} for 24; the nearest is [16]"):
        losses.minilmv2(qkv(0), qkv(1, heads=7), MASK, relation_heads=relation_heads)


@pytest.mark.usefixtures("as_installed")
def test_losses_per_head_refuse_unlike_numbers_of_heads():
    student, teacher = qkv(0, heads=1), qkv(1)
    a, b = losses.scores(student.q, student.k), losses.scores(teacher.q, teacher.k)
    for refused in (
        lambda: losses.attention_mse(a, b, MASK),
        lambda: losses.attention_kl(a, b, MASK),
        lambda: losses.minilm(student, teacher, MASK),
    ):
        with pytest.raises(ValueError, match=r"same number of heads; got 1 and 4; .*attention_mean or minilmv2"):
            refused()
