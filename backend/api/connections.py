"""Connections that are slow cost no thread: nobody without credentials can take them all.

gunicorn's threads wait for requests to come in, and its loop for clients to hang up: a few clients
that send nothing, or never close, keep everybody else out. Here the loop collects a request first,
a thread waits for the rest of a large body only as long as it comes, and those that do not hang up
are waited for by the loop beside everything else.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import re
import select
import socket
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from flask import Request
from gunicorn import util
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

log = logging.getLogger(__name__)

# Seconds for the head of a request, with its body where that is small.
COLLECTED_WITHIN = 20.0

# Bytes of a body: one that has no more is collected before a thread takes the request.
SMALL_BODY = 64 * 1024

# Browsers send the cookies of whatever else is on the host.
LARGEST_HEAD = 64 * 1024

# A thread waits for a large body for so many seconds in all, and one more for so many bytes.
PATIENCE = 20.0
SLOWEST = 64 * 1024

# Seconds until a client has taken what is written to it.
TAKEN_WITHIN = 30.0

# Bytes of answers that a client who asks for more may not have taken: one that waits for each has.
NOT_TAKEN = 16 * 1024

# Who is closed too early may never see the answer (RFC 9112, section 9.6).
HUNG_UP_WITHIN = 2.0
DISCARDED = 1024 * 1024

_BREATH = 0.01

# What is left of it is copied with each request that comes at once with others.
_PIECE = 8 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*(?:\r\n|$)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:", re.IGNORECASE)

# What gunicorn makes of what it cannot read, where it is more than a bad request.
_STATUSES = {
    LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
}


def body_is_here(request: Request) -> bool:
    """Tell whether a request's body was collected before, so that reading it waits for nobody."""
    length = request.content_length
    return length is not None and length <= SMALL_BODY and "Expect" not in request.headers


