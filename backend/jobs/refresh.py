"""A version's predictions to Label Studio, the most uncertain tasks first."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

from backend.errors import LabelStudioError
from backend.jobs.embed import mirror
from backend.jobs.services import Services
from backend.jobs.sweep import is_wanted
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.labelstudio.removal import delete_prediction
from backend.ordering import in_order
from backend.prediction import Prediction, fits
from backend.store.requests import Claim, Kind, Request
from backend.store.tasks import StoredTask
from backend.store.versions import Version, is_ours

log = logging.getLogger(__name__)

# Predictions in one request: while they are added, nobody is kept waiting; while they are replaced,
# Label Studio on SQLite keeps others out for a second.
ADDED_AT_ONCE = 500
REPLACED_AT_ONCE = 100

# The head of the queue is what annotators are served, and what their pages may show hours later:
# a page keeps its task until it is submitted. Of these, so many are taken care of.
HEAD = 10
SHOWN_FOR = 12 * 3600.0
SHOWN = 30

# Annotated tasks that tell a query strategy what is known already.
LABELLED = 2000

# A sweep lists all predictions: not after each of many versions in a row, in seconds.
SWEEP_DELAY = 2.0


def refresh(services: Services, claim: Claim) -> None:
    """Make Label Studio hold the active version's prediction of every open task, and no other.

    Starts over with a version that is published meanwhile.
    """
    store, project_id = services.store, claim.request.project_id
    mirrored_again = False
    while not claim.lost.is_set():
        project = store.projects.get(project_id)
        if project is None or not project.connected:
            return
        version = store.versions.active(project_id)
        config = parse_labeling_config(project.label_config)
        if not config.controls:
            return
        encoder = services.predictor.encoder.identity
        if version is None or not fits(version, config, encoder):
            store.requests.add(Request(project_id, Kind.TRAIN))
            return
        try:
            if _push(services, claim, version, config):
                _settle(services, version)
                return
        except LabelStudioError as error:
            # A task that was deleted since it was mirrored spoils the import of its whole chunk.
            if error.label_studio_status not in (400, 404) or mirrored_again:
                raise
            mirror(services, project_id)
            mirrored_again = True


def _push(services: Services, claim: Claim, version: Version, config: LabelingConfig) -> bool:
    """Bring Label Studio to a version; False where it is no longer the active one."""
    store, project_id = services.store, version.project_id
    pending = store.tasks.open_without(project_id, version.name)
    wanting = {task.id: task.model_version for page in pending for task in page}
    if not wanting:
        return True
    predictions = [
        prediction
        for prediction in _of_all_open(services, version, config)
        if prediction.task_id in wanting
    ]
    replaces = any(wanting.values())
    head = [item.task_id for item in predictions[:HEAD] if item.task_id is not None]
    in_place = store.tasks.shown(project_id, SHOWN) | set(head)
    pushed = 0
    for chunk in _chunks(predictions, replaces=replaces):
        project = store.projects.get(project_id)
        if (
            claim.lost.is_set()
            or project is None
            or not project.connected
            or project.model_version != version.name
        ):
            return False
        if pushed > HEAD and _should_make_way(services, claim):
            break
        _replace(services, version, chunk, in_place)
        if not pushed:
            _switch(services, version)
            store.tasks.mark_shown(project_id, head, SHOWN_FOR)
        pushed += len(chunk)
    if predictions:
        log.info(
            "refreshed project=%d version=%s predictions=%d of=%d",
            project_id,
            version.name,
            pushed,
            len(predictions),
        )
    return True


def _of_all_open(services: Services, version: Version, config: LabelingConfig) -> list[Prediction]:
    """Return the predictions of all open tasks in the queue's order."""
    store, predictor = services.store, services.predictor
    tasks: dict[int, StoredTask] = {}
    predictions: list[Prediction] = []
    for page in store.tasks.open(version.project_id):
        tasks |= {task.id: task for task in page}
        predictions += [
            prediction
            for prediction in predictor.predict(page, config, version, fetch=False)
            if isinstance(prediction, Prediction)
        ]
    labelled = store.tasks.some(version.project_id, LABELLED, is_open=False)
    return in_order(predictor, predictions, tasks, labelled, config, version)


