"""syne-tune's MO-ASHA around the strong Hugging Face training: two workers of one thread, each trial a process of its own (its
LocalBackend), three rungs, and a tuner that looks every 0.1 s instead of every 5.

    python search_synetune.py INPUTS NOTES SCRATCH
"""

import logging
import os
import sys
from pathlib import Path

import space
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

RUNGS, WORKERS, SLEEP = 3, 2, 0.1


def config_space(inputs: str, notes: str) -> dict:
    """The peers' space in syne-tune's words; what every trial is given besides."""
    ranges = {name: (loguniform if log else uniform)(low, high) for name, (low, high, log) in space.RANGES.items()}
    choices = {name: choice(options) for name, options in space.CHOICES.items() if name != "layers"}
    return {**choices, "layers": randint(1, 6), **ranges, "inputs": inputs, "notes": notes}


def main() -> None:
    """Search until the process is ended."""
    inputs, notes, scratch = sys.argv[1:4]
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger().setLevel(logging.WARNING)
    scheduler = MOASHA(config_space(inputs, notes), metrics=["error", "log_latency"], time_attr="rung", max_t=RUNGS, random_seed=0)
    tuner = Tuner(
        trial_backend=LocalBackend(str(Path(__file__).parent / "trial_synetune.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_wallclock_time=3600),
        n_workers=WORKERS,
        sleep_time=SLEEP,
        trial_backend_path=scratch,
        save_tuner=False,
        max_failures=1000,
    )
    tuner.run()


if __name__ == "__main__":
    main()
