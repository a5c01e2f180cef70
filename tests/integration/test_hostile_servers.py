"""Nobody makes this server fetch for them, and no server keeps it busy or fills its memory."""

from __future__ import annotations

import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import ImageError, ImageHostError
from tests.integration.fetching import (
    LIMITS,
    PICTURE,
    TOKEN,
    Server,
    failure,
    fetch,
    fetcher_for,
    redirecting,
    respond,
    within,
)

# What a thread on a busy machine may be late; what is not bounded takes for ever here.
SLACK = 5.0


class Names:
    """What names stand for; every lookup is remembered."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.before: Callable[[], object] = lambda: None
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: bytes | str, port: int, *args: int, **kwargs: int) -> object:
        name = host if isinstance(host, str) else host.decode()
        try:
            known = [str(ipaddress.ip_address(name))]
        except ValueError:
            self.asked.append(name)
            self.before()
            known = self.addresses.get(name, [])
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for each in known for found in self._real(each, port, *args, **kwargs)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    return names


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The addresses that are connected to, and how long each may take."""
    tried: list[tuple[str, float]] = []
    connect = socket.create_connection

    def create_connection(address: tuple[str, int], timeout: float, **options: Any) -> object:
        tried.append((address[0], timeout))
        return connect(address, timeout, **options)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return tried


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def at(name: str, url: str) -> str:
    """Return a server's URL with another name for its host."""
    return url.replace("127.0.0.1", name)


# Where pictures may come from


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "localhost",
        "LOCALHOST.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25eth0]",
        "user:password@127.0.0.1",
        "images.example.com@127.0.0.1",
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "127。0。0。1",
        "10.0.0.1",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
def test_this_machine_and_its_network_are_not_fetched_from(serve, host: str) -> None:
    server = serve()
    port = server.url.rpartition(":")[2]
    error = failure(f"http://{host}:{port}/latest/meta-data/a.png", allowed="public")
    assert server.paths == []
    assert "IMAGE_HOSTS" in str(error) or "not a valid URL" in str(error)
    assert "password" not in str(error)


def test_a_refusal_can_be_mended_and_is_not_tried_again(serve) -> None:
    error = failure(f"{serve().url}/a.png", allowed="public")
    assert isinstance(error, ImageHostError)
    assert not error.permanent
    assert "127.0.0.1" in str(error)
    assert "add it to IMAGE_HOSTS" in str(error)


def test_label_studio_itself_may_be_anywhere(serve) -> None:
    label_studio = serve()
    assert fetch("/data/a.png", label_studio.url, allowed="public") == PICTURE
    assert fetch(f"{label_studio.url}/data/a.png", label_studio.url, allowed="public") == PICTURE


def test_another_port_or_scheme_of_label_studios_host_is_not_label_studio(serve) -> None:
    label_studio, elsewhere = serve(), serve()
    for url in (elsewhere.url, label_studio.url.replace("http:", "https:")):
        error = failure(f"{url}/a.png", label_studio.url, allowed="public")
        assert isinstance(error, ImageHostError)
    assert elsewhere.paths == label_studio.paths == []


@pytest.mark.parametrize("prefix", ["", "/ls"])
@pytest.mark.parametrize(
    "path",
    [
        "/api/projects/7/next",
        "//api/ml",
        "/%61pi/ml",
        "/data/../api/ml",
        "/a/%2e%2e/api/ml",
        "/api",
    ],
)
def test_label_studios_api_is_not_called_for_whoever_writes_task_data(
    serve, prefix: str, path: str
) -> None:
    label_studio = serve()
    elsewhere = serve(redirecting(f"{label_studio.url}{prefix}{path}"))
    own = f"{label_studio.url}{prefix}"
    for source in (f"{own}{path}", f"{elsewhere.url}/a.png", prefix + path):
        if not source.startswith("//"):
            assert "API has no pictures" in str(failure(source, own))
    assert label_studio.paths == []
    assert fetch("/data/upload/7/api/a.png", own) == PICTURE


