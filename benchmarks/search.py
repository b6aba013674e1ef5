"""The search engine against others on replayed trainings: who has the larger front after the same number of training steps.

Every contender searches the study's space, and a proposal is answered by the nearest training that benchmarks/record_curves.py recorded and
that has not answered yet (benchmarks/replay.py); none trains anything. What is charged: the steps, what scoring costs in steps each time,
and what building a student and timing it costs, also of one that is refused. At a rung a quarter of the rows is scored, of everyone.
The hypervolume is that of accuracies of trainings that went to the end, above the accuracy limit and below the latency limit of the study,
over log latency, as a share of that of all recorded trainings.

    python benchmarks/search.py [--study FILE] [--curves FILE] [--seeds 30] [--trainings 30] [--work FOLDER] [--out benchmarks/search.md]

syne-tune runs in an environment of its own, which the command makes the first time (in --work). The last line is JSON.
"""

import argparse
import datetime
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.peer_parts import environments
from benchmarks.peer_parts.loop import SCRIPTS
from benchmarks.replay import Replay, Row, scores
from kdsearch import check, guesses, pareto, rungs, search, search_space
from kdsearch.candidate import Architecture, Candidate
from kdsearch.objective import ROWS_AT_RUNGS
from kdsearch.order import Order
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement, Record
from kdsearch.resources import cache_folder
from kdsearch.space_file import SearchSpace
from kdsearch.students.baselines import baselines
from kdsearch.study_file import Search

AT = (0.25, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched: replayed trainings inside the limits, and what they cost in training steps."""

    replay: Replay
    limit: float
    least: float
    floor: float
    teacher: Architecture
    budget: float
    scoring: float
    building: float
    timing: float

    def hypervolume(self, rows: Sequence[Row]) -> float:
        """Of trainings that went to the end, above the least accuracy and below the latency limit, over the logarithm of latency."""
        accuracy = [row["curve"][str(self.replay.steps)]["accuracy"] for row in rows]
        return pareto.hypervolume(accuracy, [math.log(row["latency"]) for row in rows], (self.least, math.log(self.limit)))


@dataclass
class Ledger:
    """What a search has spent and found: which training ended after how many steps in all."""

    problem: Problem
    spent: float = 0.0
    used: set[int] = field(default_factory=set)
    found: list[tuple[float, Row]] = field(default_factory=list)

    def answer(self, candidate: Candidate) -> Row | None:
        """The training that stands for a candidate; when all have been used the budget is too."""
        row = self.problem.replay.nearest(candidate, self.used)
        if row is None:
            self.spent = self.problem.budget
        return row

    def charge(self, steps: float, scorings: float, timed: bool = True) -> None:
        """Count a training, the scorings of all rows in it, and the timing of its latency."""
        problem = self.problem
        self.spent += problem.building + (problem.timing if timed else 0.0) + steps + scorings * problem.scoring

    def at(self, share: float) -> float:
        """Hypervolume at a share of the budget, as a share of that of all trainings there are."""
        then = [row for spent, row in self.found if spent <= share * self.problem.budget]
        return self.problem.hypervolume(then) / self.problem.hypervolume(self.problem.replay.trained)


def ours(problem: Problem, seed: int, changes: dict[str, Any]) -> Ledger:
    """kdsearch's own engine, with its defaults but for ``changes``."""
    ledger, plan, space, steps = Ledger(problem), Search(), problem.replay.space, problem.replay.steps
    starts = guesses.guesses(space, problem.teacher, problem.limit) if changes.get("guesses", True) else []
    known = {key: value for key, value in changes.items() if key not in ("guesses", "baselines")}
    plan = plan.model_copy(update={"minutes": problem.budget / 60, "seed": seed, **known})

    def objective(order: Order) -> Measurement:
        if order.train_anyway:  # it is a yardstick, and adds nothing to the hypervolume
            ledger.charge(steps, 1)
            return Measurement(COMPLETE, violations=(1.0, 0.0), accuracy=problem.floor, latency_relative=1.0, latency_ms=1.0, flops=1.0)
        row = ledger.answer(order.candidate)
        if row is None:
            return Measurement(REFUSED, violations=(1.0, 0.0), latency_relative=1.0, flops=1.0)
        latency, new = row["latency"], order.timed is None
        measured: dict[str, Any] = {"latency_relative": latency, "latency_ms": latency, "flops": 1.0}
        if not row["curve"]:
            ledger.charge(0, 0, new)
            return Measurement(REFUSED, violations=(latency / problem.limit - 1, 0.0), **measured)
        at_rung: dict[str, dict[str, float]] = {}
        for step in order.rungs.seen:
            early = at_rung[str(step)] = scores(row, step)
            if not order.rungs.goes_on(step, early["calibrated_divergence"], latency):
                ledger.charge(step, len(at_rung) / ROWS_AT_RUNGS, new)
                return Measurement(STOPPED, violations=(latency / problem.limit - 1, 0.0), steps=step, rungs=at_rung, **early, **measured)
        ledger.charge(steps, len(at_rung) / ROWS_AT_RUNGS + 1, new)
        ledger.found.append((ledger.spent, row))
        return Measurement(COMPLETE, violations=_violations(row, problem), steps=steps, rungs=at_rung, **scores(row, steps), **measured)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "minimize"])
        around = search.Surroundings(
            plan,
            space,
            problem.floor,
            1.0,
            Path(folder),
            lambda record: "",
            baselines=baselines(problem.teacher) if changes.get("baselines", True) else {},
            starts=starts,
            rungs=rungs.at(plan.rungs, steps),
            least=problem.least,
        )
        search.search(study, around, objective, Quiet(), clock=lambda: ledger.spent)
    return ledger


