"""A version's predictions to Label Studio, the most uncertain tasks first."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

import numpy as np

from backend.errors import LabelStudioError
from backend.jobs.checking import note_outdated
from backend.jobs.mirroring import mirror
from backend.jobs.services import Services
from backend.jobs.sweep import is_wanted
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.labelstudio.removal import remove_predictions
from backend.ordering import Queue, head_of, in_order
from backend.prediction import Prediction, fits, score_of
from backend.store.contents import queue_to_bytes
from backend.store.findings import FindingKind
from backend.store.requests import Claim, Kind, Request
from backend.store.versions import Version, is_ours

log = logging.getLogger(__name__)

# The least certain tasks are imported first and alone, so that annotators are served them within a
# second; the others in requests of so many, while which nobody is kept waiting.
FIRST = 200
AT_ONCE = 1000

# The head of the queue is what annotators are served, and what their pages may show hours later:
# a page keeps its task until it is submitted.
HEAD = 10
SHOWN_FOR = 12 * 3600.0

# Label Studio may recount all tasks of the project at each import, half a millisecond each. Where
# that takes so many seconds, the head is added one by one and the others in requests of so many.
SLOW = 2.0
AT_ONCE_IF_SLOW = 20_000

# Tasks whose predictions are listed in one request, which names them in its address.
LISTED = 100

# A sweep lists all predictions: not after each of many versions in a row, in seconds.
SWEEP_DELAY = 2.0


def refresh(services: Services, claim: Claim) -> None:
    """Make Label Studio hold the active version's prediction of every open task.

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
            _remove_outdated(services, claim)
            if _push(services, claim, version, config):
                _settle(services, version)
                return
        except LabelStudioError as error:
            # A task that was deleted since it was mirrored spoils the import of its whole chunk.
            if error.label_studio_status not in (400, 404) or mirrored_again:
                raise
            mirror(services, claim, project)
            mirrored_again = True


def _remove_outdated(services: Services, claim: Claim) -> None:
    """Remove what was predicted of tasks whose data, or labeling config, have changed since.

    Noted after it is done, so that whoever dies in between is followed by one that does it again.
    Leaves the rest to the next refresh where other work is more urgent.
    """
    store, project_id = services.store, claim.request.project_id
    outdated = sorted(store.tasks.outdated(project_id))
    for start in range(0, len(outdated), LISTED):
        some = outdated[start : start + LISTED]
        store.requests.check(claim)
        if start and _should_make_way(services, claim):
            return
        for present in services.label_studio.predictions(project_id, some):
            ours = {
                item.id
                for predictions in present.values()
                for item in predictions
                if is_ours(item.model_version)
            }
            for _ in remove_predictions(services.label_studio, project_id, present, ours):
                pass
        store.tasks.mark_cleared(project_id, some)


def _push(services: Services, claim: Claim, version: Version, config: LabelingConfig) -> bool:
    """Bring Label Studio to a version; False where it is no longer the active one."""
    store, project_id = services.store, version.project_id
    is_known = True
    if store.tasks.pending(project_id, version.name):
        is_known = _take_note(services, version, config)
    # Of those that have become outdated since they were looked for another refresh is asked.
    pending = store.tasks.pending(project_id, version.name) - store.tasks.outdated(project_id)
    if not pending and store.findings.model_version(project_id, FindingKind.QUEUE) == version.name:
        return True
    queue = in_order(services.predictor, store.tasks, config, version)
    if not pending:
        _note_head(services, version, config, queue)
        return True
    wanting = np.isin(queue.ids, np.fromiter(pending, np.int64, len(pending)))
    ids, uncertainties = queue.ids[wanting], queue.uncertainties[wanting]
    pushed = 0
    for part in _parts(len(ids), is_slow=project_id in services.slow_imports):
        project = store.projects.get(project_id)
        if (
            claim.lost.is_set()
            or project is None
            or not project.connected
            or project.model_version != version.name
        ):
            return False
        if pushed and _should_make_way(services, claim):
            break
        scores = {
            task_id: score_of(uncertainty, version)
            for task_id, uncertainty in zip(
                ids[part].tolist(), uncertainties[part].tolist(), strict=True
            )
        }
        _add(services, version, config, scores)
        if not pushed:
            # First: a worker that dies after the switch leaves tasks that pages show.
            store.tasks.mark_shown(project_id, ids[:HEAD].tolist(), SHOWN_FOR)
            _switch(services, version, is_known=is_known)
            # A sweep counted it when these predictions were not in yet.
            store.projects.note_surplus(project_id, version.name, {})
            _note_head(services, version, config, queue)
        pushed += len(scores)
    if len(ids):
        log.info(
            "refreshed project=%d version=%s predictions=%d of=%d",
            project_id,
            version.name,
            pushed,
            len(ids),
        )
    return True


