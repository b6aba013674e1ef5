import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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


def test_memory_that_is_taken_is_held_and_pages_of_a_file_are_not(tmp_path: Path) -> None:
    size = 64 * 2**20
    (tmp_path / "pages").write_bytes(bytes(size))
    before = machine.held_memory()
    pages = np.memmap(tmp_path / "pages", mode="r")
    assert pages.sum() == 0
    assert abs(machine.held_memory() - before) < size / 4
    taken = torch.ones(size // 4)
    assert machine.held_memory() - before == pytest.approx(size, rel=0.25)
    del taken


MACHINE = 10**15  # more than any has


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/", {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 500\ninactive_file 150"}, 450),
        ("0::/a/b", {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": "", "a/b/memory.max": "max"}, 300),
        (
            "0::/a/b",
            {
                **{"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": ""},
                **{"a/b/memory.max": "500", "a/b/memory.current": "400", "a/b/memory.stat": ""},
            },
            100,
        ),
        ("0::/not/here", {"memory.max": "1000", "memory.current": "700", "memory.stat": ""}, 300),
        ("0::/", {"memory.max": "max", "memory.current": "700", "memory.stat": ""}, MACHINE),
        (
            "3:cpu,cpuacct:/x\n2:memory:/x\n",
            {
                "memory/x/memory.limit_in_bytes": "1000",
                "memory/x/memory.usage_in_bytes": "700",
                "memory/x/memory.stat": "total_inactive_file 100",
            },
            400,
        ),
        (None, {}, MACHINE),
    ],
)
def test_what_a_container_leaves_is_available(
    groups: str | None, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if groups is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        place = tmp_path / "sys" / "fs" / "cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))
    assert machine.available_memory(tmp_path) == left