class Quiet:
    """A watcher that says nothing."""

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None: ...  # noqa: D102

    def found(self, record: Record, known: Sequence[Record]) -> None: ...  # noqa: D102


def _violations(row: Row, problem: Problem) -> tuple[float, ...]:
    accuracy = scores(row, problem.replay.steps)["accuracy"] if row["curve"] else problem.least
    return row["latency"] / problem.limit - 1, problem.least / accuracy - 1


def plain_optuna(problem: Problem, seed: int, sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Ledger:
    """Optuna's own ask and tell; it is told the limits as constraints, and refuses as kdsearch does what is too slow."""
    ledger = Ledger(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(seed))
        while ledger.spent < problem.budget:
            trial = study.ask()
            row = ledger.answer(search_space.suggest(problem.replay.space, trial))
            if row is None:
                break
            accuracy = problem.floor
            if row["curve"]:
                ledger.charge(problem.replay.steps, 1)
                ledger.found.append((ledger.spent, row))
                accuracy = scores(row, problem.replay.steps)["accuracy"]
            else:
                ledger.charge(0, 0)
            for key, value in zip(("latency", "accuracy"), _violations(row, problem), strict=True):
                trial.set_constraint(key, value)
            study.tell(trial, [accuracy, math.log(row["latency"])])
    return ledger


def every_distribution(space: SearchSpace) -> dict[str, Any]:
    """All parameters of all branches of a space, as Optuna calls them."""
    study, found = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), dict[str, Any]()
    for _ in range(500):
        trial = study.ask()
        search_space.suggest(space, trial)
        found |= trial.distributions
    return found


def in_words_of_syne_tune(name: str, domain: Any) -> list[Any]:
    """A parameter for syne-tune."""
    if isinstance(domain, optuna.distributions.CategoricalDistribution):
        return ["choice", [json.dumps(choice) for choice in domain.choices]]
    return [
        "int" if isinstance(domain, optuna.distributions.IntDistribution) else "log" if domain.log else "float",
        domain.low,
        domain.high,
    ]


