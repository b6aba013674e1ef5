"""Least squares with standard errors that hold when the noise differs between observations; what the guideline's intervals rest on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
COLLINEAR = 1e-7  # share of a column's length that must remain once the columns before it are taken out


@dataclass(frozen=True)
class Fit:
    """Per column: slope, half the width of its 95% interval and two-sided p-value, NaN where the data do not determine them.

    ``tied`` maps each dropped column to the kept ones that it is a linear combination of (none: the column is constant).
    ``freedom`` is the residual degrees of freedom, n - rank.
    """

    effect: Array
    margin: Array
    p_value: Array
    tied: dict[int, tuple[int, ...]]
    freedom: int


def fit(columns: Array, response: Array) -> Fit:
    """Regress ``response`` [n] on an intercept and ``columns`` [n, k]; a column that depends linearly on earlier ones is dropped.

    Var(b) = (X'X)^-1 X' diag(e_i^2 / (1 - h_i)^2) X (X'X)^-1 (HC3), with h_i the leverage; Student's t with n - rank degrees of freedom.
    An observation that alone determines a slope has h = 1 and a residual of 0 by force: that slope gets no interval.

    Reference: MacKinnon and White, "Some heteroskedasticity-consistent covariance matrix estimators with improved finite sample
    properties", 1985; Long and Ervin, "Using heteroscedasticity consistent standard errors in the linear regression model", 2000.
    """
    n, width = columns.shape
    centered = columns - columns.mean(axis=0)
    kept, tied = _independent(centered, np.abs(columns).max(axis=0, initial=0.0))
    scale = np.linalg.norm(centered[:, kept], axis=0)
    basis = centered[:, kept] / scale
    freedom = n - 1 - len(kept)
    effect, margin, p_value = (np.full(width, np.nan) for _ in range(3))
    weights = np.linalg.pinv(basis)
    slopes = weights @ (response - response.mean())
    slopes[np.abs(slopes) < 1e-12 * np.linalg.norm(response)] = 0.0  # rounding, not an effect: the response does not vary
    effect[kept] = slopes / scale
    if freedom > 0 and kept:
        residual = response - response.mean() - basis @ slopes
        leverage = 1 / n + np.einsum("ij,ji->i", basis, weights)
        error = _hc3(weights, residual, leverage) / scale
        margin[kept] = stats.t.ppf(0.975, freedom) * error
        exact = np.where(effect[kept] == 0, 0.0, np.inf)
        p_value[kept] = 2 * stats.t.sf(np.abs(np.divide(effect[kept], error, out=exact, where=error != 0)), freedom)
    return Fit(effect, margin, p_value, tied, freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: p_(i) * (m - i + 1), made monotone, at most 1; NaN stays NaN and is not counted.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(len(given), np.nan)
    order = [int(i) for i in np.argsort(given) if np.isfinite(given[i])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[index]))
        corrected[index] = largest
    return corrected.tolist()


def _independent(centered: Array, size: Array) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    """Columns, in order, that are not combinations of those before them, and for each of the others the columns it is made of."""
    kept: list[int] = []
    tied: dict[int, tuple[int, ...]] = {}
    length = np.linalg.norm(centered, axis=0)
    for index in range(centered.shape[1]):
        if length[index] <= COLLINEAR * max(size[index], 1e-300):
            tied[index] = ()
            continue
        others = centered[:, kept] / length[kept]
        share = np.linalg.pinv(others) @ (centered[:, index] / length[index])
        if np.linalg.norm(centered[:, index] / length[index] - others @ share) > COLLINEAR:
            kept.append(index)
        else:
            tied[index] = tuple(k for k, part in zip(kept, share, strict=True) if abs(part) > COLLINEAR)
    return kept, tied


def _hc3(weights: Array, residual: Array, leverage: Array) -> Array:
    alone = leverage > 1 - 1e-9
    inflated = np.divide(residual, 1 - leverage, out=np.zeros_like(residual), where=~alone)
    error = np.sqrt((weights**2) @ (inflated**2))
    error[(np.abs(weights[:, alone]) > 1e-9).any(axis=1)] = np.nan
    return error
