"""Heads to compare with: what others fit to embedded pictures and few labels.

A head learns from embeddings float32 [M, D], unit rows, and their labels int64 [M] of K classes,
given the classes' texts float32 [K, D], unit rows, or None, and the logit scale that belongs to
them. What it returns turns embeddings [N, D] into probabilities float64 [N, K]. A class without a
label has probability 0 where a head knows of classes only by their labels.
"""

# ruff: noqa: ARG001 - all share one signature

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
)

# Few labels are what this is about.
warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Predict = Callable[[Vectors], Probabilities]
Head = Callable[[Vectors, Labels, Vectors | None, float, int], Predict]

# Unit rows are too short for scikit-learn's default, C = 1. This is what it amounts to on rows of
# norm 10, about the norm of CLIP's vectors before they are normalised.
PROBE_C = 100.0
CANDIDATE_CS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
FOLDS = 3

# What CLIP caps its logit scale at: for cosines between pictures where no text sets a scale.
PICTURE_SCALE = 100.0

LP_EPOCHS = 300
LP_MOMENTUM = 0.9
LP_ALPHA_EVERY = 10


def probe() -> Any:
    """Return an unfitted logistic regression for unit rows."""
    return LogisticRegression(C=PROBE_C, max_iter=1000)


def logistic_regression(
    embeddings: Vectors, labels: Labels, text: Vectors | None, logit_scale: float, classes: int
) -> Predict:
    """Linear probe with C = `PROBE_C`."""
    return _fitted(probe(), embeddings, labels, classes)


def logistic_regression_cv(
    embeddings: Vectors, labels: Labels, text: Vectors | None, logit_scale: float, classes: int
) -> Predict:
    """Linear probe with the best of `CANDIDATE_CS` by cross-validated log loss.

    Needs `FOLDS` labels of each labelled class, and is the plain probe until it has them.
    """
    counts = np.bincount(labels, minlength=classes)
    if np.count_nonzero(counts) < 2 or counts[counts > 0].min() < FOLDS:
        return logistic_regression(embeddings, labels, text, logit_scale, classes)
    search = GridSearchCV(
        probe(),
        {"C": CANDIDATE_CS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0),
    )
    return _fitted(search, embeddings, labels, classes)


def class_means(
    embeddings: Vectors, labels: Labels, text: Vectors | None, logit_scale: float, classes: int
) -> Predict:
    """Softmax over cosines with the means of labelled pictures (Snell et al. 2017)."""
    if not len(labels):
        return _uniform(classes)
    known = np.unique(labels)
    means = np.stack([embeddings[labels == position].mean(axis=0) for position in known])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    scale = PICTURE_SCALE if text is None else logit_scale

    def predict(rows: Vectors) -> Probabilities:
        return _spread(softmax(scale * rows.astype(np.float64) @ means.T, axis=1), known, classes)

    return predict


def zero_shot(
    embeddings: Vectors, labels: Labels, text: Vectors | None, logit_scale: float, classes: int
) -> Predict:
    """CLIP without any label: softmax over scaled cosines with texts (Radford et al. 2021)."""
    texts = _texts(text)

    def predict(rows: Vectors) -> Probabilities:
        return softmax(logit_scale * rows.astype(np.float64) @ texts.T, axis=1)

    return predict


def lp_plus_plus(
    embeddings: Vectors, labels: Labels, text: Vectors | None, logit_scale: float, classes: int
) -> Predict:
    """LP++ (Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP").

    Logits are x·(w_k + α_k t_k) + b_k. The weights start at the sums of the classes' labelled
    pictures and every α at 250 times the mean cosine between class means and texts; the cross
    entropy is then lowered for 300 epochs by full-batch descent, whose step sizes follow from
    its Lipschitz constants, α in every tenth epoch. The authors keep the epoch that is best on a
    validation set; there is none here, so the last one counts. Without labels it is zero-shot.
    """
    texts = _texts(text)
    if not len(labels):
        return zero_shot(embeddings, labels, text, logit_scale, classes)
    x = embeddings.astype(np.float64)
    cosines = x @ texts.T
    targets = np.eye(classes)[labels]
    known = np.unique(labels)

    weights = targets.T @ x
    bias = np.zeros(classes)
    class_cosines = np.stack([cosines[labels == position].mean(axis=0) for position in known])
    alpha = np.full(classes, 250 * class_cosines.mean())
    step = 4 * len(x) / np.linalg.norm(x, ord=2) ** 2
    alpha_step = len(x) / (4 * (cosines**2).sum(axis=0).max())

    weights_velocity, bias_velocity = np.zeros_like(weights), np.zeros_like(bias)
    for epoch in range(1, LP_EPOCHS + 1):
        residual = softmax(x @ weights.T + bias + alpha * cosines, axis=1) - targets
        residual /= len(x)
        weights_velocity = LP_MOMENTUM * weights_velocity + residual.T @ x
        bias_velocity = LP_MOMENTUM * bias_velocity + residual.sum(axis=0)
        weights -= step * weights_velocity
        bias -= step * bias_velocity
        if epoch % LP_ALPHA_EVERY == 0:
            alpha -= alpha_step * (residual * cosines).sum(axis=0)

    classifier = weights + alpha[:, None] * texts

    def predict(rows: Vectors) -> Probabilities:
        return softmax(rows.astype(np.float64) @ classifier.T + bias, axis=1)

    return predict


HEADS: Mapping[str, Head] = {
    "linear probe": logistic_regression,
    "linear probe, C by CV": logistic_regression_cv,
    "class means": class_means,
    "zero-shot": zero_shot,
    "LP++": lp_plus_plus,
}

NEED_TEXT = frozenset({"zero-shot", "LP++"})
"""Those of `HEADS` that raise ValueError where the texts are None."""


def _fitted(model: Any, embeddings: Vectors, labels: Labels, classes: int) -> Predict:
    known = np.unique(labels)
    if not len(known):
        return _uniform(classes)
    if len(known) == 1:
        return lambda rows: np.tile(np.eye(classes)[known[0]], (len(rows), 1))
    model.fit(embeddings, labels)
    return lambda rows: _spread(model.predict_proba(rows), known, classes)


def _spread(probabilities: Probabilities, known: Labels, classes: int) -> Probabilities:
    of_all = np.zeros((len(probabilities), classes))
    of_all[:, known] = probabilities
    return of_all


def _uniform(classes: int) -> Predict:
    return lambda rows: np.full((len(rows), classes), 1 / classes)


def _texts(text: Vectors | None) -> NDArray[np.float64]:
    if text is None:
        raise ValueError("this head needs the classes' texts")
    return text.astype(np.float64)
