"""P1, the bigger teacher, long texts and the accuracies: contenders as processes that wait, and take turns at short trainings.

Every contender has one thread, so a rate is one core's. In a round each trains once, in an order drawn by lot, and matrix products are
timed before and after each turn. A turn lasts a few seconds (never fewer than FEWEST_STEPS steps), and a rate is tokens of the texts
themselves, without padding, over the time from the end of its first step to the end of its last.
"""

import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import numpy as np

from benchmarks.peer_parts import probe
from benchmarks.peer_parts.environments import ROOT, python_of
from benchmarks.peer_parts.inputs import EXAMPLES_PER_STEP, RATES, products

SCRIPTS = ROOT / "benchmarks" / "peers"
# contender: environment, script with its arguments behind INPUTS
CONTENDERS: dict[str, tuple[str, list[str]]] = {
    "naive HF": ("hf", ["with_trainer.py", "naive"]),
    "strong HF": ("hf", ["with_trainer.py", "strong"]),
    "TextBrewer": ("textbrewer", ["with_textbrewer.py"]),
    "torchdistill": ("torchdistill", ["with_torchdistill.py"]),
    "kdsearch": ("kdsearch", ["with_kdsearch.py"]),
}
FEWEST_STEPS, MOST_STEPS, WARM_UP_STEPS = 3, 400, 3
Report = Callable[[str], None]
Job = dict[str, Any]


def one_thread(**more: str) -> dict[str, str]:
    """The environment of a process that computes on one thread; kdsearch can be imported in it."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **more}


@dataclass(frozen=True)
class Contender:
    """A process that is asked for trainings."""

    name: str
    process: subprocess.Popen
    log: Path

    def ask(self, job: Job) -> dict[str, Any]:
        """The answer to a job.

        Raises:
            RuntimeError: the contender died; the message has the end of its log.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self.log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        return json.loads(line)


@contextmanager
def started(names: list[str], inputs: Path, work: Path) -> Iterator[dict[str, Contender]]:
    """The contenders' processes, ended at the end."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, Contender] = {}
    files: list[TextIO] = []
    try:
        for name in names:
            environment, (script, *arguments) = CONTENDERS[name]
            log = logs / f"{inputs.parent.name}-{name.replace(' ', '-')}.log"
            files.append(log.open("w", encoding="utf-8"))
            command = [python_of(work, environment), str(SCRIPTS / script), str(inputs), *arguments]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=files[-1], text=True, env=one_thread())
            running[name] = Contender(name, process, log)
        yield running
    finally:
        for contender in running.values():
            contender.process.kill()
            contender.process.communicate()
        for file in files:
            file.close()


def job_of(told: dict[str, Any], student: str, steps: int, seed: int, **more: Any) -> Job:
    """A job as the contenders read it."""
    return {"student": student, "steps": steps, "seed": seed, "learning_rate": RATES[student], "recipe": told["recipe"], **more}


def race(names: list[str], inputs: Path, work: Path, rounds: int, seconds: float, report: Report) -> dict[str, Any]:
    """For every student of the inputs: every contender's turns."""
    told, random = json.loads(inputs.read_text(encoding="utf-8")), np.random.default_rng(0)
    found: dict[str, Any] = {}
    with started(names, inputs, work) as contenders:
        for student in told["students"]:
            pace = {name: _pace(contender.ask(job_of(told, student, WARM_UP_STEPS, 99))) for name, contender in contenders.items()}
            turns: list[dict[str, Any]] = []
            for turn in range(rounds):
                this: dict[str, Any] = {}
                before = probe.both()
                for name in map(str, random.permutation(names)):
                    steps = min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(seconds / pace[name]) + 1))
                    reply = contenders[name].ask(job_of(told, student, steps, turn))
                    after = probe.both()
                    this[name] = {**reply, "fp32": (before["fp32"] + after["fp32"]) / 2, "bf16": (before["bf16"] + after["bf16"]) / 2}
                    before, pace[name] = after, _pace(reply)
                turns.append(this)
            found[student] = {"turns": turns, **summary(turns, products(told["students"][student]["candidate"]))}
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in found[student]["tokens_per_second"].items())
            report(f"{inputs.parent.name} {student}: tokens/s {rates}")
    return {"students": found, "facts": told["facts"]}


def _pace(reply: Mapping[str, float]) -> float:
    return reply["seconds"] / reply["steps"]


