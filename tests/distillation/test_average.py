from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdsearch.distillation.average import Average


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_the_mean_is_the_weighted_one_of_its_formula(values: list[float]) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.see()
    steps = np.arange(1, len(values) + 1)
    with average.shown():
        shown = model.weight.item()
    assert shown == pytest.approx(np.average(values, weights=steps * (steps + 1)), abs=1e-9)
    assert model.weight.item() == values[-1]


def test_the_model_has_its_own_weights_again_after_an_error() -> None:
    model = nn.Linear(2, 2)
    average = Average(model)
    average.see()
    nn.init.zeros_(model.weight)

    def score() -> None:
        with average.shown():
            assert model.weight.any()
            raise ValueError("scoring")

    with pytest.raises(ValueError, match="scoring"):
        score()
    assert not model.weight.any()


def test_what_is_frozen_is_neither_kept_nor_touched() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    average = Average(model)
    assert [mean.shape for mean in average.means] == [(2, 4), (2,)]
    average.see()
    cast(nn.Embedding, model[0]).weight.fill_(7.0)
    with average.shown():
        assert torch.all(cast(nn.Embedding, model[0]).weight == 7.0)


def test_of_a_walk_around_the_minimum_the_mean_is_nearer_than_the_last_step() -> None:
    random, model = np.random.default_rng(0), nn.Linear(20, 1, bias=False)
    average = Average(model)
    for step in range(1, 201):
        away = torch.tensor(random.normal(size=(1, 20)) + 5 * 0.95**step, dtype=torch.float32)
        with torch.no_grad():
            model.weight.copy_(away)
        average.see()
    last = model.weight.norm().item()
    with average.shown():
        assert model.weight.norm().item() < last / 4
