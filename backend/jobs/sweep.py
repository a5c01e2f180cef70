"""Leave one prediction of ours a task: the active version's where there is one, else the newest.

Predictions are removed one at a time. Label Studio can remove a whole version in one request, but
that is one transaction: on SQLite it keeps annotators out for the whole of it (2,000 predictions,
half a minute; `next` then fails with "database is locked").
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from backend.errors import LabelStudioError
from backend.jobs.services import Services
from backend.labelstudio.client import RemotePrediction
from backend.store.requests import Claim, Kind, Request
from backend.store.versions import is_ours

log = logging.getLogger(__name__)

# Removals between two looks at whether something more urgent is due.
LOOK_EVERY = 20


def sweep(services: Services, claim: Claim) -> None:
    """Remove surplus predictions, and record which tasks carry the active version's.

    An import whose answer was lost, Label Studio's own call of /predict while a refresh runs, and
    people who delete predictions all make the mirror wrong; here it is mended. Makes way for what
    is more urgent, and goes on afterwards.
    """
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected or project.model_version is None:
        return
    active = project.model_version
    # Read before the list: what is imported meanwhile must not look lost.
    recorded = store.tasks.predicted(project_id, active)
    ours = [
        prediction
        for prediction in services.label_studio.predictions(project_id)
        if is_ours(prediction.model_version)
    ]
    carrying = {prediction.task for prediction in ours if prediction.model_version == active}
    store.tasks.mark_predicted(project_id, carrying - recorded, active)
    lost = recorded - carrying
    if lost:
        store.tasks.mark_unpredicted(project_id, lost)
        store.requests.add(Request(project_id, Kind.REFRESH))
        log.info("predictions were lost project=%d count=%d", project_id, len(lost))

    surplus = _surplus(ours, active)
    for count, prediction in enumerate(surplus):
        if claim.lost.is_set():
            return
        if services.stopping.is_set() or (count % LOOK_EVERY == 0 and _something_urgent(services)):
            store.requests.add(claim.request)
            log.debug("sweep makes way project=%d left=%d", project_id, len(surplus) - count)
            return
        try:
            services.label_studio.delete_prediction(prediction.id)
        except LabelStudioError as error:
            # Its task was deleted meanwhile.
            if error.label_studio_status != 404:
                raise
    if surplus:
        log.info("removed superseded predictions project=%d count=%d", project_id, len(surplus))


def _surplus(ours: Iterable[RemotePrediction], active: str) -> list[RemotePrediction]:
    by_task: dict[int, list[RemotePrediction]] = defaultdict(list)
    for prediction in ours:
        by_task[prediction.task].append(prediction)
    surplus = []
    for predictions in by_task.values():
        kept = max(predictions, key=lambda item: (item.model_version == active, item.id))
        surplus += [prediction for prediction in predictions if prediction is not kept]
    return surplus


def _something_urgent(services: Services) -> bool:
    return any(request.kind is not Kind.SWEEP for request in services.store.requests.due())
