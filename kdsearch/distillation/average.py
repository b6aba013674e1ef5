"""A model's weights averaged over the steps of a training, so that it can be judged at each of them while the learning rate is high."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

ETA = 2.0


class Average:
    """The mean of the trained weights of a model over its steps, the later ones heavier: of t steps, step i counts i (i + 1).

    mean_t = (1 - c) mean_(t-1) + c w_t with c = (eta + 1) / (t + eta), eta = 2. It stands for a rate that falls, and needs to know of no
    end; that it is as good a student is an observation (benchmarks/proxy.md), the theory is of convex losses.

    Source: Shamir & Zhang 2013, section 4 (polynomial-decay averaging).
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = [weight.detach() for weight in model.parameters() if weight.requires_grad]
        self.means = [weight.clone() for weight in self.weights]
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: the next step's weights are the mean."""
        self.steps = 0

    def see(self) -> None:
        """Take the weights of one step more."""
        self.steps += 1
        share = (ETA + 1) / (self.steps + ETA)
        for mean, weight in zip(self.means, self.weights, strict=True):
            mean.lerp_(weight, share)

    @torch.no_grad()
    def take(self) -> None:
        """Give the model the means, and keep its own weights in their place."""
        for mean, weight in zip(self.means, self.weights, strict=True):
            own = weight.clone()
            weight.copy_(mean)
            mean.copy_(own)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While open, the model has the means."""
        self.take()
        try:
            yield
        finally:
            self.take()
