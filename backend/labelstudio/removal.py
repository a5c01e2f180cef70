"""Predictions out of Label Studio, in portions that keep nobody waiting.

Label Studio can remove a whole model version in one request, but that is one transaction: on
SQLite it keeps annotators out for the whole of it (2,000 predictions, half a minute; `next` then
fails with "database is locked"). One request a prediction takes a tenth of a second each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

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
) -> Iterator[int]:
    """Remove the predictions `surplus`, by id, of all that are `present`, by task.

    Yields how many after each request. Of a task that keeps some, they can only be removed one
    by one, unless what it keeps is `movable`: then all goes and that is imported anew, in a tenth
    of the time. Between the two the task has no prediction for a moment.
    """
    portion: dict[int, Sequence[RemotePrediction]] = {}
    singles: list[int] = []
    for task_id, predictions in present.items():
        gone = [item.id for item in predictions if item.id in surplus]
        if len(gone) + sum(item.id in movable for item in predictions) < len(predictions):
            singles += gone
        elif gone:
            portion[task_id] = predictions
            if sum(map(len, portion.values())) >= PORTION:
                yield _remove_together(client, project_id, portion, surplus)
                portion = {}
    if portion:
        yield _remove_together(client, project_id, portion, surplus)
    for prediction_id in singles:
        _remove_one(client, prediction_id)
        yield 1


def _remove_together(
    client: LabelStudio,
    project_id: int,
    portion: Mapping[int, Sequence[RemotePrediction]],
    surplus: Collection[int],
) -> int:
    client.delete_predictions_of(project_id, portion.keys())
    moved = [
        {
            "task": item.task,
            "result": item.result,
            "score": item.score,
            "model_version": item.model_version,
        }
        for predictions in portion.values()
        for item in predictions
        if item.id not in surplus
    ]
    if moved:
        client.import_predictions(project_id, moved)
    return sum(map(len, portion.values())) - len(moved)


def _remove_one(client: LabelStudio, prediction_id: int) -> None:
    try:
        client.delete_prediction(prediction_id)
    except LabelStudioError as error:
        # Somebody else has removed it.
        if error.label_studio_status != 404:
            raise
