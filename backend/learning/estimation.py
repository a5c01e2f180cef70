"""What labels say about pictures that have none: accuracy on the pool, and what more would bring.

The labelled set is no sample of the pool: it was picked where the model was unsure, so that its
own accuracy is far too low. What carries over is how often a picture of a given confidence is
right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from backend.learning.training import Trained

_DRAWS = 1000

# Of the number of labels, that errors fall with: 0 is a model that has learnt all it can, and more
# than 1 is hardly ever seen.
_EXPONENTS = np.linspace(0, 1.2, 61)
_SEED = 0
_INTERVAL = (0.025, 0.975)

# A gain in accuracy that nobody labels for.
_HARDLY = 0.01

# The regression's line is not quite straight, and settings were chosen on the same labels: with
# this factor the interval holds the truth as often as it says, on digits and drawn pictures.
_WIDER = 1.3

# The head's errors as a share of its out-of-fold heads': in simulation from 1, where labels were
# drawn at random, down to 0.6, where margins picked them.
_FEWEST = 0.6
_EXPECTED = 0.9

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


def outlook(
    trained: Trained, targets: Tensor, pool: Tensor, more: int
) -> tuple[Estimate, Estimate]:
    """Return the head's accuracy on the pool, and by how much more labels would raise it.

    Parameters
    ----------
    trained : Trained
        With out-of-fold probabilities.
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1 for independent choices
        What it was trained on; of independent choices each (picture, choice) counts as one.
    pool : Tensor[M, K], floating, M > 0
        The head's probabilities for a sample of the pool.
    more : int
        How many labels are to be added.

    """
    if trained.out_of_fold is None or trained.of_fewer is None:
        raise ValueError("nothing is known from fewer than two labels")
    confidence, decided = _decisions(trained.out_of_fold, targets)
    of_fewer = _decisions(trained.of_fewer, targets)[1]
    pool_confidence = torch.maximum(pool, 1 - pool).flatten() if targets.ndim == 2 else pool.amax(1)
    accuracy = pool_accuracy(confidence, decided, pool_confidence)
    return accuracy, expected_gain(accuracy, decided, of_fewer, labels=len(targets), more=more)


def _decisions(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence of each decision, and whether it is right."""
    if targets.ndim == 2:
        certain = torch.maximum(probabilities, 1 - probabilities)
        return certain.flatten(), ((probabilities >= 0.5) == (targets >= 0.5)).flatten()
    confidence, chosen = probabilities.max(dim=1)
    return confidence, chosen == targets


def advice(gain: Estimate, labels: int) -> str:
    """Return what the expected gain of so many labels means for those who give them."""
    if gain.high < _HARDLY:
        return (
            f"labelling more will hardly help: the next {labels} labels bring at most "
            f"{100 * gain.high:.1f} points"
        )
    return (
        f"the next {labels} labels bring about {100 * gain.value:.1f} points "
        f"({100 * gain.low:.1f} to {100 * gain.high:.1f})"
    )


def pool_accuracy(confidence: Tensor, correct: Tensor, pool_confidence: Tensor) -> Estimate:
    """Return the share of the pool whose likeliest choice is right, as labels suggest it.

    A logistic regression of being right on the logit of the confidence (Platt, 1999), fitted to
    the labelled set and averaged over the pool: a regression estimator, which needs the labelled
    set to be picked by what the model can see, not at random (Särndal, Swensson and Wretman,
    1992, "Model Assisted Survey Sampling", chapter 6). The interval is that of the regression's
    posterior, by Laplace's approximation, and of the draw of a pool of this size, made a third
    wider because the line is only nearly straight. It reaches up further: a label that was picked
    for what it would teach is missed where its fold is left out, so that the out-of-fold heads
    are wrong more often than the head. What is left of the pool is easier than the labels of the
    same confidence were; where the head, which is calibrated, says that it is more often right,
    the truth was found between the two.

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
    error = float(expit(-pool @ line).mean())
    errors = expit(-pool @ draws.T).mean(axis=0)
    errors += np.random.default_rng(_SEED + 1).normal(
        0, np.sqrt(error * (1 - error) / len(pool)), size=_DRAWS
    )
    least, most = np.quantile(error + _WIDER * (errors - error), _INTERVAL).clip(0, 1)
    value, low, high = 1 - error * _EXPECTED, 1 - float(most), 1 - float(least) * _FEWEST
    own_word = max(value, pool_confidence.double().mean().item())
    highest = min(1.0, own_word + (value - low) / 2)
    return Estimate((value + own_word) / 2, low, max(high, highest))


def expected_gain(
    accuracy: Estimate, correct: Tensor, correct_of_fewer: Tensor, *, labels: int, more: int
) -> Estimate:
    """Return by how much more labels would raise the accuracy on the pool.

    Errors fall as a power of the number of labels (Hestness et al., 2017, "Deep Learning Scaling
    is Predictable, Empirically"). What the exponent may be is told by heads that were trained on
    half as many labels: of all errors of both kinds of heads, theirs are a binomial share.

    Parameters
    ----------
    accuracy : Estimate
        On the pool, now.
    correct, correct_of_fewer : Tensor[N] of 0 and 1
        Whether the out-of-fold heads are right, and those of half as many labels.
    labels : int
        How many there are.
    more : int
        How many are to be added.

    """
    wrong = int((~correct.bool()).sum())
    wrong_of_fewer = int((~correct_of_fewer.bool()).sum())
    ratios = 2**_EXPONENTS
    log_likelihood = wrong_of_fewer * np.log(ratios) - (wrong + wrong_of_fewer) * np.log1p(ratios)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    generator = np.random.default_rng(_SEED)
    exponents = generator.choice(_EXPONENTS, p=likelihood / likelihood.sum(), size=_DRAWS)
    errors = generator.uniform(1 - accuracy.high, 1 - accuracy.low, size=_DRAWS)
    gains = errors * (1 - (labels / (labels + more)) ** exponents)
    low, high = np.quantile(gains, _INTERVAL)
    return Estimate(float(gains.mean()), float(low), float(high))


def _features(confidence: Tensor) -> NDArray[np.float64]:
    # Beyond this a probability says no more than "sure".
    certain = confidence.double().cpu().numpy().clip(0.001, 0.999)
    return np.stack([np.ones(len(certain)), logit(certain)], axis=1)
