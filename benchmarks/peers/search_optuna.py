"""Optuna's default sampler for two objectives around a Hugging Face training, naive or strong; strong has two processes of one thread,
which share a journal file.

    python search_optuna.py INPUTS NOTES naive|strong [TRIALS]
"""

import os
import subprocess
import sys

import optuna
import space
from contender import Inputs
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

WORKERS = 2


def study_at(path: str | None) -> optuna.Study:
    """The study: in memory, or in a journal file that several processes share."""
    storage = JournalStorage(JournalFileBackend(path)) if path else None
    return optuna.create_study(directions=["maximize", "minimize"], storage=storage, study_name="peer", load_if_exists=True)


def drawn(trial: optuna.Trial) -> dict:
    """A draw from the space."""
    values = {name: trial.suggest_categorical(name, options) for name, options in space.CHOICES.items() if name != "layers"}
    values["layers"] = trial.suggest_int("layers", 1, 6)
    return values | {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in space.RANGES.items()}


def search(kind: str, study: optuna.Study, inputs: Inputs, notes: str, trials: int | None) -> None:
    """Trials one after the other, until the process is ended."""
    teacher = space.teacher_of(inputs)

    def score(trial: optuna.Trial) -> tuple[float, float]:
        found: list[tuple[float, float]] = []
        space.trial(kind, drawn(trial), teacher, inputs, lambda _, accuracy, latency: found.append((accuracy, latency)))
        space.note(notes, trial.number, *found[0])
        return found[0]

    study.optimize(score, n_trials=trials)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, notes, kind, *rest = sys.argv[1:]
    trials = int(rest[0]) if rest else None
    if kind == "strong" and "OF_TWO" not in os.environ:
        one = {**os.environ, "OF_TWO": "1", "OMP_NUM_THREADS": "1"}
        workers = [subprocess.Popen([sys.executable, *sys.argv], env=one) for _ in range(WORKERS)]
        sys.exit(max(worker.wait() for worker in workers))
    search(kind, study_at(f"{notes}.journal" if kind == "strong" else None), Inputs.read(path), notes, trials)
