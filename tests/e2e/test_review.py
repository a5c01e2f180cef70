"""Suspected label errors as Label Studio's Data Manager shows them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backend.labelstudio.agreement import agreement_of
from backend.labelstudio.config import parse_labeling_config
from backend.review import VIEW_TITLE
from tests.e2e.parts import SOME_CHOICES, LabelledProject, RunningBackend, assert_settled, wait_for

NewProject = Callable[..., LabelledProject]


def test_the_view_holds_exactly_the_suspected_tasks_until_they_are_corrected(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=30)
    backend.connect(images)
    assert_settled(backend, images)
    tasks = images.tasks()
    wrong = {task.id for task in tasks[4:12:2]}
    for task in tasks[:20]:
        right = images.choice_of(task)
        images.annotate(task.id, _another(right) if task.id in wrong else right)
    # One of them by two annotations, as if two people had made the same mistake.
    twice = min(wrong)
    images.annotate(twice, "Hat")
    assert_settled(backend, images)
    views = {view["id"] for view in images.client.views(images.id)}

    _publish(backend, images, wrong)
    address = _view_address(backend, images)

    assert address.startswith(f"{images.client.url}/projects/{images.id}/data?tab=")
    assert _shown(images) == wrong
    [view] = {view["id"] for view in images.client.views(images.id)} - views
    assert address.endswith(f"tab={view}")

    _publish(backend, images, {twice})
    assert _view_address(backend, images) == address
    assert _shown(images) == {twice}

    backend.run_cli("disconnect", "--project", str(images.id))
    assert _titles(images).count(VIEW_TITLE) == 0


def test_the_view_goes_when_nothing_is_suspected(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=12)
    backend.connect(images)
    assert_settled(backend, images)
    task = images.tasks()[0]
    images.annotate(task.id, _another(images.choice_of(task)))
    assert_settled(backend, images)
    _publish(backend, images, {task.id})
    _view_address(backend, images)
    assert _titles(images).count(VIEW_TITLE) == 1

    _publish(backend, images, set())
    printed = backend.run_cli("review", "--project", str(images.id))

    assert "no label is suspected" in printed
    assert _titles(images).count(VIEW_TITLE) == 0


def test_annotators_are_compared_by_name(backend: RunningBackend, project: NewProject) -> None:
    images = project(pictures=12)
    backend.connect(images)
    assert_settled(backend, images)
    tasks = images.tasks()[:6]
    other = images.api(
        "POST",
        "/api/users",
        json={"email": f"second-{images.id}@example.com", "username": "second"},
    )
    for task in tasks:
        right = images.choice_of(task)
        images.annotate(task.id, right)
        images.api(
            "POST",
            f"/api/tasks/{task.id}/annotations/",
            json={
                "completed_by": other["id"],
                "result": [
                    {
                        "from_name": "choice",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": [right if task is tasks[0] else _another(right)]},
                    }
                ],
            },
        )
    # Their ties leave no label to learn, so that no version comes of some of the annotations.
    wait_for(lambda: not backend.work(images.id), "all annotations are looked at")
    [control] = parse_labeling_config(images.client.project(images.id).label_config).controls
    annotations = {
        task.id: task.annotations
        for page in images.client.annotated_tasks(images.id)
        for task in page
    }

    _publish(backend, images, set(), agreement=agreement_of(control, annotations))
    printed = " ".join(backend.run_cli("review", "--project", str(images.id)).split())

    assert other["email"] in printed
    assert "6 tasks with several annotators, pairwise agreement 17%" in printed


def _another(choice: str) -> str:
    return SOME_CHOICES[(SOME_CHOICES.index(choice) + 1) % len(SOME_CHOICES)]


def _publish(
    backend: RunningBackend, images: LabelledProject, wrong: set[int], **more: Any
) -> None:
    """Publish the same heads once more, with a report that suspects some tasks."""
    version = backend.store.versions.active(images.id)
    assert version is not None
    suspects = [
        {"task": task.id, "given": ["?"], "suggested": [images.choice_of(task)], "confidence": 0.9}
        for task in images.tasks()
        if task.id in wrong
    ]
    of_control = version.report["choice"] | {"suspects": suspects} | more
    backend.store.versions.publish(replace(version, report={"choice": of_control}))


def _view_address(backend: RunningBackend, images: LabelledProject) -> str:
    printed = backend.run_cli("review", "--project", str(images.id))
    [address] = re.findall(r"http\S+", printed)
    return address


def _shown(images: LabelledProject) -> set[int]:
    """Return the tasks that the Data Manager lists in the view."""
    [view] = [
        view["id"] for view in images.client.views(images.id) if view["data"]["title"] == VIEW_TITLE
    ]
    body = images.api("GET", "/api/tasks", params={"view": view, "page_size": 100})
    ids = [task["id"] for task in body["tasks"]]
    assert body["total"] == len(ids) == len(set(ids))
    return set(ids)


def _titles(images: LabelledProject) -> list[str]:
    return [view["data"]["title"] for view in images.client.views(images.id)]
