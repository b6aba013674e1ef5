"""Hugging Face's Trainer with the teacher's forward pass in ``compute_loss``, naive or strong.

naive: every text padded to the longest that the task allows, float32, random batches, all weights trained, dropout as in the model's
config: what one writes first. strong: the documented options that make it fast, bf16 autocast (of the teacher too), batches of texts of
about one length, padded to their longest, word embeddings frozen, no dropout. The optimizer, its fused AdamW, is the Trainer's default in
both.

    python with_trainer.py INPUTS naive|strong
"""

import sys
import tempfile
import time
from functools import partial
from typing import Any

import torch
from contender import BATCH, LARGEST_GRADIENT, WARMUP, WEIGHT_DECAY, Inputs, Meter, frozen, serve
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainerCallback, TrainingArguments


class Rows(Dataset):
    """The rows that are trained on."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs.train)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.inputs.example(int(self.inputs.train[place]))


class DistillingTrainer(Trainer):
    """hard_weight CE + tau^2 KL(teacher || student) at temperature tau, means over the batch."""

    def __init__(self, guide: nn.Module, recipe: dict[str, float], **given: Any) -> None:
        super().__init__(**given)
        self.guide, self.recipe = guide, recipe

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The loss of a batch."""
        found = model(**inputs)
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            told = self.guide(**rest)
        tau = self.recipe["temperature"]
        log_q = functional.log_softmax(found.logits.float() / tau, dim=-1)
        p = functional.softmax(told.logits.float() / tau, dim=-1)
        loss = self.recipe["hard_weight"] * found.loss + tau**2 * functional.kl_div(log_q, p, reduction="batchmean")
        return (loss, found) if return_outputs else loss


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with every dropout at 0."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "dropout_prob"):
            part.dropout_prob = 0.0
    return model


def distil(
    kind: str, student: nn.Module, guide: nn.Module, inputs: Inputs, job: dict[str, Any], callbacks: list[TrainerCallback] | None = None
) -> None:
    """Train the student in place for the job's steps."""
    strong = kind == "strong"
    if strong:
        frozen(without_dropout(student))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=job["steps"],
            per_device_train_batch_size=BATCH,
            learning_rate=job["learning_rate"],
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=LARGEST_GRADIENT,
            warmup_steps=max(1, round(WARMUP * job["steps"])),
            seed=job["seed"],
            use_cpu=True,
            bf16=strong,
            train_sampling_strategy="group_by_length" if strong else "random",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        collate = partial(inputs.padded, width=0 if strong else inputs.told["max_length"])
        trainer = DistillingTrainer(
            guide.eval(),
            job["recipe"],
            model=student,
            args=arguments,
            train_dataset=Rows(inputs),
            data_collator=collate,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def train(kind: str, guide: nn.Module, inputs: Inputs, job: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """One job."""
    start = time.perf_counter()
    student = AutoModelForSequenceClassification.from_pretrained(inputs.told["students"][job["student"]]["folder"], dtype=torch.float32)
    with Meter(student) as meter:
        distil(kind, student, guide, inputs, job)
    return student, meter.told(start)


if __name__ == "__main__":
    folder = Inputs.read(sys.argv[1]).told["teacher"]
    serve(partial(train, sys.argv[2], AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)))
