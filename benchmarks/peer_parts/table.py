"""benchmarks/peers.md: the bars, the tables, the machine in words, and how each contender was run."""

import math
import os
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from benchmarks.peer_parts.environments import PEERS
from benchmarks.peer_parts.verdict import Bar

Results = dict[str, Any]
HEAVY = ("points", "turns", "gaps", "gflops", "facts")


def document(results: Results, bars: list[Bar]) -> str:
    """The whole document, from the parts that were run, each with its command and date."""
    makers = {
        "P0": _limits,
        "P1": lambda found: _loop("P1: the distillation loop", found),
        "accuracy": _accuracy,
        "bigger": lambda found: _loop("A bigger teacher", found),
        "long": lambda found: _loop("Long texts", found),
        "P2": _first_step,
        "P3": _searches,
        "P4": _controller,
    }
    missing = [part for part in makers if part not in results]
    met = sum(bar.met for bar in bars)
    seconds = sum(found["part_seconds"] for found in results.values())
    commands: dict[str, list[str]] = {}
    for part, found in results.items():
        commands.setdefault(f"`{found['command']}` ({found['date']})", []).append(part)
    ran = "\n".join(f"* {command}: {', '.join(parts)}" for command, parts in commands.items())
    sections = [make(results[part]) for part, make in makers.items() if part in results]
    return f"""# kdsearch and its peers, side by side

{ran}

{machine(results)}

The parts took {seconds / 60:.0f} minutes{f"; not run: {', '.join(missing)}" if missing else ""}. Bars met: **{met} of {len(bars)}**.

## Bars

{_rows(["part", "bar", "found", "met"], [[bar.part, bar.asked, bar.found, "yes" if bar.met else "**no**"] for bar in bars])}

{chr(10).join(sections)}
{LIMITS}"""


def machine(results: Results) -> str:
    """The machine without its name, the releases, and how busy it was."""
    loads = [found["load_before"] for found in results.values()]
    peers = [package for packages, bare in PEERS.values() for package in [*packages, *bare] if "==" in package]
    releases = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "optuna"))
    busy = f"load average before the parts {min(loads):.1f} to {max(loads):.1f}" if loads else "nothing was run"
    return f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}; {releases}; {', '.join(peers)}; {busy}."


def brief(results: Results) -> Results:
    """The results without what only the work folder needs."""

    def short(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: short(value) for key, value in item.items() if key not in HEAVY}
        if isinstance(item, list):
            return [short(value) for value in item]
        if isinstance(item, float):
            return round(item, 4) if math.isfinite(item) else None
        return item

    return short(results)


def _rows(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])


def _limits(found: Results) -> str:
    rows = [
        [f"{count} process{'es' if count == '2' else ''}", *(f"{found[count][kind]:.0f}" for kind in ("fp32", "bf16"))] for count in "12"
    ]
    return f"## P0: the machine's limit\n\n{_rows(['one thread each', 'float32, GFLOP/s', 'bf16, GFLOP/s'], rows)}\n"


def _loop(title: str, found: Results) -> str:
    names = list(next(iter(found["students"].values()))["tokens_per_second"])
    rows = []
    for student, told in found["students"].items():
        for name in names:
            ours = name == "kdsearch"
            low, high = (1, 1) if ours else told["ratio_range"][name]
            times = ["1", "1"] if ours else [f"**{told['ratio'][name]:.1f}** ({low:.1f} to {high:.1f})", f"{told['ratio_cpu'][name]:.1f}"]
            pads, memory = f"{told['padding'][name]:.2f}", f"{told['peak_megabytes'][name]:,.0f}"
            rows.append([student, name, f"{told['tokens_per_second'][name]:,.0f}", *times, pads, memory])
    head = ["student", "contender", "tokens/s", "kdsearch is so many times as fast", "by CPU time", "padded/real", "peak RSS, MB"]
    shares, of_float32 = (
        ", ".join(f"{student} {100 * told[kind]:.0f} %" for student, told in found["students"].items())
        for kind in ("share_of_peak", "share_of_float32_peak")
    )
    facts, turns = found["facts"], len(next(iter(found["students"].values()))["turns"])
    return f"""## {title}

Teacher {facts["teacher"]}, {facts["train"]:,} rows of {facts["tokens_per_row"]:.0f} tokens; one thread each; medians of {turns} rounds.
kdsearch's cache of the teacher's outputs holds {facts["cache_megabytes"]:.2f} MB (logits: all that this recipe looks at).

{_rows(head, rows)}

kdsearch's share of the bf16 peak, 6 N tokens / (seconds x peak), by the texts' own tokens: {shares}
(of the float32 peak: {of_float32}).
"""


