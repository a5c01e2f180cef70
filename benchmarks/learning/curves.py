"""One method on one set with one seed: the labels that it gets, and how good its head then is.

All methods of a seed share its split, its first random labels where they need some, and the sizes
of their batches, so that their differences are paired.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import peers
import torch
from datasets import DATASETS, EmbeddedDataset
from heads import HEADS, NEED_TEXT, Labels, Predict, Probabilities, Vectors

from backend.clip.encoder import TINY
from backend.demo import pictures
from backend.learning.evaluation import calibration_error, evaluate
from backend.learning.head import Head
from backend.learning.strategies import STRATEGIES, Pool
from backend.simulation import dataset as simulation
from backend.simulation.learners import HeadLearner, Indices

# From no label to 400: closer where a curve is steep.
BATCHES = (*[10] * 10, *[20] * 5, *[40] * 5)

# So many classes those batches are for: with more, each batch is a multiple.
CLASSES = 20

# Random labels of each class.
SHOTS = (1, 2, 4, 8, 16, 32)

VALIDATION_SHARE = 0.2
VALIDATION_LARGEST = 1000

# A probe gives a class without a label probability 0, and one picture of it would decide the loss.
SMALLEST_PROBABILITY = 1e-6

FLOOR_DRAWS = 20

PROCEDURE = (
    BATCHES,
    SHOTS,
    VALIDATION_SHARE,
    VALIDATION_LARGEST,
    SMALLEST_PROBABILITY,
    FLOOR_DRAWS,
)

# What is measured otherwise in curves of a kind alone.
PROCEDURES = {"heads": ("calibration on all pictures without a label",)}

OURS = "ours"

LIBRARIES = ("modAL-python", "scikit-activeml", "small-text", "scikit-learn")
OUR_CODE = tuple(
    Path(__file__).parents[2] / "backend" / "learning" / f"{part}.py"
    for part in ("calibration", "head", "picking", "strategies", "training", "uncertainty")
)
PEERS_CODE = (Path(peers.__file__), Path(__file__).with_name("heads.py"))
# The vectors themselves differ by rounding from machine to machine.
DATA_CODE = (
    Path(datasets.__file__),
    Path(__file__).with_name("requirements.txt"),
    Path(pictures.__file__),
    TINY / "tiny.safetensors",
)


class Task(NamedTuple):
    """A curve to be measured: `kind` is a key of `KINDS`, `name` a method's or a head's."""

    kind: str
    dataset: str
    name: str
    seed: int


@dataclass(frozen=True)
class Point:
    """How good a head is in validation, and how long it took to get there.

    `top1`, `ece` and `ece_floor` are in [0, 1], `log_loss` in nats. The floor is the `ece` that
    the same probabilities would have if they were true: 15 bins of few pictures are biased
    upwards. Of random labels both are of all pictures without a label.
    """

    labels: int
    top1: float
    log_loss: float
    ece: float
    ece_floor: float
    query_seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Situation:
    """What a query may look at: pool [N, D], labelled [M, D] with labels [M], and our head."""

    pool: Vectors
    labelled: Vectors
    labels: Labels
    classes: int
    head: Head | None
    batch: int
    seed: int


@dataclass(frozen=True)
class Method:
    """A way to query positions [batch] in the pool, and the head that learns from the answers.

    `head` is `OURS` or a key of `HEADS`; results are stale once `code` has changed.
    """

    query: Callable[[Situation], Indices]
    head: str
    code: tuple[Path, ...]


def ours(strategy: Callable[[Pool], torch.Tensor]) -> Callable[[Situation], Indices]:
    """Query with a strategy of ours; ties are drawn by lot, as the peers' first batch is."""

    def query(now: Situation) -> Indices:
        line = np.random.default_rng(now.seed).permutation(len(now.pool))
        assert now.head is not None
        uncertainties = strategy(
            Pool(
                torch.from_numpy(now.pool[line]),
                now.head,
                torch.from_numpy(now.labelled),
                [f"{now.seed} {position}" for position in line],
            )
        )
        order = uncertainties.argsort(descending=True, stable=True).numpy()
        chosen: Indices = line[order[: now.batch]]
        return chosen

    return query


