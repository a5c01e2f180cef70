"""What requests may take at the same time: threads for predictions, memory for bodies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
from flask import Request, g
from werkzeug.exceptions import HTTPException

from backend.errors import RequestError, TooLargeError, TooManyRequestsError

log = logging.getLogger(__name__)

# Tasks can carry pictures as data URIs; a webhook about an import carries every task.
LARGEST_BODY = 256 * 1024 * 1024

# Of all bodies that are being worked on.
MEMORY_FOR_BODIES = 1024 * 1024 * 1024

# Parsed: an empty list and its place in the list that holds it, and an object of one key.
_BYTES_A_VALUE = 64
_BYTES_AN_OBJECT = 256

# Label Studio waits 100 s in all.
LONGEST_WAIT = 50.0

_PIECE = 1024 * 1024
_RETRY_AFTER = 1.0


class PredictSlots:
    """So many requests for predictions in hand; one more is refused at once.

    Of those in hand only `at_work` are worked on, and the others wait: as many as keep the cores
    busy. More would predict no faster, and be in the way of every webhook.
    """

    def __init__(self, count: int, at_work: int) -> None:
        self._count = count
        self._free = threading.BoundedSemaphore(count)
        self._working = threading.BoundedSemaphore(at_work)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a slot; raises TooManyRequestsError where there is none, or no turn for long."""
        full = (
            f"{self._count} requests for predictions are being worked on: try again in a moment, "
            "or raise PREDICT_THREADS"
        )
        slow = (
            f"other requests for predictions took {LONGEST_WAIT:.0f} s: try again in a moment, "
            "or ask for fewer tasks at once"
        )
        with self._taken(self._free, None, full), self._taken(self._working, LONGEST_WAIT, slow):
            yield

    @contextmanager
    def _taken(
        self, slots: threading.BoundedSemaphore, wait: float | None, refusal: str
    ) -> Iterator[None]:
        if not slots.acquire(blocking=wait is not None, timeout=wait):
            raise TooManyRequestsError(refusal, retry_after=_RETRY_AFTER)
        try:
            yield
        finally:
            slots.release()


class Bodies:
    """Reads the bodies of requests, whose memory is bounded in all until they are answered."""

    def __init__(self, memory: int = MEMORY_FOR_BODIES) -> None:
        self._memory = memory
        self._free = memory
        self._lock = threading.Lock()

    def json(self, request: Request) -> object:
        """Return the parsed body; `release` gives its memory back.

        Raises RequestError for what is no JSON, TooLargeError for a body that never fits, and
        TooManyRequestsError for one that does not fit now.
        """
        body = self._read(request)
        # In text they cost nothing: rather too much than too little.
        self._reserve(_BYTES_A_VALUE * (body.count(b",") + body.count(b"[")))
        self._reserve(_BYTES_AN_OBJECT * body.count(b"{"))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not JSON: {error}") from None

    def release(self) -> None:
        """Give back what the current request has reserved."""
        with self._lock:
            self._free += g.pop("memory", 0)

    def _read(self, request: Request) -> bytes:
        try:
            return self._received(request)
        except (HTTPException, RequestError):
            raise
        except Exception as error:  # noqa: BLE001 - each server has its own for broken chunks
            log.info("a body cannot be read: %s", error)
            raise RequestError("the body cannot be read: it breaks off or breaks HTTP") from None

    def _received(self, request: Request) -> bytes:
        # By what has come, not by what is announced: to announce much costs nothing.
        pieces = []
        while piece := request.stream.read(_PIECE):
            self._reserve(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def _reserve(self, size: int) -> None:
        with self._lock:
            held = g.get("memory", 0)
            if held + size > self._memory:
                raise TooLargeError(
                    f"the body would take more than {self._memory} bytes of memory: "
                    "send less at a time"
                )
            if size > self._free:
                raise TooManyRequestsError(
                    "too much is being worked on: try again in a moment", retry_after=_RETRY_AFTER
                )
            self._free -= size
            g.memory = held + size
