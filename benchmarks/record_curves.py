"""Learning curves of candidates of a study's space, recorded so that searches can be replayed without training (benchmarks/search.py).

Candidates are drawn at random from the space, in two parts: most from all of it, the rest near the front of those that came before (two of
their parameters are drawn anew), because a search spends its time there. Those inside the limits that hold before training are trained
for the study's proxy, and scored on the way; a part of them, spread over the latencies, is then trained at full length with several seeds,
and for longer proxies: the truth that a proxy is compared with.

    python benchmarks/record_curves.py [--study studies/quickstart.yaml] [--candidates 160] [--full 32] [--seeds 2] [--out FOLDER]

Every training is a line of FOLDER/NAME.jsonl as soon as it is done; started again, the command goes on. All of it takes hours on two cores
(it was not timed in one piece). The last line is JSON.
"""

import argparse
import json
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from kdsearch import check, pareto, search_space, workbench, workers
from kdsearch.candidate import Candidate
from kdsearch.machine import accelerator
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement
from kdsearch.rungs import Rungs
from kdsearch.space_file import SearchSpace

MARKS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
KEPT = ("accuracy", "divergence", "calibrated_divergence", "log_loss")
LOCAL, CHANGED, DIGITS = 0.4, 2, 5
PROXY, FULL = "proxy", "full"


@dataclass(frozen=True)
class Job:
    """One training: which candidate, for what, for how many steps, with which seed."""

    number: int
    params: dict[str, Any]
    candidate: Candidate
    kind: str
    steps: int
    seed: int

    @property
    def key(self) -> tuple[int, str, int, int]:
        """What tells it from the others."""
        return self.number, self.kind, self.steps, self.seed


class Store:
    """The lines of a file, added one by one from several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row on disk."""
        with self.lock, self.path.open("a", encoding="utf-8") as stream:
            self.rows.append(row)
            stream.write(json.dumps(row) + "\n")

    def done(self, job: Job) -> bool:
        """Whether a job's row is there."""
        return any((row["number"], row["kind"], row["of"], row["seed"]) == job.key for row in self.rows)


def drawn(space: SearchSpace, number: int, near: list[dict[str, Any]]) -> tuple[dict[str, Any], Candidate]:
    """Parameters and candidate of a number: of the whole space, or of one of ``near`` with two parameters drawn anew."""
    random, study = np.random.default_rng(number), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    if near:
        params = dict(near[random.integers(len(near))])
        for name in random.choice(list(params), CHANGED, replace=False):
            del params[str(name)]
        study.enqueue_trial(params)
    trial = study.ask()
    candidate = search_space.suggest(space, trial)
    return trial.params, candidate


def row_of(job: Job, found: Measurement) -> dict[str, Any]:
    """A training as a line of the table: scores by the number of steps."""
    scores = {**found.rungs, **({str(found.steps): vars(found)} if found.state == COMPLETE else {})}
    curve = {step: {name: round(float(values[name]), DIGITS) for name in KEPT} for step, values in scores.items()}
    sizes = {"latency": found.latency_relative, "parameters": found.parameters, "flops": found.flops, "stages": found.stages}
    head = {"number": job.number, "kind": job.kind, "of": job.steps, "seed": job.seed, "state": found.state, "reason": found.reason}
    return {**head, **sizes, "curve": curve, "params": job.params}


def evaluated(jobs: Iterable[Job], crew: workers.Workers, store: Store, training: Any) -> None:
    """Train what is not there yet, as many side by side as there are workers."""

    def one(job: Job) -> None:
        marks = tuple(sorted({round(share * job.steps) for share in MARKS}))
        rungs = Rungs(1.0, dict.fromkeys(marks, ()))  # nobody to compare with: all go on
        order = Order(job.candidate, job.seed, False, rungs, training(job))
        row = row_of(job, found := crew.evaluate(order))
        if found.state == FAILED:
            print(f"{job.key} failed: {found.reason}", flush=True)
        store.add(row)
        last = list(row["curve"].values())[-1:] or [{}]
        print(f"{job.number:>4} {job.kind:<5} {job.steps:>5} {found.state:<8} {found.seconds:5.1f} s  {last[0]}", flush=True)

    with ThreadPoolExecutor(crew.count) as threads:
        list(threads.map(one, [job for job in jobs if not store.done(job)]))


