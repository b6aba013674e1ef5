"""kdsearch against its peers on this machine, one command: the distillation loop, the first step, the search at equal wall time, the
controller, the memory.

    python benchmarks/peers.py [--only P1,P3] [--again] [--work FOLDER] [--out benchmarks/peers.md]

Contenders are naive and strong Hugging Face, TextBrewer, torchdistill, Optuna and syne-tune, each in a virtual environment of its own
that is made the first time (a few minutes, 6 GB; kept in --work). They take turns, and matrix products are timed around each turn,
because a shared machine slows down and speeds up by itself. What a contender does stands in its file of benchmarks/peers/.

  P0        the machine's limit
  P1        the distillation loop on three fixed students
  accuracy  the same trainings for longer, for their accuracies
  bigger    P1 with a 12 x 768 teacher, against naive Hugging Face
  long      P1 with texts of 256 tokens, against strong Hugging Face
  P2        process start to the first step, and what lies between two trials
  P3        searches at equal wall time: trials, hypervolume; and P5, their memory
  P4        the controller's time for a trial that does nothing

Each part is kept in --work when it is done, and a stopped command goes on behind it; --only runs the named parts anew, --again all of them.
The last step writes the document from all that is there; the last line is JSON. All parts take about half an hour on two cores, half of it
for the accuracies.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.peer_parts import controller, environments, first_step, inputs, loop, probe, searches, table, verdict
from kdsearch.resources import cache_folder

LOOP = list(loop.CONTENDERS)


@dataclass(frozen=True)
class Setting:
    """What every part is run with."""

    work: Path
    study: Path
    options: argparse.Namespace
    report: Callable[[str], None]

    def inputs(self, case: str) -> Path:
        """The inputs.json of a case, made when first asked for."""
        return inputs.prepare(inputs.CASES[case], self.work, self.study)


def race(case: str, names: list[str]) -> Callable[[Setting], dict[str, Any]]:
    """A part that lets contenders take turns at short trainings."""
    return lambda setting: loop.race(
        names, setting.inputs(case), setting.work, setting.options.rounds, setting.options.slot_seconds, setting.report
    )


def accuracy(setting: Setting) -> dict[str, Any]:
    """The part that trains for longer."""
    options = setting.options
    return loop.accuracies(LOOP, setting.inputs("loop"), setting.work, options.accuracy_steps, options.accuracy_seeds, setting.report)


def equal_time(setting: Setting) -> dict[str, Any]:
    """The part that searches."""
    return searches.run(setting.inputs("loop"), setting.work, setting.options.search_seconds, setting.report)


PARTS: dict[str, tuple[Callable[[Setting], dict[str, Any]], list[str]]] = {
    "P0": (lambda _: probe.limits(), []),
    "P1": (race("loop", LOOP), ["hf", "textbrewer", "torchdistill"]),
    "bigger": (race("bigger", ["naive HF", "kdsearch"]), ["hf"]),
    "long": (race("long", ["strong HF", "kdsearch"]), ["hf"]),
    "P2": (lambda setting: first_step.run(setting.inputs("loop"), setting.work, setting.report), ["hf"]),
    "P3": (equal_time, ["hf", "syne-tune"]),
    "P4": (lambda setting: controller.run(setting.work, setting.options.noop_trials, setting.report), ["hf", "syne-tune"]),
    "accuracy": (accuracy, ["hf", "textbrewer", "torchdistill"]),
}


def run(setting: Setting, parts: list[str], again: bool) -> dict[str, Any]:
    """The results of all parts that are there, after these were run where they are not, or again."""
    folder = setting.work / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for name in parts:
        kept = folder / f"{name}.json"
        if kept.is_file() and not again:
            continue
        part, needs = PARTS[name]
        environments.make(setting.work, needs, setting.report)
        load, start = os.getloadavg()[0], time.perf_counter()
        found = part(setting)
        found |= {"part_seconds": time.perf_counter() - start, "load_before": load}
        found |= {"date": datetime.date.today().isoformat(), "command": shlex.join(["python", *sys.argv])}
        kept.write_text(json.dumps(found), encoding="utf-8")
        setting.report(f"{name}: {found['part_seconds']:.0f} s")
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in PARTS if (folder / f"{name}.json").is_file()
    }


def main() -> None:
    """Run the parts, write the document, print the JSON."""
    parser = argparse.ArgumentParser(description="kdsearch against its peers on this machine.")
    parser.add_argument("--only", help=f"parts to run anew, of {','.join(PARTS)}; left out: all that are not done yet")
    parser.add_argument("--again", action="store_true", help="run all parts anew; environments and inputs are kept")
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"), help="whose teacher and texts are used")
    parser.add_argument("--work", type=Path, default=cache_folder() / "peers", help="environments, inputs and results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/peers.md"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender and student in P1")
    parser.add_argument("--slot-seconds", type=float, default=2.0, help="length of a turn in P1")
    parser.add_argument("--search-seconds", type=float, default=90.0, help="wall time of each search in P3")
    parser.add_argument("--accuracy-steps", type=int, default=60)
    parser.add_argument("--accuracy-seeds", type=int, default=3)
    parser.add_argument("--noop-trials", type=int, default=200, help="trials in P4")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    setting = Setting(options.work.resolve(), options.study, options, lambda text: print(text, flush=True))
    results = run(setting, chosen, options.again or bool(options.only))
    bars = verdict.bars(results)
    options.out.write_text(table.document(results, bars), encoding="utf-8")
    print(json.dumps({"bars": [vars(bar) for bar in bars], "results": table.brief(results)}))


if __name__ == "__main__":
    main()
