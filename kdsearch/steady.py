"""Accuracies steadied by the divergence: what a noisy share of right answers says together with a smooth distance to the teacher.

The accuracy of two thousand rows has a standard error of a point, as much as neighbours on a front differ by. The divergence is measured on
more rows, without labels, and moves with it. So the accuracy is drawn towards what trials of its divergence have.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 8


def steadied(accuracy: ArrayLike, error: ArrayLike, divergence: ArrayLike) -> NDArray[np.float64]:
    """Posterior means of accuracies with these standard errors, after a line over log divergence: a_i = c + b log d_i + u_i + e_i.

    u_i has the variance t^2 that the residuals have beyond their standard errors (moments), so that the estimate is line_i +
    t^2 / (t^2 + error_i^2) * (a_i - line_i). With fewer than eight trials the accuracies stay as they are.
    (Empirical Bayes, Efron & Morris 1975; Fay & Herriot 1979 with a covariate.)
    """
    accuracy, error, divergence = (np.asarray(values, dtype=float) for values in (accuracy, error, divergence))
    if len(accuracy) < FEWEST:
        return accuracy
    terms = np.stack([np.ones(len(accuracy)), np.log(np.maximum(divergence, 1e-9))], axis=1)
    line = terms @ np.linalg.lstsq(terms, accuracy, rcond=None)[0]
    excess = max(0.0, float(np.sum((accuracy - line) ** 2)) / (len(accuracy) - 2) - float(np.mean(error**2)))
    return line + excess / (excess + np.maximum(error**2, 1e-12)) * (accuracy - line)
