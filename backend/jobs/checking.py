"""Label Studio's predictions, checked against what their version makes of the mirrored data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from backend.jobs.services import Services
from backend.labelstudio.client import RemotePrediction
from backend.labelstudio.config import LabelingConfig
from backend.prediction import Prediction, fits
from backend.results import is_alike
from backend.store.requests import Kind, Request
from backend.store.versions import Version

log = logging.getLogger(__name__)


def note_outdated(
    services: Services,
    version: Version,
    config: LabelingConfig,
    page: Mapping[int, Sequence[RemotePrediction]],
) -> set[int]:
    """Have a refresh replace what a version does not predict of its tasks; return those tasks.

    An older copy of Label Studio holds such predictions, and an import that came late. Nothing is
    said of what the version cannot predict: pictures that are away, another labeling config.
    """
    store, project_id = services.store, version.project_id
    if not config.controls or not fits(version, config, services.predictor.encoder.identity):
        return set()
    carried = {
        task_id: [item.result for item in predictions if item.model_version == version.name]
        for task_id, predictions in page.items()
    }
    tasks = store.tasks.named(project_id, [key for key, results in carried.items() if results])
    outcomes = services.predictor.predict(tasks, config, version, fetch=False)
    outdated = {
        task.id
        for task, outcome in zip(tasks, outcomes, strict=True)
        if isinstance(outcome, Prediction)
        and not all(is_alike(result, outcome.result) for result in carried[task.id])
    }
    if outdated:
        log.info("predictions of other data project=%d count=%d", project_id, len(outdated))
        store.tasks.mark_outdated(project_id, outdated)
        store.requests.add(Request(project_id, Kind.REFRESH))
    return outdated
