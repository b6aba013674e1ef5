"""The search engine against others on replayed trainings: who has the larger front after the same number of training steps.

Every contender searches the study's space and is shown the same curves (benchmarks/replay.py, made of the trainings that
benchmarks/record_curves.py recorded); none trains anything. What is charged: the steps, what scoring costs in steps each time, and what
building a student and timing it costs, also of one that is refused. The front is that of what was observed on trainings that went to the
end; its hypervolume is that of their true accuracies, above the accuracy limit and below the latency limit of the study, log latency, as a
share of the best that the models know of.

    python benchmarks/search.py [--curves FILE] [--seeds 30] [--trainings 60] [--only NAMES] [--work FOLDER] [--out benchmarks/search.md]

syne-tune runs in an environment of its own, which the command makes the first time. The last line is JSON.
"""

import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.peer_parts.loop import SCRIPTS
from benchmarks.replay import Curve, Replay
from kdsearch import check, guesses, pareto, rungs, search, search_space
from kdsearch.candidate import Architecture, Candidate
from kdsearch.order import Order
from kdsearch.records import COMPLETE, REFUSED, STOPPED, Measurement, Record
from kdsearch.space_file import SearchSpace

AT = (0.25, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched: replayed trainings inside the limits, and what they cost in training steps."""

    replay: Replay
    limit: float
    least: float
    floor: float
    teacher: Architecture
    teacher_flops: float
    budget: float
    scoring: float
    building: float

    def best(self) -> float:
        """Hypervolume of the truth of many random candidates of the space."""
        return _best(self)

    def hypervolume(self, points: Sequence[tuple[float, float]]) -> float:
        """Of true accuracies and latencies."""
        accuracy, latency = zip(*points, strict=True) if points else ((), ())
        return pareto.hypervolume(accuracy, np.log(latency), (self.least, math.log(self.limit)))


@dataclass
class Ledger:
    """What a search has spent and found: after how many steps which observed and true accuracy at which latency."""

    problem: Problem
    spent: float = 0.0
    found: list[tuple[float, float, float, float]] = field(default_factory=list)

    def charge(self, steps: float, scorings: int) -> None:
        """Count a training."""
        self.spent += self.problem.building + steps + scorings * self.problem.scoring

    def keep(self, curve: Curve) -> None:
        """A training that went to the end."""
        self.found.append(
            (self.spent, float(curve.scores["accuracy"][-1]), curve.truth, curve.latency, float(curve.scores["divergence"][-1]))
        )

    def at(self, share: float) -> float:
        """Hypervolume of the truth of the observed front at a share of the budget."""
        then = [row for row in self.found if row[0] <= share * self.problem.budget and row[1] >= self.problem.least]
        on = pareto.front([row[1] for row in then], [row[3] for row in then])
        return self.problem.hypervolume([(row[2], row[3]) for row, mask in zip(then, on, strict=True) if mask])


@cache
def _best(problem: Problem) -> float:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [search_space.suggest(problem.replay.space, study.ask()) for _ in range(3_000)]
    latency = np.array([problem.replay.latency(candidate.architecture) for candidate in drawn])
    inside = [candidate for candidate, value in zip(drawn, latency, strict=True) if value <= problem.limit]
    truth = [problem.replay.curve(candidate).truth for candidate in inside]
    return problem.hypervolume(list(zip(truth, latency[latency <= problem.limit].tolist(), strict=True)))


def ours(problem: Problem, seed: int, changes: dict[str, Any]) -> Ledger:
    """kdsearch's own engine, with its defaults but for ``changes``."""
    ledger, plan, space = Ledger(problem), check.open_files(Path("studies/quickstart.yaml")).spec.search, problem.replay.space
    starts = guesses.guesses(space, problem.teacher, problem.limit) if changes.pop("guesses", True) else []
    plan = plan.model_copy(update={"minutes": problem.budget / 60, "trials": None, "seed": seed, "baselines": False, **changes})

    def objective(order: Order) -> Measurement:
        curve = problem.replay.curve(order.candidate)
        known: dict[str, Any] = {"latency_relative": curve.latency, "latency_ms": curve.latency, "flops": 1.0}
        if curve.latency > problem.limit:
            ledger.charge(0, 0)
            return Measurement(REFUSED, violations=(curve.latency / problem.limit - 1, 0.0), **known)
        at_rung: dict[str, dict[str, float]] = {}
        for step in order.rungs.seen:
            early = _scores(curve, step)
            at_rung[str(step)] = early
            if not order.rungs.goes_on(step, early["calibrated_divergence"], curve.latency):
                ledger.charge(step, len(at_rung))
                return Measurement(
                    STOPPED, violations=(curve.latency / problem.limit - 1, 0.0), steps=step, rungs=at_rung, **early, **known
                )
        ledger.charge(problem.replay.steps, len(at_rung) + 1)
        ledger.keep(curve)
        last = _scores(curve, problem.replay.steps)
        return Measurement(
            COMPLETE, violations=_violations(curve, problem, last), steps=problem.replay.steps, rungs=at_rung, **last, **known
        )

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "minimize"])
        around = search.Surroundings(
            plan,
            space,
            problem.floor,
            problem.teacher_flops,
            Path(folder),
            lambda record: "",
            starts=starts,
            rungs=rungs.at(plan.rungs, problem.replay.steps),
            least=problem.least,
        )
        search.search(study, around, objective, Quiet(), clock=lambda: ledger.spent)
    return ledger


