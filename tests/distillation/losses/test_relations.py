import pytest
import torch

from kdsearch.distillation import losses


def points(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(x: torch.Tensor) -> torch.Tensor:
    """Rotated, scaled and shifted: the shape of the cloud of points stays."""
    return 3 * x @ torch.linalg.qr(points(9, x.shape[-1], x.shape[-1])).Q + 5


@pytest.mark.parametrize(
    "loss", [losses.rkd, lambda s, t: losses.layer_relation(s[:, None, None], t[:, None, None], torch.ones(1, 1).bool())]
)
def test_relations_do_not_see_where_the_points_are_nor_their_scale(loss):
    x = points(0, 6, 4)
    assert loss(moved(x), x).abs().max() < 1e-4
    assert loss(points(1, 6, 4), x).min() > 1e-3


def test_word_relation_does_not_see_where_the_words_are_nor_their_scale():
    x, mask = points(0, 2, 5, 4), torch.ones(2, 5).bool()
    assert losses.word_relation(moved(x), x, mask, window=9).abs().max() < 1e-4


def test_similarity_does_not_see_rotation_and_scale():
    x = points(0, 6, 4)
    assert losses.similarity(2 * x @ torch.linalg.qr(points(9, 4, 4)).Q, x).abs().max() < 1e-6


def test_a_batch_of_one_or_of_equal_examples_gives_finite_values_and_gradients():
    for student in (points(0, 1, 4), torch.ones(3, 4)):
        student.requires_grad_()
        teacher = points(1, len(student), 6)
        values = losses.rkd(student, teacher) + losses.similarity(student, teacher)
        values.sum().backward()
        assert values.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()
    assert losses.rkd(points(0, 1, 4), points(1, 1, 6)).item() == 0


def test_words_out_of_the_window_make_no_angle():
    s, t, mask = points(0, 1, 6, 4), points(1, 1, 6, 4), torch.ones(1, 6).bool()
    alone = losses.word_relation(s, t, mask, window=1, angle=100.0)
    torch.testing.assert_close(alone, losses.word_relation(s, t, mask, window=1, angle=0.0))
    assert losses.word_relation(s, t, mask, window=3, angle=100.0) > alone


def test_one_layer_has_no_layer_relation():
    mask = torch.ones(2, 3).bool()
    assert torch.equal(losses.layer_relation(points(0, 1, 2, 3, 4), points(1, 1, 2, 3, 6), mask), torch.zeros(2))


@pytest.mark.parametrize("window", [0, 4, -1])
def test_an_even_window_is_refused(window: int):
    with pytest.raises(ValueError, match=rf"window must be an odd number of words.*; got {window}; use"):
        losses.word_relation(points(0, 1, 3, 4), points(1, 1, 3, 4), torch.ones(1, 3).bool(), window=window)


@pytest.mark.usefixtures("as_installed")
def test_unlike_numbers_of_layers_and_tokens_are_refused():
    mask = torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match="same number of layers; got 2 and 3; stack the matched layers"):
        losses.ckd(points(0, 2, 2, 3, 4), points(1, 3, 2, 3, 4), mask)
    with pytest.raises(ValueError, match="same sequence length; got 3 and 5"):
        losses.word_relation(points(0, 2, 3, 4), points(1, 2, 5, 4), mask)
