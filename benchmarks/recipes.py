"""The named recipes of the literature on one student: validation accuracy, and the cost of a step.

Every recipe of search_spaces/recipes.yaml distils the same student (3 layers x 192, cut out of the study's teacher: every other layer,
leading slice) for the same number of steps at the same learning rate, on the study's rows and cached teacher outputs, with several seeds
(order of the rows, and what is random in the student). Three recipes are also started from random layers. Differences are paired: the same
validation rows, so their error is that of the rows' mean differences, and does not contain the rows' common difficulty.

Steps are timed apart from the training: short runs on the same batches, in turns and in random order, because a shared machine slows down
and speeds up by itself. A recipe's cost is the median over rounds of its time over that of plain kd (hinton) in the same round.

    python benchmarks/recipes.py [--study studies/quickstart.yaml] [--steps N] [--seeds K] [--out benchmarks/recipes.md]

Results are kept in --work as they come; started again, it goes on. The last line is JSON.
"""

import argparse
import datetime
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from kdsearch import check, inference, objective, search_space, space_file, workbench
from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Training
from kdsearch.machine import accelerator
from kdsearch.students.build import build
from kdsearch.tasks import metrics

ROOT = Path(__file__).parents[1]
SHAPE = {"layers": 3, "heads": 12, "head_size": 16, "ffn_ratio": 4}
LEARNING_RATE = 5e-4
PLAIN = "hinton"
FROM_RANDOM = ("none", "hinton", "tinybert", "minilmv2")
TIMED_STEPS, ROUNDS = 24, 5
MOST_COSTLY, COSTLY = 2.5, ("emd", "rkd", "ckd")

# What the literature leads one to expect: the better and the worse (recipe, start), and who says so.
CLAIMS = (
    (("hinton", "uniform"), ("none", "uniform"), "distilling beats the labels alone (Hinton et al. 2015)"),
    (("hinton", "uniform"), ("hinton", "random"), "teacher layers beat random ones, with kd (Wang et al. 2023; Lu et al. 2022)"),
    (("tinybert", "uniform"), ("tinybert", "random"), "teacher layers beat random ones, with TinyBERT's losses (Wang et al. 2023)"),
    (("minilmv2", "uniform"), ("minilmv2", "random"), "teacher layers beat random ones, with MiniLMv2's (Wang et al. 2023)"),
    (("minilmv2", "uniform"), ("pkd", "uniform"), "attention transfer beats hidden states (Wang et al. 2023)"),
    (("tinybert", "uniform"), ("hinton", "uniform"), "TinyBERT's losses beat plain kd at equal budget (Bui et al. 2024)"),
    (("minilm", "uniform"), ("hinton", "uniform"), "MiniLM's losses beat plain kd at equal budget (Bui et al. 2024)"),
    (("minitron", "uniform"), ("hinton", "uniform"), "hidden states at last2 help beside the logits (Lu et al. 2022)"),
    (("ofa_compress", "uniform"), ("hinton", "uniform"), "the seed paper's own advice beats plain kd (Lu et al. 2022)"),
)


@dataclass(frozen=True)
class Run:
    """One student: its candidate's content hash, which validation rows it got right, its divergence to the teacher, its seconds."""

    recipe: str
    start: str
    key: str
    seed: int
    right: list[int]
    divergence: float
    seconds: float


def recipes() -> dict[str, Recipe]:
    """The named recipes, in the order of their file."""
    space = space_file.load(ROOT / "search_spaces" / "recipes.yaml")
    return {candidate.distillation.name: candidate.distillation for candidate in search_space.each_branch(space)}


def candidate_of(recipe: Recipe, start: str) -> Candidate:
    """The fixed student with this recipe, from these layers."""
    return Candidate(Architecture(**SHAPE), Initialization(start), recipe, Training(LEARNING_RATE))


def prepare(path: Path, steps: int) -> workbench.Bench:
    """The study's teacher and rows, with the outputs that a recipe on this student can use."""
    study = check.open_files(path)
    content = space_file.load(ROOT / "search_spaces" / "recipes.yaml").content
    space = space_file.parse({"architecture": SHAPE, "distillation": content["distillation"]})
    spec = study.spec.model_copy(update={"proxy": study.spec.proxy.model_copy(update={"steps": steps, "schedule": "linear"})})
    return workbench.in_full(workbench.prepare(spec, space, study.base, []))


