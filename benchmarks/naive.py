"""The naive way, measured: what one candidate of a search costs as people write it today, and as kdsearch runs it.

The naive way is Optuna around Hugging Face's Trainer: texts tokenised once and padded to ``max_length``, the teacher's forward pass inside
``compute_loss`` at every step, float32, and the Trainer's defaults otherwise. kdsearch reads the teacher's outputs from its cache, batches
rows of equal length, leaves word embeddings frozen, and uses bf16 where the processor is faster with it.

Both distil the same candidates from the same initial weights, for the same number of steps with as many examples per step, at the same
learning rate, on the same labelled rows, on the same threads of one process. They take turns, in random order, because a shared machine
slows down and speeds up by itself: only ratios of neighbouring runs mean anything. A turn covers what a trial has to do: build the student,
train it, evaluate it on validation. Filling the cache is timed apart, and shared out among the candidates in ``ratio_with_cache``.

    python benchmarks/naive.py [--study studies/quickstart.yaml] [--steps N] [--candidates K] [--seed S] [--out benchmarks/naive.md]
"""

import argparse
import datetime
import gc
import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import optuna
import torch
import transformers
from accelerate.state import AcceleratorState
from datasets import Dataset
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

from kdsearch import check, inference, objective, search_space, teacher, workbench
from kdsearch.candidate import Candidate, Recipe
from kdsearch.distillation.knowledge import Shapes, teacher_signals
from kdsearch.machine import accelerator
from kdsearch.space_file import SearchSpace
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, classes_of
from kdsearch.tasks import data, pool
from kdsearch.tasks.batches import LENGTH_STEP, bucket, stream

EXAMPLES_PER_STEP = 32
WARM_UP_STEPS, WARM_UP_ROWS = 2, 32
Params = dict[str, Any]


def shaped(layers: int, heads: int, head_size: int, rate: float) -> Params:
    """Optuna parameters of search_spaces/encoder.yaml that every candidate here has."""
    return {
        "architecture.layers": layers,
        "architecture.heads": heads,
        "architecture.head_size": head_size,
        "architecture.ffn_ratio": 4,
        "architecture.vocabulary": None,
        "initialization.layers": "uniform",
        "initialization.width": "slice",
        "training.learning_rate": rate,
    }


def kd(temperature: float, hard_weight: float = 0.5) -> Params:
    """Parameters of the recipe that looks at logits only."""
    return {"distillation": "kd", "distillation.kd.hard_weight": hard_weight, "distillation.kd.kd.temperature": temperature}


HIDDEN_MSE = {
    "distillation": "hidden_mse",
    "distillation.hidden_mse.hard_weight": 0.5,
    "distillation.hidden_mse.hidden_mse.matching": "uniform",
    "distillation.hidden_mse.hidden_mse.weight": 1.0,
}

# From the teacher's full width to a third of it: the narrower the student, the more of a naive step is the teacher's forward pass.
CANDIDATES: list[Params] = [
    shaped(3, 12, 32, 3e-4) | kd(2.0),
    shaped(2, 4, 32, 1e-3) | kd(2.0),
    shaped(4, 12, 24, 5e-4) | HIDDEN_MSE,
    shaped(4, 6, 32, 7e-4) | kd(4.0),
    shaped(2, 12, 24, 5e-4) | kd(2.0),
    shaped(6, 4, 32, 1e-3) | kd(2.0),
]


@dataclass(frozen=True)
class Work:
    """What both ways share: ``train`` and ``validation`` are the naive way's padded rows, ``bench`` holds the same rows for kdsearch."""

    space: SearchSpace
    bench: workbench.Bench
    train: Dataset
    validation: Dataset
    seed: int

    @property
    def steps(self) -> int:
        """Steps that a candidate is trained for."""
        return self.bench.spec.proxy.steps

    def shortened(self, steps: int, rows: int) -> "Work":
        """The same work on few steps and few validation rows, to load and compile everything before anything is timed."""
        proxy = self.bench.spec.proxy.model_copy(update={"steps": steps})
        few = replace(self.bench.rows, validation=self.bench.rows.validation[:rows])
        bench = replace(self.bench, spec=self.bench.spec.model_copy(update={"proxy": proxy}), rows=few)
        return replace(self, bench=bench, validation=self.validation.select(range(len(few.validation))))


@dataclass(frozen=True)
class Run:
    """One candidate, one way: wall and process CPU seconds, which validation rows it got right, and what its training looked at."""

    seconds: float
    cpu_seconds: float
    right: np.ndarray
    examples: int
    padded_tokens: int


