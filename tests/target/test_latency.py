import gc
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdsearch.study_file import Target
from kdsearch.target import latency
from kdsearch.target.latency import compare, measure, median_interval
from tests import tiny


class Clock:
    """Time that passes only where a run takes some, so that what is told of noise does not depend on this machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def takes(self, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds()

        return run


def test_of_two_callables_one_of_which_takes_twice_as_long_the_ratio_is_2(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, random = Clock(monkeypatch), np.random.default_rng(0)
    slow, fast = (clock.takes(lambda base=base: base * (1 + 0.1 * random.random())) for base in (2e-3, 1e-3))
    found = compare(slow, fast)
    assert found.relative == pytest.approx(2, rel=0.05)
    assert found.relative_low <= found.relative <= found.relative_high
    assert found.ms == pytest.approx(2.1, rel=0.05)  # milliseconds per run, the median
    assert found.reference_ms == pytest.approx(1.05, rel=0.05)
    assert found.ms_low <= found.ms <= found.ms_high


def test_a_machine_that_gets_slower_all_the_time_does_not_change_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = compare(clock.takes(lambda: 4e-4 * (1 + clock.now)), clock.takes(lambda: 8e-4 * (1 + clock.now)))
    assert found.relative == pytest.approx(0.5, rel=0.01)


def test_neither_of_the_two_is_always_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(monkeypatch), []
    run, reference = (clock.takes(lambda name=name: order.append(name) or 1e-3) for name in ("run", "reference"))
    compare(run, reference)
    behind = order[2 * latency.WARM_UP :]
    firsts = behind[::2]
    assert len(behind) == 2 * latency.CAREFUL.rounds
    assert {first != second for first, second in zip(firsts, behind[1::2], strict=True)} == {True}
    assert 0.2 < firsts.count("run") / len(firsts) < 0.8


def test_it_goes_on_until_the_interval_is_narrow_or_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, random = Clock(monkeypatch), np.random.default_rng(0)
    found = {}
    for spread in (0.0, 0.08, 0.8):
        start = clock.now
        noisy = [clock.takes(lambda spread=spread: 1e-3 * random.lognormal(0, spread)) for _ in range(2)]
        found[spread] = (compare(*noisy), clock.now - start)
    (steady, _), (middling, seconds), (wild, all_seconds) = found.values()
    assert steady.rounds == latency.CAREFUL.rounds
    assert middling.rounds > steady.rounds
    assert seconds < latency.CAREFUL.seconds
    assert middling.relative_high - middling.relative_low <= 2 * latency.CAREFUL.close * middling.relative
    assert all_seconds == pytest.approx(latency.CAREFUL.seconds, rel=0.1)
    assert wild.relative_high - wild.relative_low > 2 * latency.CAREFUL.close * wild.relative


def test_a_search_is_content_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, random = Clock(monkeypatch), np.random.default_rng(0)
    noisy = [clock.takes(lambda: 1e-3 * random.lognormal(0, 0.08)) for _ in range(2)]
    quick, careful = (compare(*noisy, effort=effort) for effort in (latency.QUICK, latency.CAREFUL))
    assert latency.QUICK.rounds <= quick.rounds < careful.rounds
    assert careful.relative_high - careful.relative_low < quick.relative_high - quick.relative_low <= 2 * 0.03 * quick.relative


@pytest.mark.parametrize("n", [30, 61, 300])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    random, true = np.random.default_rng(0), np.log(2)  # the median of an exponential distribution
    intervals = [median_interval(random.exponential(size=n)) for _ in range(3000)]
    covered = np.mean([low <= true <= high for _, low, high in intervals])
    assert 0.94 <= covered <= 0.985
    assert all(low <= middle <= high for middle, low, high in intervals)


def test_the_median_of_few_values_stays_among_them() -> None:
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (2.0, 1.0, 3.0)


def test_garbage_is_not_collected_while_something_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(monkeypatch), []
    compare(clock.takes(lambda: seen.append(gc.isenabled()) or 1e-3), clock.takes(lambda: 1e-3))
    assert seen[latency.WARM_UP :] == [False] * latency.CAREFUL.rounds
    assert gc.isenabled()


def test_a_student_of_half_the_depth_takes_half_the_time_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer takes a millisecond of a clock of its own, and what stands around them half of one: a model of known cost."""
    clock = Clock(monkeypatch)

    def timed(layers: int) -> torch.nn.Module:
        model = tiny.teacher(num_hidden_layers=layers)
        model.register_forward_hook(lambda *_: clock.takes(lambda: 5e-4)())
        for block in model.bert.encoder.layer:
            block.register_forward_hook(lambda *_: clock.takes(lambda: 1e-3)())
        return model

    deep = timed(8)
    found = measure(timed(4), deep, Target(sequence_length=32, batch_size=2))
    assert found.relative == pytest.approx(4.5 / 8.5)
    assert (found.ms, found.reference_ms) == (pytest.approx(4.5), pytest.approx(8.5))
    assert measure(deep, deep, Target(sequence_length=32, batch_size=2)).relative == pytest.approx(1)


def test_a_model_runs_on_the_target_s_batch_and_threads_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP", 1)
    once = latency.Effort(rounds=1, seconds=0.0, close=0.0)
    model, seen = tiny.teacher(num_hidden_layers=1), []

    def look(_: torch.nn.Module, __: tuple, inputs: dict[str, torch.Tensor]) -> None:
        seen.append(
            (
                tuple(inputs["input_ids"].shape),
                inputs["attention_mask"].min().item(),
                torch.get_num_threads(),
                torch.is_inference_mode_enabled(),
            )
        )

    model.register_forward_pre_hook(look, with_kwargs=True)
    target = Target(batch_size=3, sequence_length=20, threads=2)
    measure(model, model, target, effort=once)
    assert set(seen) == {((3, 20), 1, 2, True)}
    seen.clear()
    measure(model, model, target.model_copy(update={"threads": 1}), effort=once)
    assert {threads for _, _, threads, _ in seen} == {1}
