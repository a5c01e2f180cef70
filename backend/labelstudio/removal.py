"""Predictions out of Label Studio, in portions that keep nobody waiting.

Label Studio can remove a whole model version in one request, but that is one transaction: on
SQLite it keeps annotators out for the whole of it (2,000 predictions, half a minute; `next` then
fails with "database is locked"). One request a prediction takes a tenth of a second each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from backend.errors import LabelStudioError
from backend.labelstudio.client import LabelStudio, RemotePrediction

# About a second of Label Studio's time.
PORTION = 100


def remove_predictions(
    client: LabelStudio,
    project_id: int,
    surplus: Iterable[RemotePrediction],
    present: Iterable[RemotePrediction],
) -> Iterator[int]:
    """Remove `surplus` of all that are `present`; yield how many after each request.

    Tasks that lose all their predictions are done together, others one prediction at a time.
    """
    doomed = {prediction.id: prediction for prediction in surplus}
    by_task: dict[int, list[RemotePrediction]] = defaultdict(list)
    for prediction in present:
        by_task[prediction.task].append(prediction)
    emptied = [
        task_id
        for task_id, predictions in by_task.items()
        if all(prediction.id in doomed for prediction in predictions)
    ]
    for start in range(0, len(emptied), PORTION):
        portion = emptied[start : start + PORTION]
        client.delete_predictions_of(project_id, portion)
        yield sum(len(by_task[task_id]) for task_id in portion)
    singles = set(doomed) - {
        prediction.id for task_id in emptied for prediction in by_task[task_id]
    }
    for prediction_id in sorted(singles):
        delete_prediction(client, prediction_id)
        yield 1


def delete_prediction(client: LabelStudio, prediction_id: int) -> None:
    """Remove one prediction, unless somebody else has done so."""
    try:
        client.delete_prediction(prediction_id)
    except LabelStudioError as error:
        if error.label_studio_status != 404:
            raise
