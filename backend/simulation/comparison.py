"""Learning curves compared run by run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class Estimate(NamedTuple):
    """A mean over runs with its 95 % interval, which is NaN where there are fewer than two."""

    mean: float
    low: float
    high: float


def labels_to_reach(n_annotations: ArrayLike, accuracy: ArrayLike, target: float) -> float:
    """Return where a learning curve first is at or above a target.

    Parameters
    ----------
    n_annotations : [I] increasing
    accuracy : [I]
        The curve's height there; straight lines lie between.
    target : float

    Returns
    -------
    float
        A number of labels, not necessarily whole; the first of `n_annotations` where the curve
        begins at the target, NaN where it never comes there.

    """
    x, y = np.asarray(n_annotations, dtype=float), np.asarray(accuracy, dtype=float)
    reached = np.flatnonzero(y >= target)
    if len(reached) == 0:
        return math.nan
    first = reached[0]
    if first == 0:
        return float(x[0])
    share = (target - y[first - 1]) / (y[first] - y[first - 1])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


def paired_ratio(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Return the geometric mean of a / b with the t-interval of the log ratios.

    Parameters
    ----------
    a, b : [R] numbers of labels, one a run
        Pairs with a NaN are left out. Fewer than one label counts as one, for a ratio to exist.

    """
    return Estimate(*np.exp(mean_over_runs(log_ratios(a, b))).tolist())


def mean_over_runs(values: ArrayLike) -> Estimate:
    """Return the mean of values [R] with its t-interval; NaN are left out."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half)


def log_ratios(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return log(a / b) [R], where fewer than one label count as one."""
    ratios: NDArray[np.float64] = np.log(np.maximum(a, 1)) - np.log(np.maximum(b, 1))
    return ratios


def p_value(differences: ArrayLike) -> float:
    """Return the two-sided p of a mean of 0 in a t-test; NaN with fewer than two."""
    known = np.asarray(differences, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return math.nan
    error = known.std(ddof=1) / math.sqrt(len(known))
    if error == 0:
        return float(known[0] == 0)
    return float(2 * stats.t.sf(abs(known.mean()) / error, len(known) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for being several (Holm, 1979); NaN stays and does not count."""
    adjusted = list(p_values)
    told = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(told):
        highest = max(highest, min(1.0, p * (len(told) - rank)))
        adjusted[index] = highest
    return adjusted
