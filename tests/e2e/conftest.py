"""One real Label Studio for all tests of this folder, backends, and projects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from backend.demo.label_studio import LabelStudioServer
from tests.e2e.browser import chromium
from tests.e2e.parts import LabelledProject, RunningBackend, new_project

EXECUTABLE = Path(
    os.environ.get("LABEL_STUDIO_EXECUTABLE")
    or Path(__file__).parents[2] / ".venv-label-studio" / "bin" / "label-studio"
)

NewProject = Callable[..., LabelledProject]


@pytest.fixture(scope="session")
def shared_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that Label Studio may serve files from."""
    return tmp_path_factory.mktemp("local-files")


@pytest.fixture(scope="session")
def label_studio(
    tmp_path_factory: pytest.TempPathFactory, shared_pictures: Path
) -> Iterator[LabelStudioServer]:
    if not os.access(EXECUTABLE, os.X_OK):
        pytest.fail(
            f"Label Studio is not at {EXECUTABLE}: `make test` installs it; "
            "LABEL_STUDIO_EXECUTABLE names another one"
        )
    server = LabelStudioServer(
        EXECUTABLE,
        tmp_path_factory.mktemp("label-studio"),
        environment={
            # A task that was looked at would otherwise stay the next one for a day.
            "LABEL_STUDIO_TASK_LOCK_TTL": "0",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(shared_pictures),
        },
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def backend(
    label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBackend]:
    """Start the backend that most tests share."""
    running = RunningBackend(label_studio, tmp_path_factory.mktemp("backend"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def project(
    label_studio: LabelStudioServer, request: pytest.FixtureRequest
) -> Iterator[NewProject]:
    """Return what makes projects; they are disconnected from nothing and stay."""
    with ExitStack() as opened:

        def make(
            *, pictures: int, config: str | None = None, title: str | None = None, size: int = 96
        ) -> LabelledProject:
            title = title or request.node.name[:50]
            made = new_project(label_studio, title=title, config=config)
            opened.callback(made.close)
            made.draw(pictures, size=size)
            return made

        yield make
