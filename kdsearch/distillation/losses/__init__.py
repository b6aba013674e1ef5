"""Knowledge types: pure functions of student and teacher, one value per example, float32, padding excluded, no gradient to the teacher.

    logits.py     hard, kd, kl, reverse_kl, jsd, logit_mse, dkd, dist
    hidden.py     hidden_mse, embedding_mse, cos, pkd, normalised_mse, nst, gram, fsp, infonce
    attention.py  attention_mse, attention_kl, attention_mean, attention_mean_mse, minilm, minilmv2
    relations.py  rkd, similarity, word_relation, layer_relation, ckd
    contract.py   what they share: precision, mask, refusals

Where hidden sizes differ, the caller projects the student's states first.
"""

from kdsearch.distillation.losses.attention import (
    QKV,
    attention_kl,
    attention_mean,
    attention_mean_mse,
    attention_mse,
    minilm,
    minilmv2,
    scores,
)
from kdsearch.distillation.losses.contract import first_token, masked_mean, mean_token
from kdsearch.distillation.losses.hidden import cos, embedding_mse, fsp, gram, hidden_mse, infonce, normalised_mse, nst, pkd
from kdsearch.distillation.losses.logits import dist, dkd, hard, jsd, kd, kl, logit_mse, reverse_kl
from kdsearch.distillation.losses.relations import ckd, layer_relation, rkd, similarity, word_relation

__all__ = [
    "QKV",
    "attention_kl",
    "attention_mean",
    "attention_mean_mse",
    "attention_mse",
    "ckd",
    "cos",
    "dist",
    "dkd",
    "embedding_mse",
    "first_token",
    "fsp",
    "gram",
    "hard",
    "hidden_mse",
    "infonce",
    "jsd",
    "kd",
    "kl",
    "layer_relation",
    "logit_mse",
    "masked_mean",
    "mean_token",
    "minilm",
    "minilmv2",
    "normalised_mse",
    "nst",
    "pkd",
    "reverse_kl",
    "rkd",
    "scores",
    "similarity",
    "word_relation",
]
