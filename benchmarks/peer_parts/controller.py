"""P4: what a controller takes for a trial that does nothing: asking, writing down, telling. Each with its default sampler.

kdsearch with its default storage; Optuna's TPE on three storages; syne-tune's MO-ASHA in its tuner with LocalBackend, which starts a
process for each trial, as it does in P3 (its decisions alone are told apart). syne-tune gets fewer trials, as each takes about as long as
the one before.
"""

import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peer_parts.environments import python_of
from benchmarks.peer_parts.inputs import SPACE
from benchmarks.peer_parts.loop import SCRIPTS, one_thread
from kdsearch import commands, search, space_file, study_store
from kdsearch.candidate import Candidate
from kdsearch.order import Order
from kdsearch.records import COMPLETE, Measurement, Record
from kdsearch.study_file import Search

TUNER_SHARE = 5


class Silence:
    """A watcher that says nothing."""

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None:
        """A trial starts."""

    def found(self, record: Record, known: Sequence[Record]) -> None:
        """A trial is over."""


def nothing(order: Order) -> Measurement:
    """Values by chance, at once."""
    size = order.candidate.architecture.layers * order.candidate.architecture.width / 2304
    known = {"accuracy_se": 0.01, "divergence": 0.1, "divergence_se": 0.01, "latency_ms": 10 * size, "parameters": 1000, "flops": size}
    return Measurement(COMPLETE, accuracy=0.5 + random.random() / 2, latency_relative=size, seconds=0.0, steps=1, **known)


def ours(trials: int, folder: Path) -> float:
    """Milliseconds of kdsearch.search for a trial."""
    study = study_store.open_study(commands.default_storage(folder), "noop", {})
    plan, space = Search(trials=trials, minutes=1000), space_file.parse(SPACE)
    around = search.Surroundings(plan, space, 0.5, 1.0, folder, lambda record: f"trial {record.trial}")
    start = time.perf_counter()
    known = search.search(study, around, nothing, Silence())
    return 1000 * (time.perf_counter() - start) / len(known)


def run(work: Path, trials: int, report: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Milliseconds per trial of all contenders."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        found["kdsearch"] = ours(trials, _folder(scratch, "kdsearch"))
        for kind in ("memory", "journal", "sqlite"):
            command = [python_of(work, "hf"), str(SCRIPTS / "controller_optuna.py"), kind, str(trials), str(_folder(scratch, kind))]
            found[f"Optuna TPE, {kind}"] = _numbers(command)[0]
        folder = _folder(scratch, "syne-tune")
        few = str(max(2, trials // TUNER_SHARE))
        command = [python_of(work, "syne-tune"), str(SCRIPTS / "controller_synetune.py"), str(trials), few, str(folder)]
        decisions, tuner = _numbers(command, SYNETUNE_FOLDER=str(folder))
        found |= {"syne-tune MO-ASHA": tuner, "MO-ASHA's decisions alone": decisions}
    report("controller: " + ", ".join(f"{name} {value:.1f} ms" for name, value in found.items()))
    return {"milliseconds": found}


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


def _numbers(command: list[str], **surroundings: str) -> list[float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread(**surroundings))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]
