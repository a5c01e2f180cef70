"""Compare Label Studio's predictions with the mirror: remove what is superseded, note what is lost.

An import whose answer was lost, Label Studio's own call of /predict while a refresh runs, and
people who delete predictions all make the mirror wrong; here it is mended.
"""

from __future__ import annotations

import logging
from collections import defaultdict

from backend.jobs.services import Services
from backend.labelstudio.client import RemotePrediction
from backend.labelstudio.removal import remove_predictions
from backend.store.requests import Claim, Kind, Request
from backend.store.tasks import Progress
from backend.store.versions import is_ours

log = logging.getLogger(__name__)


def is_wanted(counts: dict[str, int], active: str, recorded: int, progress: Progress) -> bool:
    """Tell from Label Studio's `counts` by model version whether a sweep would change anything.

    `recorded` is how many tasks carry the active version's prediction as far as the mirror knows.
    Each open task without it may keep an older one for the time being.
    """
    superseded = sum(count for name, count in counts.items() if is_ours(name) and name != active)
    return counts.get(active, 0) != recorded or superseded > progress.open - progress.predicted


def sweep(services: Services, claim: Claim) -> None:
    """Remove superseded predictions of annotated tasks; have a refresh mend the open ones.

    Makes way for what is more urgent, and goes on afterwards.
    """
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected or project.model_version is None:
        return
    active = project.model_version
    # Read before the list: what is imported meanwhile must not look lost.
    recorded = store.tasks.predicted(project_id, active)
    is_open = store.tasks.states(project_id)
    present = services.label_studio.predictions(project_id)
    ours: dict[int, list[RemotePrediction]] = defaultdict(list)
    for prediction in present:
        if is_ours(prediction.model_version):
            ours[prediction.task].append(prediction)

    carrying: set[int] = set()
    surplus: list[RemotePrediction] = []
    for task_id, predictions in ours.items():
        current = [item for item in predictions if item.model_version == active]
        if not is_open.get(task_id, True):
            kept = current[:1]
            surplus += [item for item in predictions if item not in kept]
            carrying.update(item.task for item in kept)
        elif current and len(predictions) == 1:
            carrying.add(task_id)
    store.tasks.mark_predicted(project_id, carrying - recorded, active)
    wrong = recorded - carrying
    store.tasks.mark_unpredicted(project_id, wrong)
    if any(is_open.get(task_id) for task_id in wrong):
        log.info("predictions to mend project=%d count=%d", project_id, len(wrong))
        store.requests.add(Request(project_id, Kind.REFRESH))
    if ours.keys() - is_open.keys():
        store.requests.add(Request(project_id, Kind.SYNC))

    removed = 0
    for count in remove_predictions(services.label_studio, project_id, surplus, present):
        removed += count
        if claim.lost.is_set():
            return
        if removed < len(surplus) and (services.stopping.is_set() or _something_urgent(services)):
            store.requests.add(claim.request)
            break
    if removed:
        log.info("removed superseded predictions project=%d count=%d", project_id, removed)


def _something_urgent(services: Services) -> bool:
    return any(request.kind is not Kind.SWEEP for request in services.store.requests.due())
