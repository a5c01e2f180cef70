"""A web server that answers as a test says, and fetching from it in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend.addresses import AllowedHosts
from backend.errors import ImageError
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.images import ImageFetcher

TOKEN = "Token very-secret"
PICTURE = b"\x89PNG picture"
LIMITS = ImageLimits(max_bytes=1000, max_pixels=1000, timeout=10.0, attempts=3)

Answer = Callable[[BaseHTTPRequestHandler], None]


class QuietHTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what these tests are about."""


class Server:
    """A real HTTP server that answers as a test says and remembers the requests."""

    def __init__(self, answer: Answer) -> None:
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.paths.append(self.path)
                server.headers.append({key.lower(): value for key, value in self.headers.items()})
                answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = QuietHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def respond(
    request: BaseHTTPRequestHandler, status: int = 200, body: bytes = PICTURE, **headers: str
) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def redirecting(location: str) -> Answer:
    return lambda request: respond(request, 302, b"", Location=location)


def answering(*statuses: int) -> Answer:
    """Answer with one status after the other, and with the last for ever."""
    left = list(statuses)
    return lambda request: respond(request, left.pop(0) if len(left) > 1 else left[0])


def fetcher_for(
    label_studio: str | None,
    limits: ImageLimits = LIMITS,
    connections: int = 4,
    allowed: str = "127.0.0.1",
) -> ImageFetcher:
    return ImageFetcher(
        label_studio_url=label_studio,
        authorization=(lambda: {"Authorization": TOKEN}) if label_studio else None,
        allowed=AllowedHosts.parse(allowed),
        limits=limits,
        connections=connections,
    )


def fetch(
    source: str,
    label_studio: str | None = None,
    limits: ImageLimits = LIMITS,
    task_id: int | None = None,
    allowed: str = "127.0.0.1",
) -> bytes:
    with fetcher_for(label_studio, limits, allowed=allowed) as fetcher:
        return fetcher.fetch(source, task_id)


def failure(
    source: str,
    label_studio: str | None = None,
    limits: ImageLimits = LIMITS,
    task_id: int | None = None,
    allowed: str = "127.0.0.1",
) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetch(source, label_studio, limits, task_id, allowed)
    return caught.value


def within(seconds: float, attempts: int = 1) -> ImageLimits:
    return ImageLimits(max_bytes=1000, max_pixels=1000, timeout=seconds, attempts=attempts)