def _replace(
    services: Services, version: Version, chunk: Sequence[Prediction], in_place: Collection[int]
) -> None:
    """Leave one prediction of ours, the version's, on each task of a chunk.

    An annotator's page sends the id of the prediction that it shows with the annotation, and Label
    Studio refuses the annotation (400) if that prediction is gone. So the predictions that may be
    on a screen are changed in place, at a tenth of a second each; the others are removed together
    and imported anew, at a hundredth.
    """
    client, project_id = services.label_studio, version.project_id
    wanted = {
        prediction.task_id: _fields(prediction)
        for prediction in chunk
        if prediction.task_id is not None
    }
    held = client.predictions_of(project_id, wanted)
    additions, emptied = [], []
    for task_id in wanted:
        if task_id not in held:
            continue
        predictions = held[task_id]
        ours = [item for item in predictions if is_ours(item.model_version)]
        current = [item for item in ours if item.model_version == version.name]
        if not ours:
            additions.append(task_id)
        elif len(ours) == 1 and current:
            # An import whose answer was lost.
            continue
        elif task_id in in_place or len(ours) < len(predictions):
            # The oldest has been on screens for the longest.
            kept = ours[0]
            if kept not in current:
                client.update_prediction(kept.id, wanted[task_id])
            for item in ours:
                if item is not kept:
                    delete_prediction(client, item.id)
        else:
            emptied.append(task_id)
    if emptied:
        client.delete_predictions_of(project_id, emptied)
    if additions or emptied:
        client.import_predictions(
            project_id,
            [{"task": task_id, **wanted[task_id]} for task_id in (*additions, *emptied)],
        )
    services.store.tasks.mark_predicted(project_id, held.keys(), version.name)
    services.store.tasks.remove(project_id, wanted.keys() - held.keys())


def _chunks(predictions: Sequence[Prediction], *, replaces: bool) -> Iterator[Sequence[Prediction]]:
    size = REPLACED_AT_ONCE if replaces else ADDED_AT_ONCE
    # Until the switch the queue is short of what has been replaced: so the head goes first, alone.
    start = HEAD if replaces else 0
    if predictions[:start]:
        yield predictions[:start]
    for first in range(start, len(predictions), size):
        yield predictions[first : first + size]


def _fields(prediction: Prediction) -> dict[str, object]:
    return {
        "result": prediction.result,
        "score": prediction.score,
        "model_version": prediction.model_version,
    }


def _should_make_way(services: Services, claim: Claim) -> bool:
    requests, project_id = services.store.requests, claim.request.project_id
    # While people annotate, a version lives for seconds: they are served its most uncertain
    # tasks, and the many others wait for the version that stays. The training that is waited
    # for asks for a refresh when it is done.
    if any(not waiting.attempts for waiting in requests.waiting(project_id, (Kind.TRAIN,))):
        return True
    if services.stopping.is_set() or any(due.kind is Kind.TRAIN for due in requests.due()):
        requests.add(claim.request)
        return True
    return False


def _switch(services: Services, version: Version) -> None:
    # The queue orders by the predictions of the project's model version alone.
    remote = services.label_studio.project(version.project_id)
    if remote.model_version != version.name:
        services.label_studio.update_project(version.project_id, model_version=version.name)


def _settle(services: Services, version: Version) -> None:
    """See that the queue follows the version, and ask for what is too many to be removed."""
    store, project_id = services.store, version.project_id
    counts = services.label_studio.prediction_counts(project_id)
    if counts.get(version.name):
        _switch(services, version)
    recorded = len(store.tasks.predicted(project_id, version.name))
    progress = store.tasks.progress(project_id, version.name)
    if is_wanted(counts, version.name, recorded, progress):
        store.requests.add(Request(project_id, Kind.SWEEP), delay=SWEEP_DELAY)