def peer(query: peers.Query) -> Callable[[Situation], Indices]:
    """Query with a strategy of another library."""
    return lambda now: query(now.pool, now.labelled, now.labels, now.classes, now.batch, now.seed)


METHODS: Mapping[str, Method] = {
    **{
        f"our {name}": Method(ours(strategy), OURS, OUR_CODE)
        for name, strategy in STRATEGIES.items()
    },
    # The same draws for all heads.
    "our random": Method(peer(peers.random), OURS, OUR_CODE + PEERS_CODE),
    "random + linear probe": Method(peer(peers.random), "linear probe", PEERS_CODE),
    "random + LP++": Method(peer(peers.random), "LP++", PEERS_CODE),
    **{
        name: Method(peer(query), "linear probe", PEERS_CODE)
        for name, query in peers.PEERS.items()
        if name != "random"
    },
}

ALL_HEADS = (OURS, *HEADS)


@dataclass(frozen=True)
class Learned:
    """What came of some labels; `head` is ours and None for others."""

    predict: Predict
    head: Head | None = None


class Trial:
    """A set, split by a seed."""

    def __init__(self, dataset: EmbeddedDataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._copies = np.unique(dataset.embeddings, axis=0, return_inverse=True)[1].ravel()
        share = min(VALIDATION_SHARE, VALIDATION_LARGEST / len(dataset.labels))
        validation = simulation.stratified_split(dataset.labels, self._copies, share, seed)
        self._training = np.flatnonzero(~validation)
        self._validation = np.flatnonzero(validation)
        self._learner = HeadLearner(
            simulation.EmbeddedDataset(
                dataset.embeddings,
                dataset.labels,
                dataset.classes,
                dataset.text,
                dataset.logit_scale,
                validation,
            )
        )

    def learning_curve(self, name: str) -> list[Point]:
        """Label batch by batch what a method asks for, from no label to the budget."""
        method = METHODS[name]
        labelled = self._training[:0]
        learned, point = self._learn(method.head, labelled)
        points = [point]
        for step, batch in enumerate(batches(len(self._dataset.classes))):
            pool = np.setdiff1d(self._training, labelled, assume_unique=True)
            if not len(pool):
                break
            situation = Situation(
                self._dataset.embeddings[pool],
                self._dataset.embeddings[labelled],
                self._dataset.labels[labelled],
                len(self._dataset.classes),
                learned.head,
                min(batch, len(pool)),
                int(self._rng("query", step).integers(2**31)),
            )
            started = time.perf_counter()
            chosen = pool[method.query(situation)]
            seconds = time.perf_counter() - started
            labelled = np.concatenate([labelled, chosen])
            learned, point = self._learn(method.head, labelled, seconds)
            points.append(point)
        return points

    def by_shots(self, head: str) -> list[Point]:
        """Learn from random labels, `SHOTS` of each class; a class that has fewer gives all."""
        labels = self._dataset.labels[self._training]
        rng = self._rng("shots")
        members = [rng.permutation(self._training[labels == label]) for label in np.unique(labels)]
        points = []
        for shots in SHOTS:
            labelled = np.concatenate([own[:shots] for own in members])
            learned, point = self._learn(head, labelled)
            # What random labels leave out is as new to a head as validation, and there is more.
            new = np.flatnonzero(~np.isin(self._copies, self._copies[labelled]))
            error, floor = self._calibration(learned.predict, new)
            points.append(replace(point, ece=error, ece_floor=floor))
        return points

    def all_labels(self, head: str) -> list[Point]:
        """Learn from the whole training part."""
        return [self._learn(head, self._training)[1]]

    def _learn(
        self, name: str, labelled: Indices, query_seconds: float = 0.0
    ) -> tuple[Learned, Point]:
        started = time.perf_counter()
        if name == OURS:
            head = self._learner.learn(labelled, self._training).head
            learned = Learned(_predict_with(head), head)
        else:
            of = self._dataset
            fitted = HEADS[name](
                of.embeddings[labelled],
                of.labels[labelled],
                of.text,
                of.logit_scale,
                len(of.classes),
            )
            learned = Learned(fitted)
        seconds = time.perf_counter() - started
        return learned, self._evaluate(learned.predict, len(labelled), query_seconds, seconds)

    def _evaluate(
        self, predict: Predict, labels: int, query_seconds: float, training_seconds: float
    ) -> Point:
        found = evaluate(*self._predicted(predict, self._validation))
        error, floor = self._calibration(predict, self._validation)
        return Point(
            labels=labels,
            top1=found.top1,
            log_loss=found.log_loss,
            ece=error,
            ece_floor=floor,
            query_seconds=query_seconds,
            training_seconds=training_seconds,
        )

    def _calibration(self, predict: Predict, pictures: Indices) -> tuple[float, float]:
        probabilities, labels = self._predicted(predict, pictures)
        confidence, choice = probabilities.max(dim=1)
        draws = self._rng("floor").random((FLOOR_DRAWS, len(pictures)))
        floors = [calibration_error(confidence, torch.from_numpy(d) < confidence) for d in draws]
        return calibration_error(confidence, choice == labels), float(np.mean(floors))

    def _predicted(self, predict: Predict, pictures: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = predict(self._dataset.embeddings[pictures])
        return (
            torch.from_numpy(probabilities.clip(SMALLEST_PROBABILITY, 1)),
            torch.from_numpy(self._dataset.labels[pictures]),
        )

    def _rng(self, purpose: str, step: int = 0) -> np.random.Generator:
        return np.random.default_rng([*purpose.encode(), self._seed, step])


KINDS: Mapping[str, Callable[[Trial, str], list[Point]]] = {
    "strategies": Trial.learning_curve,
    "heads": Trial.by_shots,
    "all labels": Trial.all_labels,
}


def measure(task: Task) -> list[Point]:
    """Return a task's curve."""
    return KINDS[task.kind](Trial(load(task.dataset), task.seed), task.name)


@cache
def load(name: str) -> EmbeddedDataset:
    """Return a set, built once a process."""
    return DATASETS[name]()


def batches(classes: int) -> list[int]:
    """Return how many labels each query asks for on a set of so many classes."""
    return [batch * math.ceil(classes / CLASSES) for batch in BATCHES]


def applies(task: Task) -> bool:
    """Say whether the set has what the head needs."""
    head = METHODS[task.name].head if task.kind == "strategies" else task.name
    return head not in NEED_TEXT or load(task.dataset).text is not None


@cache
def digest(kind: str, dataset: str, name: str) -> str:
    """Stand for all that a curve depends on but its seed: code, libraries, data, procedure."""
    of_head = OUR_CODE if name == OURS else PEERS_CODE
    code = METHODS[name].code if kind == "strategies" else of_head
    found = hashlib.sha256(repr(PROCEDURE + PROCEDURES.get(kind, ())).encode())
    for path in (*code, *DATA_CODE):
        found.update(path.read_bytes())
    if PEERS_CODE[0] in code:
        found.update(repr([version(library) for library in LIBRARIES]).encode())
    if kind == "strategies" and (classes := len(load(dataset).classes)) > CLASSES:
        found.update(repr(batches(classes)).encode())
    return found.hexdigest()


def _predict_with(head: Head) -> Predict:
    def predict(rows: Vectors) -> Probabilities:
        return head.probabilities(torch.from_numpy(rows)).double().numpy()

    return predict
