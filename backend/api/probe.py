"""A look at another server that never takes long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Generic, TypeVar

from backend.errors import ClipBackendError

log = logging.getLogger(__name__)

# Prometheus gives a scrape ten seconds, and we look at two servers.
PATIENCE = 3.0

Found = TypeVar("Found")


class Probe(Generic[Found]):
    """Reads something in a thread of its own, and does without where that takes too long.

    A server that is gone without a word would keep whoever asks waiting for minutes. Those who ask
    at the same time share one look. The log names the `reader`.
    """

    def __init__(
        self,
        server: str,
        look: Callable[[], Found],
        patience: float = PATIENCE,
        *,
        reader: str = "metrics",
    ) -> None:
        self._server = server
        self._reader = reader
        self._look = look
        self._patience = patience
        self._lock = threading.Lock()
        self._under_way: Future[Found | None] | None = None

    def read(self) -> Found | None:
        """Return what is found; None where the server does not answer, or not in time."""
        try:
            return self.look().result(self._patience)
        except LateError:
            log.warning(
                "%s: %s does not answer in %g s", self._reader, self._server, self._patience
            )
            return None

    def look(self) -> Future[Found | None]:
        """Look, or share the look that is under way; nobody waits."""
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = self._start()
            return self._under_way

    def _start(self) -> Future[Found | None]:
        answer: Future[Found | None] = Future()
        # No pool: its threads would be waited for when the process ends.
        threading.Thread(
            target=self._run, args=(answer,), name=f"look at {self._server}", daemon=True
        ).start()
        return answer

    def _run(self, answer: Future[Found | None]) -> None:
        found = None
        try:
            found = self._look()
        except ClipBackendError as error:
            log.warning("%s: %s", self._reader, error)
        except Exception:
            log.exception("%s: what %s says cannot be read", self._reader, self._server)
        finally:
            answer.set_result(found)