def _add(
    services: Services, version: Version, config: LabelingConfig, scores: Mapping[int, float]
) -> None:
    """Add a version's predictions of some tasks, by the scores that their places give them.

    What they supersede stays for now: annotators' pages may show it, and Label Studio refuses an
    annotation (400) that was made from a prediction that is gone. A sweep removes it.
    """
    store, project_id = services.store, version.project_id
    tasks = store.tasks.named(project_id, list(scores))
    outcomes = services.predictor.predict(tasks, config, version, fetch=False)
    predictions = {
        task.id: {
            "task": task.id,
            "result": outcome.result,
            "score": scores[task.id],
            "model_version": outcome.model_version,
        }
        for task, outcome in zip(tasks, outcomes, strict=True)
        if isinstance(outcome, Prediction)
    }
    if not predictions:
        return
    if len(predictions) <= HEAD and project_id in services.slow_imports:
        for prediction in predictions.values():
            services.label_studio.add_prediction(prediction)
    else:
        started = time.monotonic()
        services.label_studio.import_predictions(project_id, [*predictions.values()])
        if len(predictions) <= FIRST and time.monotonic() - started > SLOW:
            services.slow_imports.add(project_id)
    store.tasks.mark_predicted(project_id, predictions.keys(), version.name)


def _note_head(services: Services, version: Version, config: LabelingConfig, queue: Queue) -> None:
    """Keep what the page shows of the least certain tasks."""
    store = services.store
    head = head_of(queue, FIRST, services.predictor, store.tasks, config, version)
    store.findings.keep(version.project_id, version.name, {FindingKind.QUEUE: queue_to_bytes(head)})


def _take_note(services: Services, version: Version, config: LabelingConfig) -> bool:
    """Note what Label Studio holds of a version; False where that is nothing.

    A worker that dies between an import and its note, an answer that is lost, and Label Studio's
    own call of /predict leave predictions that must not be added a second time.
    """
    store, client, project_id = services.store, services.label_studio, version.project_id
    project = store.projects.get(project_id)
    known = len(store.tasks.predicted(project_id, version.name))
    known += project.surplus.get(version.name, 0) if project is not None else 0
    held = client.prediction_counts(project_id).get(version.name, 0)
    if held <= known:
        return held > 0
    for page in client.predictions(project_id):
        carrying = {
            task_id
            for task_id, predictions in page.items()
            if any(item.model_version == version.name for item in predictions)
        }
        # Such as of an import that took so long that the data have changed meanwhile.
        outdated = note_outdated(services, version, config, page)
        store.tasks.mark_predicted(project_id, carrying - outdated, version.name)
    return True


def _parts(count: int, *, is_slow: bool) -> Iterator[slice]:
    first, at_once = (HEAD, AT_ONCE_IF_SLOW) if is_slow else (FIRST, AT_ONCE)
    if count:
        yield slice(0, first)
    for start in range(first, count, at_once):
        yield slice(start, start + at_once)


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


def _switch(services: Services, version: Version, *, is_known: bool) -> None:
    # The queue orders by the predictions of the project's model version alone. One that Label
    # Studio had nothing of is not that yet but by chance: to look would keep annotators waiting.
    client, project_id = services.label_studio, version.project_id
    if not (is_known and client.project(project_id).model_version == version.name):
        client.update_project(project_id, model_version=version.name)


def _settle(services: Services, version: Version) -> None:
    """See that the queue follows the version, and ask for what is too many to be removed."""
    store, project_id = services.store, version.project_id
    counts = services.label_studio.prediction_counts(project_id)
    if counts.get(version.name):
        _switch(services, version, is_known=True)
    project = store.projects.get(project_id)
    if project is not None and is_wanted(services, project, counts):
        store.requests.add(Request(project_id, Kind.SWEEP), delay=SWEEP_DELAY)