def distilled(name: str, start: str, seed: int, recipe: Recipe, bench: workbench.Bench) -> Run:
    """Train one student and look at its answers."""
    begin = time.perf_counter()
    candidate = candidate_of(recipe, start)
    student = build(bench.teacher, candidate, seed)
    objective.train(student, candidate, bench, bench.spec.proxy, seed)
    seconds, rows = time.perf_counter() - begin, bench.rows
    logits = inference.predict(student, rows.encoded, rows.measuring, rows.pad_id, bench.spec.target.device)
    right = logits[: len(rows.validation)].argmax(1) == rows.encoded.labels[rows.validation]
    divergence = metrics.mean(metrics.kl(bench.outputs.arrays["logits"][rows.measuring], logits))[0]
    return Run(name, start, candidate.key(), seed, right.astype(int).tolist(), divergence, seconds)


def step_seconds(recipe: Recipe, bench: workbench.Bench) -> float:
    """Mean seconds of a step over a short run on the batches that every recipe sees: both stages of a recipe that has two."""
    length = bench.spec.proxy.model_copy(update={"steps": TIMED_STEPS})
    candidate, moments = candidate_of(recipe, "uniform"), []
    student = build(bench.teacher, candidate, 0)
    objective.train(student, candidate, bench, length, 0, lambda *_: moments.append(time.perf_counter()) is None)
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def costs(named: dict[str, Recipe], bench: workbench.Bench) -> dict[str, tuple[float, float]]:
    """Each recipe's median milliseconds per step, and median ratio to plain kd within a round."""
    random, rounds = np.random.default_rng(0), []
    for recipe in named.values():  # everything loaded and compiled before anything is timed
        step_seconds(recipe, bench)
    for _ in range(ROUNDS):
        rounds.append({name: step_seconds(named[name], bench) for name in random.permutation(list(named)).tolist()})
    return {name: (1000 * median(one[name] for one in rounds), median(one[name] / one[PLAIN] for one in rounds)) for name in named}


def scored(runs: list[Run]) -> np.ndarray:
    """Mean over the seeds of which rows were right, [rows]."""
    return np.mean([run.right for run in runs], axis=0)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over rows and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def table(groups: dict[tuple[str, str], list[Run]], cost: dict[str, tuple[float, float]]) -> list[str]:
    """One line a recipe and start."""
    plain, lines = scored(groups[PLAIN, "uniform"]), []
    for (name, start), runs in groups.items():
        accuracy, error = mean_and_error(scored(runs))
        by_seed = [float(np.mean(run.right)) for run in runs]
        difference, its_error = mean_and_error(scored(runs) - plain)
        beside = "" if (name, start) == (PLAIN, "uniform") else f"{100 * difference:+.1f} ± {100 * its_error:.1f}"
        divergence = float(np.mean([run.divergence for run in runs]))
        ms, ratio = cost[name]
        cells = [name, start, f"{accuracy:.3f} ± {error:.3f}", f"{min(by_seed):.3f} to {max(by_seed):.3f}", beside, f"{divergence:.3f}"]
        lines.append(f"| {' | '.join([*cells, f'{ms:.0f}', f'{ratio:.2f}'])} |")
    return lines


def verdicts(groups: dict[tuple[str, str], list[Run]]) -> list[dict[str, Any]]:
    """Each claim beside what was measured: it agrees or disagrees where the difference exceeds two standard errors."""
    found = []
    for better, worse, claim in CLAIMS:
        difference, error = mean_and_error(scored(groups[better]) - scored(groups[worse]))
        verdict = "not decided" if abs(difference) <= 2 * error else "agrees" if difference > 0 else "disagrees"
        found.append({"claim": claim, "points": round(100 * difference, 2), "error": round(100 * error, 2), "verdict": verdict})
    return found


HEAD = """\
| recipe | start | accuracy | over seeds | against hinton, points | divergence | ms a step | cost of a step |
|---|---|---|---|---|---|---|---|"""


