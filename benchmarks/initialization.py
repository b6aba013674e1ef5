"""Where a student's weights come from: validation accuracy of three shapes from every initialization, at two budgets.

The shapes are cut out of the study's teacher: wide and shallow, narrow and deep with as many parameters, and tiny. Each start is distilled
with plain kd for --steps steps and for four times as many, on the study's rows and cached teacher outputs, with several seeds (order of the
rows, and what is random in the student). Starts that give one shape the same weights (all six layers, the full width) are trained once and
told once. Differences to uniform layers and leading slices are paired: the same validation rows, so their error is that of the rows' mean
differences. One more row a shape has the vocabulary cut to the tokens that the task's train and transfer texts use; its step is timed in
turns with that of the whole vocabulary.

    python benchmarks/initialization.py [--study studies/quickstart.yaml] [--steps N] [--seeds K] [--pretrained MODEL] [--distilled EXPORT]

Results are kept in --work as they come; started again, it goes on. The last line is JSON.
"""

import argparse
import datetime
import hashlib
import json
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from kdsearch import check, inference, objective, space_file, workbench
from kdsearch.candidate import OTHER_MODELS, Architecture, Candidate, Initialization, Recipe, Term, Training
from kdsearch.machine import accelerator
from kdsearch.students.initialize import BY_MEASURE, BY_PLACE
from kdsearch.tasks import metrics

ROOT = Path(__file__).parents[1]
SHAPES = {
    "wide and shallow": Architecture(2, 12, 32, 4),
    "narrow and deep": Architecture(6, 12, 24, 4.5),  # as many parameters
    "tiny": Architecture(2, 12, 8, 4),
}
KD = Recipe("kd", 0.5, (Term("kd", 1.0, (("temperature", 2.0),)),))
LEARNING_RATE, LONGER = 5e-4, 4
PLAIN = Initialization("uniform", "slice")
STARTS = [
    *(Initialization(layers, "slice") for layers in (*BY_PLACE, *BY_MEASURE)),
    *(Initialization(layers, width) for width in ("importance", "pca") for layers in ("uniform", "last", "removal")),
]
TIMED_STEPS, ROUNDS = 24, 5


@dataclass(frozen=True)
class Run:
    """One student: where it starts, its accuracy before training, which validation rows it got right, its divergence, its seconds."""

    shape: str
    start: str
    steps: int
    seed: int
    key: str
    untrained: float
    right: list[int]
    divergence: float
    seconds: float


def told(start: Initialization) -> str:
    """A start in words."""
    return f"{start.layers}, {start.width}"


def candidate_of(shape: str, start: Initialization, vocabulary: int | None = None) -> Candidate:
    """A student of a shape, from a start."""
    return Candidate(replace(SHAPES[shape], vocabulary=vocabulary), start, KD, Training(LEARNING_RATE))


def prepare(path: Path, starts: list[Initialization]) -> workbench.Bench:
    """The study's teacher, rows and outputs, and the calibration that these starts choose by."""
    study = check.open_files(path)
    space = space_file.parse({"architecture": asdict(SHAPES["tiny"]) | {"vocabulary": None}, "distillation": {"kd": {}}})
    extra = [candidate_of(shape, start) for shape in SHAPES for start in starts]
    return workbench.in_full(workbench.prepare(study.spec, space, study.base, extra))


