"""A project of drawn pictures in a Label Studio that already runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from backend.demo.pictures import CHOICES, collection
from backend.demo.project import (
    UPLOAD_BATCH,
    AnnotatedProject,
    create_project,
    label_config,
    picture_name,
    project_titles,
)
from backend.labelstudio.client import LabelStudio

TITLE = "CLIP example"
PICTURES = 300

_SEED = 2024

Drawn = Sequence[tuple[str, str, Image.Image]]
"""Name, choice and picture of each."""


def draw(count: int) -> Drawn:
    """Draw pictures, always the same ones; their names tell nothing of what is in them."""
    return [
        (f"picture-{number:04d}.jpg", choice, image)
        for number, (choice, image) in enumerate(collection(count, _SEED))
    ]


def upload_missing(
    client: LabelStudio, project: AnnotatedProject, drawn: Drawn, console: Console
) -> None:
    """Add a task for each picture that the project lacks."""
    present = {picture_name(task.data) for page in client.tasks(project.id) for task in page}
    missing = [(name, image) for name, _, image in drawn if name not in present]
    if not missing:
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console
    ) as bar:
        shown = bar.add_task("uploading pictures", total=len(missing))
        for start in range(0, len(missing), UPLOAD_BATCH):
            batch = missing[start : start + UPLOAD_BATCH]
            project.upload(batch)
            bar.advance(shown, len(batch))


def add_example_project(
    url: str, token: str, console: Console, *, if_empty: bool, pictures: int = PICTURES
) -> int | None:
    """Add the example project, or what it lacks of its pictures, and return its id.

    With `if_empty` a Label Studio whose projects are all of other titles is left as it is, and
    None returned. Raises LabelStudioError where Label Studio refuses or does not answer.
    """
    titles = project_titles(url, token)
    project_id = _titled(titles, TITLE)
    if project_id is None:
        if titles and if_empty:
            return None
        project_id = create_project(url, token, TITLE, label_config(CHOICES))
    client = LabelStudio(url, token)
    project = AnnotatedProject(url, token, project_id)
    try:
        upload_missing(client, project, draw(pictures), console)
    finally:
        project.close()
        client.close()
    return project_id


def _titled(titles: Mapping[int, str], title: str) -> int | None:
    return min((number for number, name in titles.items() if name == title), default=None)
