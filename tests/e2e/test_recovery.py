"""What a lost webhook, process, queue or connection costs: time, and no labels."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.demo.label_studio import LabelStudioServer
from backend.store.requests import Kind
from tests.e2e.parts import LabelledProject, RunningBackend, assert_settled, wait_for

NewProject = Callable[..., LabelledProject]


@pytest.fixture(scope="module")
def backend(
    label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBackend]:
    """Start a backend that compares itself with Label Studio every two seconds."""
    running = RunningBackend(
        label_studio, tmp_path_factory.mktemp("reconciling"), RECONCILE_EVERY="2"
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def images(backend: RunningBackend, project: NewProject) -> LabelledProject:
    connected = project(pictures=30)
    backend.connect(connected)
    assert_settled(backend, connected)
    return connected


def test_a_worker_that_is_killed_during_a_training_is_replaced(
    backend: RunningBackend, images: LabelledProject
) -> None:
    killed = backend.worker_pid()
    images.annotate_next(6)
    wait_for(
        lambda: any(
            waiting.running for waiting in backend.store.requests.waiting(images.id, (Kind.TRAIN,))
        ),
        "a training runs",
    )

    os.kill(killed, signal.SIGKILL)

    assert_settled(backend, images)
    assert backend.worker_pid() != killed


def test_an_emptied_redis_loses_nothing(backend: RunningBackend, images: LabelledProject) -> None:
    images.annotate_next(3)
    wait_for(lambda: backend.work(images.id), "a training is asked for")
    with backend.redis() as redis:
        redis.flushall()
    images.annotate_next(3)
    with backend.redis() as redis:
        redis.flushall()

    assert_settled(backend, images)


def test_a_label_studio_that_restarts_is_waited_for(
    label_studio: LabelStudioServer, backend: RunningBackend, images: LabelledProject
) -> None:
    images.annotate_next(6)

    label_studio.restart()

    assert_settled(backend, images)


def test_a_label_studio_that_is_restored_from_an_older_copy_is_followed(
    label_studio: LabelStudioServer,
    backend: RunningBackend,
    images: LabelledProject,
    tmp_path: Path,
) -> None:
    images.annotate_next(4)
    assert_settled(backend, images)
    label_studio.stop()
    shutil.copytree(label_studio.data, tmp_path / "copy")
    label_studio.start()
    images.annotate_next(6)
    newer = assert_settled(backend, images)

    label_studio.stop()
    shutil.rmtree(label_studio.data)
    shutil.copytree(tmp_path / "copy", label_studio.data)
    label_studio.start()

    assert len(images.annotated()) == 4
    assert assert_settled(backend, images) != newer
    version = backend.store.versions.active(images.id)
    assert version is not None
    assert version.annotations == 4


def test_annotations_that_no_webhook_told_of_are_found(
    backend: RunningBackend, images: LabelledProject
) -> None:
    for webhook in images.client.webhooks(images.id):
        images.client.remove_webhook(webhook["id"])

    images.annotate_next(6)

    assert_settled(backend, images)
    assert "reconcile" in backend.log()
