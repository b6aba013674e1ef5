"""Milliseconds that Optuna's default sampler takes for a trial that does nothing, on the storage named.

python controller_optuna.py memory|journal|sqlite TRIALS FOLDER
"""

import random
import sys
import time

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from search_optuna import drawn


def storage_of(kind: str, folder: str) -> optuna.storages.BaseStorage | str | None:
    """Optuna's storage of this kind."""
    return (
        {"memory": None, "sqlite": f"sqlite:///{folder}/noop.db"}[kind]
        if kind != "journal"
        else JournalStorage(JournalFileBackend(f"{folder}/noop.journal"))
    )


def nothing(trial: optuna.Trial) -> tuple[float, float]:
    """Draws, and has two values at once."""
    drawn(trial)
    return random.random(), random.random()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind, trials, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    study = optuna.create_study(directions=["maximize", "minimize"], storage=storage_of(kind, folder))
    start = time.perf_counter()
    study.optimize(nothing, n_trials=trials)
    print(1000 * (time.perf_counter() - start) / trials)
