import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from kdsearch import machine
from kdsearch.machine import threads, threads_for


def test_threads_are_as_before_also_after_an_error() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_thread_for_each_30_gflop_of_a_step_within_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)

    def needed(width: int, layers: int) -> int:
        model = nn.Sequential(nn.Embedding(30_000, width), *(nn.Linear(width, 12 * width) for _ in range(layers)))
        return threads_for(model, 1024)

    assert needed(64, 5) == needed(192, 3) == 1  # an embedding is no matrix product
    assert needed(384, 6) == 2
    assert needed(768, 12) == 8


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert 1e8 < machine.matrix_product_rate(size=256, repeats=2) < 1e15


@pytest.mark.parametrize(("pays", "precision"), [(True, "bf16"), (False, "no")])
def test_precision_follows_what_the_processor_gains_from(pays: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(machine, "Accelerator", lambda **options: made.append(options))
    monkeypatch.setattr(machine, "_bf16_pays_on_cpu", lambda: pays)
    machine.accelerator.__wrapped__("cpu")
    assert made == [{"cpu": True, "mixed_precision": precision}]


def test_a_thread_that_adds_no_speed_is_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, float] = {}
    noise = itertools.cycle([1.0, 1.0, 3.0, 1.0, 2.0])  # what else runs slows some of them
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(machine, "matrix_product_rate", lambda count: rates[count] / next(noise))
    for all_threads, expected in ((4.1, 4), (2.2, 2), (0.6, 1), (9.0, 4)):
        rates.update({1: 1.0, 4: all_threads})
        assert machine.cores.__wrapped__() == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert machine.cores.__wrapped__() == 1


@pytest.mark.parametrize("decided", ["no", "bf16"])
def test_a_decided_precision_holds_whatever_a_probe_says(decided: str) -> None:
    program = f"""
from kdsearch import machine
machine._bf16_pays_on_cpu = lambda: {decided == "no"}
machine.use_precision("cpu", "{decided}")
print(machine.accelerator("cpu").mixed_precision)
machine.use_precision("cpu", "fp8")
print(machine.accelerator("cpu").mixed_precision)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [decided, decided]
