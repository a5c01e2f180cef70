"""Clients that send nothing, too little or too slowly, or never hang up: nobody else waits."""

from __future__ import annotations

import base64
import json
import os
import resource
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from backend.api.auth import SECRET_HEADER
from backend.api.connections import DISCARDED, LARGEST_HEAD, SMALL_BODY, Reader
from tests.integration.conftest import PATIENCE, data_uri, wait_until
from tests.integration.hostile import CONFIG
from tests.integration.served import Served, served

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")

THREADS = 2
MANY = 20 * THREADS
SMALL_BUFFER = 4096
LOGIN = ("me", "right")
AUTHORIZATION = b"Authorization: Basic " + base64.b64encode(b"me:right") + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    variables = {
        "THREADS": str(THREADS),
        "PREDICT_THREADS": "1",
        "BASIC_AUTH_USER": LOGIN[0],
        "BASIC_AUTH_PASS": LOGIN[1],
        "WEBHOOK_SECRET": "a-secret",
    }
    with served(tmp_path_factory.mktemp("served"), **variables) as server:
        worker = server.worker
        yield server
        assert server.worker == worker, "the process that answers has died"


@pytest.fixture
def port(server: Served) -> int:
    return server.port


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the server's end, which does not wait, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def connect(port: int, buffer: int | None = None) -> socket.socket:
    """Connect; what `buffer` has no room for, the server must keep."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", port))
    return connection


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the server hangs up."""
    answer = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def head(path: str, *lines: bytes, method: str = "POST") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: backend\r\n" % (method.encode(), path.encode()) + b"".join(
        line + b"\r\n" for line in (*lines, b"")
    )


