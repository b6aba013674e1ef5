"""Learning curves of candidates of a study's space, recorded so that searches can be replayed without training (benchmarks/search.py).

Candidates are drawn at random from the space, in two parts: most from all of it, the rest near the front of those that came before (two of
their parameters are drawn anew), because a search spends its time there. Those inside the limits that hold before training are trained
for the study's proxy, and scored on the way; a part of them, spread over the latencies, for the proxy with a second seed and at full length
with several: the truth that a proxy is compared with. With --steps or --schedule it is another proxy, of the same candidates.

    python benchmarks/record_curves.py [--study studies/quickstart.yaml] [--candidates 160] [--full 32] [--seeds 2] [--out FOLDER]
        [--steps N] [--schedule averaged|linear]

Every training is a line of FOLDER/NAME.jsonl as soon as it is done; started again, the command goes on. All of it takes hours on two cores
(it was not timed in one piece). The last line is JSON.
"""

import argparse
import json
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.replay import KEPT, Row, line, read
from kdsearch import check, pareto, search_space, workbench, workers
from kdsearch.candidate import Candidate
from kdsearch.machine import accelerator
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement
from kdsearch.rungs import Rungs
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import Training

MARKS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
STAGES = ("training", "scoring", "building", "latency")
LOCAL, CHANGED, DIGITS = 0.4, 2, 5
PROXY, FULL = "proxy", "full"


@dataclass(frozen=True)
class Job:
    """One training: which candidate, for what, for how many steps, with which seed."""

    number: int
    params: dict[str, Any]
    candidate: Candidate
    kind: str
    training: Training
    seed: int

    @property
    def key(self) -> tuple[int, str, int, str, int]:
        """What tells it from the others."""
        return self.number, self.kind, self.training.steps, self.training.schedule, self.seed


def key_of(row: Row) -> tuple[int, str, int, str, int]:
    """The same of a line of the table."""
    return row["number"], row["kind"], row["of"], row["schedule"], row["seed"]


class Store:
    """The lines of a file, added one by one from several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = read(path) if path.is_file() else []

    def add(self, row: Row) -> None:
        """Keep a row on disk."""
        with self.lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line(row, first=all(row["number"] != other["number"] for other in self.rows)))
            self.rows.append(row)

    def done(self, job: Job) -> bool:
        """Whether a job's row is there."""
        return any(key_of(row) == job.key for row in self.rows)


def of_number(space: SearchSpace, number: int, near: list[dict[str, Any]], store: Store) -> tuple[dict[str, Any], Candidate]:
    """Parameters and candidate of a number: what it was for another proxy, or else drawn."""
    params = next((row["params"] for row in store.rows if row["number"] == number), None)
    return drawn(space, number, near) if params is None else (params, search_space.suggest(space, FixedTrial(params)))


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


def row_of(job: Job, found: Measurement) -> Row:
    """A training as a line of the table: scores by the number of steps."""
    scores = {**found.rungs, **({str(found.steps): vars(found)} if found.state == COMPLETE else {})}
    curve = {step: {name: round(float(values[name]), DIGITS) for name in KEPT} for step, values in scores.items()}
    stages = {name: round(found.stages.get(name, 0.0), 3) for name in STAGES}
    sizes = {"latency": found.latency_relative, "parameters": found.parameters, "flops": found.flops, "stages": stages}
    head = {"number": job.number, "kind": job.kind, "of": job.training.steps, "schedule": job.training.schedule, "seed": job.seed}
    head |= {"state": found.state, "reason": found.reason}
    return {**head, **sizes, "curve": curve, "params": job.params}


def evaluated(jobs: Iterable[Job], crew: workers.Workers, store: Store) -> None:
    """Train what is not there yet, as many side by side as there are workers."""

    def one(job: Job) -> None:
        steps = job.training.steps
        marks = tuple(sorted({round(share * steps) for share in MARKS}))
        rungs = Rungs(1.0, dict.fromkeys(marks, ()))  # nobody to compare with: all go on
        order = Order(job.candidate, job.seed, False, rungs, job.training)
        row = row_of(job, found := crew.evaluate(order))
        if found.state == FAILED:
            print(f"{job.key} failed: {found.reason}", flush=True)
        store.add(row)
        last = list(row["curve"].values())[-1:] or [{}]
        print(f"{job.number:>4} {job.kind:<5} {steps:>5} {found.state:<8} {found.seconds:5.1f} s  {last[0]}", flush=True)

    with ThreadPoolExecutor(crew.count) as threads:
        list(threads.map(one, [job for job in jobs if not store.done(job)]))


def front_of(rows: Sequence[Row], before: int) -> list[dict[str, Any]]:
    """Parameters of the candidates on the front of those with lower numbers, by divergence and latency."""
    rows = [row for row in rows if row["number"] < before]
    closeness = [-row["curve"][str(row["of"])]["divergence"] for row in rows]
    mask = pareto.front(closeness, [row["latency"] for row in rows])
    return [row["params"] for row, on in zip(rows, mask, strict=True) if on]


def proxies(store: Store, proxy: Training) -> list[Row]:
    """The first proxy training of every candidate that was trained."""
    return [row for row in store.rows if key_of(row)[1:] == (PROXY, proxy.steps, proxy.schedule, 0) and row["state"] == COMPLETE]


def spread(store: Store, count: int, proxy: Training) -> list[Row]:
    """So many of the trained candidates, evenly along the latencies, drawn with a fixed seed within each part."""
    rows = sorted(proxies(store, proxy), key=lambda row: row["latency"])
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
    parser.add_argument("--steps", type=int, help="of the proxy, in place of the study's")
    parser.add_argument("--schedule", choices=("averaged", "linear"), help="of the proxy, in place of the study's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/curves"))
    parser.add_argument("--workers", type=int, help="processes side by side; left out: as many as there are cores that compute")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = check.open_files(options.study)
    spec, store = study.spec, Store(options.out / f"{study.spec.name}.jsonl")
    given = {"steps": options.steps, "schedule": options.schedule}
    proxy = spec.proxy.model_copy(update={key: value for key, value in given.items() if value is not None})
    bench = workbench.in_full(workbench.prepare(spec, study.space, study.base, []))
    lesson = workers.Lesson(spec, study.space, study.base, [], bench.known, accelerator(spec.target.device).mixed_precision)
    with workers.Workers(lesson, options.workers or workers.count_for(spec)) as crew:
        batch, number = 20, 0
        while len(trained := proxies(store, proxy)) < options.candidates:
            near = front_of(trained, number) if len(trained) > (1 - LOCAL) * options.candidates else []
            numbers = range(number, number + batch)
            evaluated([Job(n, *of_number(study.space, n, near, store), PROXY, proxy, 0) for n in numbers], crew, store)
            number += batch
        chosen = spread(store, options.full, proxy)
        candidates = {row["number"]: search_space.suggest(study.space, FixedTrial(row["params"])) for row in chosen}
        for kind, training, seed in [*((FULL, spec.train, seed) for seed in range(options.seeds)), (PROXY, proxy, 1)]:
            jobs = [Job(row["number"], row["params"], candidates[row["number"]], kind, training, seed) for row in chosen]
            evaluated(jobs, crew, store)
    counts = {kind: sum(row["kind"] == kind and row["state"] != REFUSED for row in store.rows) for kind in (PROXY, FULL)}
    print(json.dumps({"file": str(store.path), **counts, "teacher": bench.facts["teacher"]}))


if __name__ == "__main__":
    sys.exit(main())