Trained = tuple[np.ndarray, int, int]  # logits on validation; examples and padded tokens seen in training
Way = Callable[[Params, Work], Trained]


class NaiveTrainer(Trainer):
    """The usual subclass: the teacher runs inside ``compute_loss``, though here, unlike in many of them, not in evaluation."""

    def __init__(self, guide: nn.Module, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guide, self.recipe, self.examples, self.padded_tokens = guide, recipe, 0, 0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The recipe's loss on a batch in training, plain cross-entropy in evaluation."""
        if not model.training:
            found = model(**inputs)
            return (found.loss, found) if return_outputs else found.loss
        self.examples += len(inputs["labels"])
        self.padded_tokens += inputs["input_ids"].numel()
        wants_hidden = any(term.knowledge == "hidden_mse" for term in self.recipe.terms)
        found = model(**inputs, output_hidden_states=wants_hidden)
        with torch.no_grad():
            told = self.guide(**{name: value for name, value in inputs.items() if name != "labels"}, output_hidden_states=wants_hidden)
        return naive_loss(self.recipe, found, told, inputs["attention_mask"], getattr(model, "projection", nn.Identity()))


def naive_loss(recipe: Recipe, student: Any, guide: Any, mask: Tensor, project: nn.Module) -> Tensor:
    """The mean over the batch of kdsearch's loss, written by hand as one does, for ``kd`` and a uniformly matched ``hidden_mse``."""
    total = recipe.hard_weight * student.loss
    for term in recipe.terms:
        knobs = dict(term.knobs)
        if term.knowledge == "kd":
            tau = knobs["temperature"]
            log_q, p = functional.log_softmax(student.logits / tau, dim=-1), functional.softmax(guide.logits / tau, dim=-1)
            found = functional.kl_div(log_q, p, reduction="batchmean") * tau**2
        elif term.knowledge == "hidden_mse" and knobs["matching"] == "uniform":
            found = naive_hidden_mse(student.hidden_states[1:], guide.hidden_states[1:], mask, project)
        else:
            raise ValueError(f"the naive way knows kd and uniform hidden_mse, not {term}")
        total = total + term.weight * found
    return total


def naive_hidden_mse(student: tuple[Tensor, ...], guide: tuple[Tensor, ...], mask: Tensor, project: nn.Module) -> Tensor:
    """Mean over layers, rows and real tokens of the squared difference, student layer i beside teacher layer round((i + 1) N / n) - 1."""
    losses = []
    for i, states in enumerate(student):
        matched = guide[math.floor((i + 1) * len(guide) / len(student) + 0.5) - 1]
        difference = (project(states) - matched).square().mean(dim=-1) * mask
        losses.append((difference.sum(dim=1) / mask.sum(dim=1)).mean())
    return torch.stack(losses).mean()


def naive(params: Params, work: Work) -> Trained:
    """One turn of ``study.optimize``, whose objective is what one writes today; the student starts from kdsearch's initial weights."""
    found: list[Trained] = []

    def trial_score(trial: optuna.Trial) -> float:
        candidate = proposed(work.space, trial)
        student = build(work.bench.teacher, candidate, work.seed)
        width, wide = candidate.architecture.width, work.bench.teacher.config.hidden_size
        if any(term.knowledge == "hidden_mse" for term in candidate.distillation.terms) and width != wide:
            student.projection = nn.Linear(width, wide, bias=False)
            nn.init.eye_(student.projection.weight)
        with tempfile.TemporaryDirectory() as folder:
            trainer = NaiveTrainer(
                work.bench.teacher, candidate.distillation, model=student, args=arguments(candidate, work, folder), train_dataset=work.train
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            logits = trainer.predict(work.validation).predictions
        found.append((logits, trainer.examples, trainer.padded_tokens))
        return float(np.mean(logits.argmax(1) == np.asarray(work.validation["labels"])))

    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(params)
    study.optimize(trial_score, n_trials=1)
    return found[0]


def arguments(candidate: Candidate, work: Work, folder: str) -> TrainingArguments:
    """The Trainer's defaults, except for what the comparison fixes and for writing nothing."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=work.steps,
        per_device_train_batch_size=EXAMPLES_PER_STEP,
        learning_rate=candidate.training.learning_rate,
        seed=work.seed,
        use_cpu=work.bench.spec.target.device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def kdsearch(params: Params, work: Work) -> Trained:
    """The same candidate through the stages of kdsearch's own objective."""
    bench, proxy = work.bench, work.bench.spec.proxy
    candidate = proposed(work.space, FixedTrial(params))
    student = build(bench.teacher, candidate, work.seed)
    objective.train(student, candidate, bench, proxy, bench.spec.search.seed)
    logits = inference.predict(student, bench.rows.encoded, bench.rows.validation, bench.rows.pad_id, bench.spec.target.device)
    return logits, *seen(bench.rows, proxy.batch_tokens, proxy.steps, bench.spec.search.seed)[:2]


def proposed(space: SearchSpace, trial: Any) -> Candidate:
    """The trial's candidate, with the published losses as they are: the naive way knows no units."""
    candidate = search_space.suggest(space, trial)
    return replace(candidate, distillation=replace(candidate.distillation, scale="raw"))


def seen(rows: pool.Pool, batch_tokens: int, steps: int, seed: int) -> tuple[int, int, int]:
    """Examples, padded tokens and real tokens in the first ``steps`` batches of kdsearch's stream."""
    lengths, nothing = rows.encoded.lengths, np.zeros(0, dtype=np.int64)
    drawn = [some for _, some in islice(stream(rows.train, nothing, lengths, batch_tokens, 0.0, seed), steps)]
    padded = sum(len(some) * -(-int(lengths[some].max()) // LENGTH_STEP) * LENGTH_STEP for some in drawn)
    return sum(map(len, drawn)), padded, sum(int(lengths[some].sum()) for some in drawn)


def equal_batches(rows: pool.Pool, steps: int, seed: int) -> int:
    """``batch_tokens`` with which kdsearch sees as many examples per step as the naive way, and no shorter ones.

    kdsearch fills a batch up to a number of tokens, so a batch of short rows holds many examples. Among the sizes that give 32 examples per
    step over an epoch, to a tenth, the one is taken whose first steps come nearest to 32 examples a step and to the mean length.
    """
    lengths = rows.encoded.lengths
    typical, wanted = float(lengths[rows.train].mean()), EXAMPLES_PER_STEP * steps

    def distance(batch_tokens: int) -> float:
        examples, _, tokens = seen(rows, batch_tokens, steps, seed)
        return max(abs(examples / wanted - 1), abs(tokens / (wanted * typical) - 1))

    start = max(64, int(typical * EXAMPLES_PER_STEP))
    sizes = range(start, 2 * start, 4)
    per_step = {size: len(rows.train) / len(bucket(rows.train, lengths, size)) for size in sizes}
    near = [size for size in sizes if abs(per_step[size] / EXAMPLES_PER_STEP - 1) < 0.1] or list(sizes)
    return min(near, key=distance)


def padded_rows(tokenizer: Any, rows: data.Rows, max_length: int) -> Dataset:
    """The naive way's rows: every text padded to ``max_length``, in the order of ``rows``."""
    tokens = tokenizer(rows.texts, padding="max_length", truncation=True, max_length=max_length)
    return Dataset.from_dict({**tokens, "labels": rows.labels})


def prepare(path: Path, steps: int, seed: int, candidates: list[Params], folder: str) -> tuple[Work, float]:
    """Both ways' work, and the seconds that filling kdsearch's cache took: into an empty folder, so that it is computed and not read.

    The teacher is the study's own, fine-tuned now or by an earlier run. Rows without labels are left out: the naive way cannot use them.
    """
    study = check.open_files(path)
    spec, device = study.spec, study.spec.target.device
    task = data.load(spec.task.model_copy(update={"transfer": None}), study.base)
    tokenizer = teacher.load_tokenizer(spec.teacher, study.base)
    rows = pool.build(task, tokenizer, spec.task.max_length)
    guide, key = teacher.load(spec.teacher, study.base, rows, spec.search.seed, device, workbench.silent)
    proxy = {"steps": steps, "batch_tokens": equal_batches(rows, steps, seed), "transfer_share": 0.0, "schedule": "linear"}
    changed = {"proxy": spec.proxy.model_copy(update=proxy), "search": spec.search.model_copy(update={"seed": seed})}
    with cache_at(folder):
        start = time.perf_counter()
        outputs = inference.outputs(guide, key, rows, signals(study.space, candidates, guide), device, workbench.silent)
        cache_seconds = time.perf_counter() - start
    bench = workbench.Bench(spec.model_copy(update=changed), guide, tokenizer, rows, outputs, facts={}, texts=task)
    padded = [padded_rows(tokenizer, part, spec.task.max_length) for part in (task.train, task.validation)]
    return Work(study.space, bench, *padded, seed=seed), cache_seconds


def signals(space: SearchSpace, candidates: list[Params], guide: Any) -> frozenset[str]:
    """What these candidates want of the teacher, and no more: the benchmark's cache serves the benchmark's list."""
    shape, wanted = architecture_of(guide.config), {"logits"}
    for params in candidates:
        candidate = proposed(space, FixedTrial(params))
        wanted |= teacher_signals(candidate.distillation, Shapes(candidate.architecture, shape, classes_of(guide.config)))
    return frozenset(wanted)


@contextmanager
def cache_at(folder: str) -> Iterator[None]:
    """kdsearch's cache stands in ``folder`` while this is open."""
    before = os.environ.get("KDSEARCH_CACHE")
    os.environ["KDSEARCH_CACHE"] = folder
    try:
        yield
    finally:
        del os.environ["KDSEARCH_CACHE"]
        if before is not None:
            os.environ["KDSEARCH_CACHE"] = before


def timed(way: Way, params: Params, work: Work) -> Run:
    """One turn. Accelerate keeps one precision per process, so it is forgotten first: the naive way must not inherit kdsearch's bf16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator.cache_clear()
    if way is kdsearch:
        accelerator(work.bench.spec.target.device)
    gc.collect()
    start, cpu_start = time.perf_counter(), time.process_time()
    logits, examples, tokens = way(params, work)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    right = logits.argmax(1) == work.bench.rows.encoded.labels[work.bench.rows.validation]
    return Run(seconds, cpu_seconds, right, examples, tokens)


def compare(work: Work, candidates: list[Params], report: Callable[[str], None]) -> list[dict[str, Run]]:
    """Every candidate both ways, one right after the other, the first of them drawn by lot."""
    ways: dict[str, Way] = {"naive": naive, "kdsearch": kdsearch}
    for way in ways.values():
        timed(way, candidates[0], work.shortened(WARM_UP_STEPS, WARM_UP_ROWS))
    random, found = np.random.default_rng(work.seed), []
    for params in candidates:
        order = random.permutation(list(ways))
        runs = {str(name): timed(ways[str(name)], params, work) for name in order}
        found.append(runs)
        report(line(work.space, params, runs))
    return found


def line(space: SearchSpace, params: Params, runs: dict[str, Run]) -> str:
    """One candidate's row of the table."""
    candidate = proposed(space, FixedTrial(params))
    shape, ours, theirs = candidate.architecture, runs["kdsearch"], runs["naive"]
    scores = [f"{run.right.mean():.3f} ± {spread(run.right[None]):.3f}" for run in (theirs, ours)]
    cells = [
        f"{shape.layers} x {shape.width}, {candidate.distillation.name}",
        f"{theirs.seconds:.1f}",
        f"{ours.seconds:.1f}",
        f"{theirs.seconds / ours.seconds:.1f}",
        f"{theirs.cpu_seconds / ours.cpu_seconds:.1f}",
        *scores,
    ]
    return f"| {' | '.join(cells)} |"


HEAD = """\
| student, recipe | naive, s | kdsearch, s | ratio | ratio of CPU time | accuracy, naive | accuracy, kdsearch |
|---|---|---|---|---|---|---|"""


def spread(right: np.ndarray) -> float:
    """Standard error of the mean accuracy of several students on the same rows: ``right`` is [students, rows].

    The students share the rows, so the error is that of the rows' mean scores: s / sqrt(rows). Chance in training is not in it.
    """
    return float(right.mean(axis=0).std(ddof=1) / math.sqrt(right.shape[1]))


def summary(found: list[dict[str, Run]], cache_seconds: float, steps: int, machine: str) -> dict[str, Any]:
    """The comparison in numbers: mean seconds, median ratios over candidates with their range, and whether the accuracies agree."""
    share = cache_seconds / len(found)
    ratios = [runs["naive"].seconds / runs["kdsearch"].seconds for runs in found]
    right = {name: np.stack([runs[name].right for runs in found]) for name in ("naive", "kdsearch")}
    accuracy = {name: float(rows.mean()) for name, rows in right.items()}
    joint = math.hypot(*(spread(rows) for rows in right.values()))

    def over_candidates(measure: Callable[[Run], float]) -> dict[str, float]:
        return {name: round(mean(measure(runs[name]) for runs in found), 3) for name in ("naive", "kdsearch")}

    return {
        "seconds_per_candidate": over_candidates(lambda run: run.seconds),
        "ratio": round(median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "ratio_with_cache": round(median(runs["naive"].seconds / (runs["kdsearch"].seconds + share) for runs in found), 2),
        "ratio_cpu": round(median(runs["naive"].cpu_seconds / runs["kdsearch"].cpu_seconds for runs in found), 2),
        "cache_seconds": round(cache_seconds, 2),
        "accuracy": {**{name: round(value, 4) for name, value in accuracy.items()}, "se": round(joint, 4)},
        "agree": abs(accuracy["naive"] - accuracy["kdsearch"]) <= 2 * joint,
        "examples_per_step": over_candidates(lambda run: run.examples / steps),
        "examples": {name: sum(runs[name].examples for runs in found) for name in ("naive", "kdsearch")},
        "padded_tokens": {name: sum(runs[name].padded_tokens for runs in found) for name in ("naive", "kdsearch")},
        "candidates": len(found),
        "steps": steps,
        "machine": machine,
        "date": datetime.date.today().isoformat(),
    }


def machine_words() -> str:
    """The machine without its name: what the timings depend on."""
    precision = "bf16" if accelerator("cpu").mixed_precision == "bf16" else "float32 (bf16 is not faster here)"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, optuna {optuna.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} CPU cores, {capability}, {torch.get_num_threads()} threads, kdsearch trains in {precision}; {versions}"


def document(told: dict[str, Any], rows: list[str], command: str, load: float) -> str:
    """benchmarks/naive.md: the command, the machine, the table, what it says and what limits it."""
    seconds, accuracy, examples = told["seconds_per_candidate"], told["accuracy"], told["examples"]
    low, high = told["ratio_range"]
    fewer = told["padded_tokens"]["naive"] / told["padded_tokens"]["kdsearch"]
    verdict = "agree within" if told["agree"] else "differ by more than"
    return f"""# The naive way, measured

`{command}`

{told["date"]}; {told["machine"]}. Load average before the start: {load:.1f}.

{HEAD}
{chr(10).join(rows)}

Accuracy on validation ± its standard error; {told["steps"]} steps for each candidate; seconds to build, train and evaluate it.

What it says. A candidate takes {seconds["naive"]:.1f} s the naive way (Optuna, Trainer, teacher at every step, padding to a fixed length)
and {seconds["kdsearch"]:.1f} s in kdsearch: median ratio **{told["ratio"]}**, from {low} to {high} (of CPU time: {told["ratio_cpu"]}).
kdsearch's cache of the teacher's outputs took {told["cache_seconds"]} s, once. Shared out among only these {told["candidates"]} candidates
it leaves a ratio of **{told["ratio_with_cache"]}**.

The mean accuracies, {accuracy["naive"]:.3f} naive and {accuracy["kdsearch"]:.3f} kdsearch, {verdict} 2 joint standard errors
({2 * accuracy["se"]:.3f}). In training they saw {examples["naive"]:,} and {examples["kdsearch"]:,} examples; padding made that
{fewer:.1f} times as many tokens in the naive way.

What limits it.
* Both start from the same weights at the same learning rate, but each keeps its own defaults: the Trainer has dropout and no warm-up and
  trains the word embeddings; kdsearch has no dropout, the study's warm-up, weight decay, and leaves the word embeddings frozen.
* Few steps: accuracies are those of a proxy, and their standard errors leave out chance in training.
* The naive way is spared what is often seen with it: the teacher running in evaluation too, and tokenisation in every trial. A Trainer that
  groups rows by length was not measured; it would be faster than the one here.
* A search of kdsearch also measures latency and, on held-out text, the divergence to the teacher. Neither is part of this comparison.
* The machine may be shared. The two ways take turns on each candidate, so read the ratios rather than the seconds. The cache was timed
  once, without a turn of its own.
"""


def main() -> None:
    """Run the comparison, print it, and write it down."""
    parser = argparse.ArgumentParser(description="What a candidate costs the naive way (Optuna and Trainer) and in kdsearch.")
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=5, help=f"1 to {len(CANDIDATES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/naive.md"))
    options, load = parser.parse_args(), os.getloadavg()[0]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    candidates, rows, machine = CANDIDATES[: options.candidates], [], machine_words()

    def report(row: str) -> None:
        rows.append(row)
        print(row, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work, cache_seconds = prepare(options.study, options.steps, options.seed, candidates, folder)
        print(HEAD, flush=True)
        found = compare(work, candidates, report)
    told = summary(found, cache_seconds, options.steps, machine)
    options.out.write_text(document(told, rows, shlex.join(["python", *sys.argv]), load))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
