"""The pictures of tasks as a browser gets them."""

from __future__ import annotations

from backend.errors import TaskError
from backend.labelstudio.config import Control
from backend.labelstudio.task_data import image_source
from backend.page.links import LabelStudioLinks
from backend.store.tasks import Task


def picture_of(task: Task, control: Control | None, links: LabelStudioLinks) -> str | None:
    """Return the address of the picture that a control looks at, None where there is none."""
    if control is None or task.id is None:
        return None
    try:
        return links.picture(task.id, image_source(control, task.data))
    except TaskError:
        return None
