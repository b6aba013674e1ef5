"""The training loop: a model, a loss, a stream of batches, a number of steps."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch.distillation.average import Average
from kdsearch.machine import accelerator
from kdsearch.tasks.batches import Batch

WEIGHT_DECAY, LARGEST_GRADIENT = 0.01, 1.0
Progress = Callable[[str, int, int], None]
# What is open while the model is scored on its way.
Shown = Callable[[], AbstractContextManager[object]]
GoesOn = Callable[[int, Shown], bool]


class DivergedError(RuntimeError):
    """The loss became NaN or infinite, or stayed far above what guessing scores."""


def always(step: int, shown: Shown) -> bool:
    """To the end."""
    return True


def telling(progress: Progress, stage: str, steps: int, goes_on: GoesOn = always) -> GoesOn:
    """The same, after each step of the stage is shown as progress."""

    def told(step: int, shown: Shown) -> bool:
        progress(stage, step, steps)
        return goes_on(step, shown)

    return told


@dataclass(frozen=True)
class Schedule:
    """Steps, the highest learning rate, and the share of the steps in which it is reached.

    Then it falls linearly to 0; or it stays, and the first model is judged by the mean of its weights so far (``averaged``), from the step
    ``restart`` on of those since then.
    """

    steps: int
    learning_rate: float
    warmup: float
    averaged: bool = False
    restart: int = 0


def fit(
    modules: list[nn.Module],
    loss_of: Callable[[Batch, int], Tensor],
    batches: Iterator[Batch],
    schedule: Schedule,
    device: str,
    goes_on: GoesOn,
) -> list[float]:
    """Minimise the mean of ``loss_of(batch, step)`` [batch] with AdamW along a schedule; the losses, one per step.

    Parameters that do not require a gradient stay as they are. ``goes_on`` is told after each step how many are done, and what to open
    while it scores the model; at no it ends there.

    Raises:
        DivergedError: the loss is not finite.
    """
    helper = accelerator(device)
    parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, schedule))
    average = Average(modules[0]) if schedule.averaged else None
    losses: list[float] = []
    for step in range(schedule.steps):
        batch = next(batches)
        with helper.autocast():
            loss = loss_of(batch, step).mean()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"the loss became {losses[-1]} at step {step} of {schedule.steps}; a lower learning_rate is the usual fix")
        helper.backward(loss)
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if average:
            if step == schedule.restart:
                average.restart()
            average.see()
        if not goes_on(step + 1, average.shown if average else nullcontext):
            break
    if average:
        average.take()
    return losses


def rate(step: int, schedule: Schedule) -> float:
    """Share of the learning rate at a step: up linearly over ``warmup`` of the steps, then down linearly to 0, or as it is."""
    rising = max(1, round(schedule.warmup * schedule.steps))
    if step < rising:
        return (step + 1) / rising
    return 1.0 if schedule.averaged else (schedule.steps - step) / max(1, schedule.steps - rising)
