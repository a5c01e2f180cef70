"""A version's predictions to Label Studio, the most uncertain tasks first."""

from __future__ import annotations

import logging
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
CHUNK = 500

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
    pushed = 0
    for chunk in _chunks(predictions):
        project = store.projects.get(project_id)
        if (
            claim.lost.is_set()
            or project is None
            or not project.connected
            or project.model_version != version.name
        ):
            return False
        if pushed and services.stopping.is_set():
            store.requests.add(claim.request)
            break
        if pushed and _is_to_be_superseded(services, project_id):
            break
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
        if not pushed:
            _switch(services, version)
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


def _is_to_be_superseded(services: Services, project_id: int) -> bool:
    # While people annotate, a version lives for seconds: they are served its most uncertain
    # tasks, and the many others wait for the version that stays. The training that is waited
    # for asks for a refresh when it is done.
    return any(
        not waiting.attempts
        for waiting in services.store.requests.waiting(project_id, (Kind.TRAIN,))
    )


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
    superseded = any(is_ours(name) and name != version.name for name in counts)
    recorded = len(store.tasks.predicted(project_id, version.name))
    if superseded or counts.get(version.name, 0) != recorded:
        store.requests.add(Request(project_id, Kind.SWEEP), delay=SWEEP_DELAY)


def _chunks(predictions: Sequence[Prediction]) -> Iterator[Sequence[Prediction]]:
    if predictions:
        yield predictions[:FIRST_CHUNK]
    for start in range(FIRST_CHUNK, len(predictions), CHUNK):
        yield predictions[start : start + CHUNK]
