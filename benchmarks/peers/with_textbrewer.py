"""TextBrewer's BasicDistiller with its cache of the teacher's logits.

The cache holds whole batches in memory, is filled when training starts and lives as long as one distiller; it needs epochs, so an epoch
here is as many examples as the job has. float32 (its mixed precision is Apex's, for GPUs), random batches padded to their longest row,
word embeddings frozen, no dropout. Its kd loss is a cross-entropy without tau^2, hence the weight.

    python with_textbrewer.py INPUTS
"""

import logging
import sys
import tempfile
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from contender import BATCH, LARGEST_GRADIENT, WEIGHT_DECAY, Inputs, Meter, decay, frozen, serve
from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification


def adaptor(_: Any, found: Any) -> dict[str, Any]:
    """What TextBrewer asks of a model's answer."""
    return {"logits": (found.logits,), "losses": (found.loss,)} if found.loss is not None else {"logits": (found.logits,)}


def train(guide: nn.Module, inputs: Inputs, job: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """One job: the cache is filled, then one epoch of the job's steps."""
    start, recipe, steps = time.perf_counter(), job["recipe"], job["steps"]
    student = AutoModelForSequenceClassification.from_pretrained(
        inputs.told["students"][job["student"]]["folder"], dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    frozen(student)
    rows = np.random.default_rng(job["seed"]).permutation(np.resize(inputs.train, max(len(inputs.train), steps * BATCH)))[: steps * BATCH]
    batches = DataLoader([inputs.example(int(row)) for row in rows], batch_size=BATCH, collate_fn=inputs.padded)
    optimizer = torch.optim.AdamW(
        [weight for weight in student.parameters() if weight.requires_grad], lr=job["learning_rate"], weight_decay=WEIGHT_DECAY, fused=True
    )
    tau = recipe["temperature"]
    config = DistillationConfig(
        temperature=tau, kd_loss_weight=tau**2, hard_label_weight=recipe["hard_weight"], kd_loss_type="ce", is_caching_logits=True
    )
    with tempfile.TemporaryDirectory() as folder, Meter(student) as meter:
        distiller = BasicDistiller(TrainingConfig(output_dir=folder, device="cpu"), config, guide.eval(), student, adaptor, adaptor)
        with distiller:
            distiller.train(
                optimizer,
                batches,
                num_epochs=1,
                scheduler_class=torch.optim.lr_scheduler.LambdaLR,
                scheduler_args={"lr_lambda": decay(steps)},
                max_grad_norm=LARGEST_GRADIENT,
            )
    return student, meter.told(start)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    folder = Inputs.read(sys.argv[1]).told["teacher"]
    serve(partial(train, AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)))
