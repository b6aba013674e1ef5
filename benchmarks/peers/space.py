"""The search space of the peers' searches, the student that a draw describes, and a trial: what kdsearch's own study of the benchmark
says, in plain Hugging Face and without kdsearch.
"""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contender import Inputs, latency_relative, logits_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, TrainerCallback
from with_trainer import distil

CHOICES: dict[str, list[Any]] = {
    "layers": [1, 2, 3, 4, 5, 6],
    "heads": [4, 6, 12],
    "head_size": [16, 24, 32],
    "ffn_ratio": [1, 2, 4],
    "start": ["random", "first", "last", "uniform"],
}
RANGES = {"hard_weight": (0.0, 1.0, False), "temperature": (1.0, 10.0, True), "learning_rate": (1e-4, 1e-3, True)}
SEED = 0


def teacher_of(inputs: Inputs) -> Any:
    """The fine-tuned teacher."""
    return AutoModelForSequenceClassification.from_pretrained(inputs.told["teacher"], dtype=torch.float32).eval()


def cut(teacher: Any, drawn: dict[str, Any]) -> Any:
    """A student of these layers, heads and neurons, the leading ones of the teacher's; random layers where the draw says so."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers, config.num_attention_heads = drawn["layers"], drawn["heads"]
    config.hidden_size = drawn["heads"] * drawn["head_size"]
    config.intermediate_size = drawn["ffn_ratio"] * config.hidden_size
    torch.manual_seed(SEED)
    student = type(teacher)(config)
    of_teacher, size = teacher.state_dict(), teacher.config.hidden_size // teacher.config.num_attention_heads
    heads = torch.tensor([head * size + place for head in range(drawn["heads"]) for place in range(drawn["head_size"])])
    sources = layers_of(drawn["start"], drawn["layers"], teacher.config.num_hidden_layers)
    with torch.no_grad():
        for name, weight in student.state_dict().items():
            parts = name.split(".")
            if "layer" in parts:
                if not sources:
                    continue
                place = parts.index("layer") + 1
                parts[place] = str(sources[int(parts[place])])
            weight.copy_(_leading(of_teacher[".".join(parts)], weight, name, heads))
    return student


def layers_of(start: str, count: int, of: int) -> list[int]:
    """The teacher layers that the student's start from; none where they are random."""
    if start == "uniform":
        return [math.floor((place + 1) * of / count + 0.5) - 1 for place in range(count)]
    return {"random": [], "first": list(range(count)), "last": list(range(of - count, of))}[start]


def _leading(wide: Tensor, narrow: Tensor, name: str, heads: Tensor) -> Tensor:
    """The leading part of a tensor in the narrower one's shape, head by head where an axis is made of heads."""
    if any(part in name for part in ("self.query", "self.key", "self.value")):
        wide = wide[heads]
    if "attention.output.dense.weight" in name:
        wide = wide[:, heads]
    return wide[tuple(slice(0, size) for size in narrow.shape)]


class Reports(TrainerCallback):
    """Calls back with the student at these steps."""

    def __init__(self, at: list[int], report: Any) -> None:
        self.at, self.report = at, report

    def on_step_end(self, _: Any, state: Any, __: Any, model: Any = None, **___: Any) -> None:
        """The Trainer's own hook."""
        if state.global_step in self.at:
            self.report(state.global_step, model)
            model.train()


def trial(kind: str, drawn: dict[str, Any], teacher: Any, inputs: Inputs, report: Any, rungs: int = 1) -> None:
    """Build, time, distil; ``report(rung, accuracy, latency relative to the teacher)`` after each of the equal parts of the training."""
    student, steps = cut(teacher, drawn), inputs.told["trial_steps"]
    latency = latency_relative(student, teacher, 32)
    at = [round((rung + 1) * steps / rungs) for rung in range(rungs)]

    def score(step: int, model: nn.Module) -> None:
        right = logits_of(model, inputs, inputs.validation).argmax(1) == inputs.labels[inputs.validation]
        report(at.index(step) + 1, float(np.mean(right)), latency)

    recipe = {"temperature": drawn["temperature"], "hard_weight": drawn["hard_weight"]}
    job = {"steps": steps, "seed": SEED, "learning_rate": drawn["learning_rate"], "recipe": recipe}
    distil(kind, student, teacher, inputs, job, [Reports(at, score)])


def note(path: str, number: int, accuracy: float, latency: float) -> None:
    """One line of what was found, with the time, for the benchmark to read."""
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": time.time(), "trial": number, "accuracy": accuracy, "latency_relative": latency}) + "\n")