def front_of(store: Store, before: int) -> list[dict[str, Any]]:
    """Parameters of the candidates on the front of those with lower numbers, by divergence and latency."""
    rows = [row for row in store.rows if row["kind"] == PROXY and row["number"] < before and row["state"] == COMPLETE]
    closeness = [-row["curve"][str(row["of"])]["divergence"] for row in rows]
    mask = pareto.front(closeness, [row["latency"] for row in rows])
    return [row["params"] for row, on in zip(rows, mask, strict=True) if on]


def proxies(store: Store, steps: int) -> list[dict[str, Any]]:
    """The first proxy training of every candidate that was trained."""
    kind = (PROXY, steps, 0, COMPLETE)
    return [row for row in store.rows if (row["kind"], row["of"], row["seed"], row["state"]) == kind]


def spread(store: Store, count: int, steps: int) -> list[dict[str, Any]]:
    """So many of the trained candidates, evenly along the latencies, drawn with a fixed seed within each part."""
    rows = sorted(proxies(store, steps), key=lambda row: row["latency"])
    begun = {row["number"] for row in store.rows if row["kind"] == FULL}  # chosen by an earlier call, of fewer rows
    first, rest = [row for row in rows if row["number"] in begun][:count], [row for row in rows if row["number"] not in begun]
    count -= len(first)
    random = np.random.default_rng(0)
    return first + [rest[random.choice(part)] for part in np.array_split(np.arange(len(rest)), count)] if count else first


def main() -> None:
    """Record, and say what is there."""
    parser = argparse.ArgumentParser(description="Record learning curves of a study's candidates.")
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"))
    parser.add_argument("--candidates", type=int, default=160, help="candidates that are trained for the proxy")
    parser.add_argument("--full", type=int, default=32, help="of them, trained at full length")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the full trainings")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/curves"))
    parser.add_argument("--workers", type=int, help="processes side by side; left out: as many as there are cores that compute")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = check.open_files(options.study)
    spec, store = study.spec, Store(options.out / f"{study.spec.name}.jsonl")
    bench = workbench.in_full(workbench.prepare(spec, study.space, study.base, []))
    lesson = workers.Lesson(spec, study.space, study.base, [], bench.known, accelerator(spec.target.device).mixed_precision)
    with workers.Workers(lesson, options.workers or workers.count_for(spec)) as crew:
        batch, number = 20, 0
        while (trained := len(proxies(store, spec.proxy.steps))) < options.candidates:
            near = front_of(store, number) if trained > (1 - LOCAL) * options.candidates else []
            jobs = [Job(n, *drawn(study.space, n, near), PROXY, spec.proxy.steps, 0) for n in range(number, number + batch)]
            evaluated(jobs, crew, store, lambda _: None)
            number += batch
        chosen = spread(store, options.full, spec.proxy.steps)
        candidates = {row["number"]: search_space.suggest(study.space, optuna.trial.FixedTrial(row["params"])) for row in chosen}
        short = spec.proxy.steps
        lengths = [(PROXY, short, 1), (PROXY, 2 * short, 0)]
        lengths += [(FULL, spec.train.steps, seed) for seed in range(options.seeds)]
        lengths += [(PROXY, 4 * short, 0)]
        for kind, steps, seed in lengths:
            base = spec.proxy if kind == PROXY else spec.train
            jobs = [Job(row["number"], row["params"], candidates[row["number"]], kind, steps, seed) for row in chosen]
            evaluated(jobs, crew, store, lambda job, base=base: base.model_copy(update={"steps": job.steps}))
    counts = {kind: sum(row["kind"] == kind and row["state"] != REFUSED for row in store.rows) for kind in (PROXY, FULL)}
    print(json.dumps({"file": str(store.path), **counts, "teacher": bench.facts["teacher"]}))


if __name__ == "__main__":
    sys.exit(main())
