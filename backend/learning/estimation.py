"""What labels say about pictures that have none: accuracy on the pool, and what more would bring.

The labelled set is no sample of the pool: it was picked where the model was unsure, so that its
own accuracy is far too low. What carries over is how often a picture of a given confidence is
right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

_DRAWS = 1000
_SEED = 0
_INTERVAL = (0.025, 0.975)

# Of the line that maps the logit of a confidence to that of being right: before any label the
# confidence is taken at its word, give or take.
_PRIOR_MEAN = np.array([0.0, 1.0])
_PRIOR_SD = np.array([1.0, 0.5])


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def pool_accuracy(confidence: Tensor, correct: Tensor, pool_confidence: Tensor) -> Estimate:
    """Return the share of the pool whose likeliest choice is right, as labels suggest it.

    A logistic regression of being right on the logit of the confidence (Platt, 1999), fitted to
    the labelled set and averaged over the pool: a regression estimator, which needs the labelled
    set to be picked by what the model can see, not at random (Särndal, Swensson and Wretman,
    1992, "Model Assisted Survey Sampling", chapter 6). The interval is that of the regression's
    posterior, by Laplace's approximation, and of the draw of a pool of this size.

    Parameters
    ----------
    confidence : Tensor[N], floating in [0, 1]
        Out-of-fold probability of the likeliest choice of each labelled picture.
    correct : Tensor[N] of 0 and 1
        Whether that choice is its label.
    pool_confidence : Tensor[M], floating in [0, 1], M > 0

    """
    features = _features(confidence)
    right = correct.double().cpu().numpy()

    def loss(line: NDArray[np.float64]) -> float:
        z = features @ line
        penalty = (((line - _PRIOR_MEAN) / _PRIOR_SD) ** 2).sum() / 2
        return float((np.logaddexp(0, z) - right * z).sum() + penalty)

    line = minimize(loss, _PRIOR_MEAN, method="BFGS").x
    spread = expit(features @ line) * (1 - expit(features @ line))
    precision = (features * spread[:, None]).T @ features + np.diag(_PRIOR_SD**-2.0)
    draws = np.random.default_rng(_SEED).multivariate_normal(
        line, np.linalg.inv(precision), size=_DRAWS
    )
    pool = _features(pool_confidence)
    value = float(expit(pool @ line).mean())
    accuracies = np.array([expit(pool @ draw).mean() for draw in draws])
    accuracies += np.random.default_rng(_SEED + 1).normal(
        0, np.sqrt(value * (1 - value) / len(pool)), size=_DRAWS
    )
    low, high = np.quantile(accuracies, _INTERVAL).clip(0, 1)
    return Estimate(value, float(low), float(high))


def _features(confidence: Tensor) -> NDArray[np.float64]:
    # Beyond this a probability says no more than "sure".
    certain = confidence.double().cpu().numpy().clip(0.001, 0.999)
    return np.stack([np.ones(len(certain)), logit(certain)], axis=1)