def assert_all_is_well(port: int) -> None:
    """Ask for what everybody needs; all of it is answered however slow others are."""
    url = f"http://127.0.0.1:{port}"
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 7}}
    body = {"tasks": [{"id": 1, "data": {"image": data_uri("red")}}], "label_config": CONFIG}
    for _ in range(3):
        assert httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        answer = httpx.post(
            f"{url}/webhook", json=event, headers={SECRET_HEADER: "a-secret"}, timeout=PATIENCE
        )
        assert answer.status_code == 201
        answer = httpx.post(f"{url}/predict", json=body, auth=LOGIN, timeout=PATIENCE)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\r\n", id="an empty line"),
        pytest.param(b"POST /predict HT", id="half a line"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: backend\r\nA: b", id="half a head"),
        pytest.param(head("/webhook", b"Content-Length: 20") + b"{", id="half a webhook"),
        pytest.param(head("/webhook", b"content-length:  %d" % SMALL_BODY), id="no body"),
        pytest.param(
            head("/webhook", b"Content-Length: " + b"0" * 5000 + b"20") + b"{", id="leading zeros"
        ),
        pytest.param(head("/webhook", b"Content-Length: 100000") + b"{", id="half a large webhook"),
        pytest.param(
            head("/webhook", b"Content-Length: 20", b"Expect: 100-continue"), id="a body to ask for"
        ),
        pytest.param(
            head("/webhook", b"Transfer-Encoding: chunked") + b"5\r\n{", id="half a chunk"
        ),
        pytest.param(head("/predict", b"Content-Length: 100000") + b"{", id="half a prediction"),
        pytest.param(
            head("/predict", b"Content-Length: 20", AUTHORIZATION.strip()) + b"{",
            id="half a prediction with the password",
        ),
        pytest.param(head("/health", method="GET") + b"GET /health", id="half a second request"),
        pytest.param(head("/health", b"Connection: close", method="GET"), id="no hanging up"),
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", id="no hanging up after HTTP/1.0"),
        pytest.param(b"nonsense\r\n\r\n", id="no hanging up after nonsense"),
        pytest.param(
            head("/predict", b"Content-Length: 1000000000", AUTHORIZATION.strip()),
            id="no hanging up after a refusal",
        ),
    ],
)
def test_clients_that_stall_keep_nobody_else_waiting(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            connection = stack.enter_context(connect(port))
            connection.sendall(sent)

        assert_all_is_well(port)


def test_clients_that_ask_and_never_read_take_no_thread(server: Served) -> None:
    def ask_on_and_on(_: int) -> None:
        with connect(server.port, SMALL_BUFFER) as connection, suppress(ConnectionError):
            while True:
                connection.sendall(1_000 * head("/health", method="GET"))

    with ThreadPoolExecutor(THREADS) as clients:
        list(clients.map(ask_on_and_on, range(THREADS)))

    assert "was not taken" not in server.log.read_text()


def test_an_answer_that_nobody_takes_is_given_up(server: Served) -> None:
    with connect(server.port, SMALL_BUFFER) as connection:
        task = {"id": 1, "data": {"image": data_uri("red")}}
        config = CONFIG.replace("red", "red" * 500).replace("blue", "blue" * 500)
        body = json.dumps({"tasks": 10_000 * [task], "label_config": config}).encode()
        lines = (AUTHORIZATION.strip(), b"Content-Length: %d" % len(body))
        connection.sendall(head("/predict", *lines) + body)
        wait_until(lambda: "was not taken" in server.log.read_text(), "the server has given up")


def test_a_client_that_sends_no_request_is_hung_up_on(port: int) -> None:
    with connect(port) as silent, connect(port) as halting:
        halting.sendall(b"GET /health HTTP/1.1\r\n")

        assert received(silent) == b""
        assert received(halting) == b""


def test_a_request_that_comes_in_pieces_is_answered(port: int) -> None:
    body = b'{"config": ""}'
    request = head(
        "/validate", AUTHORIZATION.strip(), b"Connection: close", b"Content-Length: %d" % len(body)
    )
    with connect(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request + body:
            connection.sendall(bytes([byte]))
        answer = received(connection)

    assert answer.startswith(b"HTTP/1.1 200"), answer


def test_requests_that_come_at_once_are_answered_in_turn(port: int) -> None:
    body = b'{"config": ""}'
    lines = [AUTHORIZATION.strip(), b"Content-Length: %d" % len(body)]
    with connect(port) as connection:
        connection.sendall(
            3 * (b"\r\n" + head("/validate", *lines) + body)
            + head("/health", b"Connection: close", method="GET")
        )
        answer = received(connection)

    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.endswith(b"}")
    assert b"ClipBackend" in answer


@pytest.mark.parametrize("expects", [True, False])
def test_a_large_body_is_read_whole(port: int, expects: bool) -> None:
    body = b'{"config": "' + b" " * 8 * SMALL_BODY + b'"}'
    lines = [AUTHORIZATION.strip(), b"Content-Length: %d" % len(body), b"Connection: close"]
    with connect(port) as connection:
        if expects:
            connection.sendall(head("/validate", *lines, b"Expect: 100-continue"))
            assert connection.recv(100).startswith(b"HTTP/1.1 100")
        else:
            connection.sendall(head("/validate", *lines))
        connection.sendall(body)
        answer = received(connection)

    assert answer.startswith(b"HTTP/1.1 200"), answer


def test_a_head_without_end_is_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nA: " + b"b" * 2 * LARGEST_HEAD)

        assert received(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nAuthorization Basic planted\r\n\r\n", 400),
        (b'{"access_token": "planted"}\r\n\r\n', 400),
        (b"GET http://me:planted@backend/ HTTP/x\r\n\r\n", 400),
        (head("/predict", b"Transfer-Encoding: planted"), 400),
        (head("/predict", b"Expect: planted"), 417),
        (b"GET /" + b"planted" * 1000 + b" HTTP/1.1\r\n\r\n", 414),
        (head("/predict", b"A: " + b"planted" * 2000), 431),
    ],
)
def test_what_is_no_http_is_refused_and_not_repeated(
    server: Served, sent: bytes, status: int
) -> None:
    with connect(server.port) as client:
        client.sendall(sent)
        answer = received(client)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"planted" not in answer
    assert "planted" not in server.log.read_text()


def test_one_that_leaves_while_it_is_refused_takes_nobody_along(port: int) -> None:
    for _ in range(10):
        with connect(port) as connection:
            # Closed at once, without a word.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET /health HTTP/1.1\r\nA: " + b"b" * 2 * LARGEST_HEAD)

    assert_all_is_well(port)


def test_no_header_says_under_which_path_it_is_served(port: int) -> None:
    for path in ("/xyz", "/versions"):
        with connect(port) as connection:
            connection.sendall(
                b"GET /versions/health HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"
                b"SCRIPT_NAME: %s\r\n\r\n" % path.encode()
            )
            assert received(connection).startswith(b"HTTP/1.1 401")


def test_more_connections_than_files_cost_connections_alone(server: Served) -> None:
    limits = resource.prlimit(server.worker, resource.RLIMIT_NOFILE)
    opened = len(os.listdir(f"/proc/{server.worker}/fd"))
    resource.prlimit(server.worker, resource.RLIMIT_NOFILE, (opened + 10, limits[1]))
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(connect(server.port))
        wait_until(lambda: "raise `ulimit -n`" in server.log.read_text(), "files run out")
    resource.prlimit(server.worker, resource.RLIMIT_NOFILE, limits)

    assert_all_is_well(server.port)


def test_who_sends_on_after_the_answer_gets_the_answer(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(head("/predict", b"Content-Length: 1000000") + b" " * (DISCARDED // 2))

        assert received(connection).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "lines", [(b"Content-Length: 100000",), (b"Transfer-Encoding: chunked",)], ids=str
)
def test_the_body_of_a_large_webhook_is_not_waited_for_without_a_secret(
    port: int, lines: tuple[bytes, ...]
) -> None:
    answers = []
    for secret in ((), (b"X-Webhook-Secret: wrong",), (AUTHORIZATION[:-6] + b"x=",)):
        with connect(port) as connection:
            connection.sendall(head("/webhook", b"Connection: close", *lines, *secret))
            answers.append(received(connection))

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 401"), answer
        assert b"clip-backend connect --project" in answer


def test_a_large_webhook_with_the_secret_is_taken(port: int) -> None:
    event = {"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": ["x" * 8 * SMALL_BODY]}
    answer = httpx.post(
        f"http://127.0.0.1:{port}/webhook",
        json=event,
        headers={SECRET_HEADER: "a-secret"},
        timeout=PATIENCE,
    )

    assert answer.status_code == 201


def test_empty_lines_are_no_request(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reader = Reader(ours)
    for _ in range(2 * LARGEST_HEAD // 4096):
        theirs.sendall(b"\r\n" * 2048)
        assert not reader.collect()

    assert reader.has_too_large_a_head


def test_no_more_is_taken_than_the_request_at_hand(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader = Reader(ours)
    requests = 4_000 * head("/health", method="GET")
    theirs.sendall(requests)
    taken = 0
    for _ in range(100):
        assert reader.collect()
        reader.hand_over()
        taken = max(taken, len(reader.buf.getvalue()))
        reader.read(len(head("/health", method="GET")))
        reader.start()

    assert taken < 16_384


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_a_request_is_whole_with_its_last_byte(
    pair: tuple[socket.socket, socket.socket], before: bytes, step: int
) -> None:
    ours, theirs = pair
    body = b"x" * 500
    request = before + head("/validate", b"Content-Length: 500", b"A: b") + body
    reader = Reader(ours)
    for start in range(0, len(request) - 1, step):
        theirs.sendall(request[start : min(start + step, len(request) - 1)])
        assert not reader.collect()
    theirs.sendall(request[-1:])

    assert reader.collect()
    reader.hand_over()
    assert reader.read(len(request)) == request


def test_a_thread_waits_for_a_body_as_long_as_it_comes_and_no_longer() -> None:
    ours, theirs = socket.socketpair()
    stopped = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not stopped.is_set():
                theirs.sendall(b".")
                stopped.wait(0.01)

    with ours, theirs:
        dripping = threading.Thread(target=drip)
        dripping.start()
        reader = Reader(ours, patience=0.2)
        try:
            with pytest.raises(TimeoutError):
                b"".join(iter(reader.chunk, b""))
        finally:
            stopped.set()
            dripping.join()


def test_nothing_is_waited_for_once_a_request_is_answered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader(ours)
        theirs.sendall(b"the rest")
        reader.finish()
        with pytest.raises(TimeoutError):
            reader.chunk()
        reader.start()
        assert reader.chunk() == b"the rest"


def test_what_has_waited_long_is_closed_without_an_answer_to_others(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(MANY)]
        wait_until(lambda: not any(received(each) for each in idle), "all are hung up on")

    assert_all_is_well(port)
