"""syne-tune's schedulers as another process drives them: JSON lines in and out, no tuner and no training.

    python asked_synetune.py

First line in: {"scheduler", "seed", "rungs", "eta", "domains": {name: [kind, ...]}}. Then for each trial a configuration goes out, and in
comes {"error", "log_latency"}, lists with a value at each rung, or null for the end; out goes how many of them were used.
"""

import json
import sys
from datetime import datetime
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import MultiObjectiveRegularizedEvolution
from syne_tune.optimizer.schedulers.searchers.random_searcher import MultiObjectiveRandomSearcher
from syne_tune.optimizer.schedulers.single_fidelity_scheduler import SingleFidelityScheduler

METRICS, POPULATION, SAMPLE = ["error", "log_latency"], 20, 5
KINDS = {"choice": choice, "int": randint, "float": uniform, "log": loguniform}


def scheduler(told: dict[str, Any]) -> Any:
    """The scheduler by name, with its own defaults."""
    space = {name: KINDS[kind](*domain) for name, (kind, *domain) in told["domains"].items()}
    np.random.seed(told["seed"])  # MO-ASHA's own draws
    match told["scheduler"]:
        case "MO-ASHA":
            return MOASHA(
                space, metrics=METRICS, time_attr="rung", max_t=told["rungs"][-1], reduction_factor=told["eta"], random_seed=told["seed"]
            )
        case "MO-REA":  # its default population of 100 would be random for as long as these searches last
            searcher = MultiObjectiveRegularizedEvolution(space, population_size=POPULATION, sample_size=SAMPLE, random_seed=told["seed"])
        case _:
            searcher = MultiObjectiveRandomSearcher(space, random_seed=told["seed"])
    return SingleFidelityScheduler(space, METRICS, searcher=searcher, random_seed=told["seed"])


def main() -> None:
    """Suggest and be told until the input ends."""
    told, number = json.loads(sys.stdin.readline()), 0
    plan = scheduler(told)
    while True:
        trial = Trial(trial_id=number, config=plan.suggest().config, creation_time=datetime.now())
        plan.on_trial_add(trial)
        print(json.dumps(trial.config), flush=True)
        found = json.loads(sys.stdin.readline() or "null")
        if found is None:
            return
        used = 0
        for rung, *values in zip(told["rungs"], found["error"], found["log_latency"], strict=True):
            result, used = {"rung": rung, **dict(zip(METRICS, values, strict=True))}, used + 1
            decision = plan.on_trial_result(trial, result)
            if rung == told["rungs"][-1]:
                plan.on_trial_complete(trial, result)
            elif decision != "CONTINUE":
                plan.on_trial_remove(trial)
                break
        print(used, flush=True)
        number += 1


if __name__ == "__main__":
    main()
