import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdsearch.distillation.loop import DivergedError, Schedule, fit, rate
from kdsearch.tasks.batches import Batch
from tests import tiny


def same_batch() -> Iterator[Batch]:
    while True:
        yield tiny.batch([3])


def unheard(step: int) -> bool:
    return True


def line(model: nn.Module) -> torch.Tensor:
    """(model(x) - 3 x - 1)^2 at some points: what fitting a line lowers."""
    x = torch.linspace(-1, 1, 8)[:, None]
    return (model(x) - (3 * x + 1)).square()[:, 0]


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (100, 0.0), (7, 0.5), (1, 0.1), (2, 0.9)])
def test_the_rate_rises_to_1_and_falls_to_0_by_equal_steps(steps: int, warmup: float) -> None:
    rates = [rate(step, steps, warmup) for step in range(steps + 1)]
    rising = max(1, round(warmup * steps))
    assert rates[rising - 1] == 1.0
    assert rates[steps] == 0.0
    assert all(0 < share <= 1 for share in rates[:-1])
    rises = [later - earlier for earlier, later in pairwise([0.0, *rates[:rising]])]
    falls = [earlier - later for earlier, later in pairwise(rates[rising:])]
    assert rises == pytest.approx([1 / rising] * rising)
    assert falls == pytest.approx([1 / (steps - rising)] * (steps - rising) if steps > rising else [])


def test_fitting_lowers_the_loss_and_tells_every_step() -> None:
    torch.manual_seed(0)
    model, told = nn.Linear(1, 1), []
    losses = fit([model], lambda _, __: line(model), same_batch(), Schedule(150, 0.1, 0.1), "cpu", lambda step: told.append(step) is None)
    assert len(losses) == 150
    assert told == list(range(1, 151))
    assert losses[-1] < losses[0] / 50
    assert losses[0] != losses[1]


def test_what_is_frozen_stays_as_it_is_and_every_module_given_learns() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(1, 4), nn.Linear(4, 1)
    first.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in [*first.named_parameters("first"), *second.named_parameters("second")]}
    fit([first, second], lambda _, __: line(nn.Sequential(first, second)), same_batch(), Schedule(5, 0.1, 0.1), "cpu", unheard)
    after = dict([*first.named_parameters("first"), *second.named_parameters("second")])
    unchanged = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert unchanged == {"first.weight"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_at_that_step(bad: float) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(DivergedError, match="step 3 of 10; a lower learning_rate is the usual fix"):
        fit([model], lambda _, step: line(model) * (bad if step == 3 else 1), same_batch(), Schedule(10, 1e-3, 0.1), "cpu", unheard)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_one_wild_batch_moves_the_weights_no_further_than_the_rate() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    fit([model], lambda _, __: 1e12 * line(model), same_batch(), Schedule(1, 0.01, 0.0), "cpu", unheard)
    assert 0 < (model.weight.detach() - before).abs().item() < 0.02
