"""Latency of the real model in the real runtime, interleaved with the teacher, so that whatever slows the machine slows both.

Raw milliseconds of a shared machine swing by a factor; the ratio of two models that took turns is steady to a few per cent.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from kdsearch.machine import threads
from kdsearch.study_file import Target

WARM_UP = 5


@dataclass(frozen=True)
class Effort:
    """At least so many rounds, until the 95 % interval of the median paired ratio is so narrow to each side, or the seconds are over."""

    rounds: int
    seconds: float
    close: float


# While a search times a student everybody else stands still.
CAREFUL, QUICK = Effort(30, 1.5, 0.02), Effort(20, 0.75, 0.03)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch (median, 95 % interval) and the ratio to the reference timed in the same rounds (median of paired ratios)."""

    ms: float
    ms_low: float
    ms_high: float
    relative: float
    relative_low: float
    relative_high: float
    reference_ms: float
    rounds: int


def measure(student: PreTrainedModel, teacher: PreTrainedModel, target: Target, seed: int = 0, effort: Effort = CAREFUL) -> Latency:
    """Time a student and its teacher on the target: its device, threads, batch size and (full) sequence length."""
    device = torch.device(target.device)
    ids = torch.ones((target.batch_size, target.sequence_length), dtype=torch.long, device=device)
    mask = torch.ones_like(ids)

    def run(model: PreTrainedModel) -> None:
        model(input_ids=ids, attention_mask=mask)
        if target.device == "cuda":
            torch.cuda.synchronize()

    for model in (student, teacher):
        model.eval().to(device)  # pyright: ignore[reportArgumentType] - transformers' own annotation
    with torch.inference_mode(), threads(target.threads):
        return compare(lambda: run(student), lambda: run(teacher), seed, effort)


def compare(run: Callable[[], object], reference: Callable[[], object], seed: int = 0, effort: Effort = CAREFUL) -> Latency:
    """Time two callables in turns, in random order, for as long as the effort says."""
    random = np.random.default_rng(seed)
    times: list[tuple[float, float]] = []
    for _ in range(WARM_UP):
        run()
        reference()
    end = time.perf_counter() + effort.seconds
    with collector_off():
        while True:
            pair = [0.0, 0.0]
            for which in random.permutation(2):
                start = time.perf_counter()
                (run, reference)[which]()
                pair[which] = time.perf_counter() - start
            times.append((pair[0], pair[1]))
            enough = len(times) >= effort.rounds and len(times) % 10 == 0
            if enough and (time.perf_counter() > end or _settled(times, effort.close)):
                break
    return _summary(np.asarray(times) * 1000)


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and its 95 % interval by order statistics (ranks n/2 -+ 0.98 sqrt(n)): no shape of the noise is assumed."""
    ordered, n = np.sort(values), len(values)
    reach = 0.98 * np.sqrt(n)
    low, high = max(0, int(np.floor(n / 2 - reach))), min(n - 1, int(np.ceil(n / 2 + reach)))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection while something is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _settled(times: list[tuple[float, float]], close: float) -> bool:
    pairs = np.asarray(times)
    middle, low, high = median_interval(pairs[:, 0] / pairs[:, 1])
    return high - low <= 2 * close * middle


def _summary(ms: np.ndarray) -> Latency:
    relative = median_interval(ms[:, 0] / ms[:, 1])
    return Latency(*median_interval(ms[:, 0]), *relative, reference_ms=float(np.median(ms[:, 1])), rounds=len(ms))
