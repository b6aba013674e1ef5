"""A search over the shipped encoder space with an objective that only computes: run as a script, it can be killed for real."""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from kdsearch import rungs, search, search_space, space_file, study_store
from kdsearch.candidate import Candidate
from kdsearch.order import Order
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement, Record
from kdsearch.space_file import SearchSpace
from kdsearch.students.baselines import baselines
from kdsearch.study_file import Search

SPACE = space_file.load(Path(__file__).parents[1] / "search_spaces" / "encoder.yaml")
TEACHER = search_space.sample(SPACE, lambda _, domain: search_space._options(domain)[-1]).architecture
BASELINES = baselines(TEACHER)
STEPS = 200
STARTS = [{"architecture.layers": layers} for layers in (2, 4, 2, 3)]  # the sampler completes them; two are alike


class Watcher:
    """Says nothing, or a line at every event, so that a test can kill the process at a known place."""

    def __init__(self, speaks: bool = False) -> None:
        self.speaks = speaks

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None:
        if self.speaks:
            print(f"proposed {number}", flush=True)

    def found(self, record: Record, known: Sequence[Record]) -> None:
        if self.speaks:
            print(f"found {record.trial}", flush=True)


def objective(order: Order) -> Measurement:
    """Accuracy rises with size and is noisy by content; the widest students are refused, a few raise, and rungs may stop the others."""
    candidate, shape = order.candidate, order.candidate.architecture
    noise = int(hashlib.sha256(candidate.key().encode()).hexdigest()[:4], 16) / 65536
    if noise > 0.97 and not order.train_anyway:
        raise MemoryError("planted")
    size = shape.layers * shape.width / (6 * 384)
    known = {"latency_relative": size, "latency_ms": 10 * size, "parameters": 1000, "flops": size, "seconds": 1.0}
    if size > 0.6 and not order.train_anyway:
        return Measurement(REFUSED, reason="latency_relative exceeds", violations=(size / 0.6 - 1,), **known)
    accuracy, at_rung = 0.5 + 0.3 * size**0.3 + 0.02 * noise, {}
    known |= {"accuracy_se": 0.01, "divergence_se": 0.01, "violations": (size / 0.6 - 1,)}
    for step in order.rungs.seen:
        early = {"accuracy": accuracy - 5 / step, "divergence": 1 - accuracy + 5 / step}
        early["calibrated_divergence"] = early["divergence"]
        at_rung[str(step)] = early
        if not order.rungs.goes_on(step, early["calibrated_divergence"], size):
            return Measurement(STOPPED, reason="stopped", steps=step, rungs=at_rung, **early, **known)
    return Measurement(COMPLETE, accuracy=accuracy, divergence=1 - accuracy, steps=STEPS, rungs=at_rung, **known)


def around(
    folder: Path,
    plan: Search,
    baselines: dict[str, Candidate] | None = None,
    space: SearchSpace = SPACE,
    starts: Sequence[dict[str, Any]] = (),
) -> search.Surroundings:
    steps = rungs.at(plan.rungs, STEPS)
    return search.Surroundings(plan, space, 0.5, 1.0, folder, lambda record: f"trial {record.trial}", baselines or {}, starts, steps)


def slow(order: Order) -> Measurement:
    """Takes up to 200 ms, by content, so that side by side the ends come in another order than the asks."""
    time.sleep(int(order.candidate.key()[:2], 16) / 256 * 0.2)
    return objective(order)


def run(folder: Path, trials: int, sampler: str = "tpe", speaks: bool = False, at_once: int = 1, **more: Any) -> list[Record]:
    """``more``: ``flops``, and ``starts``."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = Search(sampler=sampler, trials=trials, startup_trials=5, minutes=1000, flops=more.get("flops"))
    study = study_store.open_study(f"sqlite:///{folder / 'study.db'}", "fake", {"space": SPACE.content})
    evaluate = slow if at_once > 1 else objective
    return search.search(study, around(folder, plan, BASELINES, starts=more.get("starts", ())), evaluate, Watcher(speaks), at_once)


def quiet_load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="fake", storage=f"sqlite:///{folder / 'study.db'}")


if __name__ == "__main__":
    study_store.MOST_RETRIES = 1000  # a busy machine may be killed often at the same trial
    run(Path(sys.argv[1]), int(sys.argv[2]), speaks=True, at_once=int(sys.argv[3]), flops=float(sys.argv[4]) or None, starts=STARTS)
