"""P3 and P5: searches of one space at equal wall time, from the start of a process to its end by force, and the memory of each process
tree.

Every contender searches the same space with as many steps for a trial as the next, and writes down what a trial found when it found it:
accuracy on validation and latency relative to the teacher, its own values. kdsearch starts with an empty cache of the teacher's outputs, so
that filling it is in its time; what is read of it is its trials.jsonl.
"""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.peer_parts import probe
from benchmarks.peer_parts.environments import python_of
from benchmarks.peer_parts.loop import SCRIPTS, one_thread
from kdsearch import pareto, records

MARKS = (1 / 3, 2 / 3, 1.0)
LOOK, WEIGH = 0.25, 2.0
OURS = [sys.executable, "-c", "from kdsearch.cli import main; main()", "run"]
Point = dict[str, float]


def run(inputs: Path, work: Path, seconds: float, report: Callable[[str], None]) -> dict[str, Any]:
    """All contenders' searches, one after the other, and what each had found at the marks."""
    told, marks, found = json.loads(inputs.read_text(encoding="utf-8")), [share * seconds for share in MARKS], {}
    for name in ("Optuna + naive HF", "kdsearch", "Optuna + strong HF", "syne-tune MO-ASHA"):
        scratch = work / "searches" / name.replace(" ", "-")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        before = probe.both()
        points, memory = watch(*command_of(name, inputs, work, scratch), scratch, seconds)
        found[name] = {"points": points, "peak_megabytes": memory, "gflops": [before, probe.both()]} | at_marks(
            points, marks, told["majority"]
        )
        kept = ", ".join(f"{value:.3f}" for value in found[name]["hypervolume"])
        report(f"{name}: {found[name]['trials'][-1]} trials in {seconds:g} s, hypervolume {kept}, {memory['pss']:.0f} MB")
    return {"contenders": found, "marks": marks, "seconds": seconds, "reference": [told["majority"], 0.0], "steps": told["trial_steps"]}


def command_of(name: str, inputs: Path, work: Path, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """A contender's command and environment; what is not named here keeps its own number of threads."""
    notes, free = str(scratch / "notes.jsonl"), {key: value for key, value in one_thread().items() if not key.endswith("_NUM_THREADS")}
    if name == "kdsearch":
        study = study_of_trials(inputs, scratch)
        return [*OURS, str(study), "--out", str(scratch / "study")], {**free, "KDSEARCH_CACHE": str(scratch / "cache")}
    if name == "syne-tune MO-ASHA":
        folder = {**free, "SYNETUNE_FOLDER": str(scratch)}
        return [python_of(work, "syne-tune"), str(SCRIPTS / "search_synetune.py"), str(inputs), notes, str(scratch)], folder
    return [python_of(work, "hf"), str(SCRIPTS / "search_optuna.py"), str(inputs), notes, "naive" if "naive" in name else "strong"], free


def study_of_trials(inputs: Path, scratch: Path) -> Path:
    """kdsearch's study of the inputs, with the steps of a trial that all contenders have."""
    told = json.loads(inputs.read_text(encoding="utf-8"))
    study = told["study"]
    content = yaml.safe_load(Path(study).read_text(encoding="utf-8"))
    content["proxy"]["steps"] = told["trial_steps"]
    content["space"] = str(Path(study).parent / content["space"])
    (scratch / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return scratch / "study.yaml"


def watch(command: list[str], surroundings: dict[str, str], scratch: Path, seconds: float) -> tuple[list[Point], dict[str, float]]:
    """Run a command for so long; the points that it found with the second of each, and the most memory that its processes had, in MB."""
    start, points, peak = time.time(), [], {"rss": 0.0, "pss": 0.0, "own": 0.0}
    weighed = 0.0
    with (scratch / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings, cwd=scratch, start_new_session=True)
        try:
            while (passed := time.time() - start) < seconds and process.poll() is None:
                points += new_points(scratch, points, passed, start)
                if passed - weighed > WEIGH:
                    weighed, now = passed, memory_of(process.pid)
                    peak = {kind: max(peak[kind], now[kind]) for kind in peak}
                time.sleep(LOOK)
        finally:
            end_tree(process)
    points += new_points(scratch, points, seconds, start)
    points = [point for point in points if point["second"] <= seconds]
    if not points and process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(command)} ended:\n{(scratch / 'log').read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return points, peak


def new_points(scratch: Path, known: list[Point], passed: float, start: float) -> list[Point]:
    """What was found since the last look. kdsearch's records stand in the order of their trials, not in that in which they were told, and
    have no time of day, so theirs is that of the look."""
    notes, own = scratch / "notes.jsonl", scratch / "study" / "trials.jsonl"
    if own.is_file():
        states = (records.COMPLETE, records.STOPPED)
        trained = [record for record in records.read(own) if record.measurement.state in states and record.duplicate_of is None]
        seen = {point["trial"] for point in known}
        return [{"second": passed, "trial": record.trial, **_student(record)} for record in trained if record.trial not in seen]
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    told = [json.loads(line) for line in lines[len(known) :] if line.endswith("}")]
    return [{"second": line.pop("time") - start, **line} for line in told]


def _student(record: records.Record) -> Point:
    """What a trial adds to the hypervolume: nothing where it was stopped at a rung, whose accuracy is of a part of the rows."""
    found = record.measurement
    if found.state == records.STOPPED:
        return {}
    return {"accuracy": found.accuracy or 0.0, "latency_relative": found.latency_relative or math.inf}


def at_marks(points: list[Point], marks: list[float], majority: float) -> dict[str, list[float]]:
    """Trials and hypervolume at each mark. A trial that reported several times, or was stopped at a rung, counts once; each of the
    students that it reported counts as a point.

    The hypervolume is of accuracy above that of always answering the largest class, and of log latency below the teacher's.
    """
    found: dict[str, list[float]] = {"trials": [], "hypervolume": []}
    for mark in marks:
        then = [point for point in points if point["second"] <= mark]
        students = [point for point in then if "accuracy" in point]
        latency = [math.log(point["latency_relative"]) for point in students]
        found["trials"].append(len({point["trial"] for point in then}))
        found["hypervolume"].append(pareto.hypervolume([point["accuracy"] for point in students], latency, (majority, 0.0)))
    return found


def memory_of(root: int) -> dict[str, float]:
    """Memory of a process and all below it, in MB: RSS counts what they share once for each of them, PSS once in all (0 where it is not
    told), and ``own`` is the part of it that is no file's."""
    total = {"rss": 0.0, "pss": 0.0, "own": 0.0}
    try:
        tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in tree:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
            total["pss"] += int(sizes["Pss"]) / 1024
            total["own"] += int(sizes.get("Pss_Anon", 0)) / 1024
            total["rss"] += int(sizes["Rss"]) / 1024
        except (OSError, KeyError):
            continue
    return total


def end_tree(process: subprocess.Popen) -> None:
    """End a command with all its processes, those of sessions of their own too."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    process.kill()
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=10)
