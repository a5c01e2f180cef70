"""New tasks to embeddings: list the tasks, then embed what is missing in separate jobs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from backend.jobs.mirroring import mirror
from backend.jobs.services import Services
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.store.contents import left_out_from_bytes
from backend.store.findings import FindingKind
from backend.store.requests import Claim, Kind, Request
from backend.store.tasks import StoredTask

log = logging.getLogger(__name__)

# Tasks of one embed job: seconds of work, so that trainings are not kept waiting.
CHUNK = 64

# Lets a few embed jobs finish before their tasks are predicted together.
REFRESH_DELAY = 1.0


def sync(services: Services, claim: Claim) -> None:
    """Mirror a project's tasks and ask for the embeddings that are missing."""
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected:
        return
    mirror(services, claim, project)
    config = parse_labeling_config(project.label_config)
    chunks = request_missing(services, project_id, config, store.tasks.all(project_id))
    store.requests.add(Request(project_id, Kind.REFRESH))
    log.info("mirrored project=%d chunks_to_embed=%d", project_id, chunks)


def embed(services: Services, claim: Claim) -> None:
    """Embed the pictures of one chunk of tasks."""
    store, request = services.store, claim.request
    project = store.projects.get(request.project_id)
    if project is None or not project.connected:
        return
    tasks = store.tasks.in_range(
        request.project_id, request.part * CHUNK, (request.part + 1) * CHUNK
    )
    config = parse_labeling_config(project.label_config)
    failed = services.predictor.embedder.embed(tasks, config)
    if failed:
        log.warning(
            "pictures not to be had project=%d chunk=%d count=%d",
            request.project_id,
            request.part,
            failed,
        )
    if has_come(services, config, left_out(services, request.project_id), tasks):
        store.requests.add(Request(request.project_id, Kind.TRAIN))
    store.requests.add(Request(request.project_id, Kind.REFRESH), delay=REFRESH_DELAY)


def request_missing(
    services: Services,
    project_id: int,
    config: LabelingConfig,
    pages: Iterable[list[StoredTask]],
) -> int:
    """Ask for embed jobs of the tasks that have no embedding; return how many jobs."""
    chunks = {
        task_id // CHUNK
        for page in pages
        for task_id in services.predictor.embedder.missing(page, config)
    }
    services.store.requests.add_all(
        [Request(project_id, Kind.EMBED, chunk) for chunk in sorted(chunks)]
    )
    return len(chunks)


def left_out(services: Services, project_id: int) -> dict[str, list[int]]:
    """Return the tasks by control whose labels the last training left out for their pictures."""
    found = services.store.findings.get(project_id, FindingKind.LEFT_OUT)
    return {} if found is None else left_out_from_bytes(found.content)


def has_come(
    services: Services,
    config: LabelingConfig,
    waited_for: Mapping[str, Collection[int]],
    tasks: Sequence[StoredTask],
) -> bool:
    """Tell whether of some tasks, waited for by control, one has got its embedding."""
    for control in config.controls:
        of_control = set(waited_for.get(control.name, ()))
        wanted = [task for task in tasks if task.id in of_control]
        if services.predictor.embedder.vectors_of(wanted, control, fetch=False)[0]:
            return True
    return False
