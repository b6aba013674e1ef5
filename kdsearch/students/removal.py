"""Which layers a teacher misses least: dropped one by one, each time the one without which it changes least."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from kdsearch.candidate import Candidate, Initialization
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, depth_of
from kdsearch.tasks.batches import Batch


@torch.inference_mode()
def dropped(teacher: PreTrainedModel, batches: Sequence[Batch]) -> tuple[int, ...]:
    """All layers but one, in the order in which they go; of layers that are missed alike, the lower one goes first.

    What a layer is missed by is the mean over texts of KL(whole teacher || teacher without it and those gone before), its own loss on
    unlabelled text. N layers take N (N + 1) / 2 - 1 passes over the batches.

    Reference: Muralidharan et al., *Compact Language Models via Pruning and Knowledge Distillation* (Minitron), 2024, arXiv 2407.14679,
    section 2.2 (which drops by perplexity).
    """
    whole = [_log_probabilities(teacher, batch) for batch in batches]
    left, gone = list(range(depth_of(teacher.config))), []
    while len(left) > 1:
        rest = {layer: [other for other in left if other != layer] for layer in left}
        missed = {layer: _missed(teacher, kept, batches, whole) for layer, kept in rest.items()}
        gone.append(min(left, key=missed.__getitem__))
        left = rest[gone[-1]]
    return tuple(gone)


def _missed(teacher: PreTrainedModel, kept: list[int], batches: Sequence[Batch], whole: list[Tensor]) -> float:
    shape, place = replace(architecture_of(teacher.config), layers=len(kept)), cast(Any, teacher.device)
    student = build(teacher, Candidate(shape, Initialization(tuple(kept))), seed=0).to(place)
    rows = [
        kl_div(_log_probabilities(student, batch), told, reduction="sum", log_target=True)
        for batch, told in zip(batches, whole, strict=True)
    ]
    return float(torch.stack(rows).sum())


def _log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double().log_softmax(1)
