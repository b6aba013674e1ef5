"""What every contender of benchmarks/peers.py shares, in whichever environment it runs: rows and models from files, one watch, one
protocol.

A contender is a process that is asked for short trainings, one JSON line each, and answers with one JSON line. It is measured from the
end of its first optimizer step to the end of its last, and by what its student was shown, so that what comes before (building, filling a
cache) is told apart.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

BATCH = 32
WEIGHT_DECAY, LARGEST_GRADIENT, WARMUP = 0.01, 1.0, 0.1


@dataclass(frozen=True)
class Inputs:
    """One inputs.json: the teacher's and the students' folders, the rows, and what is trained with which recipe."""

    told: dict[str, Any]
    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    measured: np.ndarray

    @classmethod
    def read(cls, path: str) -> "Inputs":
        """The inputs that a file tells of, with their rows."""
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = np.load(told["rows"])
        return cls(told, *(rows[name] for name in ("ids", "offsets", "labels", "train", "validation", "measured")))

    def example(self, row: int) -> dict[str, Any]:
        """A row as Hugging Face's Trainer takes it."""
        ids = self.ids[self.offsets[row] : self.offsets[row + 1]].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(self.labels[row])}

    def padded(self, rows: list[dict[str, Any]], width: int = 0) -> dict[str, Tensor]:
        """A batch, padded to ``width``, or else to its longest row rounded up to a multiple of 4, as kdsearch does."""
        width = width or -(-max(len(row["input_ids"]) for row in rows) // 4) * 4
        ids = torch.full((len(rows), width), self.told["pad_id"], dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[place, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


class Meter:
    """While open: when each optimizer step ended (wall, CPU), and what each training batch of the student held (examples, tokens,
    padded)."""

    def __init__(self, student: nn.Module) -> None:
        self.steps: list[tuple[float, float]] = []
        self.seen: list[tuple[int, int, int]] = []
        self.first_forward = 0.0
        self.handles = [
            student.register_forward_pre_hook(self._look, with_kwargs=True),
            register_optimizer_step_post_hook(lambda *_: self.steps.append((time.perf_counter(), time.process_time()))),
        ]

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _look(self, _: nn.Module, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            mask = given["attention_mask"]
            self.first_forward = self.first_forward or time.perf_counter()
            self.seen.append((len(mask), int(mask.sum()), mask.numel()))

    def told(self, start: float) -> dict[str, float]:
        """Seconds and contents of all steps but the first; ``before`` is what passed until the first forward pass.

        Raises:
            RuntimeError: a step was not seen, so that the contents are unknown.
        """
        if len(self.seen) != len(self.steps) or len(self.steps) < 2:
            raise RuntimeError(f"{len(self.steps)} optimizer steps and {len(self.seen)} forward passes with gradients were seen")
        (wall, cpu), (wall_end, cpu_end) = self.steps[0], self.steps[-1]
        examples, tokens, padded = (sum(column) for column in zip(*self.seen[1:], strict=True))
        return {
            "seconds": wall_end - wall,
            "cpu_seconds": cpu_end - cpu,
            "steps": len(self.steps) - 1,
            "examples": examples,
            "tokens": tokens,
            "padded": padded,
            "all_examples": sum(batch[0] for batch in self.seen),
            "before": self.first_forward - start,
        }


@torch.inference_mode()
def logits_of(model: nn.Module, inputs: Inputs, rows: np.ndarray, size: int = 64) -> np.ndarray:
    """Logits [rows, classes], float32, of rows in the order given; batches hold rows of about one length."""
    model.eval()
    lengths = np.diff(inputs.offsets)[rows]
    order, found = np.argsort(lengths, kind="stable"), {}
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = inputs.padded([inputs.example(int(rows[place])) for place in places])
        answer = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().numpy()
        found.update(zip(places.tolist(), answer, strict=True))
    return np.stack([found[place] for place in range(len(rows))])


@torch.inference_mode()
def latency_relative(student: nn.Module, teacher: nn.Module, length: int = 32, rounds: int = 20) -> float:
    """Median over rounds of the student's time for one text over the teacher's, in turns, on one thread."""
    before, ids = torch.get_num_threads(), torch.ones(1, length, dtype=torch.long)
    torch.set_num_threads(1)
    ratios = []
    for turn in range(rounds + 3):
        seconds = []
        for model in (student.eval(), teacher.eval()):
            start = time.perf_counter()
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            seconds.append(time.perf_counter() - start)
        if turn >= 3:
            ratios.append(seconds[0] / seconds[1])
    torch.set_num_threads(before)
    return median(ratios)


def decay(steps: int) -> Callable[[int], float]:
    """Linear warm-up and linear decay, as every contender has it."""
    rising = max(1, round(WARMUP * steps))
    return lambda step: (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def frozen(student: Any) -> Any:
    """The student with its word embeddings frozen: the fast contenders leave them alone, as kdsearch does."""
    student.get_input_embeddings().requires_grad_(False)
    return student


def serve(train: Callable[[Inputs, dict[str, Any]], tuple[nn.Module, dict[str, Any]]]) -> None:
    """Answer jobs until standard input ends; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    inputs = Inputs.read(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        student, told = train(inputs, job)
        if job.get("right"):
            logits = logits_of(student, inputs, inputs.measured)
            told["right"] = (logits.argmax(1) == inputs.labels[inputs.measured]).astype(int).tolist()
        told["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(told), file=replies, flush=True)
