"""Compare Label Studio's predictions with the mirror: remove what is superseded, note what is lost.

A refresh only adds predictions. An import whose answer was lost, Label Studio's own call of
/predict while a refresh runs, people who delete predictions, and an older copy of Label Studio make
the mirror wrong as well; here it is mended.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backend.jobs.checking import note_outdated
from backend.jobs.mirroring import config_of
from backend.jobs.services import Services
from backend.labelstudio.client import RemotePrediction
from backend.labelstudio.removal import remove_predictions
from backend.store.projects import Project
from backend.store.requests import Claim, Kind, Request
from backend.store.versions import is_ours

log = logging.getLogger(__name__)

# Tasks that annotators' pages may show, of which nothing is removed.
SHOWN = 30


def is_wanted(services: Services, project: Project, counts: Mapping[str, int]) -> bool:
    """Tell from Label Studio's `counts` by model version whether a sweep would change anything."""
    active = project.model_version
    if active is None:
        return False
    expected = Counter(project.surplus)
    expected[active] += len(services.store.tasks.predicted(project.id, active))
    return counts.get(active, 0) != expected[active] or any(
        is_ours(name) and count > expected[name] for name, count in counts.items()
    )


def sweep(services: Services, claim: Claim) -> None:
    """Remove superseded predictions; have a refresh mend tasks that lack one.

    A task keeps what it has as long as annotators' pages may show it: they were given it as one
    of the least certain, in the last hours. Makes way for what is more urgent, and starts over
    afterwards.
    """
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    version = store.versions.active(project_id)
    if project is None or not project.connected or version is None:
        return
    active, config = version.name, config_of(project)
    # Read before the list: what is imported meanwhile must not look lost.
    recorded = store.tasks.predicted(project_id, active)
    is_open = store.tasks.states(project_id)
    shown = store.tasks.shown(project_id, SHOWN)
    surplus: Counter[str] = Counter()
    removed = 0
    for page in services.label_studio.predictions(project_id):
        # Another worker's refresh of a newer version adds predictions that would look superseded.
        if services.stopping.is_set() or _is_superseded(services, active, project_id):
            store.requests.add(claim.request)
            return
        outdated = note_outdated(services, version, config, page)
        found = _Found()
        for task_id, predictions in page.items():
            if task_id in outdated:
                continue
            found.look_at(
                task_id,
                [item for item in predictions if is_ours(item.model_version)],
                active,
                may_be_shown=task_id in shown,
                is_open=is_open.get(task_id, True),
            )
        surplus.update(found.left)
        store.tasks.mark_predicted(project_id, found.carrying - recorded, active)
        wrong = (recorded & page.keys()) - found.carrying - outdated
        store.tasks.mark_unpredicted(project_id, wrong)
        if any(is_open.get(task_id) for task_id in wrong):
            log.info("predictions to mend project=%d count=%d", project_id, len(wrong))
            store.requests.add(Request(project_id, Kind.REFRESH))
        if any(predictions and task_id not in is_open for task_id, predictions in page.items()):
            store.requests.add(Request(project_id, Kind.SYNC))
        for count in remove_predictions(
            services.label_studio,
            project_id,
            page,
            found.surplus,
            movable=found.kept,
            imports_are_slow=project_id in services.slow_imports,
        ):
            removed += count
            if claim.lost.is_set():
                return
            if services.stopping.is_set() or store.requests.more_urgent_is_due(Kind.SWEEP):
                store.requests.add(claim.request)
                return
    # What waits for a refresh looks as if it had to stay; the refresh asks for another sweep.
    if not store.requests.waiting(project_id, (Kind.TRAIN, Kind.REFRESH)):
        store.projects.note_surplus(project_id, active, surplus)
    if removed:
        log.info("removed superseded predictions project=%d count=%d", project_id, removed)


@dataclass
class _Found:
    """What a page of Label Studio's predictions of ours comes to.

    `carrying` are tasks; `surplus` and `kept` are predictions, of the tasks with some of each;
    `left` counts those that stay all the same, by version.
    """

    carrying: set[int] = field(default_factory=set)
    surplus: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)

    def look_at(
        self,
        task_id: int,
        ours: Sequence[RemotePrediction],
        active: str,
        *,
        may_be_shown: bool,
        is_open: bool,
    ) -> None:
        current = [item for item in ours if item.model_version == active]
        if current:
            self.carrying.add(task_id)
        if may_be_shown or (is_open and not current):
            self.left.update(item.model_version for item in ours if item not in current[:1])
        else:
            self.kept.update(item.id for item in current[:1])
            self.surplus.update(item.id for item in ours if item not in current[:1])


def _is_superseded(services: Services, active: str, project_id: int) -> bool:
    project = services.store.projects.get(project_id)
    return project is not None and project.model_version != active
