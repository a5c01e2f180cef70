"""The least certain tasks, and what their choice is between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.page.pictures import picture_of
from backend.page.services import ProjectView
from backend.store.contents import queue_from_bytes
from backend.store.findings import FindingKind

MOST = 24


@dataclass(frozen=True)
class UncertainTask:
    """One task; `likeliest` are its two best choices with their probabilities, by control."""

    id: int
    confidence: float
    likeliest: Mapping[str, Sequence[tuple[str, float]]]
    picture: str | None
    link: str | None


@dataclass(frozen=True)
class Uncertain:
    """The tasks that are asked about next, and by which version; None before the first refresh."""

    version: str | None
    tasks: list[UncertainTask]
    several_controls: bool


def uncertain(view: ProjectView) -> Uncertain:
    """Return the first tasks of the queue that are still open."""
    project_id, links = view.project.id, view.label_studio
    found = view.store.findings.get(project_id, FindingKind.QUEUE)
    if found is None:
        return Uncertain(None, [], several_controls=False)
    queue = queue_from_bytes(found.content)
    stored = {
        task.id: task
        for task in view.store.tasks.named(project_id, [task.task for task in queue])
        if task.open
    }
    still_open = [task for task in queue if task.task in stored][:MOST]
    return Uncertain(
        found.model_version,
        [
            UncertainTask(
                task.task,
                task.confidence,
                task.likeliest,
                picture_of(stored[task.task], view.first_control, links),
                links.task(project_id, task.task),
            )
            for task in still_open
        ],
        several_controls=any(len(task.likeliest) > 1 for task in still_open),
    )
