"""What the end-to-end tests are made of: a backend that runs, projects, and patience."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import redis

from backend.demo.label_studio import LabelStudioServer
from backend.demo.pictures import CHOICES, render
from backend.demo.processes import ChildProcess, free_port
from backend.demo.project import (
    AnnotatedProject,
    ShownPrediction,
    create_project,
    label_config,
    picture_name,
)
from backend.jobs.sweep import SHOWN
from backend.labelstudio.client import LabelStudio, RemoteTask
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind

# Long enough for a machine that does ten other things; nothing passes by waiting it out.
PATIENCE = 150.0

OURS = re.compile(r"clip-backend-\d+-[0-9a-f]{8}")

SOME_CHOICES: tuple[str, ...] = CHOICES[:6]

_WORK = tuple(kind for kind in Kind if kind is not Kind.RECONCILE)

Found = TypeVar("Found")


def wait_for(
    condition: Callable[[], Found | None],
    what: str,
    state: Callable[[], object] = str,
    left: Callable[[], int] = lambda: 0,
) -> Found:
    """Return the first true answer of `condition`; fail with the state where none comes.

    Patience begins anew where less is `left` to do than when it began.
    """
    until, before = time.monotonic() + PATIENCE, left()
    while not (found := condition()):
        if time.monotonic() > until:
            now = left()
            if now >= before:
                pytest.fail(f"never came true: {what}; at the end: {state()}")
            until, before = time.monotonic() + PATIENCE, now
        time.sleep(0.1)
    return found


class RunningBackend:
    """`clip-backend up` with the shipped CLIP and basic auth, in a folder of its own."""

    def __init__(
        self, server: LabelStudioServer, folder: Path, *, token: str | None = None, **settings: str
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        }
        self.environment = inherited | {
            "LABEL_STUDIO_URL": server.url,
            "LABEL_STUDIO_API_KEY": token or server.token,
            "CLIP_MODEL": "tiny",
            "DATA_DIR": str(folder),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "BASIC_AUTH_USER": "label-studio",
            "BASIC_AUTH_PASS": "not a secret",
            "RETRAIN_DELAY": "0.5",
            **settings,
        }
        self._process = ChildProcess(
            "the backend",
            [sys.executable, "-m", "backend.cli", "up"],
            self.environment,
            folder / "backend.log",
        )
        self.store: Store

    def start(self) -> None:
        self._process.start(self._answers, PATIENCE)
        self.store = Store.open(f"sqlite:///{self.folder / 'clip-backend.sqlite3'}")

    def stop(self) -> None:
        self.store.close()
        self._process.stop()

    def run_cli(self, *arguments: str) -> str:
        """Run a command with the backend's environment; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "backend.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def connect(self, project: LabelledProject) -> None:
        self.run_cli("connect", "--project", str(project.id), "--backend-url", self.url)

    def worker_pid(self) -> int:
        """Return the process id of the worker that was started last."""
        return int(re.findall(r"started worker pid=(\d+)", self.log())[-1])

    def redis(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.folder / "redis.sock"))

    def log(self) -> str:
        return (self.folder / "backend.log").read_text()

    def work(self, project_id: int) -> list[object]:
        """Return what the worker still has to do for a project."""
        return list(self.store.requests.waiting(project_id, _WORK))

    def _answers(self) -> bool:
        try:
            response = httpx.get(f"{self.url}/health", timeout=5)
        except httpx.HTTPError:
            return False
        return response.is_success and response.json()["encoder"] == "ready"


