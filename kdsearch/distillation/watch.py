"""Whether a training blows up: its loss beside what the same weights make of guessing."""

import torch
from torch import Tensor

from kdsearch.distillation.composition import Composition
from kdsearch.distillation.loop import DivergedError

WILD, PATIENCE = 5.0, 10


class Watch:
    """Ends a training whose loss stays far above what it was worth before anything was learned.

    r(t) = sum_k w_k(t) l_k(t) / sum_k w_k(t) max(u_k, f_k) over the losses k that count at step t: w_k(t) the weight at this moment, l_k
    the loss itself, u_k what guessing scores, f_k the loss of the first batch in which it counted. Weights that grow and stages that switch
    change both sums alike, and a start that is already perfect is measured by guessing. Diverged is r > 5 for 10 steps in a row: a copy of
    the teacher is wild for some steps while Adam learns how small its gradients are.

    What it cannot see: a loss that is bounded (cos, dist), and a student whose norms throw it back to guessing, where its loss is no larger
    than that; a rung stops such students. What became NaN or infinite the loop notices itself.
    """

    def __init__(self, composition: Composition, steps: int) -> None:
        self.composition, self.steps = composition, steps
        self.first: dict[str, float] = {}
        self.wild = 0

    def see(self, means: dict[str, Tensor], progress: float, step: int) -> None:
        """Look at the losses of a step, each as its mean over the batch.

        Raises:
            DivergedError: they have been wild for too long.
        """
        if not means:
            return
        found = dict(zip(means, torch.stack([mean.float() for mean in means.values()]).tolist(), strict=True))
        for name, value in found.items():
            self.first.setdefault(name, max(value, self.composition.guessing(name)))
        weights = self.composition.weights(progress)
        total, usual = (sum(weights[name] * values[name] for name in found) for values in (found, self.first))
        self.wild = self.wild + 1 if total > WILD * usual else 0
        if self.wild == PATIENCE:
            worst = max(found, key=lambda name: weights[name] * found[name])
            raise DivergedError(
                f"the loss was over {WILD:g} times what guessing scores for {PATIENCE} steps ({worst}: {found[worst]:.3g}, guessing "
                f"{self.first[worst]:.3g}) at step {step} of {self.steps}; a lower learning_rate is the usual fix"
            )
