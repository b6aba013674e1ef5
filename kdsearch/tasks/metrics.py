"""Scores with standard errors."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax


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


def calibrated_kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(softmax(teacher) || softmax(s z + b)) over rows of student logits z, with the factor s and the biases b that make it least.

    How far a student's answers are from the teacher's up to confidence and preference for a class: both swing from step to step while the
    learning rate is high, and the next batches correct them. Convex in (s, b); s >= 0, since who answers the opposite is not close.

    (Vector scaling by one factor; Guo et al. 2017, section 4.2.)
    """
    p, z = softmax(teacher.astype(np.float64), axis=1), student.astype(np.float64)
    entropy = float(np.mean(np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)))

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_q = log_softmax(parameters[0] * z + parameters[1:], axis=1)
        error = (np.exp(log_q) - p) / len(z)
        return -float(np.sum(p * log_q)) / len(z), np.array([np.sum(error * z), *error.sum(0)])

    start = np.array([1.0, *np.zeros(z.shape[1])])
    bounds = [(0.0, None), *[(None, None)] * z.shape[1]]
    return float(minimize(cross_entropy, start, jac=True, method="L-BFGS-B", bounds=bounds).fun) + entropy