class Reader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """What a client sends: collected by the loop at first, then read by a thread."""

    def __init__(self, sock: socket.socket, patience: float = PATIENCE) -> None:
        super().__init__(sock)
        self._patience = patience
        self.start()

    def start(self) -> None:
        """Expect another request, of which something may be here already."""
        self._waited = 0.0
        self._received = 0
        self._answered = False
        self._collected = bytearray(self.take_buffered())
        self._begin = 0
        self._searched = 0
        self._needed: int | None = None
        self._ended = False

    def collect(self) -> bool:
        """Take what has come, without waiting; return whether a thread can go on with it."""
        if not self._is_whole():
            missing = _PIECE if self._needed is None else self._needed - len(self._collected)
            try:
                piece = self.sock.recv(missing)
            except BlockingIOError:
                return False
            except OSError:
                piece = b""
            self._ended = not piece
            self._collected += piece
        return self._ended or self._is_whole()

    @property
    def hung_up(self) -> bool:
        """Whether the client has left and asks for nothing more."""
        return self._ended and not self._collected

    @property
    def has_too_large_a_head(self) -> bool:
        """Whether more has come than any client's head is, and still no end of it."""
        return self._needed is None and len(self._collected) > LARGEST_HEAD

    def hand_over(self) -> None:
        """Let a thread read what was collected."""
        self.unread(self._collected)
        self._collected = bytearray()

    def finish(self) -> None:
        """Wait for no more of this request: it is answered."""
        self._answered = True

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Read from the socket. Raises TimeoutError where it comes too slowly."""
        left = self._patience + self._received / SLOWEST - self._waited
        if self._answered or left <= 0:
            raise TimeoutError("the client sends too slowly")
        limit = self.sock.gettimeout()
        self.sock.settimeout(left if limit is None else min(left, limit))
        started = time.monotonic()
        try:
            piece: bytes = super().chunk(size_hint)
        finally:
            self._waited += time.monotonic() - started
            self.sock.settimeout(limit)
        self._received += len(piece)
        return piece

    def _is_whole(self) -> bool:
        # Looks at each byte once: a client may send them one by one.
        here = self._collected
        if self._needed is None:
            # Empty lines before a request are allowed (RFC 9112, section 2.2).
            while self._begin < len(here) and here[self._begin] in b"\r\n":
                self._begin += 1
            end = here.find(b"\r\n\r\n", max(self._begin, self._searched - 3))
            self._searched = len(here)
            if end < 0:
                return False
            self._needed = end + 4 + _body_to_collect(bytes(here[self._begin : end]))
        return len(here) >= self._needed


def _body_to_collect(head: bytes) -> int:
    length = _LENGTH.search(head)
    if length is None or _EXPECTS.search(head) is not None:
        return 0
    digits = length[1].lstrip(b"0") or b"0"
    size = int(digits) if len(digits) <= len(str(SMALL_BODY)) else SMALL_BODY + 1
    return size if size <= SMALL_BODY else 0


def _can_take_more(sock: socket.socket) -> bool:
    # Who asks and never reads would have a thread wait until there is room for the answer.
    if sys.platform == "linux":
        size = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        if int.from_bytes(size, sys.byteorder) > NOT_TAKEN:
            return False
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _refuse(sock: socket.socket, status: HTTPStatus) -> None:
    with suppress(OSError):
        util.write_error(sock, status.value, status.phrase, "")


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's worker with threads, where only the loop waits for clients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaving: deque[TConn] = deque()
        self._is_full = False

    def accept(self, listener: Any) -> None:
        """Accept a connection, as long as files can be opened."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not self._is_full:
                log.warning("no more connections can be opened: raise `ulimit -n`")
            self._is_full = True
            # It stays there to be accepted: not to ask for it again and again.
            time.sleep(_BREATH)
        else:
            self._is_full = False

    def enqueue_req(self, conn: TConn) -> None:
        """Give a connection a thread as soon as its request is here."""
        if not conn.initialized:
            conn.init()
            conn.parser.unreader = Reader(conn.sock)
        conn.sock.setblocking(False)
        reader = conn.parser.unreader
        reader.start()
        if reader.collect():
            self._go_on(conn)
        else:
            self._wait(conn, self.pending_conns, COLLECTED_WITHIN, self._collect)

    def _collect(self, conn: TConn, sock: socket.socket) -> None:
        reader = conn.parser.unreader
        if reader.collect():
            self._forget(conn, self.pending_conns)
            self._go_on(conn)
        elif reader.has_too_large_a_head:
            self._forget(conn, self.pending_conns)
            _refuse(sock, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            self._hang_up(conn)

    def _go_on(self, conn: TConn) -> None:
        reader = conn.parser.unreader
        if reader.hung_up:
            self._close(conn)
        elif conn.parser.req_count > 0 and not _can_take_more(conn.sock):
            self._hang_up(conn)
        else:
            reader.hand_over()
            super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer a request, as long as the client takes the answer."""
        conn.sock.settimeout(TAKEN_WITHIN)
        try:
            keep: bool = super().handle_request(req, conn)
        except TimeoutError:
            log.info("an answer was not taken within %.0f s: %s", TAKEN_WITHIN, req.path)
            return False
        conn.parser.unreader.finish()
        return keep

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Refuse what is no HTTP without a word of what it says: gunicorn would log a secret."""
        if isinstance(exc, ParseException):
            log.info("a request is no HTTP: %s from=%s", type(exc).__name__, addr[0])
            _refuse(client, _STATUSES.get(type(exc), HTTPStatus.BAD_REQUEST))
        else:
            super().handle_error(req, client, addr, exc)

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Keep a connection, or close it without waiting for the client to do so."""
        if fs.cancelled() or fs.exception() is not None or not fs.result():
            self._hang_up(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close connections whose time is up."""
        super().murder_pending()
        now = time.monotonic()
        while self._leaving and self._leaving[0].timeout <= now:
            self._leave(self._leaving[0])

    def _cap_keepalive(self, deadline: float) -> None:
        # Called once, on the way to a stop: browsers open connections in advance.
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _hang_up(self, conn: TConn) -> None:
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            conn.left = DISCARDED
            self._wait(conn, self._leaving, HUNG_UP_WITHIN, self._discard)

    def _discard(self, conn: TConn, sock: socket.socket) -> None:
        try:
            size = len(sock.recv(8 * _PIECE))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        conn.left -= size
        if size == 0 or conn.left <= 0:
            self._leave(conn)

    def _leave(self, conn: TConn) -> None:
        self._forget(conn, self._leaving)
        self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    def _wait(
        self,
        conn: TConn,
        among: deque[TConn],
        seconds: float,
        come: Callable[[TConn, socket.socket], None],
    ) -> None:
        # On the way to a stop nobody is waited for that long.
        conn.timeout = time.monotonic() + (seconds if self.alive else HUNG_UP_WITHIN)
        among.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(come, conn))

    def _forget(self, conn: TConn, among: deque[TConn]) -> None:
        self.poller.unregister(conn.sock)
        among.remove(conn)