def test_a_name_counts_by_the_address_that_it_stands_for(serve, names: Names) -> None:
    server = serve()
    names.addresses = {"evil.test": ["127.0.0.1"], "minio": ["127.0.0.1"]}
    assert isinstance(failure(f"{at('evil.test', server.url)}/a.png", allowed="public"), ImageError)
    assert server.paths == []
    assert fetch(f"{at('minio', server.url)}/a.png", allowed="public,minio") == PICTURE
    assert server.headers[0]["host"] == at("minio", server.url).removeprefix("http://")


def test_a_name_is_connected_to_at_the_address_that_was_checked(serve, names: Names) -> None:
    server = serve()
    # The second lookup would be answered with another address.
    names.addresses = {"rebinding.test": ["127.0.0.1"]}
    names.before = lambda: names.asked[1:] and names.addresses.update({"rebinding.test": ["::1"]})
    assert fetch(f"{at('rebinding.test', server.url)}/a.png", allowed="127.0.0.1") == PICTURE
    assert names.asked == ["rebinding.test"]


def test_addresses_of_a_name_that_are_not_allowed_are_left_out(
    serve, names: Names, connections: list[tuple[str, float]]
) -> None:
    server = serve()
    names.addresses = {"both.test": ["10.0.0.1", "127.0.0.1"]}
    assert fetch(f"{at('both.test', server.url)}/a.png", allowed="127.0.0.1") == PICTURE
    assert [address for address, _ in connections] == ["127.0.0.1"]


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    serve, names: Names, connections: list[tuple[str, float]]
) -> None:
    server = serve()
    names.addresses = {"two.test": ["::1", "127.0.0.1"]}
    url = f"{at('two.test', server.url)}/a.png"
    assert fetch(url, allowed="two.test", limits=within(20)) == PICTURE
    (first, its_share), (second, _) = connections
    assert [first, second] == ["::1", "127.0.0.1"]
    assert its_share <= 10


def test_what_a_private_name_stands_for_and_whether_it_exists_is_not_told(names: Names) -> None:
    names.addresses = {"intranet.test": ["10.1.2.3"], "intranet6.test": ["fd12::3"]}
    messages = set()
    for name in ("intranet.test", "intranet6.test", "no-such-name.test"):
        error = failure(f"http://{name}/a.png", allowed="public")
        assert name in str(error)
        assert "10.1.2.3" not in str(error)
        assert "fd12" not in str(error)
        messages.add(str(error).replace(name, ""))
    assert len(messages) == 1


def test_a_listed_host_that_cannot_be_found_may_come_back(names: Names) -> None:
    error = failure("http://minio:9000/a.png", allowed="minio")
    assert "cannot be reached" in str(error)
    assert not isinstance(error, ImageHostError)
    assert len(names.asked) == LIMITS.attempts


def test_without_public_only_the_listed_hosts_are_fetched_from(names: Names) -> None:
    names.addresses = {"example.com": ["93.184.215.14"]}
    assert "IMAGE_HOSTS" in str(failure("http://example.com/a.png", allowed="minio"))


def test_a_listed_port_is_the_only_one(serve, names: Names) -> None:
    server, other = serve(), serve()
    names.addresses = {"minio": ["127.0.0.1"]}
    allowed = at("minio", server.url).removeprefix("http://")
    assert fetch(f"{at('minio', server.url)}/a.png", allowed=allowed) == PICTURE
    assert "IMAGE_HOSTS" in str(failure(f"{at('minio', other.url)}/a.png", allowed=allowed))
    assert other.paths == []


def test_each_redirect_is_checked(serve, names: Names) -> None:
    inside = serve()
    names.addresses = {"intranet.test": ["127.0.0.1"], "public.test": ["127.0.0.1"]}
    outside = serve(redirecting(f"{at('intranet.test', inside.url)}/a.png"))
    error = failure(f"{at('public.test', outside.url)}/a.png", allowed="public,public.test")
    assert isinstance(error, ImageHostError)
    assert "intranet.test" in str(error)
    assert len(outside.paths) == 1
    assert inside.paths == []


def test_a_redirect_from_label_studio_is_checked_too(serve) -> None:
    storage = serve()
    label_studio = serve(redirecting(f"{storage.url}/bucket/a.png"))
    error = failure("s3://bucket/a.png", label_studio.url, task_id=1, allowed="public")
    assert "IMAGE_HOSTS" in str(error)
    assert storage.paths == []


