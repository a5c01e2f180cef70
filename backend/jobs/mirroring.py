"""Label Studio's tasks to their mirror, the whole of it or what has changed since."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

# Of so many tasks that changed last is kept when they did: so an older copy is known, also after
# people have gone on with it.
REMEMBERED = 20


def config_of(project: Project) -> LabelingConfig:
    """Return a project's labeling config; without controls where nothing can be predicted."""
    try:
        return parse_labeling_config(project.label_config)
    except LabelingConfigError:
        return LabelingConfig((), ())


def mirror(services: Services, claim: Claim, project: Project) -> None:
    """Make the mirror of a project's tasks equal to what Label Studio lists.

    Where it has gone back since the last time, it may be an older copy: what its predictions were
    made of is not known then, and a sweep looks at them.
    """
    client = services.label_studio
    # Before the tasks: what changes while they are listed is found by the next comparison.
    latest = next(client.latest_tasks(project.id, page_size=REMEMBERED), [])
    mirroring = _Mirroring(services, claim, project)
    services.store.tasks.mirror(
        project.id,
        (mirroring.taken(page) for page in client.tasks(project.id)),
        transaction=mirroring.transaction,
    )
    mirroring.end(latest, whole=True)


def follow(services: Services, claim: Claim, project: Project, last_change: str | None) -> bool:
    """Mirror the tasks that have changed since the last time, where there was one.

    Returns False where Label Studio has not simply gone on since: tasks were deleted, or it is an
    older copy, which gives ids to other tasks.
    """
    remembered = _remembered(project)
    if last_change == (remembered[0].updated_at if remembered else None):
        return True
    since = remembered[-1].updated_at if remembered else ""
    mirroring = _Mirroring(services, claim, project)
    latest: list[RemoteTask] = []
    for page in services.label_studio.latest_tasks(project.id):
        latest = latest or page[:REMEMBERED]
        # Several may have changed at the same moment.
        changed = [task for task in page if task.updated_at >= since]
        services.store.tasks.put(
            project.id, mirroring.taken(changed), transaction=mirroring.transaction
        )
        if len(changed) < len(page):
            break
    if not mirroring.has_gone_on:
        return False
    mirroring.end(latest)
    return True


@dataclass(frozen=True)
class _Moments:
    """When a task was added and when it changed last, as Label Studio says."""

    task: int
    created_at: str
    updated_at: str


def _remembered(project: Project) -> list[_Moments]:
    latest = project.mirrored["latest"] if project.mirrored is not None else []
    return [_Moments(*moments) for moments in latest]


class _Mirroring:
    """Turns listed tasks into mirrored ones; what was predicted of a changed one is outdated.

    A refresh removes it: one that runs meanwhile may be importing what it made of the data before.
    """

    def __init__(self, services: Services, claim: Claim, project: Project) -> None:
        self._services = services
        self._project_id = project.id
        self._watermark = project.watermark
        self._mirrored = project.mirrored
        self._remembered = _remembered(project)
        self._listed: dict[int, RemoteTask] = {}
        self._outdated = False
        self.transaction = partial(services.store.requests.holding, claim)
        config = config_of(project)
        self._with_own_choices = any(control.options is not None for control in config.controls)
        self._facts = _facts(services, config)

    def taken(self, page: list[RemoteTask]) -> list[StoredTask]:
        """Return a page of tasks as they are mirrored."""
        remembered = {moments.task for moments in self._remembered}
        self._listed |= {task.id: task for task in page if task.id in remembered}
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

    @property
    def has_gone_on(self) -> bool:
        """Whether all remembered tasks are still there, as they were or changed since."""
        return all(self._is_later(moments) for moments in self._remembered)

    def end(self, latest: list[RemoteTask], *, whole: bool = False) -> None:
        """Keep how far the mirror has come; `whole` where all tasks were listed."""
        store, project_id = self._services.store, self._project_id
        if whole and self._has_gone_back():
            log.info("tasks have gone back, predictions are compared project=%d", project_id)
            store.requests.add(Request(project_id, Kind.SWEEP))
        if self._with_own_choices:
            # New tasks may have new choices, whatever has been trained meanwhile.
            store.requests.add(Request(project_id, Kind.TRAIN))
        mark = [(task.id, task.created_at, task.updated_at) for task in latest]
        project = store.projects.get(project_id)
        before = project.mirrored if project is not None else None
        if before is not None and before != self._mirrored:
            # Another worker has mirrored meanwhile, and either may have written what the other knew
            # better: what has changed since the earlier of both is looked at again.
            mark = min(mark, before["latest"], key=_newest)
        # Counted, so that one that has come no further is seen too.
        count = before["count"] + 1 if before is not None else 0
        with self.transaction() as connection:
            store.projects.update(
                project_id, within=connection, mirrored={"latest": mark, "count": count}
            )
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

    def _has_gone_back(self) -> bool:
        there = [moments for moments in self._remembered if moments.task in self._listed]
        # People delete tasks, but seldom all that changed last.
        return bool(self._remembered) and (not there or not all(map(self._is_later, there)))

    def _is_later(self, then: _Moments) -> bool:
        now = self._listed.get(then.task)
        return (
            now is not None
            # Ids are given again after an older copy was restored.
            and now.created_at == then.created_at
            and now.updated_at >= then.updated_at
        )


def _newest(mark: Sequence[Sequence[Any]]) -> str:
    return str(mark[0][2]) if mark else ""


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
