"""The demo in one command: Label Studio, a project of drawn pictures, and this backend."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from backend.demo.annotator import Annotator, annotate_and_measure
from backend.demo.example import PICTURES, draw, upload_missing
from backend.demo.label_studio import LabelStudioServer
from backend.demo.pictures import CHOICES
from backend.demo.processes import ChildProcess, free_port
from backend.demo.project import AnnotatedProject, create_project, label_config
from backend.errors import ClipBackendError, LabelStudioError, SettingsError
from backend.labelstudio.client import LabelStudio
from backend.processes import end_with_parent, interrupted_by_sigterm
from backend.settings import Settings
from backend.store import Store

TITLE = "CLIP demo"

_USER = "demo"
_LABEL_STUDIO_PORT = 8080
_BACKEND_PORT = 9090

_BACKEND_WITHIN = 120.0
_LOOK_EVERY = 1.0

# What a shell reports for a program that Ctrl-C ended.
_INTERRUPTED = 130


class _Kept:
    """What a second run in the same folder needs to find everything as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str) -> Any:
        return self._facts.get(name)

    def keep(self, name: str, value: Any) -> Any:
        self._facts[name] = value
        self._path.touch(mode=0o600)
        self._path.write_text(json.dumps(self._facts, indent=1))
        return value


def run_demo(*, label_studio: Path, folder: Path, auto: bool, pictures: int = PICTURES) -> int:
    """Start everything in `folder`, and stop it with Ctrl-C; return an exit code.

    With `auto` the pictures are annotated by program, and the code is 0 if that raised accuracy.
    Raises ClipBackendError with what is missing or failed. A second run in the same folder goes
    on where the first one stopped.
    """
    console = Console()
    folder = folder.absolute()
    running = False
    with interrupted_by_sigterm():
        try:
            with ExitStack() as started:
                demo = _Demo(label_studio, folder, console, started)
                demo.start(pictures)
                running = True
                if auto:
                    return demo.annotate()
                demo.invite()
                while True:
                    demo.check()
                    time.sleep(_LOOK_EVERY)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            return 0 if running and not auto else _INTERRUPTED


class _Demo:
    """What the demo consists of; `started` stops it in reverse order."""

    def __init__(
        self, label_studio: Path, folder: Path, console: Console, started: ExitStack
    ) -> None:
        self._console = console
        self._started = started
        self._server = LabelStudioServer(
            label_studio,
            folder / "label-studio",
            port=_LABEL_STUDIO_PORT,
        )
        self._kept = _Kept(folder / "demo.json")
        self._data = folder / "backend"
        self._client = LabelStudio(self._server.url, self._server.token)
        self._truth: dict[str, str] = {}
        self._project: AnnotatedProject
        self._backend: ChildProcess
        self._url: str

    def start(self, pictures: int) -> None:
        """Start Label Studio with its project and the backend, and connect them."""
        self._say("starting Label Studio (its first start takes a minute or two)")
        self._started.enter_context(self._server)
        self._started.callback(self._client.close)
        self._project = self._find_project() or self._create_project()
        self._started.callback(self._project.close)
        self._upload(pictures)
        port = self._backend_port()
        self._say("starting the backend: API, worker and Redis")
        environment = self._environment(port)
        self._backend = ChildProcess(
            "the backend",
            [sys.executable, "-m", "backend.cli", "up"],
            environment,
            self._data / "backend.log",
        )
        self._started.callback(self._backend.stop)
        self._url = f"http://127.0.0.1:{port}"
        self._backend.start(lambda: _is_ready(self._url), _BACKEND_WITHIN)
        self._say("connecting the project")
        connected = subprocess.run(  # noqa: S603 — our own command line
            [
                *(sys.executable, "-m", "backend.cli", "connect"),
                *("--project", str(self._project.id), "--backend-url", self._url),
            ],
            env=environment,
            preexec_fn=end_with_parent,
        )
        if connected.returncode:
            raise ClipBackendError(f"the project cannot be connected; see {self._backend.log}")

    def invite(self) -> None:
        """Say where to look, and for what."""
        project = f"{self._server.url}/projects/{self._project.id}/data"
        self._console.print(
            f"\n[bold]Open {project}[/]\n"
            f"log in as {self._server.email} with the password {self._server.password}\n\n"
            f"What it has learnt is at {self._url}/projects/{self._project.id}:\n"
            f"log in as {_USER} with the password {self._kept.get('password')}\n\n"
            '- The view "Most uncertain first" lists the pictures that the model knows least.\n'
            '- "Label All Tasks" serves them in that order, each with its prediction selected.\n'
            "- Submit a few: seconds later the model has learnt, and the queue is a new one.\n\n"
            "Ctrl-C stops everything.",
            highlight=False,
        )

    def annotate(self) -> int:
        """Annotate by program; return an exit code."""
        self._say("annotating what the queue serves")
        store = Store.open(f"sqlite:///{self._data / 'clip-backend.sqlite3'}")
        self._started.callback(store.close)
        return annotate_and_measure(
            Annotator(self._project, self._client, store, self._truth), self._console
        )

    def check(self) -> None:
        """Raise ClipBackendError if something has ended by itself."""
        self._server.check()
        self._backend.check()

    def _say(self, text: str) -> None:
        self._console.print(f"[bold]>[/] {text}", highlight=False)

    def _find_project(self) -> AnnotatedProject | None:
        kept = self._kept.get("project")
        if kept is None:
            return None
        try:
            self._client.project(kept)
        except LabelStudioError as error:
            if error.label_studio_status != httpx.codes.NOT_FOUND:
                raise
            return None
        return AnnotatedProject(self._server.url, self._server.token, kept)

    def _create_project(self) -> AnnotatedProject:
        created = create_project(self._server.url, self._server.token, TITLE, label_config(CHOICES))
        self._kept.keep("project", created)
        return AnnotatedProject(self._server.url, self._server.token, created)

    def _upload(self, count: int) -> None:
        drawn = draw(count)
        self._truth = {name: choice for name, choice, _ in drawn}
        upload_missing(self._client, self._project, drawn, self._console)

    def _backend_port(self) -> int:
        kept: int | None = self._kept.get("backend_port")
        port = free_port(kept or _BACKEND_PORT)
        if kept is not None and port != kept:
            raise SettingsError(
                f"The demo's project is connected to port {kept}, which another program has "
                "taken: stop that one, or delete the demo's folder to start anew"
            )
        self._kept.keep("backend_port", port)
        return port

    def _environment(self, port: int) -> dict[str, str]:
        password: str = self._kept.get("password") or self._kept.keep(
            "password", secrets.token_urlsafe(24)
        )
        # What is set for another backend in this terminal is not meant for the demo's.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        }
        return inherited | {
            "LABEL_STUDIO_URL": self._server.url,
            "LABEL_STUDIO_API_KEY": self._server.token,
            "CLIP_MODEL": "tiny",
            "DATA_DIR": str(self._data),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "BASIC_AUTH_USER": _USER,
            "BASIC_AUTH_PASS": password,
            "RETRAIN_DELAY": "1",
        }


def _is_ready(url: str) -> bool:
    # Label Studio gives a backend one second to answer, which one that loads CLIP may not meet.
    try:
        response = httpx.get(f"{url}/health", timeout=5)
    except httpx.HTTPError:
        return False
    return response.is_success and response.json()["encoder"] == "ready"
