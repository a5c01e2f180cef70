"""Which tasks come first in the queue, when a query strategy looks at them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from backend.labelstudio.config import LabelingConfig
from backend.prediction import Prediction, Predictor, score_of
from backend.store.tasks import Task
from backend.store.versions import Version

# What the first tasks of the queue are picked from: half of them the most uncertain ones, half a
# sample that shows what the pool is like. It bounds time and memory for pools of any size.
CANDIDATES = 5000


def in_order(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    tasks: Mapping[int, Task],
    labelled: Sequence[Task],
    config: LabelingConfig,
    version: Version,
) -> list[Prediction]:
    """Return the predictions of all open tasks, those to be asked about first at the front.

    A strategy that picks deals the uncertainties out anew, so that the scores say the same order.

    Parameters
    ----------
    predictor : Predictor
    predictions : sequence of Prediction
        Of all open tasks.
    tasks : mapping of task id to Task
        At least the predicted ones.
    labelled : sequence of Task
        Annotated tasks, or a sample of them.
    config : LabelingConfig
    version : Version
        That the predictions are of.

    """
    import torch

    from backend.learning.strategies import STRATEGIES, Pool, put_first

    ordered = sorted(predictions, key=lambda prediction: -prediction.uncertainty)
    strategy = STRATEGIES[version.query_strategy]
    if strategy.pick is None or not ordered:
        return ordered
    places = {prediction.task_id: place for place, prediction in enumerate(ordered)}
    candidates = [tasks[item.task_id] for item in _candidates(ordered) if item.task_id is not None]
    uncertainties = torch.tensor([prediction.uncertainty for prediction in ordered])
    picked: list[list[int]] = []
    for control in config.controls:
        ids, vectors = predictor.vectors_of(candidates, control, fetch=False)
        _, known = predictor.vectors_of(labelled, control, fetch=False)
        of_candidates = torch.tensor([places[task_id] for task_id in ids])
        pool = Pool(
            vectors,
            version.heads[control.name].head,
            known if len(known) else vectors[:0],
            [f"{task_id}:{version.name}" for task_id in ids],
        )
        picks = strategy.pick(pool, uncertainties[of_candidates])
        picked.append(of_candidates[picks].tolist())
    # Each control has its turn.
    in_turn = (place for place in chain(*zip_longest(*picked)) if place is not None)
    dealt = put_first(uncertainties, torch.tensor(list(dict.fromkeys(in_turn))))
    rescored = [
        replace(prediction, uncertainty=uncertainty, score=score_of(uncertainty, version))
        for prediction, uncertainty in zip(ordered, dealt.tolist(), strict=True)
    ]
    return sorted(rescored, key=lambda prediction: -prediction.uncertainty)


def _candidates(ordered: Sequence[Prediction]) -> Sequence[Prediction]:
    if len(ordered) <= CANDIDATES:
        return ordered
    uncertain, rest = ordered[: CANDIDATES // 2], ordered[CANDIDATES // 2 :]
    return [*uncertain, *rest[:: -(-len(rest) // (CANDIDATES // 2))]]
