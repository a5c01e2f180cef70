"""Processes that the demo starts, and that end with it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backend.errors import ClipBackendError
from backend.processes import end_with_parent

STOP_WITHIN = 40.0

_LOOK_EVERY = 0.2
_LAST_LINES = 15


class ChildProcess:
    """A process whose output goes to a file; it does not outlive this one."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool], within: float) -> None:
        """Start it and return when it is ready.

        Raises ClipBackendError with the last lines of its output where it ends instead, or is not
        ready within that many seconds.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 — our own command line
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches the demo alone, which stops the others in
                # order.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        try:
            self._wait(ready, within)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise ClipBackendError with the last lines of its output if it has ended."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            raise ClipBackendError(f"{self.name} ended with {code}; {self._last_words()}")

    def stop(self) -> None:
        """Stop it; does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _wait(self, ready: Callable[[], bool], within: float) -> None:
        until = time.monotonic() + within
        while not ready():
            self.check()
            if time.monotonic() > until:
                raise ClipBackendError(
                    f"{self.name} is not ready after {within:.0f} s; {self._last_words()}"
                )
            time.sleep(_LOOK_EVERY)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"the end of {self.log}:", *lines])


def free_port(preferred: int | None = None) -> int:
    """Return `preferred` if it is free on the loopback interface, else a port that is."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as listener:
            # A port whose last connections are still closing down is free all the same.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise ClipBackendError("no port is free on 127.0.0.1")