class LabelledProject(AnnotatedProject):
    """A project whose pictures' truth is known to the test."""

    def __init__(self, url: str, token: str, project_id: int) -> None:
        super().__init__(url, token, project_id)
        self.client = LabelStudio(url, token)
        self.truth: dict[str, str] = {}
        self.raw = httpx.Client(
            base_url=url, headers={"Authorization": f"Token {token}"}, timeout=60
        )

    def close(self) -> None:
        super().close()
        self.client.close()
        self.raw.close()

    def api(self, method: str, path: str, **arguments: Any) -> Any:
        """Call Label Studio's API; return the JSON of its answer."""
        response = self.raw.request(method, path, **arguments)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text[:300]}"
        return response.json() if response.content else None

    def draw(self, count: int, *, size: int = 96) -> None:
        """Upload pictures of SOME_CHOICES, by turns."""
        first = len(self.truth)
        names = [f"picture-{first + number:04d}.jpg" for number in range(count)]
        pictures = []
        for number, name in enumerate(names, start=first):
            choice = SOME_CHOICES[number % len(SOME_CHOICES)]
            self.truth[name] = choice
            pictures.append((name, render(choice, number, size)))
        for start in range(0, count, 50):
            self.upload(pictures[start : start + 50])

    def tasks(self) -> list[RemoteTask]:
        return [task for page in self.client.tasks(self.id) for task in page]

    def annotated(self) -> set[int]:
        """Return the tasks with annotations, also where Label Studio's counter has lost one."""
        return {
            task.id
            for page in self.client.annotated_tasks(self.id)
            for task in page
            if task.annotation_count
        }

    def model_version(self) -> str | None:
        return self.client.project(self.id).model_version

    def choice_of(self, task: RemoteTask) -> str:
        return self.truth[picture_name(task.data)]

    def annotate_next(self, count: int) -> None:
        """Annotate what the queue serves with the truth."""
        for _ in range(count):
            task = self.next()
            assert task is not None
            self.annotate(task.id, self.truth[task.picture])

    def accuracy(self) -> float:
        """Return how often the current version is right about the open tasks."""
        version = self.model_version()
        shown = {
            prediction.task: prediction.choices
            for prediction in self.predictions()
            if prediction.model_version == version
        }
        open_tasks = [task for task in self.tasks() if task.open]
        right = sum(shown[task.id] == (self.choice_of(task),) for task in open_tasks)
        return right / len(open_tasks)


def is_refreshed(backend: RunningBackend, project: LabelledProject) -> bool:
    """Tell whether each open task carries a version that knows all annotations, once.

    Older ones may only be left on those that annotators' pages may show.
    """
    version = backend.store.versions.active(project.id)
    if version is None or version.annotations != len(project.annotated()):
        return False
    if backend.work(project.id) or project.model_version() != version.name:
        return False
    versions = _versions_of_open(project).values()
    return (
        all(of_task.count(version.name) == 1 for of_task in versions)
        and sum(len(of_task) > 1 for of_task in versions) <= SHOWN
    )


def assert_settled(backend: RunningBackend, project: LabelledProject) -> str:
    """Wait for the queue that all annotations make, check it, and return its version."""
    wait_for(
        lambda: is_refreshed(backend, project),
        f"project {project.id} is refreshed",
        lambda: (
            project.model_version(),
            backend.work(project.id),
            [task for task in project.tasks() if task.open][:3],
            project.predictions()[:3],
            backend.log()[-2000:],
        ),
    )
    version = project.model_version()
    assert version is not None
    assert OURS.fullmatch(version)
    of_open = _versions_of_open(project)
    scores = {
        each.task: each.score
        for each in project.predictions()
        if each.task in of_open and each.model_version == version
    }
    assert all(0 <= score <= 1 for score in scores.values())
    task = project.next()
    if of_open:
        assert task is not None
        assert scores[task.id] == min(scores.values())
        assert task.model_version == version
    return version


def new_project(
    server: LabelStudioServer, *, title: str, config: str | None = None
) -> LabelledProject:
    created = create_project(server.url, server.token, title, config or label_config(SOME_CHOICES))
    return LabelledProject(server.url, server.token, created)


def somebody_elses(tasks: Sequence[RemoteTask]) -> list[Mapping[str, object]]:
    """Return predictions that another model could have made of the tasks."""
    return [
        {
            "task": task.id,
            "result": [
                {
                    "from_name": "choice",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": [SOME_CHOICES[task.id % len(SOME_CHOICES)]]},
                }
            ],
            # In an order that is not ours.
            "score": task.id % 7 / 10,
            "model_version": "somebody-else",
        }
        for task in tasks
    ]


def of_somebody_else(project: LabelledProject) -> list[ShownPrediction]:
    return [each for each in project.predictions() if each.model_version == "somebody-else"]


def _versions_of_open(project: LabelledProject) -> dict[int, list[str]]:
    """Return by open task the versions of our predictions of it."""
    versions: dict[int, list[str]] = {task.id: [] for task in project.tasks() if task.open}
    for prediction in project.predictions():
        if prediction.task in versions and OURS.fullmatch(prediction.model_version):
            versions[prediction.task].append(prediction.model_version)
    return versions