def _accuracy(found: Results) -> str:
    rows = []
    for student, told in found["students"].items():
        for name, value in told["accuracy"].items():
            apart = "" if name == "kdsearch" else f"{100 * told['difference'][name]:+.1f} ± {100 * told['error'][name]:.1f}"
            rows.append([student, name, f"{told['examples'][name]:,}", f"{value:.3f}", apart, told["within"].get(name, "")])
    head = ["student", "contender", "examples", "accuracy", "kdsearch - it, points", "agree within"]
    return f"""### Accuracies of the loop

After {found["steps"]} steps of about {found["examples_per_step"]} examples, on validation and test rows, means of {found["seeds"]}
seeds; ± the standard error of the differences, of rows and of seeds.

{_rows(head, rows)}
"""


def _first_step(found: Results) -> str:
    contenders = [name for name, told in found.items() if isinstance(told, dict)]
    kinds = ("first", "second", "between", "overhead")
    rows = [[f"Optuna + {name}" if name != "kdsearch" else name, *(f"{found[name][kind]:.2f}" for kind in kinds)] for name in contenders]
    head = [
        "seconds",
        "process start to the first step of trial 1",
        "of trial 2",
        "last step to the next trial's first",
        "overhead of a trial",
    ]
    return f"""## P2: to the first step

{_rows(head, rows)}

Between two trials lie scoring, telling, asking, timing the latency and building; the overhead is building and setting up alone, until the
first forward pass, in a process that has trained before. The bar is on the overhead.
"""


def _searches(found: Results) -> str:
    marks = [f"{mark:g} s" for mark in found["marks"]]
    rows = []
    for name, told in found["contenders"].items():
        kept, memory = [f"{value:.3f}" for value in told["hypervolume"]], told["peak_megabytes"]
        rate = median(pair["fp32"] for pair in told["gflops"])
        weights = [f"{memory[kind]:,.0f}" for kind in ("pss", "own", "rss")]
        rows.append([name, *(f"{count:.0f}" for count in told["trials"]), *kept, *weights, f"{rate:.0f}"])
    trials, volumes = [f"trials at {mark}" for mark in marks], [f"hypervolume at {mark}" for mark in marks]
    head = ["contender", *trials, *volumes, "P5: peak PSS, MB", "no file's", "peak RSS, MB", "GFLOP/s around it"]
    accuracy, latency = found["reference"]
    return f"""## P3 and P5: searches at equal wall time

{found["seconds"]:g} s each from the start of the process, {found["steps"]} steps a trial, one space (`SPACE` in `peer_parts/inputs.py`).
Hypervolume of accuracy and log latency relative to the teacher, reference ({accuracy:.3f}, {latency:g}): the largest class and the teacher.

{_rows(head, rows)}

Memory is of the whole tree of processes; RSS counts shared pages once a process. kdsearch fills its cache within its time. A trial
counts that was stopped at a rung, of kdsearch and of MO-ASHA. What MO-ASHA reported at any rung counts as a student; what kdsearch found
at one does not, since it is the accuracy of a part of the rows.
"""


def _controller(found: Results) -> str:
    rows = [[name, f"{value:.1f}"] for name, value in found["milliseconds"].items()]
    return f"## P4: the controller\n\n{_rows(['trial that does nothing', 'ms'], rows)}\n\n{CONTROLLER}\n"


CONTROLLER = """kdsearch: its default sampler and storage, records and notes included. Optuna: `study.optimize` with its default sampler.
syne-tune: its tuner with LocalBackend, one worker, a look every 0.1 s; each trial is a process that imports syne-tune alone."""

LIMITS = """## How to read it

* naive HF is what one writes first (Trainer, teacher in `compute_loss`, padding to the task's longest, float32); strong HF has the
  Trainer's documented fast options: bf16 autocast of student and teacher, batches by length, and as kdsearch frozen word embeddings and
  no dropout; attention is transformers' default (SDPA).
* TextBrewer has its cache of logits (filling it is not in its rate, nor is kdsearch's in P1); its mixed precision is Apex's. torchdistill
  1.1.5 has no cache any more; it runs in float32, its default, and was not tried with an accelerate `Accelerator` in bf16.
* In P1 all train with fused AdamW, the same learning rate, decay and clipping, on the same rows, from the same weights, with as many
  examples a step (kdsearch: in the mean over an epoch). The naive way trains word embeddings and has dropout, as the model's config says.
* Ratios count each rate per matrix product that the machine did around the turn. On a busy machine read the ratios, not the seconds.
* Peak RSS is no less than what the command itself held when it started the contenders, which is more where it has just made the inputs.
* P3 is one run of each contender, and chance decides what a search draws. kdsearch has its own defaults there: averaged weights, rungs.
"""
