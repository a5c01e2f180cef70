"""A real server under more than it can take: gunicorn as `clip-backend serve` starts it."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from tests.integration.conftest import PATIENCE, data_uri, png, wait_until
from tests.integration.fetching import Answer, Server, respond
from tests.integration.hostile import CONFIG
from tests.integration.served import served

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")

SLOTS = 2


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    variables = {
        "THREADS": "4",
        "PREDICT_THREADS": str(SLOTS),
        "IMAGE_TIMEOUT": "600",
        "IMAGE_CONNECTIONS": "8",
        "IMAGE_HOSTS": "127.0.0.1",
    }
    with served(tmp_path_factory.mktemp("served"), **variables) as server:
        yield server.port


def predict(port: int, image: str) -> httpx.Response:
    body = {"tasks": [{"id": 1, "data": {"image": image}}], "label_config": CONFIG}
    return httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=PATIENCE)


def test_while_all_slots_are_taken_one_more_is_refused_and_the_rest_goes_on(
    port: int, serve: Callable[[Answer], Server], released: threading.Event
) -> None:
    def answer_when_released(request: BaseHTTPRequestHandler) -> None:
        released.wait()
        respond(request, body=png("red"))

    slow_pictures = serve(answer_when_released)
    url = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(SLOTS + 3) as clients:
        asked = [
            clients.submit(predict, port, f"{slow_pictures.url}/{number}")
            for number in range(SLOTS + 3)
        ]
        wait_until(lambda: sum(each.done() for each in asked) == 3, "what is too much is refused")
        try:
            health = httpx.get(f"{url}/health", timeout=PATIENCE)
            webhook = httpx.post(
                f"{url}/webhook",
                json={"action": "ANNOTATION_CREATED", "project": {"id": 7}},
                timeout=PATIENCE,
            )
            refused = [each.result() for each in asked if each.done()]
            taken = [each for each in asked if not each.done()]
        finally:
            released.set()
        answers = [each.result() for each in taken]

    assert len(taken) == SLOTS
    assert health.status_code == 200
    assert webhook.status_code == 201
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert "PREDICT_THREADS" in answer.json()["error"]
    for answer in [*answers, predict(port, data_uri("red"))]:
        assert answer.status_code == 200
        assert "result" in answer.json()["results"][0]


def test_a_refused_prediction_leaves_its_slot_free(port: int) -> None:
    for _ in range(SLOTS + 1):
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=b"{", timeout=PATIENCE)
        assert answer.status_code == 400

    assert predict(port, data_uri("red")).status_code == 200


HEAD = b"POST /validate HTTP/1.1\r\nHost: backend\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (HEAD + b"\r\n", b"400"),
        (CHUNKED + b"0\r\n\r\n", b"400"),
        (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", b"400"),
        (CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n", b"400"),
        (CHUNKED + b"2\r\n{}XX0\r\n\r\n", b"400"),
        (CHUNKED + b"ffffffffffffffffffff\r\n{}", b"4"),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 9999999999999\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: 10\r\n\r\n{}", b"400"),
        (b"POST /validate\0 HTTP/1.1\r\nHost: b\r\n\r\n", b"4"),
        (b"POST /validate\nHTTP/9.9\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: b\r\n\r\n", b"4"),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 1_000 + b"\r\n", b"4"),
        (b"GET /health HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", b"4"),
        (b"GET //evil.example/%2e%2e HTTP/1.1\r\nHost: b\r\n\r\n", b"404"),
        (b"TRACE /health HTTP/1.1\r\nHost: b\r\n\r\n", b"405"),
    ],
)
def test_a_request_that_is_not_http_is_refused(
    port: int, request_text: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(request_text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece

    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE).status_code == 200
