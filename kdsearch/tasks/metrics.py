"""Scores with standard errors."""

import numpy as np
from scipy.special import log_softmax


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of right answers p over n rows, and its standard error sqrt(p (1 - p) / n)."""
    share = float(np.mean(predicted == labels))
    return share, float(np.sqrt(share * (1 - share) / len(labels)))


def mean(values: np.ndarray) -> tuple[float, float]:
    """Mean of n values and its standard error s / sqrt(n), with s the sample standard deviation."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), spread / float(np.sqrt(len(values)))


def log_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean of -log softmax(logits)[label] over the rows, in nats, and its standard error."""
    return mean(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels])


def kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """KL(softmax(teacher) || softmax(student)) of each row of logits [rows, classes], in nats: 0 where they agree."""
    log_p, log_q = log_softmax(teacher.astype(np.float64), axis=1), log_softmax(student.astype(np.float64), axis=1)
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
