"""Query strategies of other libraries, to compare with.

A query says which of the pool's embeddings float32 [N, D] to label next, given the labelled ones
float32 [M, D], their labels int64 [M] of K classes, the size of the batch and a seed. It returns
`batch` distinct positions in the pool, int64. Where a strategy needs a model, that is
scikit-learn's logistic regression, `heads.probe`, and pictures are drawn at random until two
classes are labelled.
"""

# ruff: noqa: ARG001 - all share one signature

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from heads import Labels, Vectors, probe
from modAL.batch import uncertainty_batch_sampling
from modAL.models import ActiveLearner
from modAL.uncertainty import entropy_sampling, margin_sampling
from numpy.typing import NDArray
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import (
    Badge,
    CoreSet,
    DropQuery,
    ProbCover,
    TypiClust,
    UncertaintySampling,
)
from small_text import (
    BreakingTies,
    DiscriminativeActiveLearning,
    EmbeddingKMeans,
    GreedyCoreset,
    LightweightCoreset,
    QueryStrategy,
    SklearnClassifierFactory,
    SklearnDataset,
)

warnings.filterwarnings("ignore", message="Default distance metric has changed")

Query = Callable[[Vectors, Vectors, Labels, int, int, int], NDArray[np.int64]]

# ProbCover takes the largest of these radii whose balls are pure; its own, 0.2 apart, are too
# coarse where all pictures lie in a narrow cone.
RADII = np.arange(0.05, 1.5, 0.05)

# How often DiscriminativeActiveLearning trains for a batch.
DISCRIMINATIVE_ROUNDS = 5


def random(
    pool: Vectors, labelled: Vectors, labels: Labels, classes: int, batch: int, seed: int
) -> NDArray[np.int64]:
    """Any pictures."""
    return np.random.default_rng(seed).permutation(len(pool))[:batch]


def modal(strategy: Callable[..., Any]) -> Query:
    """Query with modAL's ActiveLearner, which starts from pictures drawn at random."""

    def query(
        pool: Vectors, labelled: Vectors, labels: Labels, classes: int, batch: int, seed: int
    ) -> NDArray[np.int64]:
        if len(np.unique(labels)) < 2:
            return random(pool, labelled, labels, classes, batch, seed)
        learner = ActiveLearner(probe(), strategy, X_training=labelled, y_training=labels)
        chosen, _ = learner.query(pool, n_instances=batch)
        return np.asarray(chosen, np.int64)

    return query


def skactiveml(build: Callable[[int, int], Any], *, model: bool) -> Query:
    """Query with a strategy of scikit-activeml, made for K and a seed.

    Those that need no model need no label to start from either.
    """

    def query(
        pool: Vectors, labelled: Vectors, labels: Labels, classes: int, batch: int, seed: int
    ) -> NDArray[np.int64]:
        if model and len(np.unique(labels)) < 2:
            return random(pool, labelled, labels, classes, batch, seed)
        rows = np.concatenate([pool, labelled])
        known = np.concatenate([np.full(len(pool), np.nan), labels])
        arguments = {}
        if model:
            arguments["clf"] = SklearnClassifier(probe(), classes=list(range(classes)))
        chosen = build(classes, seed).query(rows, known, batch_size=batch, **arguments)
        return np.asarray(chosen, np.int64)

    return query


def small_text(
    build: Callable[[SklearnClassifierFactory, int], QueryStrategy], *, embeddings: bool
) -> Query:
    """Query with a strategy of small-text, made for a way to build models and a batch's size.

    All of them start from pictures drawn at random, as the library initialises its learners.
    """

    def query(
        pool: Vectors, labelled: Vectors, labels: Labels, classes: int, batch: int, seed: int
    ) -> NDArray[np.int64]:
        if len(np.unique(labels)) < 2:
            return random(pool, labelled, labels, classes, batch, seed)
        np.random.seed(seed)  # the library draws from NumPy's global generator
        rows = np.concatenate([pool, labelled])
        unlabelled, of_labelled = np.split(np.arange(len(rows)), [len(pool)])
        # A dataset has to have labels; nobody looks at those of the pool.
        known = np.concatenate([np.zeros_like(unlabelled), labels])
        dataset = SklearnDataset(rows, known, target_labels=np.arange(classes))
        factory = SklearnClassifierFactory(probe(), classes)
        model = factory.new().fit(dataset[of_labelled])
        arguments = {"embeddings": rows} if embeddings else {}
        chosen = build(factory, batch).query(
            model, dataset, unlabelled, of_labelled, labels, batch, **arguments
        )
        return np.asarray(chosen, np.int64)

    return query


PEERS: Mapping[str, Query] = {
    "random": random,
    "modAL margin": modal(margin_sampling),
    "modAL entropy": modal(entropy_sampling),
    "modAL ranked batch": modal(uncertainty_batch_sampling),
    "scikit-activeml margin": skactiveml(
        lambda _, seed: UncertaintySampling("margin_sampling", random_state=seed), model=True
    ),
    "scikit-activeml BADGE": skactiveml(lambda _, seed: Badge(random_state=seed), model=True),
    "scikit-activeml DropQuery": skactiveml(
        lambda _, seed: DropQuery(cluster_algo_dict={"random_state": seed}, random_state=seed),
        model=True,
    ),
    "scikit-activeml CoreSet": skactiveml(lambda _, seed: CoreSet(random_state=seed), model=False),
    "scikit-activeml TypiClust": skactiveml(
        lambda _, seed: TypiClust(random_state=seed), model=False
    ),
    "scikit-activeml ProbCover": skactiveml(
        lambda classes, seed: ProbCover(classes, RADII, random_state=seed), model=False
    ),
    "small-text breaking ties": small_text(lambda *_: BreakingTies(), embeddings=False),
    "small-text greedy coreset": small_text(lambda *_: GreedyCoreset(), embeddings=True),
    "small-text lightweight coreset": small_text(lambda *_: LightweightCoreset(), embeddings=True),
    "small-text k-means": small_text(lambda *_: EmbeddingKMeans(), embeddings=True),
    "small-text discriminative": small_text(
        lambda factory, batch: DiscriminativeActiveLearning(
            factory, min(batch, DISCRIMINATIVE_ROUNDS)
        ),
        embeddings=False,
    ),
}
