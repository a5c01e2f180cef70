"""What takes a while to get, got in the background and kept for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Generic, TypeVar

from backend.api.probe import Probe

Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """What another server said last.

    Whoever asks waits for `patience` seconds at most, and then gets what was said before. The
    server is asked again `seconds` after it was asked last, whatever it said.
    """

    def __init__(
        self,
        server: str,
        look: Callable[[], Found],
        *,
        seconds: float,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._seconds = seconds
        self._patience = patience
        self._clock = clock
        self._found: Found | None = None
        self._asked_at: float | None = None
        self._probe = Probe(server, self._look_and_keep, reader="page")

    def read(self) -> Found | None:
        """Return what is known; None where nothing was said yet."""
        if self._asked_at is None or self._clock() - self._asked_at > self._seconds:
            wait([self._probe.look()], timeout=self._patience)
        return self._found

    def _look_and_keep(self) -> None:
        try:
            self._found = self._look()
        finally:
            self._asked_at = self._clock()
