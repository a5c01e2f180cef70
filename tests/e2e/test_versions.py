"""Versions beside a real Label Studio: going back to one, and taking one elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from backend.demo.pictures import render
from tests.e2e.parts import (
    SOME_CHOICES,
    LabelledProject,
    RunningBackend,
    assert_settled,
    wait_for,
)

NewProject = Callable[..., LabelledProject]


def test_the_live_queue_follows_a_roll_back_and_stays(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=36)
    backend.connect(images)
    assert_settled(backend, images)
    images.annotate_next(6)
    chosen = assert_settled(backend, images)
    images.annotate_next(6)
    newer = assert_settled(backend, images)
    assert newer != chosen
    assert chosen in backend.run_cli("versions", "--project", str(images.id))

    backend.run_cli("versions", "use", chosen, "--project", str(images.id))

    assert_served_by(backend, images, chosen)
    # Annotated while it is pinned: learnt, and not used.
    images.annotate_next(3)
    wait_for(
        lambda: backend.store.versions.latest(images.id).annotations == 15,  # type: ignore[union-attr]
        "the annotations are learnt",
        lambda: backend.log()[-2000:],
    )
    assert_served_by(backend, images, chosen)

    backend.run_cli("versions", "use", "latest", "--project", str(images.id))

    assert assert_settled(backend, images) not in (chosen, newer)


def assert_served_by(backend: RunningBackend, images: LabelledProject, version: str) -> None:
    """Wait until the queue is a version's: each open task has its prediction, once."""

    def is_served() -> bool:
        predictions = [each.task for each in images.predictions() if each.model_version == version]
        return (
            images.model_version() == version
            and not backend.work(images.id)
            and {task.id for task in images.tasks() if task.open} <= set(predictions)
            and len(set(predictions)) == len(predictions)
        )

    wait_for(is_served, f"served by {version}", lambda: backend.log()[-2000:])
    scores = {
        each.task: each.score for each in images.predictions() if each.model_version == version
    }
    open_ids = {task.id for task in images.tasks() if task.open}
    task = images.next()
    assert task is not None
    assert task.model_version == version
    assert scores[task.id] == min(scores[each] for each in open_ids)


def test_an_exported_version_classifies_a_folder_for_another_project(
    backend: RunningBackend, project: NewProject, shared_pictures: Path, tmp_path: Path
) -> None:
    images = project(pictures=24)
    backend.connect(images)
    images.annotate_next(6)
    version = assert_settled(backend, images)
    folder = shared_pictures / "more pictures"
    folder.mkdir()
    for number in range(6):
        render(SOME_CHOICES[number], 100 + number, 96).save(folder / f"{number}.png")
    model, out = tmp_path / "model", tmp_path / "tasks.json"

    backend.run_cli("export", "--project", str(images.id), "--out", str(model))
    backend.run_cli("classify", str(folder), "--model", str(model), "--out", str(out))

    other = project(pictures=0)
    other.api(
        "POST",
        "/api/storages/localfiles",
        json={"project": other.id, "path": str(folder), "use_blob_urls": True},
    )
    other.api("POST", f"/api/projects/{other.id}/import", json=json.loads(out.read_text()))
    assert len(other.tasks()) == 6
    assert {each.model_version for each in other.predictions()} == {version}
    assert all(each.choices[0] in SOME_CHOICES for each in other.predictions())
    for task in other.tasks():
        assert other.raw.get(task.data["image"]).content.startswith(b"\x89PNG")
