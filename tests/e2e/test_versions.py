"""Versions beside a real Label Studio: going back to one."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.parts import (
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
