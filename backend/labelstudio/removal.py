"""Predictions out of Label Studio, in portions that keep nobody waiting.

Label Studio can remove a whole model version in one request, but that is one transaction: on
SQLite it keeps annotators out for the whole of it (2,000 predictions, half a minute; `next` then
fails with "database is locked"). One request a prediction takes a tenth of a second each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

from backend.errors import LabelStudioError
from backend.labelstudio.client import LabelStudio, RemotePrediction

# Predictions of one request: about a second of Label Studio's time.
PORTION = 100


def remove_predictions(
    client: LabelStudio,
    project_id: int,
    present: Mapping[int, Sequence[RemotePrediction]],
    surplus: Collection[int],
    *,
    movable: Collection[int] = (),
    imports_are_slow: bool = False,
) -> Iterator[int]:
    """Remove the predictions `surplus`, by id, of all that are `present`, by task.

    Yields how many after each step. Of a task that keeps some, they can only be removed one by
    one, unless what it keeps is `movable`: then all goes and that is imported anew, in a tenth of
    the time. Between the two the task has no prediction for a moment, or for as long as all of
    them take where the import is slow, however few it imports.
    """
    portions: list[dict[int, Sequence[RemotePrediction]]] = []
    singles: list[int] = []
    for task_id, predictions in present.items():
        gone = [item.id for item in predictions if item.id in surplus]
        if len(gone) + sum(item.id in movable for item in predictions) < len(predictions):
            singles += gone
        elif gone:
            if not portions or sum(map(len, portions[-1].values())) >= PORTION:
                portions.append({})
            portions[-1][task_id] = predictions
    for step in [portions] if imports_are_slow else [[portion] for portion in portions]:
        yield _remove_together(client, project_id, step, surplus)
    for prediction_id in singles:
        _remove_one(client, prediction_id)
        yield 1


def _remove_together(
    client: LabelStudio,
    project_id: int,
    portions: Sequence[Mapping[int, Sequence[RemotePrediction]]],
    surplus: Collection[int],
) -> int:
    gone = 0
    moved: list[dict[str, object]] = []
    for portion in portions:
        client.delete_predictions_of(project_id, portion.keys())
        for item in chain.from_iterable(portion.values()):
            if item.id in surplus:
                gone += 1
            else:
                moved.append(
                    {
                        "task": item.task,
                        "result": item.result,
                        "score": item.score,
                        "model_version": item.model_version,
                    }
                )
    if moved:
        client.import_predictions(project_id, moved)
    return gone


def _remove_one(client: LabelStudio, prediction_id: int) -> None:
    try:
        client.delete_prediction(prediction_id)
    except LabelStudioError as error:
        # Somebody else has removed it.
        if error.label_studio_status != 404:
            raise