def summary(turns: list[dict[str, Any]], weights: int) -> dict[str, Any]:
    """Medians over rounds: tokens per second; how many times kdsearch's rate is another's, in wall and in CPU time, with their range;
    kdsearch's share of the bf16 peak that was measured around its turn, 6 N tokens / (seconds x peak).

    A rate counts per matrix product that the machine did around the turn, so that a neighbour who comes and goes does not decide.
    """
    names = list(turns[0])

    def rate(turn: dict[str, Any], name: str, clock: str) -> float:
        return turn[name]["tokens"] / turn[name][clock]

    def ratios(name: str) -> list[float]:
        speed = {who: [rate(turn, who, "seconds") / turn[who]["fp32"] for turn in turns] for who in ("kdsearch", name)}
        return [ours / theirs for ours, theirs in zip(speed["kdsearch"], speed[name], strict=True)]

    others = [name for name in names if name != "kdsearch"]

    def share(kind: str) -> float:
        return median(6 * weights * rate(turn, "kdsearch", "seconds") / (turn["kdsearch"][kind] * 1e9) for turn in turns)

    return {
        "tokens_per_second": {name: median(rate(turn, name, "seconds") for turn in turns) for name in names},
        "tokens_per_cpu_second": {name: median(rate(turn, name, "cpu_seconds") for turn in turns) for name in names},
        "ratio": {name: median(ratios(name)) for name in others},
        "ratio_range": {name: [min(ratios(name)), max(ratios(name))] for name in others},
        "ratio_cpu": {
            name: median(rate(turn, "kdsearch", "cpu_seconds") / rate(turn, name, "cpu_seconds") for turn in turns) for name in others
        },
        "share_of_peak": share("bf16"),
        "share_of_float32_peak": share("fp32"),
        "padding": {name: median(turn[name]["padded"] / turn[name]["tokens"] for turn in turns) for name in names},
        "peak_megabytes": {name: max(turn[name]["peak_megabytes"] for turn in turns) for name in names},
        "before": {name: median(turn[name]["before"] for turn in turns) for name in names},
    }


def accuracies(names: list[str], inputs: Path, work: Path, steps: int, seeds: int, report: Report) -> dict[str, Any]:
    """Longer trainings of every contender and student, one a seed, as many at a time as there are cores, since nothing is timed here."""
    told = json.loads(inputs.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    with started(names, inputs, work) as contenders, ThreadPoolExecutor(os.cpu_count()) as pool:

        def all_trainings(name: str) -> dict[str, list[dict[str, Any]]]:
            return {
                student: [contenders[name].ask(job_of(told, student, steps, seed, right=True)) for seed in range(seeds)]
                for student in told["students"]
            }

        replies = dict(zip(names, pool.map(all_trainings, names), strict=True))
    for student in told["students"]:
        right = {name: np.asarray([reply["right"] for reply in replies[name][student]]) for name in names}
        examples = {name: replies[name][student][0]["all_examples"] for name in names}
        found[student] = agreement(right) | {"examples": examples}
        report(f"accuracy {student}: " + ", ".join(f"{name} {value:.3f}" for name, value in found[student]["accuracy"].items()))
    return {"students": found, "steps": steps, "seeds": seeds, "examples_per_step": EXAMPLES_PER_STEP}


def agreement(right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Accuracies of what was right [seeds, rows]; each contender's difference from kdsearch with its standard error; whether it lies within
    a point, or else within 2 standard errors.

    error = sqrt(variance of the seeds' differences / seeds + variance of the rows' differences, in the mean over seeds, / rows): all seeds
    share their rows, so that more of them do not make the rows' part smaller.
    """
    right = {name: rows.astype(float) for name, rows in right.items()}
    differences = {name: right["kdsearch"] - rows for name, rows in right.items() if name != "kdsearch"}
    errors = {name: _error(rows) for name, rows in differences.items()}
    return {
        "accuracy": {name: float(rows.mean()) for name, rows in right.items()},
        "difference": {name: float(rows.mean()) for name, rows in differences.items()},
        "error": errors,
        "within": {name: _within(float(rows.mean()), errors[name]) for name, rows in differences.items()},
    }


def _error(differences: np.ndarray) -> float:
    by_seed, by_row = differences.mean(1), differences.mean(0)
    chance = by_seed.var(ddof=1) / len(by_seed) if len(by_seed) > 1 else 0.0
    return math.sqrt(chance + by_row.var(ddof=1) / len(by_row))


def _within(difference: float, error: float) -> str:
    if abs(difference) <= 0.01:
        return "a point"
    return "2 SE" if abs(difference) <= 2 * error else "neither"
