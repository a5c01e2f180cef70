"""Where a learning curve leads: an inverse power law through what versions were estimated at.

Figueroa, Zeng-Treitler, Kandula and Ngo, 2012, "Predicting Sample Size Required for Classification
Performance", BMC Medical Informatics and Decision Making 12:8: accuracy = a − b · labels^(−c),
fitted by weighted least squares, the later points counting more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# Fewer versions or labels that did not even double say nothing about a curve of three parameters.
FEWEST = 5
LEAST_GROWTH = 2.0

# Versions that share nearly all labels share nearly all of their error: one is kept of those whose
# numbers of labels differ by less than this factor.
_APART = 1.1

_EXPONENTS = np.linspace(0.05, 2.0, 40)
_DRAWS = 400
_SEED = 0
_INTERVAL = (0.025, 0.975)
_NORMAL = 1.959964

# Of a version's error, what its neighbours on the curve have in common with it (they were trained
# on and judged by much the same labels), as a share of its variance.
_SHARED = 0.5

# The least that an estimate is unsure by, whatever it says of itself.
_LEAST_SPREAD = 0.005


@dataclass(frozen=True)
class Measured:
    """An estimate of accuracy with its 95 % interval, after so many labels."""

    labels: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outlook:
    """What is to be expected after more labels; None with the reason why nothing can be said."""

    expected: tuple[Measured, ...] | None
    reason: str = ""


def extrapolate(history: Sequence[Measured], more: int, steps: int = 5) -> Outlook:
    """Return the accuracy after up to `more` labels than the last, in equal steps from the last on.

    The interval is that of curves through the points moved by their errors (a parametric
    bootstrap; Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", chapter 6). It is
    never narrower than the last point's own. Nothing is said from fewer than `FEWEST` points, of
    labels that grew by less than `LEAST_GROWTH`, and where accuracy has not risen with them by
    more than its errors explain: such a curve leads anywhere.

    Parameters
    ----------
    history : Measured
        In the order of publication; of several with as many labels, the last counts.

    """
    points = _apart(history)
    if len(points) < FEWEST:
        return Outlook(None, f"it needs {FEWEST} versions whose labels differ by a tenth or more")
    labels = np.array([point.labels for point in points], np.float64)
    if labels[-1] < LEAST_GROWTH * labels[0]:
        return Outlook(None, "it needs versions over which the labels have doubled")
    errors = 1 - np.array([point.value for point in points])
    spread = np.array([point.high - point.low for point in points]) / (2 * _NORMAL)
    spread = spread.clip(min=_LEAST_SPREAD)
    # As in the source: what was measured with more labels says more about what comes.
    weights = labels / labels.max() / spread**2
    _, slope = _fits(labels, errors[None], weights)[:2]
    level = (weights * errors).sum() / weights.sum()
    flat = float((((errors - level) / spread) ** 2).sum())
    curved = float((((errors - _at(labels, labels, errors[None], weights)[0]) / spread) ** 2).sum())
    # Akaike's criterion: the curve has two parameters more than a level.
    if slope[0] <= 0 or flat - curved < 2 * 2:
        return Outlook(None, "accuracy has not clearly risen with the labels so far")
    draws = np.random.default_rng(_SEED).standard_normal((_DRAWS, len(points) + 1))
    shared, own = draws[:, :1], draws[:, 1:]
    moved = errors + spread * (_SHARED**0.5 * shared + (1 - _SHARED) ** 0.5 * own)
    ahead = labels[-1] + np.linspace(0, more, steps + 1)
    expected = 1 - _at(ahead, labels, errors[None], weights)[0]
    low, high = np.quantile(1 - _at(ahead, labels, moved, weights), _INTERVAL, axis=0)
    least = _NORMAL * spread[-1]
    return Outlook(
        tuple(
            Measured(
                round(count),
                value=float(value.clip(0, 1)),
                low=float(min(below, value - least).clip(0, 1)),
                high=float(max(above, value + least).clip(0, 1)),
            )
            for count, value, below, above in zip(ahead, expected, low, high, strict=True)
        )
    )


def _apart(history: Sequence[Measured]) -> list[Measured]:
    """Return one point of each stretch of the curve, the last one among them."""
    last = {point.labels: point for point in history if point.labels > 0}
    kept: list[Measured] = []
    for point in sorted(last.values(), key=lambda point: -point.labels):
        if not kept or point.labels * _APART <= kept[-1].labels:
            kept.append(point)
    return kept[::-1]


def _fits(labels: Vector, errors: Vector, weights: Vector) -> tuple[Vector, Vector, Vector]:
    """Return level, slope and exponent [D] of errors [D, N] = level + slope · labels^(−exponent).

    For a given exponent it is a line, so the exponents are tried. The level is 0 at least.
    """
    found = np.full((len(errors), 4), np.inf)
    for exponent in _EXPONENTS:
        power = labels**-exponent
        mean = (weights * power).sum() / weights.sum()
        means = (errors @ weights) / weights.sum()
        slope = ((errors - means[:, None]) @ (weights * (power - mean))) / (
            weights * (power - mean) ** 2
        ).sum()
        level = means - slope * mean
        below = level < 0
        slope = np.where(below, errors @ (weights * power) / (weights * power**2).sum(), slope)
        level = np.where(below, 0.0, level)
        residuals = errors - level[:, None] - slope[:, None] * power
        loss = (weights * residuals**2).sum(axis=1)
        better = loss < found[:, 3]
        candidate = np.stack([level, slope, np.full_like(level, exponent), loss], axis=1)
        found[better] = candidate[better]
    return found[:, 0], found[:, 1], found[:, 2]


def _at(wanted: Vector, labels: Vector, errors: Vector, weights: Vector) -> Vector:
    """Return the errors [D, M] at `wanted` labels [M] on the curves through errors [D, N]."""
    level, slope, exponent = _fits(labels, errors, weights)
    return np.asarray(level[:, None] + slope[:, None] * wanted[None] ** -exponent[:, None])