def syne_tune(problem: Problem, seed: int, name: str, python: str) -> Ledger:
    """A scheduler of syne-tune; parameters of branches that are not taken are drawn and not used."""
    ledger, resources = Ledger(problem), [1, 2, 4] if name == "MO-ASHA" else [4]
    steps = [problem.replay.steps * resource // 4 for resource in resources]
    told = {"scheduler": name, "seed": seed, "rungs": resources, "eta": 2}
    told["domains"] = {key: in_words_of_syne_tune(key, item) for key, item in every_distribution(problem.replay.space).items()}
    command = [python, str(SCRIPTS / "asked_synetune.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def say(thing: Any) -> None:
            process.stdin.write(json.dumps(thing) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
            process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]

        say(told)
        while True:
            config = json.loads(process.stdout.readline())
            if ledger.spent >= problem.budget:
                say(None)
                return ledger
            params = {key: json.loads(value) if isinstance(value, str) else value for key, value in config.items()}
            row = ledger.answer(search_space.suggest(problem.replay.space, optuna.trial.FixedTrial(params)))
            latency = [math.log(row["latency"] if row else 1.0)] * len(steps)
            if row is None or not row["curve"]:
                ledger.charge(0, 0)
                say({"error": [1 - problem.floor] * len(steps), "log_latency": latency})
                process.stdout.readline()
                continue
            say({"error": [1 - scores(row, step)["accuracy"] for step in steps], "log_latency": latency})
            used = int(process.stdout.readline())
            ledger.charge(steps[used - 1], (used - 1) / ROWS_AT_RUNGS + (used == len(steps)))
            if used == len(steps):
                ledger.found.append((ledger.spent, row))


Optuna = Callable[[int], optuna.samplers.BaseSampler]
OPTUNA: dict[str, Optuna] = {
    "Optuna TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "Optuna NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    "Optuna GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "Optuna random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
OURS: dict[str, dict[str, Any]] = {
    "kdsearch": {},
    "kdsearch without baselines": {"baselines": False},
    "kdsearch without guesses": {"guesses": False},
    "kdsearch without rungs": {"rungs": ()},
    "kdsearch without both": {"rungs": (), "guesses": False},
    "kdsearch, random with rungs": {"sampler": "random", "guesses": False},
    "kdsearch, the same rungs, eta 2": {"eta": 2.0},
    "kdsearch, rung at 1/4": {"rungs": (0.25,)},
    "kdsearch, rung at 1/8": {"rungs": (0.125,)},
}
SYNE_TUNE = ["syne-tune MO-ASHA", "syne-tune MO-REA", "syne-tune random"]


def run(problem: Problem, name: str, seed: int, python: str) -> list[float]:
    """A contender's shares of the best hypervolume at the marks."""
    if name in OURS:
        ledger = ours(problem, seed, dict(OURS[name]))
    elif name in OPTUNA:
        ledger = plain_optuna(problem, seed, OPTUNA[name])
    else:
        ledger = syne_tune(problem, seed, name.removeprefix("syne-tune "), python)
    return [ledger.at(share) for share in AT]


def problem_of(study: check.Study, curves: Path, teacher: dict[str, Any], trainings: float) -> Problem:
    """The study's search over the curves; what scoring, building and timing cost is what they cost when the curves were recorded."""
    replay = Replay.read(curves, study.space, study.spec.proxy)
    stages = [row["stages"] for row in replay.trained]
    step, scoring, building, timing = (sum(stage[name] for stage in stages) for name in ("training", "scoring", "building", "latency"))
    step /= replay.steps
    limits = study.spec.limits
    return Problem(
        replay,
        limits.latency_relative or 1.0,
        (limits.accuracy_relative or 0.0) * teacher["accuracy"],
        teacher["majority"],
        Architecture(**teacher["architecture"]),
        trainings * replay.steps,
        scoring / step / (1 + (len(replay.trained[0]["curve"]) - 1) / ROWS_AT_RUNGS),
        building / step,
        timing / step,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    return float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def document(found: dict[str, list[list[float]]], problem: Problem, options: argparse.Namespace) -> str:
    """The table, and what it was made of."""
    replay, refused = problem.replay, len(problem.replay.rows) - len(problem.replay.trained)
    lines = [
        "# The search engine and others on recorded trainings",
        "",
        f"`{shlex.join(['python', *sys.argv])}`, {datetime.date.today().isoformat()}",
        "",
        f"{len(replay.trained)} trained and {refused} refused candidates of `{options.study}` ({options.curves});",
        f"a budget of {options.trainings:g} trainings of {replay.steps} steps; {options.seeds} seeds.",
        f"Scoring costs {problem.scoring:.0f} steps, building {problem.building:.0f}, timing {problem.timing:.0f}, as when recorded.",
        "Hypervolume over log latency as a share of that of all recorded trainings (reference: the study's limits, accuracy",
        f"{problem.least:.3f} and latency {problem.limit:g} of the teacher's), mean and 95 % interval over seeds.",
        "",
        "| contender | at 25 % of the budget | at 50 % | at 100 % | kdsearch ahead at 25 % | at 50 % | at 100 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = np.array(found["kdsearch"])
    for name, values in found.items():
        cells = [_cell(column) for column in zip(*values, strict=True)]
        cells += ["" if name == "kdsearch" else _cell(column, "+") for column in (first - np.array(values)).T]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *READING, ""])


def _cell(values: Any, sign: str = "") -> str:
    middle, reach = interval(values)
    return f"{middle:{sign}.3f} ± {reach:.3f}"


READING = [
    "* Optuna's samplers are told the limits as constraints; GP and TPE have their defaults, NSGA-II a population of 20. syne-tune's",
    "  MO-ASHA has rungs at 1/4 and 1/2 and reduction factor 2, MO-REA a population of 20 (its 100 would be random throughout).",
    "* A proposal is answered by a neighbour, so that what a model of the space learns is blurred, for all of them alike.",
    "* kdsearch's tenth, twentieth and thirtieth trial are its baselines, as by default; nobody else has any. Their cost is in its budget.",
    "* kdsearch's guesses are made from what benchmarks/initialization.md and these same trainings showed about shapes: on another teacher",
    "  they may be worth less. The rows without guesses say what the engine alone is worth.",
]


def main() -> None:
    """Let everyone search, and write the table."""
    parser = argparse.ArgumentParser(description="kdsearch's engine and others on recorded trainings.")
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"))
    parser.add_argument("--curves", type=Path, default=Path("benchmarks/curves/quickstart.jsonl"))
    parser.add_argument(
        "--teacher", type=Path, default=Path("benchmarks/curves/quickstart_teacher.json"), help="what is known of the teacher"
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trainings", type=float, default=30, help="budget, in whole proxy trainings")
    parser.add_argument("--work", type=Path, default=cache_folder() / "peers", help="syne-tune's environment")
    parser.add_argument("--without", default="", help="contenders to leave out, separated by semicolons: Optuna GP takes the longest")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/search.md"))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    teacher = json.loads(options.teacher.read_text(encoding="utf-8"))
    problem = problem_of(check.open_files(options.study), options.curves, teacher, options.trainings)
    names = [name for name in (*OURS, *OPTUNA, *SYNE_TUNE) if name not in options.without.split(";")]
    if any(name in SYNE_TUNE for name in names):
        environments.make(options.work, ["syne-tune"], print)
    found: dict[str, list[list[float]]] = {}
    for name in names:
        start = time.perf_counter()
        found[name] = [run(problem, name, seed, environments.python_of(options.work, "syne-tune")) for seed in range(options.seeds)]
        told = ", ".join(_cell(column) for column in zip(*found[name], strict=True))
        print(f"{name}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
    options.out.write_text(document(found, problem, options), encoding="utf-8")
    print(json.dumps({name: np.mean(values, axis=0).round(4).tolist() for name, values in found.items()}))


if __name__ == "__main__":
    main()