def document(told: dict[str, Any], lines: list[str], command: str) -> str:
    """benchmarks/recipes.md."""
    claims = "\n".join(f"* {one['verdict']}: {one['claim']}: {one['points']:+.1f} ± {one['error']:.1f} points." for one in told["claims"])
    over = ", ".join(f"{name} {ratio:.2f}" for name, ratio in told["over_the_bar"].items()) or "none"
    return f"""# The named recipes on one student

`{command}`

{told["date"]}; {told["machine"]}.

Student: 3 layers x 192, 12 heads, FFN 768, from the quickstart's teacher (validation accuracy {told["teacher"]:.3f});
{told["steps"]} steps of about {told["batch_tokens"]} tokens, learning rate {LEARNING_RATE:g}, {told["seeds"]} seeds, {told["rows"]} rows.

{HEAD}
{chr(10).join(lines)}

Accuracy: mean over the seeds ± the standard error over rows; beside it the lowest and highest seed. Points against hinton are paired over
the same rows. Divergence: mean KL(teacher || student) in nats on validation and held-out text. Cost: time of a step over that of hinton,
median of {ROUNDS} rounds in turns on the same batches and cached outputs. Random layers keep the teacher's embeddings, pooler and head.

## Against the literature

Two standard errors decide; chance in training beyond {told["seeds"]} seeds is not in them.

{claims}

## Cost

Over {MOST_COSTLY} times plain kd, among the recipes for which that is not expected ({", ".join(COSTLY)}): {over}.

## What limits it

One student, one task of two classes, short training at one learning rate for all, and the papers' own weights: a recipe whose losses are
large beside the labels is at a disadvantage that a search over weights removes. Staged recipes spend half of the steps before they see a
label, and beside the transfer text only half of their rows have one. None of the recipes' pre-training is here.
"""


def machine_words() -> str:
    """The machine without its name: what the timings depend on."""
    precision = "bf16" if accelerator("cpu").mixed_precision == "bf16" else "float32"
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} CPU cores, {capability}, {torch.get_num_threads()} threads, {precision}; {versions}"


def main() -> None:
    """Train what is not trained yet, time the steps, and write the table."""
    parser = argparse.ArgumentParser(description="The named recipes of the literature on one student.")
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "quickstart.yaml")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "recipes", help="where results are kept between calls")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "recipes.md")
    options, named = parser.parse_args(), recipes()
    bench = prepare(options.study, options.steps)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = (
        options.work
        / f"runs-{bench.facts['teacher']['key'][:16]}-{bench.facts['task']['key']}-{options.steps}x{bench.spec.proxy.batch_tokens}.jsonl"
    )
    known = [Run(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
    starts = [(name, "uniform") for name in named] + [(name, "random") for name in FROM_RANDOM]
    keys = {(name, start): candidate_of(named[name], start).key() for name, start in starts}
    known = [run for run in known if keys.get((run.recipe, run.start)) == run.key]  # a recipe that was changed since is run again
    for seed in range(options.seeds):
        for name, start in starts:
            if not any((run.recipe, run.start, run.seed) == (name, start, seed) for run in known):
                known.append(distilled(name, start, seed, named[name], bench))
                with kept.open("a") as stream:
                    stream.write(json.dumps(known[-1].__dict__) + "\n")
                print(f"{name} {start} {seed}: {np.mean(known[-1].right):.3f}, {known[-1].seconds:.0f} s", flush=True)
    groups = {key: [run for run in known if (run.recipe, run.start) == key and run.seed < options.seeds] for key in starts}
    cost = costs(named, bench)
    told = {
        "accuracy": {f"{name} {start}": round(mean_and_error(scored(runs))[0], 4) for (name, start), runs in groups.items()},
        "cost": {name: round(ratio, 2) for name, (_, ratio) in cost.items()},
        "over_the_bar": {name: round(ratio, 2) for name, (_, ratio) in cost.items() if ratio > MOST_COSTLY and name not in COSTLY},
        "claims": verdicts(groups),
        "teacher": bench.facts["teacher"]["accuracy"],
        "rows": len(bench.rows.validation),
        "batch_tokens": bench.spec.proxy.batch_tokens,
        "steps": options.steps,
        "seeds": options.seeds,
        "machine": machine_words(),
        "date": datetime.date.today().isoformat(),
    }
    command = f"python benchmarks/recipes.py --steps {options.steps} --seeds {options.seeds}"
    options.out.write_text(document(told, table(groups, cost), command), encoding="utf-8")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
