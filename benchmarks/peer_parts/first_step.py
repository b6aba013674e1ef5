"""P2: how long it takes until something is trained, at the start of a search and between two of its trials.

The processes of a search write down the time of every optimizer step (benchmarks/peers/watched). kdsearch's cache of the teacher's
outputs is filled before: it is filled once, and P3 has it in its time. Between the last step of a trial and the first of the next one in
the same process lie scoring, telling, asking, building and timing the latency. What of it is overhead, from the start of a trial to its
first forward pass without the timing, is measured apart, in a process that has trained before.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peer_parts import loop
from benchmarks.peer_parts.environments import python_of
from benchmarks.peer_parts.searches import OURS, SCRIPTS, end_tree, study_of_trials

TRIALS, STEPS, LONGEST = 4, 10, 120.0
ROUNDS = 3
Step = tuple[float, int, int]


def run(inputs: Path, work: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Both contenders, in turns."""
    told = json.loads(inputs.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"naive HF": {}, "kdsearch": {}}
    with loop.started(list(found), inputs, work) as contenders:  # first, since kdsearch fills its cache when it starts
        for name, contender in contenders.items():
            jobs = [loop.job_of(told, student, 2, turn) for turn in range(ROUNDS) for student in told["students"]]
            found[name]["overhead"] = median([contender.ask(job)["before"] for job in jobs][1:])
    for name in found:
        scratch = work / "first" / name.replace(" ", "-")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        short = scratch / "inputs.json"
        short.write_text(json.dumps(told | {"trial_steps": STEPS}), encoding="utf-8")
        found[name] |= read_steps(*watched(name, short, work, scratch))
        words = [f"{kind} {found[name][kind]:.3f} s" for kind in ("first", "between", "overhead")]
        report(f"{name}: {', '.join(words)}")
    return found


def watched(name: str, inputs: Path, work: Path, scratch: Path) -> tuple[list[Step], float]:
    """The steps of a search's first trials, which are short, and when its process was started; it is ended when one process has
    begun its last."""
    surroundings = {key: value for key, value in loop.one_thread().items() if not key.endswith("_NUM_THREADS")}
    surroundings["PYTHONPATH"] = f"{SCRIPTS / 'watched'}:{surroundings['PYTHONPATH']}"
    surroundings["WATCHED_STEPS"] = str(scratch / "steps")
    if name == "kdsearch":
        command = [*OURS, str(study_of_trials(inputs, scratch)), "--out", str(scratch / "study"), "--trials", str(4 * TRIALS)]
    else:
        notes = str(scratch / "notes.jsonl")
        command = [python_of(work, "hf"), str(SCRIPTS / "search_optuna.py"), str(inputs), notes, "naive", str(TRIALS)]
    start = time.time()
    with (scratch / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings, cwd=scratch, start_new_session=True)
        while process.poll() is None and time.time() - start < LONGEST and max_trials(steps_in(scratch)) < TRIALS:
            time.sleep(0.2)
        end_tree(process)
    if not (steps := steps_in(scratch)):
        raise RuntimeError(f"{name} trained nothing in {LONGEST:g} s:\n{(scratch / 'log').read_text(encoding='utf-8')[-2000:]}")
    return steps, start


def steps_in(scratch: Path) -> list[Step]:
    """The steps that were written down: when, by which process, of which of its trials."""
    path = scratch / "steps"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.split() for line in lines]
    return [(float(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3]


def max_trials(steps: list[Step]) -> int:
    """Trials of the process that has begun most."""
    return max((number + 1 for _, _, number in steps), default=0)


def read_steps(steps: list[Step], start: float) -> dict[str, Any]:
    """Seconds from the process's start to the first step of the first two trials, and the median between two trials of one process."""
    trials: dict[tuple[int, int], list[float]] = {}
    for moment, process, number in steps:
        trials.setdefault((process, number), []).append(moment)
    firsts = sorted(moments[0] for moments in trials.values())
    gaps = [
        moments[0] - trials[process, number - 1][-1] for (process, number), moments in trials.items() if (process, number - 1) in trials
    ]
    return {
        "first": firsts[0] - start,
        "second": firsts[1] - start if len(firsts) > 1 else float("nan"),
        "between": median(gaps) if gaps else float("nan"),
        "gaps": gaps,
    }
