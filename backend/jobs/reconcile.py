"""Compare with Label Studio what was learnt and pushed, and ask for what is missing.

So a lost webhook, a worker that died or an emptied Redis costs time, not labels.
"""

from __future__ import annotations

import logging
from itertools import chain

from backend.jobs.embed import has_come, left_out, request_missing
from backend.jobs.mirroring import follow, mirror
from backend.jobs.services import Services
from backend.jobs.sweep import is_wanted
from backend.jobs.train import remote_project, watermark
from backend.labelstudio.config import parse_labeling_config
from backend.store.projects import Project
from backend.store.requests import Claim, Kind, Request

log = logging.getLogger(__name__)


def reconcile(services: Services, claim: Claim) -> None:
    """Compare one project, and ask to be called again for it."""
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected:
        return
    remote = remote_project(services, project_id)
    if remote is None:
        return
    if not _is_attached(services, project):
        store.projects.update(project_id, connected=False)
        # Looked for again: Label Studio calls /setup once it has added an ML backend, which changes
        # nothing until here, and connects the project again from here on.
        if not _is_attached(services, project):
            log.info("project no longer has this ML backend project=%d", project_id)
            return
        store.projects.update(project_id, connected=True)
    store.requests.add(claim.request, delay=services.reconcile_every)

    wanted = set()
    mark = watermark(services, remote)
    if mark != project.watermark:
        wanted.add(Kind.TRAIN)
    if project.mirrored is None:
        wanted.add(Kind.SYNC)
    elif not follow(services, claim, project, mark[-1]):
        # What the tasks are now must be known before a version predicts them.
        mirror(services, claim, project)
        wanted.add(Kind.SYNC)
    if remote.label_config != project.label_config or project.model_version is None:
        wanted.add(Kind.TRAIN)
    progress = store.tasks.progress(project_id, project.model_version)
    if progress.tasks != remote.task_count:
        wanted.add(Kind.SYNC)
    counts = services.label_studio.prediction_counts(project_id)
    if project.model_version is not None:
        recorded = len(store.tasks.predicted(project_id, project.model_version))
        if is_wanted(services, project, counts):
            wanted.add(Kind.SWEEP)
        if store.tasks.outdated(project_id):
            wanted.add(Kind.REFRESH)
        if recorded and remote.model_version != project.model_version:
            wanted.add(Kind.REFRESH)
        if progress.predicted < progress.open:
            wanted.add(Kind.REFRESH)
            # Pictures that could not be had are tried again after a while.
            config = parse_labeling_config(project.label_config)
            request_missing(
                services,
                project_id,
                config,
                store.tasks.open_without(project_id, project.model_version),
            )
    if _has_more_to_learn(services, project):
        wanted.add(Kind.TRAIN)
    under_way = {waiting.request.kind for waiting in store.requests.waiting(project_id)}
    for kind in sorted(wanted - under_way, key=lambda kind: kind.value):
        log.info("reconcile project=%d asks for %s", project_id, kind.value)
        store.requests.add(Request(project_id, kind))


def _has_more_to_learn(services: Services, project: Project) -> bool:
    """Tell whether a label can be learnt that was left out for its picture; have others tried."""
    waited_for = left_out(services, project.id)
    ids = sorted(set(chain.from_iterable(waited_for.values())))
    if not ids:
        return False
    config = parse_labeling_config(project.label_config)
    tasks = services.store.tasks.named(project.id, ids)
    request_missing(services, project.id, config, [tasks])
    return has_come(services, config, waited_for, tasks)


def _is_attached(services: Services, project: Project) -> bool:
    # Someone who removes the ML backend in Label Studio's page wants no more predictions.
    addresses = {
        str(backend["url"]).rstrip("/") for backend in services.label_studio.ml_backends(project.id)
    }
    if project.connection is not None:
        return project.connection["backend_url"] in addresses
    return bool(addresses)
