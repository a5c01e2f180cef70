"""Which tasks come first in the queue, when a query strategy looks at them together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from backend.labelstudio.config import LabelingConfig
from backend.prediction import Predictor
from backend.store.contents import QueuedTask
from backend.store.tasks import Tasks
from backend.store.versions import Version

# What the first tasks of the queue are picked from: half of them the most uncertain ones, half a
# sample that shows what the pool is like. It bounds time and memory for pools of any size.
CANDIDATES = 5000

# Of a task at the head of the queue: those that its uncertainty is about.
SHOWN_CHOICES = 2

# Annotated tasks that tell a query strategy what is known already.
LABELLED = 2000


@dataclass(frozen=True)
class Queue:
    """Open tasks in the order in which they are to be asked about.

    Attributes
    ----------
    ids : NDArray[N] int64
    uncertainties : NDArray[N] float32
        In [0, 1], falling.

    """

    ids: NDArray[np.int64]
    uncertainties: NDArray[np.float32]


def in_order(predictor: Predictor, tasks: Tasks, config: LabelingConfig, version: Version) -> Queue:
    """Return a project's open tasks that are embedded, those to be asked about first in front.

    A strategy that picks deals the uncertainties out anew, so that the scores say the same order.
    The tasks are read in chunks, so that projects of any size can be put in order.
    """
    import torch

    from backend.learning.strategies import STRATEGIES, Pool, put_first

    ids, uncertainties = _uncertainties(predictor, tasks, config, version)
    order = np.argsort(-uncertainties, kind="stable")
    ids, uncertainties = ids[order], uncertainties[order]
    strategy = STRATEGIES[version.query_strategy]
    if strategy.pick is None or not len(ids):
        return Queue(ids, uncertainties)
    in_front = _candidates(len(ids))
    places = dict(zip(ids[in_front].tolist(), in_front.tolist(), strict=True))
    candidates = tasks.named(version.project_id, list(places))
    labelled = tasks.some(version.project_id, LABELLED, is_open=False)
    picked: list[list[int]] = []
    for control in config.controls:
        of_control, vectors = predictor.embedder.vectors_of(candidates, control, fetch=False)
        _, known = predictor.embedder.vectors_of(labelled, control, fetch=False)
        of_candidates = np.array([places[task_id] for task_id in of_control], np.int64)
        pool = Pool(
            vectors,
            version.heads[control.name].head,
            known if len(known) else vectors[:0],
            [f"{task_id}:{version.name}" for task_id in of_control],
        )
        picks = strategy.pick(pool, torch.from_numpy(uncertainties[of_candidates]))
        picked.append(of_candidates[picks.numpy()].tolist())
    # Each control has its turn.
    in_turn = (place for place in chain(*zip_longest(*picked)) if place is not None)
    dealt = put_first(
        torch.from_numpy(uncertainties), torch.tensor(list(dict.fromkeys(in_turn)))
    ).numpy()
    order = np.argsort(-dealt, kind="stable")
    return Queue(ids[order], dealt[order])


def head_of(
    queue: Queue,
    count: int,
    predictor: Predictor,
    tasks: Tasks,
    config: LabelingConfig,
    version: Version,
) -> list[QueuedTask]:
    """Return the first tasks of a queue with the choices that the version is torn between."""
    uncertainties = dict(
        zip(queue.ids[:count].tolist(), queue.uncertainties[:count].tolist(), strict=True)
    )
    first = tasks.named(version.project_id, [*uncertainties])
    scores = predictor.score(first, config, version, fetch=False)
    values = {control.name: version.heads[control.name].values for control in config.controls}
    found = []
    for row, index in enumerate(scores.usable):
        likeliest = {}
        for control, probabilities in zip(config.controls, scores.probabilities, strict=True):
            places = np.argsort(-probabilities[row], kind="stable")[:SHOWN_CHOICES]
            likeliest[control.name] = [
                (values[control.name][place], round(float(probabilities[row, place]), 4))
                for place in places.tolist()
                # Choices that come with other tasks have none.
                if probabilities[row, place] > 0
            ]
        task_id = first[index].id
        found.append(QueuedTask(task_id, round(1 - uncertainties[task_id], 4), likeliest))
    return found


def _uncertainties(
    predictor: Predictor, tasks: Tasks, config: LabelingConfig, version: Version
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    uncertainties: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    for page in tasks.open(version.project_id):
        of_page, of_tasks = predictor.uncertainties(page, config, version)
        ids.append(np.array(of_page, np.int64))
        uncertainties.append(of_tasks.numpy())
    return np.concatenate(ids), np.concatenate(uncertainties)


def _candidates(count: int) -> NDArray[np.int64]:
    """Return places of a queue, which is not picked from yet."""
    places = np.arange(count)
    if count <= CANDIDATES:
        return places
    uncertain, rest = places[: CANDIDATES // 2], places[CANDIDATES // 2 :]
    return np.concatenate([uncertain, rest[:: -(-len(rest) // (CANDIDATES // 2))]])
