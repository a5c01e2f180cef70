"""A worker that is killed at a chosen effect; forked from a warm process, so that a life is short.

Run as a program, it reads lives, one JSON object a line, and answers each with one: the effects
that a life had, in order, or that it was killed. An effect is a moment at which the world and the
worker's memory of it part: before and after each commit, before each request to Label Studio and
after its answer has come, but before anything is made of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest import mock

import httpx
import sqlalchemy as sa

from backend import assembly
from backend.clip.encoder import Encoder, load_encoder
from backend.embedding import Embedder
from backend.jobs import embed, refresh
from backend.jobs.services import Services, current_services
from backend.jobs.worker import perform
from backend.labelstudio import client, removal
from backend.labelstudio.client import LabelStudio
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.schema import requests

# What jobs import when they need it, and what is imported for them.
LAZY = (
    "PIL.PngImagePlugin",
    "backend.learning.confusion",
    "backend.learning.estimation",
    "backend.learning.label_errors",
    "backend.learning.strategies",
    "backend.learning.training",
    "httpx._transports.default",
    "safetensors.torch",
    "sqlalchemy.dialects.sqlite.pysqlite",
)

# A few tasks are several chunks, pages and portions.
SMALL: tuple[tuple[Any, str, int], ...] = (
    (embed, "CHUNK", 8),
    (refresh, "FIRST", 4),
    (refresh, "AT_ONCE", 4),
    (refresh, "HEAD", 2),
    (refresh, "AT_ONCE_IF_SLOW", 8),
    (removal, "PORTION", 4),
    (client, "PAGE", 8),
    (client, "ANNOTATED_PAGE", 4),
)


class WarmWorker:
    """The warm process, as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(
        self,
        label_studio: tuple[str, str],
        database: str,
        *,
        kill_at: int | None = None,
        slow_imports: tuple[int, ...] = (),
        shown_for: float = refresh.SHOWN_FOR,
    ) -> list[str] | None:
        """Start a worker that does all that is wanted; return its effects, None if killed."""
        life = {
            "label_studio": label_studio,
            "database": database,
            "kill_at": kill_at,
            "slow_imports": slow_imports,
            "shown_for": shown_for,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(life) + "\n")
        self._process.stdin.flush()
        lived = json.loads(self._process.stdout.readline())
        assert "broken" not in lived, lived["broken"]
        effects: list[str] | None = lived["effects"]
        return effects

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class _Effects:
    """Counts effects, and kills the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.names: list[str] = []
        self.job = "start"
        self._kill_at = kill_at

    def happen(self, name: str) -> None:
        if len(self.names) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(f"{self.job}: {name}")

    def around_commits(self, store: Store) -> None:
        dialect = store.database.engine.dialect
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            self.happen("before a commit")
            commit(connection)
            self.happen("after a commit")

        dialect.do_commit = do_commit  # type: ignore[method-assign]

    def around_requests(self) -> Any:
        send = httpx.HTTPTransport.handle_request

        def handle_request(transport: httpx.HTTPTransport, request: httpx.Request) -> Any:
            what = "/".join(
                "ID" if part.isdigit() else part for part in request.url.path.split("/")
            )
            self.happen(f"before {request.method} {what}")
            response = send(transport, request)
            self.happen(f"after {request.method} {what}")
            return response

        return mock.patch.object(httpx.HTTPTransport, "handle_request", handle_request)


def _live(life: dict[str, Any], encoder: Encoder) -> list[str]:
    effects = _Effects(life["kill_at"])
    settings = Settings.read(
        label_studio_url=life["label_studio"][0],
        label_studio_api_key=life["label_studio"][1],
        image_hosts="127.0.0.1",
    )
    for module, name, value in SMALL:
        setattr(module, name, value)
    refresh.SHOWN_FOR = life["shown_for"]
    store, clock = Store.open(life["database"]), Store.open(life["database"])
    effects.around_commits(store)
    label_studio = LabelStudio(*settings.label_studio())
    with effects.around_requests(), assembly.image_fetcher(settings, label_studio) as images:
        predictor = Predictor(
            Embedder(encoder, store.embeddings, images, assembly.image_limits(settings))
        )
        services = Services(
            store, label_studio, predictor, settings.learning, 600.0, settings.keep_unused
        )
        services.slow_imports.update(life["slow_imports"])
        current_services.set(services)
        _start(store)
        _work(clock, effects)
    return effects.names


def _start(store: Store) -> None:
    # What `work` does before it takes jobs.
    store.requests.free_of_the_dead()
    for project in store.projects.all():
        if project.connected:
            store.requests.add(Request(project.id, Kind.RECONCILE))


def _work(clock: Store, effects: _Effects) -> None:
    """Do what is due, the most urgent first; what is wanted later is due once nothing else is."""
    urgency = list(Kind)
    while due := clock.requests.due() or _brought_forward(clock):
        request = min(due, key=lambda request: (urgency.index(request.kind), request.part))
        effects.job = request.kind.value
        perform(request.project_id, request.kind.value, request.part)


def _brought_forward(clock: Store) -> list[Request]:
    with clock.database.write() as connection:
        connection.execute(
            sa.update(requests)
            .where(requests.c.kind != Kind.RECONCILE.value, requests.c.requested > requests.c.done)
            .values(due_at=0.0)
        )
    return clock.requests.due()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _in_a_fork(do: Callable[[], list[str]]) -> None:
    pid = os.fork()
    if not pid:
        try:
            _say(json.dumps({"effects": do()}))
        except BaseException:  # noqa: BLE001 - told to the test, whatever it is
            _say(json.dumps({"broken": traceback.format_exc()}))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        _say(json.dumps({"effects": None}))


def main() -> None:
    """Read lives, and have each one lived."""
    for name in LAZY:
        import_module(name)
    encoder = load_encoder("tiny", None, "cpu", "float32")
    for line in sys.stdin:
        life = json.loads(line)
        _in_a_fork(lambda life=life: _live(life, encoder))  # type: ignore[misc]


if __name__ == "__main__":
    main()
