"""A version's predictions to Label Studio, the most uncertain tasks first."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from backend.errors import LabelStudioError
from backend.jobs.embed import mirror
from backend.jobs.services import Services
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.prediction import Prediction, fits
from backend.settings import Score
from backend.store.requests import Claim, Kind, Request
from backend.store.versions import Version, is_ours

log = logging.getLogger(__name__)

# What annotators are served next should be there at once; the rest follows in larger pieces.
FIRST_CHUNK = 200
CHUNK = 1000


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
    """Import what is missing of a version; False where it is no longer the active one."""
    store, project_id = services.store, version.project_id
    predictions = [
        prediction
        for page in store.tasks.open_without(project_id, version.name)
        for prediction in services.predictor.predict(page, config, version, fetch=False)
        if isinstance(prediction, Prediction)
    ]
    least_certain_first = 1 if version.score == Score.CONFIDENCE.value else -1
    predictions.sort(key=lambda prediction: least_certain_first * prediction.score)
    for chunk in _chunks(predictions):
        project = store.projects.get(project_id)
        if (
            claim.lost.is_set()
            or project is None
            or not project.connected
            or project.model_version != version.name
        ):
            return False
        services.label_studio.import_predictions(
            project_id,
            [
                {
                    "task": prediction.task_id,
                    "result": prediction.result,
                    "score": prediction.score,
                    "model_version": version.name,
                }
                for prediction in chunk
            ],
        )
        store.tasks.mark_predicted(
            project_id,
            [prediction.task_id for prediction in chunk if prediction.task_id is not None],
            version.name,
        )
        _switch(services, version)
    if predictions:
        log.info(
            "refreshed project=%d version=%s predictions=%d",
            project_id,
            version.name,
            len(predictions),
        )
    return True


def _switch(services: Services, version: Version) -> None:
    # The queue orders by the predictions of the project's model version alone.
    remote = services.label_studio.project(version.project_id)
    if remote.model_version != version.name:
        services.label_studio.update_project(version.project_id, model_version=version.name)


def _settle(services: Services, version: Version) -> None:
    """Remove our superseded predictions, and mend what the mirror and Label Studio disagree on."""
    store, project_id = services.store, version.project_id
    counts = services.label_studio.prediction_counts(project_id)
    if counts.get(version.name):
        _switch(services, version)
    # Until the last picture is embedded, an older prediction is better than none.
    if not store.requests.waiting(project_id, (Kind.SYNC, Kind.EMBED)):
        for name in counts:
            if is_ours(name) and name != version.name:
                services.label_studio.delete_model_version(project_id, name)
                log.info("removed superseded predictions project=%d version=%s", project_id, name)
    if counts.get(version.name, 0) != len(store.tasks.predicted(project_id, version.name)):
        _mend(services, version)


def _mend(services: Services, version: Version) -> None:
    """Leave one prediction of the version a task, and record where there is one.

    An import whose answer was lost, Label Studio's own call of /predict while a refresh runs, and
    people who delete predictions all make the mirror wrong.
    """
    store, project_id = services.store, version.project_id
    by_task: dict[int, list[int]] = defaultdict(list)
    for prediction in services.label_studio.predictions(project_id):
        if prediction.model_version == version.name:
            by_task[prediction.task].append(prediction.id)
    surplus = [extra for ids in by_task.values() for extra in sorted(ids)[:-1]]
    for prediction_id in surplus:
        services.label_studio.delete_prediction(prediction_id)
    recorded = store.tasks.predicted(project_id, version.name)
    store.tasks.mark_predicted(project_id, by_task.keys() - recorded, version.name)
    lost = recorded - by_task.keys()
    store.tasks.mark_unpredicted(project_id, lost)
    log.info(
        "mended project=%d version=%s surplus=%d lost=%d",
        project_id,
        version.name,
        len(surplus),
        len(lost),
    )
    if lost:
        store.requests.add(Request(project_id, Kind.SYNC))


def _chunks(predictions: Sequence[Prediction]) -> Iterator[Sequence[Prediction]]:
    if predictions:
        yield predictions[:FIRST_CHUNK]
    for start in range(FIRST_CHUNK, len(predictions), CHUNK):
        yield predictions[start : start + CHUNK]