@pytest.mark.parametrize(
    "location",
    ["//127.0.0.1:9/a", "gopher://h/", "http://[::1", "//h:99999999999999999999/"],
)
def test_a_redirect_to_what_cannot_be_fetched_is_refused(serve, location: str) -> None:
    server = serve(redirecting(location))
    assert failure(f"{server.url}/a.png", allowed=server.url.removeprefix("http://"))
    assert set(server.paths) == {"/a.png"}


def test_tls_goes_by_the_name(names: Names) -> None:
    names.addresses = {"pictures.test": ["127.0.0.1"]}
    hello = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def read() -> None:
            nonlocal hello
            with listener.accept()[0] as connection:
                hello = connection.recv(4096)

        thread = threading.Thread(target=read)
        thread.start()
        url = f"https://pictures.test:{listener.getsockname()[1]}/a.png"
        error = failure(url, allowed="127.0.0.1", limits=within(10))
        thread.join()
    assert b"pictures.test" in hello
    assert "cannot be reached" in str(error)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", "." + "a.", "-", "a" * 300])
def test_a_name_that_no_host_can_have_costs_its_own_task_alone(host: str) -> None:
    assert failure(f"http://{host}/a.png", allowed="public")


def test_any_address_is_fetched_or_refused_with_one_error(names: Names) -> None:
    hosts = st.text(st.characters(exclude_characters="/"), max_size=80)
    with fetcher_for("http://ls", limits=within(5), allowed="minio") as fetcher:

        @given(hosts, st.text(max_size=20))
        @settings(deadline=None)
        def check(host: str, path: str) -> None:
            with pytest.raises(ImageError):
                fetcher.fetch(f"http://{host}/{path}", None)

        check()


def test_a_lookup_without_an_answer_is_given_up(names: Names, released) -> None:
    names.before = released.wait
    started = time.monotonic()
    error = failure("http://slow.test/a.png", allowed="public", limits=within(0.2))
    assert "within 0.2 s" in str(error)
    assert time.monotonic() - started < SLACK


# Proxies of the environment


@pytest.fixture
def proxy(serve, monkeypatch: pytest.MonkeyPatch) -> Server:
    proxy = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    return proxy


def test_a_proxy_fetches_what_is_public_or_known_to_it_alone(proxy, names: Names) -> None:
    names.addresses = {"example.com": ["93.184.215.14"]}
    assert fetch("http://example.com/a.png", allowed="public") == PICTURE
    assert fetch("http://only-the-proxy-knows.test/a.png", allowed="public") == PICTURE
    assert proxy.paths == ["http://example.com/a.png", "http://only-the-proxy-knows.test/a.png"]


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "intranet.test", "both.test", "0x7f.1", "127.0.0.1.", "[::1]"]
)
def test_a_proxy_is_not_asked_for_what_is_private(proxy, names: Names, host: str) -> None:
    names.addresses = {"intranet.test": ["10.1.2.3"], "both.test": ["93.184.215.14", "10.1.2.3"]}
    names.addresses["0x7f.1"] = ["127.0.0.1"]
    assert isinstance(failure(f"http://{host}/a.png", allowed="public"), ImageHostError)
    assert proxy.paths == []


def test_label_studio_is_reached_by_the_proxy_or_past_it(
    proxy, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_studio = serve()
    fetch("/a.png", label_studio.url, allowed="public")
    assert proxy.headers[0]["authorization"] == TOKEN
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch("/b.png", label_studio.url, allowed="public")
    assert label_studio.paths == ["/b.png"]


def test_what_the_proxy_is_not_for_is_checked_as_without_one(
    proxy, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = serve()
    assert isinstance(failure(f"{server.url}/a.png", allowed="public"), ImageHostError)
    assert server.paths == proxy.paths == []


# What servers do


def raw(*parts: bytes, then: Callable[[], object] = lambda: None) -> Callable[..., None]:
    """Answer with these bytes and hang up."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        for part in parts:
            request.wfile.write(part)
        then()
        request.close_connection = True

    return answer


def endless(head: bytes, part: bytes, released: threading.Event, pause: float = 0.0):
    """Answer with a head and then the same part again and again, until nobody listens."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        try:
            request.wfile.write(head)
            while not released.wait(pause):
                request.wfile.write(part)
        except OSError:
            pass

    return answer


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (OK + b"Content-Length: 900\r\n\r\n", b"x"),
        (OK + b"X-Header: ", b"x"),
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n"),
    ],
    ids=["body", "header", "status", "continue", "chunks", "extension", "trailers"],
)
def test_however_an_answer_drips_it_is_given_up_in_time(
    serve, released, head: bytes, part: bytes
) -> None:
    server = serve(endless(head, part, released, pause=0.05))
    started = time.monotonic()
    error = failure(f"{server.url}/a.png", limits=within(0.5, attempts=3))
    assert 0.4 < time.monotonic() - started < SLACK
    assert not error.permanent