class Quiet:
    """A watcher that says nothing."""

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None: ...  # noqa: D102

    def found(self, record: Record, known: Sequence[Record]) -> None: ...  # noqa: D102


def _scores(curve: Curve, step: int) -> dict[str, float]:
    index = curve.steps.index(step)
    return {name: float(values[index]) for name, values in curve.scores.items()}


def _violations(curve: Curve, problem: Problem, scores: dict[str, float]) -> tuple[float, ...]:
    return curve.latency / problem.limit - 1, problem.least / scores["accuracy"] - 1


def plain_optuna(problem: Problem, seed: int, sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Ledger:
    """Optuna's own ask and tell; it is told the limits as constraints, and refuses as kdsearch does what is too slow."""
    ledger = Ledger(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(seed))
        while ledger.spent < problem.budget:
            trial = study.ask()
            curve = problem.replay.curve(search_space.suggest(problem.replay.space, trial))
            scores = {"accuracy": problem.floor}
            if curve.latency > problem.limit:
                ledger.charge(0, 0)
            else:
                ledger.charge(problem.replay.steps, 1)
                ledger.keep(curve)
                scores = _scores(curve, problem.replay.steps)
            for key, value in zip(("latency", "accuracy"), _violations(curve, problem, scores), strict=True):
                trial.set_constraint(key, value)
            study.tell(trial, [scores["accuracy"], math.log(curve.latency)])
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
            curve = problem.replay.curve(search_space.suggest(problem.replay.space, optuna.trial.FixedTrial(params)))
            if curve.latency > problem.limit:
                ledger.charge(0, 0)
                say({"error": [1 - problem.floor] * len(steps), "log_latency": [math.log(curve.latency)] * len(steps)})
                process.stdout.readline()
                continue
            errors = [1 - _scores(curve, step)["accuracy"] for step in steps]
            say({"error": errors, "log_latency": [math.log(curve.latency)] * len(steps)})
            used = int(process.stdout.readline())
            ledger.charge(steps[used - 1], used)
            if used == len(steps):
                ledger.keep(curve)


Optuna = Callable[[int], optuna.samplers.BaseSampler]
OPTUNA: dict[str, Optuna] = {
    "Optuna TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "Optuna NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    "Optuna GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "Optuna random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
OURS: dict[str, dict[str, Any]] = {
    "kdsearch": {},
    "kdsearch, no guesses": {"guesses": False},
    "kdsearch, no rungs": {"rungs": ()},
    "kdsearch, random with rungs": {"sampler": "random", "guesses": False},
    "v r.5": {"rungs": (0.5,)},
    "v r.375": {"rungs": (0.375,)},
    "v r.25e3": {"rungs": (0.25,), "eta": 3.0},
    "v norungs rs0": {"rungs": (), "random_share": 0.0},
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


def problem_of(study: check.Study, curves: Path, facts: dict[str, Any]) -> Problem:
    """The study's search over the curves; what scoring and building cost is what it cost when they were recorded."""
    replay = Replay.read(curves, study.space, study.spec.proxy.steps)
    stages = [row["stages"] for row in replay.whole]
    step = sum(stage["training"] for stage in stages) / len(stages) / replay.steps
    scoring = sum(stage["scoring"] for stage in stages) / len(stages) / len(replay.marks)
    building = sum(stage["building"] + stage["latency"] for stage in stages) / len(stages)
    limits = study.spec.limits
    return Problem(
        replay,
        limits.latency_relative or 1.0,
        (limits.accuracy_relative or 0.0) * facts["accuracy"],
        facts["majority"],
        Architecture(**facts["architecture"]),
        facts["flops"],
        facts["trainings"] * replay.steps,
        scoring / step,
        building / step,
    )