def weights_key(student: PreTrainedModel, candidate: Candidate) -> str:
    """Content hash of an untrained student and of how it is trained."""
    digest = hashlib.sha256(json.dumps(replace(candidate, initialization=PLAIN).to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(student.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def answers(student: PreTrainedModel, bench: workbench.Bench, vocabulary: int | None) -> tuple[np.ndarray, float]:
    """Which validation rows are right, and the mean divergence to the teacher."""
    rows = bench.reading(vocabulary).rows
    logits = inference.predict(student, rows.encoded, rows.measuring, rows.pad_id, bench.spec.target.device)
    right = logits[: len(rows.validation)].argmax(1) == rows.encoded.labels[rows.validation]
    return right, metrics.mean(metrics.kl(bench.outputs.arrays["logits"][rows.measuring], logits))[0]


def distilled(shape: str, label: str, candidate: Candidate, steps: int, seed: int, bench: workbench.Bench) -> Run:
    """Train one student and look at its answers before and after."""
    begin, size = time.perf_counter(), candidate.architecture.vocabulary
    student = objective.started(candidate, bench, seed)
    key, untrained = weights_key(student, candidate), float(answers(student, bench, size)[0].mean())
    length = bench.spec.proxy.model_copy(update={"steps": steps, "schedule": "linear"})
    objective.train(student, candidate, bench, length, seed)
    right, divergence = answers(student, bench, size)
    return Run(shape, label, steps, seed, key, untrained, right.astype(int).tolist(), divergence, time.perf_counter() - begin)


def distinct(shape: str, starts: list[Initialization], bench: workbench.Bench) -> dict[str, Initialization]:
    """Starts by the names of all that give this shape the same weights."""
    groups: dict[str, list[Initialization]] = {}
    for start in starts:
        candidate = candidate_of(shape, start)
        groups.setdefault(weights_key(objective.started(candidate, bench, 0), candidate), []).append(start)
    return {" = ".join(told(start) for start in same): same[0] for same in groups.values()}


def step_seconds(candidate: Candidate, bench: workbench.Bench) -> float:
    """Mean seconds of a step over a short run."""
    moments: list[float] = []
    length = bench.spec.proxy.model_copy(update={"steps": TIMED_STEPS, "schedule": "linear"})
    student = objective.started(candidate, bench, 0)
    objective.train(student, candidate, bench, length, 0, lambda *_: moments.append(time.perf_counter()) is None)
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def gains(shape: str, vocabulary: int, bench: workbench.Bench) -> dict[str, float]:
    """Parameters and step time with the smaller vocabulary, as shares of those with the whole one."""
    whole, small = candidate_of(shape, PLAIN), candidate_of(shape, PLAIN, vocabulary)
    sizes = [objective.measured_cost(candidate, bench).parameters or 0 for candidate in (small, whole)]
    rounds = [step_seconds(small, bench) / step_seconds(whole, bench) for _ in range(1 + ROUNDS)][1:]
    return {"parameters": round(sizes[0] / sizes[1], 3), "step": round(median(rounds), 3), "megabytes": round(sizes[0] * 4e-6, 1)}


def scored(runs: list[Run]) -> np.ndarray:
    """Mean over the seeds of which rows were right, [rows]."""
    return np.mean([run.right for run in runs], axis=0)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over rows and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def line(runs: dict[int, list[Run]], plain: dict[int, list[Run]]) -> dict[str, Any]:
    """A start's numbers at each budget: accuracy, and the paired difference to the plain start in points and in its standard errors."""
    found: dict[str, Any] = {"untrained": round(float(np.mean([run.untrained for run in next(iter(runs.values()))])), 4)}
    for steps, some in runs.items():
        accuracy, error = mean_and_error(scored(some))
        difference, its_error = mean_and_error(scored(some) - scored(plain[steps]))
        found[str(steps)] = {
            "accuracy": round(accuracy, 4),
            "error": round(error, 4),
            "divergence": round(float(np.mean([run.divergence for run in some])), 4),
            "points": round(100 * difference, 2),
            "points_error": round(100 * its_error, 2),
            "in_errors": round(difference / its_error, 1) if its_error else 0.0,
        }
    return found


def document(result: dict[str, Any], command: str) -> str:
    """benchmarks/initialization.md."""
    budgets = result["steps"]
    parts = []
    for shape, rows in result["shapes"].items():
        head = "".join(f" accuracy, {steps} steps | against plain, points | in errors |" for steps in budgets)
        lines = [f"| start | at step 0 |{head}", f"|---|---|{'---|---|---|' * len(budgets)}"]
        for start, row in rows.items():
            cells = [start, f"{row['untrained']:.3f}"]
            for one in (row[str(steps)] for steps in budgets):
                cells.append(f"{one['accuracy']:.3f} ± {one['error']:.3f}")
                cells += (
                    [f"{one['points']:+.1f} ± {one['points_error']:.1f}", f"{one['in_errors']:+.1f}"]
                    if start != result["plain"][shape]
                    else ["", ""]
                )
            lines.append(f"| {' | '.join(cells)} |")
        size, won = result["vocabulary"][shape], "; ".join(result["winners"][shape])
        words = f"Own tokens leave {size['parameters']:.0%} of the parameters ({size['megabytes']} MB); a step takes {size['step']:.0%}."
        parts.append(f"## {shape.capitalize()}: {result['sizes'][shape]}\n\n{chr(10).join(lines)}\n\n{won}. {words}")
    return f"""# Where students start

`{command}`

{result["date"]}; {result["machine"]}.

Students of the quickstart's teacher (validation accuracy {result["teacher"]:.3f}), distilled with kd at temperature 2 and the labels at
0.5, learning rate {LEARNING_RATE:g}, {result["seeds"]} seeds, {result["rows"]} validation rows; a guess scores {result["majority"]:.3f}.
Starts of one row give the same weights. "own tokens": the plain start with the {result["own_tokens"]} tokens that train and transfer
texts use.

{(chr(10) * 2).join(parts)}

## What limits it

One teacher, one task of two classes, one recipe at one learning rate. Errors are those over rows; chance in training beyond
{result["seeds"]} seeds is not in them.
"""


def winners(rows: dict[str, Any], steps: list[int]) -> list[str]:
    """At each budget the start of highest accuracy, and by how many standard errors it is ahead of the plain one."""
    named = []
    for budget in map(str, steps):
        best = max((start for start in rows if start != "own tokens"), key=lambda start: rows[start][budget]["accuracy"])
        named.append(f"{budget} steps: {best} wins, {rows[best][budget]['in_errors']:+.1f} errors against plain")
    return named


def machine_words() -> str:
    """The machine without its name: what the timings depend on."""
    precision = "bf16" if accelerator("cpu").mixed_precision == "bf16" else "float32"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return (
        f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {precision}; {versions}"
    )


def trained(jobs: list[tuple[str, str, Candidate, int, int]], kept: Path, bench: workbench.Bench) -> list[Run]:
    """Every job's run: kept ones of the same untrained weights, the others trained now."""
    known = [Run(**json.loads(text)) for text in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    found = []
    for shape, label, candidate, steps, seed in jobs:
        key = weights_key(objective.started(candidate, bench, seed), candidate)
        run = next((one for one in known if (one.key, one.steps, one.seed) == (key, steps, seed)), None)
        if run is None:
            run = distilled(shape, label, candidate, steps, seed, bench)
            known.append(run)
            with kept.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(run)) + "\n")
            print(f"{shape}; {label}; {steps} steps, seed {seed}: {np.mean(run.right):.3f}, {run.seconds:.0f} s", flush=True)
        found.append(replace(run, shape=shape, start=label))
    return found


def main() -> None:
    """Train what is not trained yet, time the steps, and write the table."""
    parser = argparse.ArgumentParser(description="Three shapes of students from every initialization.")
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "quickstart.yaml")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrained", help="a pre-trained model of the teacher's family that every shape can be cut from")
    parser.add_argument("--distilled", help="an export of an earlier study that every shape can be cut from")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "initialization", help="where results are kept between calls")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "initialization.md")
    options = parser.parse_args()
    named = [Initialization(layers, model=getattr(options, layers)) for layers in OTHER_MODELS if getattr(options, layers)]
    bench, steps = prepare(options.study, [*STARTS, *named]), [options.steps, LONGER * options.steps]
    options.work.mkdir(parents=True, exist_ok=True)
    own = bench.ranking.lossless
    starts = {shape: distinct(shape, [*STARTS, *named], bench) for shape in SHAPES}
    jobs = [
        (shape, label, candidate, budget, seed)
        for seed in range(options.seeds)
        for shape in SHAPES
        for budget in steps
        for label, candidate in [
            *((label, candidate_of(shape, start)) for label, start in starts[shape].items()),
            ("own tokens", candidate_of(shape, PLAIN, own)),
        ]
    ]
    kept = options.work / f"runs-{bench.facts['teacher']['key'][:16]}-{bench.facts['task']['key']}-{bench.spec.proxy.batch_tokens}.jsonl"
    runs = trained(jobs, kept, bench)
    plain = {shape: next(label for label in starts[shape] if told(PLAIN) in label.split(" = ")) for shape in SHAPES}

    def of(shape: str, label: str) -> dict[int, list[Run]]:
        return {budget: [run for run in runs if (run.shape, run.start, run.steps) == (shape, label, budget)] for budget in steps}

    shapes = {
        shape: {label: line(of(shape, label), of(shape, plain[shape])) for label in (*starts[shape], "own tokens")} for shape in SHAPES
    }
    costs = {shape: objective.measured_cost(candidate_of(shape, PLAIN), bench).parameters or 0 for shape in SHAPES}
    result = {
        "shapes": shapes,
        "plain": plain,
        "winners": {shape: winners(rows, steps) for shape, rows in shapes.items()},
        "sizes": {
            shape: f"{one.layers} layers x {one.width}, FFN {one.ffn}, {costs[shape] / 1e6:.1f}M parameters"
            for shape, one in SHAPES.items()
        },
        "vocabulary": {shape: gains(shape, own, bench) for shape in SHAPES},
        "own_tokens": own,
        "teacher": bench.facts["teacher"]["accuracy"],
        "majority": bench.facts["task"]["majority"],
        "rows": len(bench.rows.validation),
        "steps": steps,
        "seeds": options.seeds,
        "machine": machine_words(),
        "date": datetime.date.today().isoformat(),
    }
    options.out.write_text(document(result, shlex.join(["python", *sys.argv])), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
