"""Active learning on an already labelled set: its labels are hidden and asked for batch by batch.

A queue in a strategy's order is emptied as Label Studio's is; one annotator who waits for each
refresh labels just what the strategy asks for.

All strategies of a run share its split, its first labels, the pictures that may be asked about in
an iteration, and every seed, so that their differences are paired. Each draw has a generator of
its own, seeded by (purpose, seed, run, iteration): what one strategy does changes no other's draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import SettingsError
from backend.learning.evaluation import Evaluation, evaluate
from backend.learning.strategies import STRATEGIES, Pool
from backend.simulation.dataset import EmbeddedDataset, stratified_split
from backend.simulation.learners import Indices, Learner, Model
from backend.simulation.queue import Queue

BASELINE = "random"

# The references that strategies are seen against; one row a run each.
ZERO_SHOT = "zero-shot"
ALL_LABELS = "all labels"

# Where neither the data nor the user says.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Parameters:
    """What is simulated.

    Attributes
    ----------
    strategies : names in `STRATEGIES`
    initial_per_class : int
        Random labels of each class to start from; a class that has fewer gives all.
    score_per_iteration : int, optional
        Size of the random part of the pool that is scored in an iteration; None is all of it.
    annotate_per_iteration : int
        Labels asked for in an iteration.
    annotators : int
        People who label at once, each served another picture of the queue.
    refresh_delay : int
        Labels that are saved while a model is trained and the queue refreshed with it.
    validation : float, optional
        Share of each class that is drawn for validation in each run; None is the data's own split,
        or `VALIDATION_SHARE` where it has none.
    runs, iterations, seed : int

    """

    strategies: tuple[str, ...]
    initial_per_class: int
    score_per_iteration: int | None
    annotate_per_iteration: int
    validation: float | None
    runs: int
    iterations: int
    seed: int
    annotators: int = 1
    refresh_delay: int = 0

    def check(self, known: Collection[str]) -> None:
        """Raise SettingsError where a strategy is not among the known or a number is no good."""
        for name in self.strategies:
            if name not in known:
                raise SettingsError(
                    f"--strategy: {name!r} is not known; known are {', '.join(known)}"
                )
        if self.validation is not None and not 0 < self.validation < 1:
            raise SettingsError("--validation: a share above 0 and below 1, such as 0.2")
        scored = self.score_per_iteration
        # An order is to last until the next one: what is on a page or labelled meanwhile is in it.
        needed = self.annotate_per_iteration + self.refresh_delay + self.annotators - 1
        if scored is not None and scored < needed:
            raise SettingsError(
                f"--score-per-iteration: {scored} pictures cannot give "
                f"{needed} annotations: score more or annotate fewer"
            )


@dataclass(frozen=True)
class Result:
    """How good a model is once `n_annotations` labels are known.

    The figures `_train` are of these labels themselves, NaN where there are none, those `_val` of
    the validation part; accuracies and calibration error are in [0, 1], log loss in nats. `seconds`
    are those of choosing what to ask and of training.
    """

    run: int
    iteration: int
    strategy: str
    n_annotations: int
    top1_train: float
    top5_train: float
    top1_val: float
    top5_val: float
    log_loss_val: float
    ece_val: float
    n_classes_annotated: int
    seconds: float


@dataclass(frozen=True)
class Split:
    """Positions in the data, ascending: what may be asked about, and what accuracy is told by."""

    training: Indices
    validation: Indices


class Experiment:
    """Runs of active learning over data whose labels are known.

    Parameters
    ----------
    dataset : EmbeddedDataset
        Pictures with the very same embedding are copies, which a drawn split keeps together.
    learner : Learner
    parameters : Parameters
    strategies : mapping of name to a function of the pool
        What the names in `parameters` mean: uncertainties [N], the highest is asked about first.
    new_queue : function of annotators and delay
        Makes the queue that a run's annotators empty.

    Raises
    ------
    SettingsError
        Where a parameter is wrong, or a part of the split would be empty.

    """

    def __init__(
        self,
        dataset: EmbeddedDataset,
        learner: Learner,
        parameters: Parameters,
        strategies: Mapping[str, Callable[[Pool], Tensor]] = STRATEGIES,
        new_queue: Callable[[int, int], Queue] = Queue,
    ) -> None:
        self.parameters = parameters
        self._labels = dataset.labels
        self._own_validation = dataset.validation
        # A copy in the other part would be learnt by heart.
        self._groups = _copies(dataset.embeddings)
        self._learner = learner
        parameters.check(strategies)
        self._strategies = strategies
        self._new_queue = new_queue
        for part, images in vars(self.split(0)).items():
            if len(images) == 0:
                raise SettingsError(
                    f"Nothing is left for {part}: give more pictures, or change --validation"
                )

    def split(self, run: int) -> Split:
        """Return a run's training and validation part."""
        share = self.parameters.validation
        if share is None and self._own_validation is not None:
            validation = self._own_validation
        else:
            share = VALIDATION_SHARE if share is None else share
            seed = int(self._rng("split", run).integers(2**32))
            validation = stratified_split(self._labels, self._groups, share, seed)
        return Split(np.flatnonzero(~validation), np.flatnonzero(validation))

    def initial(self, run: int) -> Indices:
        """Return the positions whose labels a run's strategies start from."""
        rng = self._rng("initial", run)
        chosen = [
            rng.permutation(members)[: self.parameters.initial_per_class]
            for members in self._by_class(self.split(run).training)
        ]
        return np.sort(np.concatenate(chosen))

    def iterations(self, run: int) -> int:
        """Return how many batches a run asks for: fewer than wanted where the pool is exhausted."""
        pool = len(self.split(run).training) - len(self.initial(run))
        return min(self.parameters.iterations, -(-pool // self.parameters.annotate_per_iteration))

    @property
    def references(self) -> tuple[str, ...]:
        """What strategies lie between: no label, where that is better than a guess, and all."""
        return (ZERO_SHOT, ALL_LABELS) if self._learner.knows_names else (ALL_LABELS,)

    def length(self, name: str, run: int) -> int:
        """Return the number of results that `simulate` yields."""
        return 1 if name in self.references else 1 + self.iterations(run)

    def simulate(self, name: str, run: int) -> Iterator[Result]:
        """Yield a run of a strategy or a reference, from its first labels on batch by batch."""
        split = self.split(run)
        if name == ZERO_SHOT:
            labelled = split.training[:0]
        elif name == ALL_LABELS:
            labelled = split.training
        else:
            labelled = self.initial(run)
        model, result = self._learn(name, run, 0, labelled, split)
        yield result
        queue = self._new_queue(self.parameters.annotators, self.parameters.refresh_delay)
        for iteration in range(1, self.length(name, run)):
            started = time.perf_counter()
            queue.refresh(self._order(name, run, iteration, model, labelled, split))
            batch = queue.annotate(self.parameters.annotate_per_iteration)
            labelled = np.sort(np.concatenate([labelled, batch]))
            model, result = self._learn(name, run, iteration, labelled, split, started)
            yield result

    def _order(
        self, strategy: str, run: int, iteration: int, model: Model, labelled: Indices, split: Split
    ) -> Indices:
        # A place in line for every picture, whoever still has it in the pool: strategies then score
        # the same pictures as far as they can, and ties follow chance, not the order of the data.
        line = self._rng("candidates", run, iteration).permutation(len(self._labels))
        pool = np.setdiff1d(split.training, labelled, assume_unique=True)
        candidates = pool[np.argsort(line[pool])][: self.parameters.score_per_iteration]
        seed = self.parameters.seed
        uncertainties = self._strategies[strategy](
            Pool(
                model.embeddings(candidates),
                model.head,
                model.embeddings(labelled),
                [f"seed {seed}, run {run}, iteration {iteration}, {image}" for image in candidates],
            )
        )
        order = uncertainties.argsort(descending=True, stable=True).cpu().numpy()
        in_order: Indices = candidates[order]
        return in_order

    def _learn(
        self,
        name: str,
        run: int,
        iteration: int,
        labelled: Indices,
        split: Split,
        started: float | None = None,
    ) -> tuple[Model, Result]:
        started = time.perf_counter() if started is None else started
        model = self._learner.learn(labelled, split.training)
        seconds = time.perf_counter() - started
        own = self._evaluate(model, labelled) if len(labelled) else None
        unseen = self._evaluate(model, split.validation)
        return model, Result(
            run=run,
            iteration=iteration,
            strategy=name,
            n_annotations=len(labelled),
            top1_train=own.top1 if own else np.nan,
            top5_train=own.top5 if own else np.nan,
            top1_val=unseen.top1,
            top5_val=unseen.top5,
            log_loss_val=unseen.log_loss,
            ece_val=unseen.calibration_error,
            n_classes_annotated=len(np.unique(self._labels[labelled])),
            seconds=seconds,
        )

    def _evaluate(self, model: Model, images: Indices) -> Evaluation:
        probabilities = model.head.probabilities(model.embeddings(images))
        return evaluate(probabilities, torch.from_numpy(self._labels[images]))

    def _by_class(self, images: Indices) -> Iterator[Indices]:
        for label in np.unique(self._labels[images]):
            yield images[self._labels[images] == label]

    def _rng(self, purpose: str, run: int, iteration: int = 0) -> Generator:
        return np.random.default_rng([*purpose.encode(), self.parameters.seed, run, iteration])


def _copies(embeddings: NDArray[np.float32]) -> Indices:
    """Number the pictures [N] so that those with the same embedding have the same number."""
    first: dict[bytes, int] = {}
    numbers = [first.setdefault(row.tobytes(), index) for index, row in enumerate(embeddings)]
    return np.array(numbers, dtype=np.int64)
