"""What tells early who will be on the front: on recorded trainings, how three scores at each number of steps rank the accuracy at the end,
and how much of the final front is in the part that would go on there.

    python benchmarks/rungs.py [--study FILE] [--curves FILE] [--teacher FILE] [--out benchmarks/rungs.md]

Takes a second; reads what benchmarks/record_curves.py recorded. The last line is JSON.
"""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.replay import SCORES, Replay
from kdsearch import check, pareto, rungs

ETAS = (2.0, 3.0)


def table(replay: Replay, least: float) -> list[dict[str, Any]]:
    """For each number of steps and score: tau with the accuracy at the end, and of the final front how many go on with each eta."""
    rows, marks = replay.trained, sorted(int(step) for step in replay.trained[0]["curve"])
    latency = np.array([row["latency"] for row in rows])

    def scored(name: str, step: int) -> np.ndarray:
        return np.array([row["curve"][str(step)][name] for row in rows]) * (1 if name == "accuracy" else -1)

    end = scored("accuracy", replay.steps)
    final = np.flatnonzero(pareto.front(np.where(end > least, end, np.nan), latency))
    found = []
    for step in marks[:-1]:
        for name in SCORES:
            order = rungs.ranking(scored(name, step), latency)
            kept = {eta: int(np.isin(final, order[: int(np.ceil(len(rows) / eta))]).sum()) for eta in ETAS}
            tau = float(kendalltau(scored(name, step), end)[0])
            found.append({"steps": step, "score": name, "tau": tau, "front": len(final), **{f"eta {eta:g}": kept[eta] for eta in ETAS}})
    return found


def document(found: list[dict[str, Any]], replay: Replay, command: str) -> str:
    """The table, and what it was made of."""
    lines = [
        "# What tells early who will be on the front",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}",
        "",
        f"{len(replay.trained)} recorded trainings of {replay.steps} steps with one seed. Kendall's tau is with the accuracy at the end;",
        "divergences count with their sign turned. The last columns: of the final front (above the accuracy limit), how many are",
        "in the best 1/eta by fronts of the score and latency.",
        "",
        "| steps | score | tau | goes on with eta 2 | with eta 3 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found:
        kept = " | ".join(f"{row[f'eta {eta:g}']} of {row['front']}" for eta in ETAS)
        lines.append(f"| {row['steps']} | {row['score'].replace('_', ' ')} | {row['tau']:.2f} | {kept} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Read, rank, write."""
    parser = argparse.ArgumentParser(description="What tells early who will be on the front.")
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"))
    parser.add_argument("--curves", type=Path, default=Path("benchmarks/curves/quickstart.jsonl"))
    parser.add_argument("--teacher", type=Path, default=Path("benchmarks/curves/quickstart_teacher.json"), help="what is known of it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/rungs.md"))
    options = parser.parse_args()
    study = check.open_files(options.study)
    replay = Replay.read(options.curves, study.space, study.spec.proxy)
    accuracy = json.loads(options.teacher.read_text(encoding="utf-8"))["accuracy"]
    found = table(replay, (study.spec.limits.accuracy_relative or 0.0) * accuracy)
    options.out.write_text(document(found, replay, shlex.join(["python", *sys.argv])), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
