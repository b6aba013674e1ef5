import pytest
import torch

from kdsearch.candidate import Recipe, Term
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes, guess, signals_of, teacher_signals
from kdsearch.distillation.losses import QKV
from kdsearch.distillation.matching import MATCHINGS, plan
from tests import tiny

LENGTHS = [3, 5]


def told(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_a_guess_is_the_mean_over_rows_of_what_a_row_has_once() -> None:
    logits = told(2, 4)
    for kind in ("logits", "pooled"):
        torch.testing.assert_close(guess(kind, logits, tiny.batch(LENGTHS)), logits.mean(dim=0).expand(2, 4))


@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_a_guess_is_the_mean_over_tokens_and_never_over_padding(garbage: float) -> None:
    batch, states, per_head, scores = tiny.batch(LENGTHS), told(2, 5, 4), told(2, 3, 5, 4), told(2, 3, 5, 5)
    states[0, 3:], per_head[0, :, 3:], scores[0, :, 3:], scores[0, :, :, 3:] = garbage, garbage, garbage, garbage
    tokens = torch.cat([states[0, :3], states[1]])
    torch.testing.assert_close(guess("hidden", states, batch), tokens.mean(dim=0).expand(2, 5, 4))
    of_head = torch.cat([per_head[0, :, :3], per_head[1]], dim=1).mean(dim=1)
    for part in guess("qkv", QKV(per_head, per_head, per_head), batch):
        torch.testing.assert_close(part, of_head[None, :, None].expand(2, 3, 5, 4))
    of_pairs = torch.cat([scores[0, :, :3, :3].flatten(1), scores[1].flatten(1)], dim=1).mean(dim=1)
    torch.testing.assert_close(guess("scores", scores, batch), of_pairs[None, :, None, None].expand(2, 3, 5, 5))


def test_every_term_says_what_it_needs_of_both_models() -> None:
    shapes = Shapes(tiny.narrower(layers=2), tiny.SHAPE, 2)
    assert signals_of(Term("kd"), shapes, of_teacher=True) == {"logits"}
    assert signals_of(Term("cos"), shapes, of_teacher=False) == {"hidden.0", "hidden.1"}
    assert signals_of(Term("cos"), shapes, of_teacher=True) == {"hidden.1", "hidden.3"}
    assert signals_of(Term("cos", knobs=(("matching", ((-1, -2),)),)), shapes, of_teacher=True) == {"hidden.2"}
    recipe = Recipe("x", 1.0, (Term("kd"), Term("minilm"), Term("embedding_mse")))
    assert teacher_signals(recipe, shapes) == {"logits", "query.3", "key.3", "value.3", "hidden.embedding"}


def test_a_redrawn_matching_never_asks_a_student_for_another_layer_than_it_said() -> None:
    """The contract that :func:`signals_of` rests on: an epoch changes the teacher's layers only."""
    for name in [name for name, matching in MATCHINGS.items() if matching.redrawn]:
        assert len({tuple(pair.student for pair in plan(name, 3, 6, seed=1, epoch=epoch)) for epoch in range(20)}) == 1


def test_knobs_are_those_of_the_loss_with_the_matching_and_where_a_temperature_goes() -> None:
    assert KNOWLEDGE["kd"].knobs == {"temperature": 1.0, "temperature_end": None}
    assert KNOWLEDGE["infonce"].knobs == {"matching": "uniform", "temperature": 0.1, "temperature_end": None}
    assert KNOWLEDGE["logit_mse"].knobs == KNOWLEDGE["embedding_mse"].knobs == {}
    assert KNOWLEDGE["rkd"].knobs == {"matching": "last_only", "distance": 25.0, "angle": 50.0}
