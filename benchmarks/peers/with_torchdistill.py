"""torchdistill's DistillationBox with its KDLoss; release 1.1.5 has no cache of a teacher's outputs any more, so the teacher runs at
every step.

float32, random batches padded to their longest row (its own text examples do so), word embeddings frozen, no dropout. It imports
torchvision for image models that are not used here, and torchvision's wheels do not fit every torch: placeholders stand in.

    python with_torchdistill.py INPUTS
"""

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import time
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from contender import BATCH, LARGEST_GRADIENT, WEIGHT_DECAY, Inputs, Meter, decay, frozen, serve
from torch import nn
from torch.utils.data import RandomSampler, Subset
from transformers import AutoModelForSequenceClassification


class Placeholder(ModuleType):
    """A module in which every name is a class of nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers every import of torchvision."""

    def find_spec(self, name: str, *_: Any) -> Any:
        """A module of that name, if it is torchvision's."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: Any) -> ModuleType:
        """The placeholder."""
        return Placeholder(spec.name)

    def exec_module(self, _: ModuleType) -> None:
        """Nothing is run."""


sys.meta_path.insert(0, Placeholders())
importlib.import_module("torchvision.datasets")  # torchdistill takes it for imported

from torchdistill.core.distillation import get_distillation_box  # noqa: E402 - behind the placeholders
from torchdistill.core.interfaces.registry import register_forward_proc_func  # noqa: E402
from torchdistill.datasets.registry import register_collate_func  # noqa: E402


@register_forward_proc_func
def logits_only(model: nn.Module, batch: dict[str, Any], *_: Any) -> Any:
    """The logits: what its KDLoss looks at."""
    return model(**batch).logits


def box_config(inputs: Inputs, job: dict[str, Any]) -> dict[str, Any]:
    """The job as torchdistill's configuration."""
    recipe, steps = job["recipe"], job["steps"]
    sampler = partial(RandomSampler, replacement=False, generator=torch.Generator().manual_seed(job["seed"]))
    place = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output"}
    kd = {**place, "temperature": recipe["temperature"], "alpha": recipe["hard_weight"], "beta": 1.0}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": sampler},
            "kwargs": {"batch_size": BATCH},
            "collate_fn": "batch_and_labels",
        },
        "teacher": {"forward_proc": "logits_only", "requires_grad": False},
        "student": {"forward_proc": "logits_only"},
        "optimizer": {
            "key": "AdamW",
            "kwargs": {"lr": job["learning_rate"], "weight_decay": WEIGHT_DECAY, "fused": True},
            "max_grad_norm": LARGEST_GRADIENT,
        },
        "scheduler": {"key": "LambdaLR", "kwargs": {"lr_lambda": decay(steps)}, "scheduling_step": 1},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }


def train(guide: nn.Module, inputs: Inputs, job: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """One job."""
    start, steps = time.perf_counter(), job["steps"]
    student = AutoModelForSequenceClassification.from_pretrained(
        inputs.told["students"][job["student"]]["folder"], dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    frozen(student)
    rows = np.random.default_rng(job["seed"]).permutation(np.resize(inputs.train, max(len(inputs.train), steps * BATCH)))[: steps * BATCH]
    dataset = Subset([(inputs.example(int(row)), 0) for row in rows], range(len(rows)))
    with Meter(student) as meter:
        box = get_distillation_box(guide, student, {"train": dataset}, box_config(inputs, job), torch.device("cpu"), None, False, 1.0)
        box.pre_epoch_process(epoch=0)
        guide.eval()
        for sample, targets, supplement in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(sample, targets, supplement)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
    return student, meter.told(start)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    every = Inputs.read(sys.argv[1])

    @register_collate_func
    def batch_and_labels(rows: list[Any]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """A batch without its labels, the labels, and nothing besides."""
        batch = every.padded([row[0] for row in rows])
        return batch, batch.pop("labels"), {}

    serve(partial(train, AutoModelForSequenceClassification.from_pretrained(every.told["teacher"], dtype=torch.float32)))
