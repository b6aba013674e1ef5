import math
from collections.abc import Container, Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdsearch.distillation.loop import DivergedError, Schedule, Shown, always, fit, rate
from kdsearch.tasks.batches import Batch
from tests import tiny


def same_batch() -> Iterator[Batch]:
    while True:
        yield tiny.batch([3])


def line(model: nn.Module) -> torch.Tensor:
    """(model(x) - 3 x - 1)^2 at some points: what fitting a line lowers."""
    x = torch.linspace(-1, 1, 8)[:, None]
    return (model(x) - (3 * x + 1)).square()[:, 0]


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (100, 0.0), (7, 0.5), (1, 0.1), (2, 0.9)])
def test_the_rate_rises_to_1_and_falls_to_0_by_equal_steps(steps: int, warmup: float) -> None:
    schedule = Schedule(steps, 1e-3, warmup)
    rates = [rate(step, schedule) for step in range(steps + 1)]
    rising = max(1, round(warmup * steps))
    assert rates[rising - 1] == 1.0
    assert rates[steps] == 0.0
    assert all(0 < share <= 1 for share in rates[:-1])
    rises = [later - earlier for earlier, later in pairwise([0.0, *rates[:rising]])]
    falls = [earlier - later for earlier, later in pairwise(rates[rising:])]
    assert rises == pytest.approx([1 / rising] * rising)
    assert falls == pytest.approx([1 / (steps - rising)] * (steps - rising) if steps > rising else [])


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (7, 0.5), (1, 0.1)])
def test_where_weights_are_averaged_the_rate_rises_alike_and_stays(steps: int, warmup: float) -> None:
    falling, staying = Schedule(steps, 1e-3, warmup), Schedule(steps, 1e-3, warmup, averaged=True)
    rising = max(1, round(warmup * steps))
    assert [rate(step, staying) for step in range(rising)] == [rate(step, falling) for step in range(rising)]
    assert [rate(step, staying) for step in range(rising, steps)] == [1.0] * (steps - rising)


def test_an_averaged_training_is_judged_at_every_step_by_what_a_training_that_ends_there_returns() -> None:
    def fitted(steps: int, looks: Container[int]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        torch.manual_seed(0)
        model, seen = nn.Linear(1, 1), dict[int, torch.Tensor]()

        def look(step: int, shown: Shown) -> bool:
            if step in looks:
                with shown():
                    seen[step] = model.weight.detach().clone()
            return step < steps

        fit([model], lambda _, __: line(model), same_batch(), Schedule(100, 0.05, 0.1, averaged=True), "cpu", look)
        return model.weight.detach(), seen

    _, on_the_way = fitted(60, range(61))
    for steps in (1, 9, 30, 60):
        end, seen = fitted(steps, ())
        assert not seen
        assert torch.equal(end, on_the_way[steps])  # being looked at has changed nothing


def test_the_mean_of_a_second_stage_has_forgotten_the_first() -> None:
    def fitted(first: float, restart: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(1, 1, bias=False)

        def loss(_: Batch, step: int) -> torch.Tensor:
            if step <= 10:
                nn.init.constant_(model.weight, first if step < 10 else 0.0)
            return line(model) * float(step >= 10)  # the first stage leaves no trace in the optimizer

        fit([model], loss, same_batch(), Schedule(20, 0.05, 0.0, averaged=True, restart=restart), "cpu", always)
        return model.weight.detach()

    assert torch.equal(fitted(0.0, restart=10), fitted(1000.0, restart=10))
    assert fitted(1000.0, restart=0) > 10 > fitted(1000.0, restart=10) > 0


def test_fitting_lowers_the_loss_and_tells_every_step() -> None:
    torch.manual_seed(0)
    model, told = nn.Linear(1, 1), []
    losses = fit(
        [model], lambda _, __: line(model), same_batch(), Schedule(150, 0.1, 0.1), "cpu", lambda step, _: told.append(step) is None
    )
    assert len(losses) == 150
    assert told == list(range(1, 151))
    assert losses[-1] < losses[0] / 50
    assert losses[0] != losses[1]


def test_what_is_frozen_stays_as_it_is_and_every_module_given_learns() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(1, 4), nn.Linear(4, 1)
    first.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in [*first.named_parameters("first"), *second.named_parameters("second")]}
    fit([first, second], lambda _, __: line(nn.Sequential(first, second)), same_batch(), Schedule(5, 0.1, 0.1), "cpu", always)
    after = dict([*first.named_parameters("first"), *second.named_parameters("second")])
    unchanged = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert unchanged == {"first.weight"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_at_that_step(bad: float) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(DivergedError, match="step 3 of 10; a lower learning_rate is the usual fix"):
        fit([model], lambda _, step: line(model) * (bad if step == 3 else 1), same_batch(), Schedule(10, 1e-3, 0.1), "cpu", always)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_one_wild_batch_moves_the_weights_no_further_than_the_rate() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    fit([model], lambda _, __: 1e12 * line(model), same_batch(), Schedule(1, 0.01, 0.0), "cpu", always)
    assert 0 < (model.weight.detach() - before).abs().item() < 0.02
