"""The machine that trains: its device and precision, its threads, how fast it multiplies, and its memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import nn

WORK_OF_A_THREAD, PROBES = 3e10, 6
decided: dict[str, str] = {}


@cache
def accelerator(device: str) -> Accelerator:
    """The device and its precision: bf16 on a GPU that has it, and on a CPU only where a probe shows that it is faster."""
    on_cpu = device == "cpu"
    if device in decided:
        return Accelerator(cpu=on_cpu, mixed_precision=decided[device])
    pays = _bf16_pays_on_cpu() if on_cpu else torch.cuda.is_bf16_supported()
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if pays else "no")


def use_precision(device: str, precision: str) -> None:
    """This precision, whatever a probe would say: a study's later sessions and its workers take that of the first session.

    A process that has trained already keeps its own, which accelerate fixes for good.
    """
    if not accelerator.cache_info().currsize:
        decided[device] = precision


def threads_for(model: nn.Module, batch_tokens: int) -> int:
    """One thread for each 30 GFLOP of a training step (6 N per token, N the weights of matrix products), 1 to what the process has.

    Below that, waking threads costs more than they give: 200 steps of a 5 x 64 student took 5.4 s on one thread and 12.2 s on two, of a
    2 x 288 one 8.8 and 11.4, of a 2 x 384 one 21.3 and 19.0. A rule and no probe, since another number of threads adds in another order.
    """
    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    return max(1, min(torch.get_num_threads(), round(6 * weights * batch_tokens / WORK_OF_A_THREAD)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many intra-op threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_product_rate(size: int = 768, repeats: int = 5, dtype: torch.dtype = torch.float32, count: int | None = None) -> float:
    """Floating-point operations per second of a matrix product on the CPU, the best of a few, on ``count`` threads (None: all)."""
    left, seconds = torch.ones(size, size, dtype=dtype), []
    with threads(count or torch.get_num_threads()):
        for _ in range(repeats):
            start = time.perf_counter()
            torch.matmul(left, left)
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


@cache
def cores() -> int:
    """How many threads of the process compute at once: the rate of a matrix product on all of them over that on one, rounded.

    Two threads of one core, or two virtual processors that the host runs in turns, are no two cores. Both are timed in turns, and of each
    the best counts, since other programs only ever slow them.
    """
    every = torch.get_num_threads()
    if every == 1:
        return 1
    rates = [[matrix_product_rate(count=count) for count in (1, every)] for _ in range(PROBES)]
    alone, together = (max(found) for found in zip(*rates, strict=True))
    return max(1, min(every, round(together / alone)))


def _bf16_pays_on_cpu(size: int = 512, repeats: int = 3) -> bool:
    """Whether a bf16 matrix product beats float32 by a fifth; processors without bf16 instructions are several times slower."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        torch.matmul(left, right)
        runs = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.matmul(left, right)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs)
    return seconds[torch.bfloat16] * 1.2 < seconds[torch.float32]


def held_memory() -> int:
    """Bytes of memory that this process holds for itself; pages of files (the teacher's outputs) do not count: the system may drop them."""
    found = _process(os.getpid()).memory_info()
    return found.rss - getattr(found, "shared", 0)


@cache
def _process(number: int) -> psutil.Process:
    return psutil.Process(number)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: what the machine has left, or less where a control group (a container's) leaves less."""
    return min([psutil.virtual_memory().available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each memory group above this process leaves, of version 2 or 1 of control groups, its own first; none on other systems."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, kinds, name = line.split(":", 2)
        if kinds == "":
            top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top, files = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = top / name.lstrip("/")
        for group in (place, *place.parents):
            left = _left_in(group, *files)
            if left is not None:
                yield left
            if group == top:
                break


def _left_in(group: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Limit - used + what the system can take back; None where there is no limit, or nothing can be read."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int((group / limit).read_text()) - int((group / used).read_text()) + int(stat.get(reclaimable, 0))
    except (OSError, ValueError):  # "max" is no number
        return None
