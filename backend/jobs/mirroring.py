"""Label Studio's tasks to their mirror, the whole of it or what has changed since."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from backend.errors import LabelingConfigError, TaskError
from backend.jobs.services import Services
from backend.labelstudio.client import RemoteTask
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.labelstudio.task_data import TaskChoices
from backend.store.projects import Project
from backend.store.requests import Claim, Kind, Request
from backend.store.tasks import OUTDATED, StoredTask, Task

log = logging.getLogger(__name__)


def mirror(services: Services, claim: Claim, project: Project) -> None:
    """Make the mirror of a project's tasks equal to what Label Studio lists."""
    client = services.label_studio
    # Before the tasks: what changes while they are listed is found by the next comparison.
    newest = next(client.latest_tasks(project.id, page_size=1), [])
    mirroring = _Mirroring(services, claim, project)
    services.store.tasks.mirror(
        project.id,
        (mirroring.taken(page) for page in client.tasks(project.id)),
        transaction=mirroring.transaction,
    )
    mirroring.end(newest)


def follow(services: Services, claim: Claim, project: Project, last_change: str | None) -> bool:
    """Mirror the tasks that have changed since the last time, where there was one.

    Returns False where Label Studio has not simply gone on since: it may be an older copy, which
    gives ids to other tasks.
    """
    since, last_id, *_ = project.mirrored or _mark([])
    if since == (last_change or ""):
        return True
    mirroring = _Mirroring(services, claim, project)
    newest: list[RemoteTask] = []
    goes_on = False
    for page in services.label_studio.latest_tasks(project.id):
        newest = newest or page
        # Several may have changed at the same moment.
        changed = [task for task in page if task.updated_at >= since]
        services.store.tasks.put(
            project.id, mirroring.taken(changed), transaction=mirroring.transaction
        )
        goes_on = goes_on or any(task.id == last_id for task in changed)
        if len(changed) < len(page):
            break
    if goes_on:
        mirroring.end(newest)
    return goes_on


def _mark(newest: list[RemoteTask]) -> list[Any]:
    return [newest[0].updated_at, newest[0].id] if newest else ["", 0]


class _Mirroring:
    """Turns listed tasks into mirrored ones; what was predicted of a changed one is outdated.

    A refresh removes it: one that runs meanwhile may be importing what it made of the data before.
    """

    def __init__(self, services: Services, claim: Claim, project: Project) -> None:
        self._services = services
        self._project_id = project.id
        self._watermark = project.watermark
        self._mirrored = project.mirrored
        self._outdated = False
        self.transaction = partial(services.store.requests.holding, claim)
        try:
            config = parse_labeling_config(project.label_config)
        except LabelingConfigError:
            # Nothing is predicted for such a project.
            config = LabelingConfig((), ())
        self._with_own_choices = any(control.options is not None for control in config.controls)
        self._facts = _facts(services, config)

    def taken(self, page: list[RemoteTask]) -> list[StoredTask]:
        """Return a page of tasks as they are mirrored."""
        before = self._services.store.tasks.named(self._project_id, [task.id for task in page])
        data = {task.id: task.data for task in before}
        changed = {
            task.id
            for task in page
            if task.id in data
            and task.data != data[task.id]
            and self._facts(Task(task.id, task.data)) != self._facts(Task(task.id, data[task.id]))
        }
        if changed:
            log.info("tasks changed project=%d count=%d", self._project_id, len(changed))
            self._outdated = True
        return [
            StoredTask(task.id, task.data, task.open, OUTDATED if task.id in changed else None)
            for task in page
        ]

    def end(self, newest: list[RemoteTask]) -> None:
        """Keep how far the mirror has come."""
        store, project_id = self._services.store, self._project_id
        if self._with_own_choices:
            # New tasks may have new choices, whatever has been trained meanwhile.
            store.requests.add(Request(project_id, Kind.TRAIN))
        project = store.projects.get(project_id)
        before = project.mirrored if project is not None else None
        mark = _mark(newest)
        if before is not None and before != self._mirrored:
            # Another worker has mirrored meanwhile, and either may have written what the other knew
            # better: what has changed since the earlier of both is looked at again.
            mark = min(mark, before[:2])
        # Counted, so that one that has come no further is seen too.
        count = before[2] + 1 if before is not None and len(before) > 2 else 0
        with self.transaction() as connection:
            store.projects.update(project_id, within=connection, mirrored=[*mark, count])
        # Read after that: a training may end at any time.
        now = store.projects.get(project_id)
        trainings = store.requests.waiting(project_id, (Kind.TRAIN,))
        if any(item.running for item in trainings) or (
            now is not None and now.watermark != self._watermark
        ):
            # It saw which tasks are finished, and they may have been listed before that.
            store.requests.add(Request(project_id, Kind.TRAIN))
        if self._outdated:
            store.requests.add(Request(project_id, Kind.REFRESH))


def _facts(services: Services, config: LabelingConfig) -> Callable[[Task], list[object]]:
    """Return what tells of a task's data what its prediction depends on."""
    choices = [TaskChoices(control) for control in config.controls]

    def facts(task: Task) -> list[object]:
        found: list[object] = []
        for control, of_control in zip(config.controls, choices, strict=True):
            found.append(services.predictor.embedder.picture(task, control))
            try:
                found.append(of_control.of(task.data))
            except TaskError as error:
                found.append(str(error))
        return found

    return facts
