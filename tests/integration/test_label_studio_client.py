"""The client against a small server that says what a test wants; tokens are made up."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from backend.errors import LabelStudioError, LabelStudioUnreachableError, SettingsError
from backend.labelstudio.client import LabelStudio, RemoteTask

LEGACY = "0123456789abcdef0123456789abcdef01234567"

Answer = tuple[int, object]


class Request:
    """What was asked of the server."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.method = handler.command
        self.path, _, self.query = handler.path.partition("?")
        self.authorization = handler.headers.get("Authorization")
        self.cookie = handler.headers.get("Cookie")
        length = int(handler.headers.get("Content-Length") or 0)
        self.body = json.loads(handler.rfile.read(length)) if length else None


class Server:
    """A real HTTP server; `answer` decides, None hangs up without a word."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.redirects_to = ""
        self.answer: Callable[[Request], Answer | None] = lambda request: (200, {})
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_it(self) -> None:
                request = Request(self)
                server.requests.append(request)
                answer = server.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                status, body = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Set-Cookie", "sessionid=abc; Path=/")
                if server.redirects_to:
                    self.send_header("Location", server.redirects_to)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_it  # noqa: N815 — http.server's names

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def in_turn(self, *answers: Answer | None) -> None:
        """Give one answer after the other, and the last for ever."""
        left = list(answers)
        self.answer = lambda request: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., LabelStudio]]:
    clients: list[LabelStudio] = []

    def connect(token: str = LEGACY, url: str | None = None) -> LabelStudio:
        clients.append(LabelStudio(url or server.url, token))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., LabelStudio]) -> LabelStudio:
    return connect()


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS256'})}.{part(claims)}.signature"


def task(task_id: int) -> dict[str, object]:
    return {"id": task_id, "data": {"image": "a"}, "is_labeled": False, "total_annotations": 0}


# Trying again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_label_studio_is_asked_again(
    server: Server, client: LabelStudio, status: int
) -> None:
    server.in_turn((status, {}), (status, {}), (200, {"release": "1.23.2"}))

    assert client.version() == "1.23.2"
    assert len(server.requests) == 3


def test_a_lost_answer_is_asked_for_again_where_that_is_harmless(
    server: Server, client: LabelStudio
) -> None:
    server.in_turn(None, (200, {"release": "1.23.2"}))

    assert client.version() == "1.23.2"


def test_a_label_studio_that_stays_busy_is_given_up_after_some_tries(
    server: Server, client: LabelStudio
) -> None:
    server.in_turn((503, {}))

    with pytest.raises(LabelStudioUnreachableError, match="answered 503") as caught:
        client.update_project(7, title="Clothes")

    assert caught.value.label_studio_status == 503
    assert 1 < len(server.requests) < 10


@pytest.mark.parametrize("lost", [None, (503, {}), (504, {})])
def test_an_import_is_not_repeated_once_it_may_have_happened(
    server: Server, client: LabelStudio, lost: Answer | None
) -> None:
    server.in_turn(lost, (201, {}))

    with pytest.raises(LabelStudioUnreachableError):
        client.import_predictions(7, [{"task": 1}])

    assert len(server.requests) == 1


def test_an_import_that_was_never_taken_is_repeated(
    connect: Callable[..., LabelStudio], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    servers: list[Server] = []

    def come_up(_seconds: float) -> None:
        if not servers:
            servers.append(Server(port))

    # The server comes up in the pause between the first try and the second.
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=come_up))
    connect(url=f"http://127.0.0.1:{port}").import_predictions(7, [{"task": 1}])

    (server,) = servers
    server.close()
    (request,) = server.requests
    assert (request.method, request.body) == ("POST", [{"task": 1}])


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500])
def test_a_refusal_is_not_repeated(server: Server, client: LabelStudio, status: int) -> None:
    server.in_turn((status, {"detail": "No Project matches the given query."}))

    with pytest.raises(LabelStudioError, match="No Project matches") as caught:
        client.project(7)

    assert caught.value.label_studio_status == status
    assert not isinstance(caught.value, LabelStudioUnreachableError)
    assert len(server.requests) == 1


# Tokens


def test_a_legacy_token_is_sent_as_it_is(server: Server, client: LabelStudio) -> None:
    server.in_turn((200, {"release": "1.23.2"}))

    client.version()

    (request,) = server.requests
    assert request.authorization == f"Token {LEGACY}"


def test_a_session_cookie_is_not_kept(server: Server, client: LabelStudio) -> None:
    server.in_turn((200, {"release": "1.23.2"}))

    client.version()
    client.version()

    assert [request.cookie for request in server.requests] == [None, None]


class TokenExchange:
    """Answers `/api/token/refresh` with access tokens that live for `lifetime` seconds."""

    def __init__(self, server: Server, personal: str, lifetime: float = 300) -> None:
        self.personal = personal
        self.lifetime = lifetime
        self.given: list[str] = []
        self.revoked: set[str] = set()
        server.answer = self._answer

    def _answer(self, request: Request) -> Answer:
        if request.path == "/api/token/refresh":
            if request.body != {"refresh": self.personal}:
                return 401, {"detail": "Token is invalid or expired"}
            self.given.append(jwt(exp=time.time() + self.lifetime, number=len(self.given)))
            return 200, {"access": self.given[-1]}
        access = (request.authorization or "").removeprefix("Bearer ")
        if access not in self.given or access in self.revoked:
            return 401, {"detail": "Given token not valid for any token type"}
        return 200, {"release": "1.23.2", "tasks": [], "total": 0}


def test_a_personal_token_is_exchanged_once_for_many_requests(
    server: Server, connect: Callable[..., LabelStudio]
) -> None:
    personal = jwt(exp=time.time() + 10**9)
    exchange = TokenExchange(server, personal)
    client = connect(personal)

    for _ in range(3):
        assert client.version() == "1.23.2"

    assert len(exchange.given) == 1
    assert client.authorization() == {"Authorization": f"Bearer {exchange.given[0]}"}
    assert all(
        request.authorization is None
        for request in server.requests
        if request.path == "/api/token/refresh"
    )


def test_an_access_token_that_is_running_out_is_renewed_before_it_does(
    server: Server, connect: Callable[..., LabelStudio]
) -> None:
    personal = jwt(exp=time.time() + 10**9)
    exchange = TokenExchange(server, personal, lifetime=5)
    client = connect(personal)

    client.version()
    client.version()

    assert len(exchange.given) == 2


def test_an_access_token_that_was_revoked_is_renewed(
    server: Server, connect: Callable[..., LabelStudio]
) -> None:
    personal = jwt(exp=time.time() + 10**9)
    exchange = TokenExchange(server, personal)
    client = connect(personal)
    client.version()
    exchange.revoked.add(exchange.given[0])

    assert client.version() == "1.23.2"

    assert len(exchange.given) == 2


def test_threads_share_one_exchange(server: Server, connect: Callable[..., LabelStudio]) -> None:
    personal = jwt(exp=time.time() + 10**9)
    exchange = TokenExchange(server, personal)
    client = connect(personal)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(client.version())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == ["1.23.2"] * 6
    assert len(exchange.given) == 1


@pytest.mark.parametrize("answer", [(401, {}), (200, {}), (200, b"<html>"), (200, ["access"])])
def test_a_personal_token_that_is_refused_is_a_sentence(
    server: Server, connect: Callable[..., LabelStudio], answer: Answer
) -> None:
    personal = jwt(exp=time.time() + 10**9)
    server.answer = lambda request: (
        answer if request.path == "/api/token/refresh" else (401, {"detail": "not valid"})
    )

    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_API_KEY") as caught:
        connect(personal).version()

    assert personal not in str(caught.value)


@pytest.mark.parametrize("token", ["a b", "a\n", "tökén", "a\tb"])
def test_what_cannot_be_a_token_is_refused_at_once(token: str) -> None:
    with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY") as caught:
        LabelStudio("http://localhost", token)

    assert token not in str(caught.value)


# Sentences


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_its_setting_and_is_not_repeated_in_the_message(
    server: Server, client: LabelStudio, status: int
) -> None:
    server.in_turn((status, {"detail": "Invalid token."}))

    with pytest.raises(LabelStudioError) as caught:
        client.version()

    message = str(caught.value)
    assert "LABEL_STUDIO_API_KEY" in message
    assert "Invalid token." in message
    assert LEGACY not in message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_neither_kind_of_token_anywhere(
    server: Server, connect: Callable[..., LabelStudio], status: int
) -> None:
    with closing(Server()) as elsewhere:
        server.redirects_to = f"{elsewhere.url}/api/token/refresh"
        server.in_turn((status, {}))
        for token in (LEGACY, jwt(exp=time.time() + 10**9)):
            client = connect(token)
            client.authorization()
            with pytest.raises(LabelStudioError):
                client.version()
        assert server.requests
        assert elsewhere.requests == []


def test_nobody_at_the_address_names_its_setting(connect: Callable[..., LabelStudio]) -> None:
    client = connect(url="http://127.0.0.1:9")

    for call in (client.version, client.user):
        with pytest.raises(LabelStudioUnreachableError, match="LABEL_STUDIO_URL") as caught:
            call()
        assert LEGACY not in str(caught.value)


def test_nobody_at_the_address_of_the_exchange_names_its_setting(
    connect: Callable[..., LabelStudio],
) -> None:
    personal = jwt(exp=time.time() + 10**9)
    client = connect(personal, url="http://127.0.0.1:9")

    for call in (client.authorization, client.version):
        with pytest.raises(LabelStudioUnreachableError, match="LABEL_STUDIO_URL") as caught:
            call()
        assert personal not in str(caught.value)


@pytest.mark.parametrize("page", [b"<html>Welcome</html>", b"", b"null", b"[]", b"{}", b'"x"'])
def test_a_server_that_is_not_label_studio_names_the_setting(
    server: Server, client: LabelStudio, page: bytes
) -> None:
    server.in_turn((200, page))

    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL"):
        client.version()


def test_why_an_import_is_refused_is_shown(server: Server, client: LabelStudio) -> None:
    server.in_turn((400, {"validation_errors": {"tasks": ["unknown task 3"]}}))

    with pytest.raises(LabelStudioError, match="unknown task 3"):
        client.import_predictions(7, [{"task": 3}])


@pytest.mark.parametrize("body", [["why"], "why", 3, None, {"detail": ["why"]}, {"detail": {}}])
def test_a_refusal_of_any_shape_is_a_sentence(
    server: Server, client: LabelStudio, body: object
) -> None:
    server.in_turn((400, body))

    with pytest.raises(LabelStudioError, match="answered GET /api/version with 400"):
        client.version()


def test_a_long_refusal_is_cut(server: Server, client: LabelStudio) -> None:
    server.in_turn((400, {"detail": "x" * 100_000}))

    with pytest.raises(LabelStudioError) as caught:
        client.version()

    assert len(str(caught.value)) < 1000


# Pages


def ids(pages: Iterator[list[RemoteTask]]) -> list[int]:
    return [each.id for page in pages for each in page]


def test_tasks_are_read_page_by_page_until_all_are_seen(
    server: Server, client: LabelStudio
) -> None:
    server.in_turn(
        (200, {"tasks": [task(1), task(2)], "total": 3}), (200, {"tasks": [task(3)], "total": 3})
    )

    assert ids(client.tasks(7)) == [1, 2, 3]
    assert [request.query.split("&")[-1] for request in server.requests] == ["page=1", "page=2"]


def test_a_list_that_gets_shorter_while_it_is_read_ends(
    server: Server, client: LabelStudio
) -> None:
    server.in_turn(
        (200, {"tasks": [task(1), task(2)], "total": 4}), (404, {"detail": "Invalid page."})
    )

    assert ids(client.tasks(7)) == [1, 2]


def test_an_empty_page_ends_the_list_whatever_the_total(
    server: Server, client: LabelStudio
) -> None:
    server.in_turn((200, {"tasks": [task(1)], "total": 9}), (200, {"tasks": [], "total": 9}))

    assert ids(client.annotated_tasks(7)) == [1]


def test_a_project_that_is_gone_is_no_empty_list(server: Server, client: LabelStudio) -> None:
    server.in_turn((404, {"detail": "No Project matches the given query."}))

    with pytest.raises(LabelStudioError, match="404"):
        ids(client.tasks(7))


@pytest.mark.parametrize(
    ("is_labeled", "annotations", "is_open"),
    [(False, 0, True), (False, 1, True), (True, 1, False), (True, 0, True), (True, None, True)],
)
def test_a_task_is_open_until_an_annotation_finishes_it(
    server: Server,
    client: LabelStudio,
    is_labeled: bool,
    annotations: int | None,
    is_open: bool,
) -> None:
    item = task(1) | {"is_labeled": is_labeled, "total_annotations": annotations}
    server.in_turn((200, {"tasks": [item], "total": 1}))

    ((found,),) = client.tasks(7)

    assert found.open is is_open


def test_a_project_without_tasks_has_no_last_change(server: Server, client: LabelStudio) -> None:
    server.in_turn((200, {"tasks": [], "total": 0}))

    assert client.last_change(7) is None


def test_a_slash_at_the_end_of_the_address_does_no_harm(
    server: Server, connect: Callable[..., LabelStudio]
) -> None:
    server.in_turn((200, {"release": "1.23.2"}))

    connect(url=f"{server.url}/").version()

    assert [request.path for request in server.requests] == ["/api/version"]
