"""Milliseconds that syne-tune takes for a trial that does nothing: MO-ASHA's own decisions, and its tuner with LocalBackend, one worker
at a time.

    python controller_synetune.py SCHEDULER_TRIALS TUNER_TRIALS FOLDER
"""

import logging
import random
import sys
import time
from datetime import datetime
from pathlib import Path

from search_synetune import RUNGS, SLEEP, config_space
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA


def scheduler() -> MOASHA:
    """MO-ASHA as in the search."""
    return MOASHA(config_space("", ""), metrics=["error", "log_latency"], time_attr="rung", max_t=RUNGS, random_seed=0)


def decisions(trials: int) -> float:
    """Milliseconds for a trial's suggestion and its reports at every rung, without any process or file."""
    plan, start = scheduler(), time.perf_counter()
    for number in range(trials):
        trial = Trial(trial_id=number, config=plan.suggest().config, creation_time=datetime.now())
        plan.on_trial_add(trial)
        for rung in range(1, RUNGS + 1):
            result = {"rung": rung, "error": random.random(), "log_latency": random.random()}
            if plan.on_trial_result(trial, result) != "CONTINUE":
                break
    return 1000 * (time.perf_counter() - start) / trials


def tuned(trials: int, folder: str) -> float:
    """Milliseconds for a trial in the tuner."""
    tuner = Tuner(
        trial_backend=LocalBackend(str(Path(__file__).parent / "noop_synetune.py")),
        scheduler=scheduler(),
        stop_criterion=StoppingCriterion(max_num_trials_finished=trials - 1),
        n_workers=1,
        sleep_time=SLEEP,
        trial_backend_path=folder,
        save_tuner=False,
    )
    start = time.perf_counter()
    tuner.run()
    return 1000 * (time.perf_counter() - start) / trials


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    print(decisions(int(sys.argv[1])), tuned(int(sys.argv[2]), sys.argv[3]))
