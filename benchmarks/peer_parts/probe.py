"""How fast this machine multiplies matrices just now: the limit that a contender's speed is a share of, and a watch on its neighbours."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SHAPE = (1024, 384, 1536)
SECONDS = 0.12


def rate(dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """FLOP/s of tokens x width x neurons products on one thread, the mean of the best tenth."""
    rows, inner, columns = SHAPE
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    runs: list[float] = []
    with torch.inference_mode():
        torch.matmul(left, right)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(runs) < 10:
            start = time.perf_counter()
            torch.matmul(left, right)
            runs.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    best = sorted(runs)[: max(1, len(runs) // 10)]
    return 2 * rows * inner * columns * len(best) / sum(best)


def both(seconds: float = SECONDS) -> dict[str, float]:
    """GFLOP/s of float32 and bf16."""
    return {"fp32": rate(torch.float32, seconds) / 1e9, "bf16": rate(torch.bfloat16, seconds) / 1e9}


def limits(seconds: float = 1.0) -> dict[str, Any]:
    """P0: the rates of one process, and of two at once, added up; every process has one thread."""
    command = [sys.executable, str(Path(__file__)), str(seconds)]
    found: dict[str, Any] = {}
    for count in (1, 2):
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(count)
        ]
        rates = [[float(word) for word in process.communicate()[0].split()] for process in running]
        found[str(count)] = {"fp32": sum(pair[0] for pair in rates), "bf16": sum(pair[1] for pair in rates)}
    return found


if __name__ == "__main__":
    measured = both(float(sys.argv[1]))
    print(measured["fp32"], measured["bf16"])