def test_redirects_share_one_time_limit(serve, released) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        released.wait(0.3)
        redirecting("/again.png")(request)

    server = serve(answer)
    assert "within 0.5 s" in str(failure(f"{server.url}/a.png", limits=within(0.5)))
    assert len(server.paths) <= 2


@pytest.mark.parametrize(
    "head",
    [
        OK + b"\r\n",
        OK + b"Content-Length: 100000000000\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        OK + b"X-Header: ",
        b"",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
    ids=["undeclared", "declared", "chunks", "header", "status", "trailers"],
)
def test_an_endless_answer_fills_no_memory(serve, released, head: bytes) -> None:
    part = b"x" * 65_000 + b"\r\n"
    if b"chunked" in head:
        part = b"FDE8\r\n" + part
    sent = 0

    def answer(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        request.close_connection = True
        try:
            request.wfile.write(head)
            while not released.is_set():
                request.wfile.write(part)
                sent += len(part)
        except OSError:
            pass

    failure(f"{serve(answer).url}/a.png", limits=within(60.0))
    # More than is read may be on its way, in the buffers of both ends.
    assert sent < 50_000_000


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "identity, GZIP", "br", "zstd", "deflate"])
def test_a_compressed_answer_is_not_inflated(serve, encoding: str) -> None:
    bomb = gzip.compress(bytes(900_000))
    server = serve(lambda request: respond(request, body=bomb, Content_Encoding=encoding))
    limits = within(10)
    error = failure(f"{server.url}/a.png", limits=limits)
    assert "compressed, though asked not to" in str(error)
    assert error.permanent
    assert server.headers[0]["accept-encoding"] == "identity"


def test_an_encoding_that_changes_nothing_is_left_alone(serve) -> None:
    server = serve(lambda request: respond(request, Content_Encoding="binary"))
    assert fetch(f"{server.url}/a.png") == PICTURE


def test_more_than_was_declared_is_not_read(serve) -> None:
    server = serve(raw(OK + b"Content-Length: 4\r\n\r\n", b"abcd", b"efgh" * 100))
    with fetcher_for(None) as fetcher:
        assert fetcher.fetch(f"{server.url}/a.png", None) == b"abcd"
        assert fetcher.fetch(f"{server.url}/a.png", None) == b"abcd"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>not HTTP at all</html>",
        b"\x00\xff" * 1000,
        b"HTTP/1.1 2000 OK\r\n\r\nx",
        b"HTTP/1.1 abc OK\r\n\r\nx",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        OK + b"Content-Length: -1\r\n\r\nx",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        OK + b"Content-Length: 10\r\n\r\nshort",
        OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nx",
        OK + b"Transfer-Encoding: gzip\r\n\r\nx",
        OK + b"X-Header: " + b"x" * 200_000 + b"\r\n\r\nx",
        OK + b"X: x\r\n" * 50_000 + b"\r\nx",
        OK + b": no name\r\n\r\nx",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a:b:c/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_costs_its_own_task_alone(serve, answer: bytes) -> None:
    server = serve(raw(answer))
    assert failure(f"{server.url}/a.png", limits=within(10, attempts=2))
    assert len(server.paths) <= 12


def test_a_fetch_after_a_bad_answer_is_not_harmed(serve) -> None:
    answers = iter([raw(b"garbage"), respond])
    server = serve(lambda request: next(answers)(request))
    with fetcher_for(None, limits=within(10), connections=1) as fetcher:
        with pytest.raises(ImageError):
            fetcher.fetch(f"{server.url}/a.png", None)
        assert fetcher.fetch(f"{server.url}/a.png", None) == PICTURE
