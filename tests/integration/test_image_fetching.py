from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.addresses import AllowedHosts
from backend.errors import ImageError, ImageFault, LabelStudioUnreachableError, SettingsError
from backend.labelstudio.images import ImageFetcher
from tests.integration.fetching import (
    LIMITS,
    PICTURE,
    TOKEN,
    Answer,
    Server,
    answering,
    failure,
    fetch,
    fetcher_for,
    redirecting,
    respond,
    within,
)

# What goes where


@pytest.mark.parametrize(
    "path", ["/data/upload/1/a%20b.png", "/data/local-files/?d=some/a.png", "/static/sample.jpg"]
)
def test_paths_are_fetched_from_label_studio_with_the_token(serve, path: str) -> None:
    label_studio = serve()
    assert fetch(path, label_studio.url) == PICTURE
    assert label_studio.paths == [path]
    assert label_studio.headers[0]["authorization"] == TOKEN


@pytest.mark.parametrize("path", ["/data/upload/1/a.png", "/ls/data/upload/1/a.png"])
def test_label_studio_may_live_under_a_sub_path(serve, path: str) -> None:
    label_studio = serve()
    assert fetch(path, f"{label_studio.url}/ls/") == PICTURE
    assert label_studio.paths == ["/ls/data/upload/1/a.png"]


def test_absolute_urls_on_label_studios_origin_get_the_token(serve) -> None:
    label_studio = serve()
    fetch(f"{label_studio.url}/data/upload/1/a.png", label_studio.url)
    assert label_studio.headers[0]["authorization"] == TOKEN


def test_other_hosts_never_see_the_token(serve) -> None:
    label_studio, elsewhere = serve(), serve()
    assert fetch(f"{elsewhere.url}/a.png", label_studio.url) == PICTURE
    assert "authorization" not in elsewhere.headers[0]
    assert label_studio.paths == []


def test_a_redirect_to_another_origin_does_not_carry_the_token(serve) -> None:
    bucket = serve()
    label_studio = serve(redirecting(f"{bucket.url}/a.png?X-Amz-Signature=abc"))
    assert fetch("s3://bucket/a.png", label_studio.url, task_id=5) == PICTURE
    assert "authorization" in label_studio.headers[0]
    assert "authorization" not in bucket.headers[0]


def test_a_redirect_on_label_studio_carries_the_token(serve) -> None:
    label_studio = serve(
        lambda request: (
            redirecting("/data/b.png")(request) if "a.png" in request.path else respond(request)
        )
    )
    assert fetch("/data/a.png", label_studio.url) == PICTURE
    assert [headers["authorization"] for headers in label_studio.headers] == [TOKEN, TOKEN]


def test_the_session_that_label_studio_opens_is_not_shown_to_other_ports_of_its_host(serve) -> None:
    label_studio = serve(lambda request: respond(request, Set_Cookie="sessionid=secret; Path=/"))
    elsewhere = serve()
    with fetcher_for(label_studio.url) as fetcher:
        fetcher.fetch("/data/a.png", None)
        fetcher.fetch(f"{elsewhere.url}/a.png", None)
    assert "cookie" not in elsewhere.headers[0]


def test_the_authorization_is_asked_for_at_each_request(serve) -> None:
    label_studio = serve()
    tokens = iter(["Bearer one", "Bearer two"])
    with ImageFetcher(
        label_studio_url=label_studio.url,
        authorization=lambda: {"Authorization": next(tokens)},
        allowed=AllowedHosts(),
        limits=LIMITS,
        connections=1,
    ) as fetcher:
        fetcher.fetch("/a.png", None)
        fetcher.fetch("/b.png", None)
    assert [headers["authorization"] for headers in label_studio.headers] == [
        "Bearer one",
        "Bearer two",
    ]


def test_a_token_that_cannot_be_renewed_costs_the_picture_and_nothing_else(serve) -> None:
    def unreachable() -> dict[str, str]:
        raise LabelStudioUnreachableError("Label Studio did not answer")

    with (
        ImageFetcher(
            label_studio_url=serve().url,
            authorization=unreachable,
            allowed=AllowedHosts(),
            limits=LIMITS,
            connections=1,
        ) as fetcher,
        pytest.raises(ImageError, match="did not answer") as caught,
    ):
        fetcher.fetch("/a.png", None)
    assert not caught.value.permanent


@pytest.mark.parametrize(
    "uri", ["s3://b/é a.png", "gs://b/a.png", "azure-blob://c/a.png", "azure_spi://c/a.png"]
)
def test_cloud_storage_is_read_through_label_studio(serve, uri: str) -> None:
    label_studio = serve()
    assert fetch(uri, f"{label_studio.url}/ls", task_id=12) == PICTURE
    encoded = base64.urlsafe_b64encode(uri.encode()).decode()
    assert label_studio.paths == [f"/ls/tasks/12/presign/?fileuri={encoded}"]


def test_cloud_storage_needs_a_task() -> None:
    assert "id of a task" in str(failure("s3://b/a.png", "http://ls"))


@pytest.mark.parametrize("source", ["/data/upload/1/a.png", "s3://b/a.png"])
def test_without_label_studio_the_settings_to_make_are_named(source: str) -> None:
    error = failure(source, task_id=1)
    assert "LABEL_STUDIO_URL" in str(error)
    assert "LABEL_STUDIO_API_KEY" in str(error)


def test_credentials_in_an_url_serve_its_own_host_alone(serve) -> None:
    label_studio, elsewhere = serve(), serve()
    fetch(elsewhere.url.replace("//", "//user:pass@") + "/a.png")
    basic = base64.b64encode(b"user:pass").decode()
    assert elsewhere.headers[0]["authorization"] == f"Basic {basic}"
    fetch(label_studio.url.replace("//", "//user:pass@") + "/a.png", label_studio.url)
    assert label_studio.headers[0]["authorization"] == TOKEN


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:image/png;base64," + base64.b64encode(PICTURE).decode(), PICTURE),
        ("data:image/png;base64," + base64.b64encode(b"a").decode().rstrip("="), b"a"),
        ("data:;BASE64,YQ%3D%3D", b"a"),
        ("data:image/png;base64,YW\n Jj", b"abc"),
        ("data:image/png,%89PNG%20x", b"\x89PNG x"),
    ],
)
def test_data_uris_carry_the_picture_themselves(uri: str, data: bytes) -> None:
    assert fetch(uri) == data


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,a", "broken base64"),
        ("data:image/png;base64,é!", "broken base64"),
        ("data:," + "x" * 1001, "larger than"),
        ("data:," + "x" * 9001, "larger than"),
    ],
)
def test_broken_data_uris_are_refused(uri: str, message: str) -> None:
    assert message in str(failure(uri))


@pytest.mark.parametrize(
    "source",
    ["file:///etc/passwd", "a.png", "upload/1/a.png", "//host/a.png", "C:\\a.png", "ftp://h/a", ""],
)
def test_other_sources_are_refused_with_what_is_supported(source: str) -> None:
    error = failure(source, "http://ls")
    assert "not a supported image source" in str(error)
    assert error.permanent


@pytest.mark.parametrize(
    "source",
    [
        "http://",
        "https:a.png",
        "http://[::1/a",
        "http://h:x/a",
        "http://h:0/a",
        "http://h:-1/a",
        "http://h:65536/a",
        "http://h:99999999999999999999/a",
    ],
)
def test_urls_that_are_none_are_refused(source: str) -> None:
    assert "not a valid URL" in str(failure(source))


# What can go wrong


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(serve, status: int) -> None:
    server = serve(answering(status, status, 200))
    assert fetch(f"{server.url}/a.png") == PICTURE
    assert len(server.paths) == 3


def test_asking_again_has_an_end_and_the_picture_may_come_later(serve) -> None:
    server = serve(answering(503))
    error = failure(f"{server.url}/a.png")
    assert "answered 503" in str(error)
    assert not error.permanent
    assert len(server.paths) == LIMITS.attempts


def test_asking_again_stays_within_the_time_limit(serve) -> None:
    server = serve(answering(503))
    failure(f"{server.url}/a.png", limits=within(0.5, attempts=100))
    assert len(server.paths) < 5


@pytest.mark.parametrize("status", [400, 404, 410, 204])
def test_a_refusal_is_final(serve, status: int) -> None:
    server = serve(answering(status))
    error = failure(f"{server.url}/a.png")
    assert f"answered {status}" in str(error)
    assert error.permanent
    assert len(server.paths) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_can_be_mended_but_not_by_asking_again(serve, status: int) -> None:
    label_studio = serve(answering(status))
    error = failure("/data/upload/1/a.png", label_studio.url)
    assert "LABEL_STUDIO_API_KEY" in str(error)
    assert not error.permanent
    assert len(label_studio.paths) == 1


def test_a_private_picture_elsewhere_is_no_matter_of_the_token(serve) -> None:
    error = failure(f"{serve(answering(403)).url}/a.png", "http://ls")
    assert "not public" in str(error)
    assert "API_KEY" not in str(error)


def test_a_server_that_is_not_there_may_come_back() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{taken.getsockname()[1]}/a.png")
    assert "cannot be reached" in str(error)
    assert not error.permanent


def test_an_answer_that_breaks_off_is_asked_for_again(serve) -> None:
    breaks = iter([True, False])

    def answer(request: BaseHTTPRequestHandler) -> None:
        if next(breaks):
            request.send_response(200)
            request.send_header("Content-Length", "500")
            request.end_headers()
            request.wfile.write(b"half")
            request.close_connection = True
        else:
            respond(request)

    server = serve(answer)
    assert fetch(f"{server.url}/a.png") == PICTURE
    assert len(server.paths) == 2


def test_a_picture_that_is_declared_too_large_is_not_read(serve, released) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1001")
        request.end_headers()
        released.wait()

    assert "limit of 1000 bytes" in str(failure(f"{serve(answer).url}/a.png"))


def test_a_picture_of_undeclared_size_is_read_up_to_the_limit_only(serve, released) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(b"x" * 1001)
        released.wait()

    error = failure(f"{serve(answer).url}/a.png")
    assert "limit of 1000 bytes" in str(error)
    assert error.permanent


def test_a_picture_of_just_the_limit_is_fetched(serve) -> None:
    server = serve(lambda request: respond(request, body=b"x" * 1000))
    assert len(fetch(f"{server.url}/a.png")) == 1000


def test_a_server_that_says_nothing_is_given_up(serve, released) -> None:
    server = serve(lambda request: released.wait())
    error = failure(f"{server.url}/a.png", limits=within(0.2, attempts=5))
    assert "within 0.2 s" in str(error)
    assert not error.permanent
    assert len(server.paths) == 1


def test_a_picture_that_drips_is_given_up_after_the_limit_for_the_whole(serve, released) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "900")
        request.end_headers()
        while not released.wait(0.02):
            try:
                request.wfile.write(b"x")
            except OSError:
                request.close_connection = True
                return

    error = failure(f"{serve(drip).url}/a.png", limits=within(0.3))
    assert "within 0.3 s" in str(error)
    assert not error.permanent


def test_redirects_have_an_end(serve) -> None:
    server = serve(redirecting("/again.png"))
    assert "more than 5 times" in str(failure(f"{server.url}/a.png"))
    assert len(server.paths) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:,x"])
def test_redirects_to_anything_but_the_web_are_not_followed(serve, location: str) -> None:
    server = serve(redirecting(location))
    assert failure(f"{server.url}/a.png").permanent
    assert len(server.paths) == 1


def test_messages_hold_no_secrets(serve) -> None:
    signed = "/a.png?X-Amz-Signature=s1gnature#fragment"
    refusing = serve(answering(403))
    label_studio = serve(redirecting(f"{refusing.url}{signed}"))
    with_password = refusing.url.replace("//", "//user:passw0rd@") + signed
    for source in (with_password, "s3://bucket/a.png", "ftp://user:passw0rd@host/a.png?s1gnature"):
        message = str(failure(source, label_studio.url, task_id=1))
        assert "a.png" in message
        for secret in ("s1gnature", "passw0rd", "very-secret"):
            assert secret not in message


# Many at once


def test_many_pictures_come_in_order_with_errors_in_their_places(serve) -> None:
    second_done = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/0":
            second_done.wait()
        respond(request, 404 if request.path == "/2" else 200, request.path.encode())
        if request.path == "/1":
            second_done.set()

    url = serve(answer).url
    with fetcher_for(None) as fetcher:
        outcomes = list(
            fetcher.fetch_all(((f"{url}/{number}", None) for number in range(12)), bytes, ahead=8)
        )
    assert isinstance(outcomes[2], ImageError)
    assert [each for each in outcomes if isinstance(each, bytes)] == [
        f"/{number}".encode() for number in range(12) if number != 2
    ]


def test_many_pictures_are_fetched_at_the_same_time(serve) -> None:
    all_here = threading.Barrier(4, timeout=5)

    def answer(request: BaseHTTPRequestHandler) -> None:
        all_here.wait()
        respond(request)

    url = serve(answer).url
    with fetcher_for(None, connections=4) as fetcher:
        assert list(fetcher.fetch_all([(url, None)] * 8, bytes, ahead=8)) == [PICTURE] * 8


def test_what_decodes_many_pictures_gives_way_to_what_people_wait_for(serve) -> None:
    def niceness(_body: bytes) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    url = serve().url
    with fetcher_for(None) as fetcher:
        decoding = list(fetcher.fetch_all([(url, None)] * 4, niceness, ahead=4))

    assert all(each > niceness(b"") for each in decoding)


def test_few_pictures_are_held_however_many_are_wanted(serve) -> None:
    url = serve().url
    taken = 0

    def wanted() -> Iterator[tuple[str, None]]:
        nonlocal taken
        while True:
            taken += 1
            yield f"{url}/{taken}", None

    with fetcher_for(None, connections=2) as fetcher:
        outcomes = fetcher.fetch_all(wanted(), bytes, ahead=4)
        for _ in range(10):
            assert next(outcomes) == PICTURE
        assert taken <= 10 + 4
        outcomes.close()


def test_connections_are_used_again(serve) -> None:
    peers: set[object] = set()

    def answer(request: BaseHTTPRequestHandler) -> None:
        peers.add(request.client_address)
        respond(request)

    url = serve(answer).url
    with fetcher_for(None, connections=2) as fetcher:
        list(fetcher.fetch_all([(url, None)] * 20, bytes, ahead=4))
    assert len(peers) <= 2


# Names for the store


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/upload/1/a b.png", "http://ls:8080/sub/data/upload/1/a%20b.png"),
        ("/sub/data/upload/1/a%20b.png ", "http://ls:8080/sub/data/upload/1/a%20b.png"),
        ("http://LS:8080/sub/data/upload/1/a b.png", "http://ls:8080/sub/data/upload/1/a%20b.png"),
        ("/data/local-files/?d=x/a.png", "http://ls:8080/sub/data/local-files/?d=x/a.png"),
        ("https://user:pass@host:443/a.png?id=1#top", "https://host/a.png?id=1"),
        ("https://host/a.png?id=1&X-Amz-Signature=s&x-amz-date=d", "https://host/a.png?id=1"),
        ("https://host/a.png?X-Goog-Signature=s", "https://host/a.png"),
        ("https://host/a.png?sv=1&sig=s&size=2", "https://host/a.png?sv=1&size=2"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("data:image/png;base64,YQ==", "data:image/png;base64,YQ=="),
        ("/tasks/7/resolve/?fileuri=czM6Ly9iL2EucG5n", "s3://b/a.png"),
        ("http://ls:8080/sub/tasks/9/presign/?fileuri=czM6Ly9iL2EucG5n", "s3://b/a.png"),
        (
            "/tasks/7/resolve/?fileuri=bm8gdXJp",
            "http://ls:8080/sub/tasks/7/resolve/?fileuri=bm8gdXJp",
        ),
        ("http://other/tasks/7/resolve/?fileuri=czM6Ly9iL2EucG5n", None),
    ],
)
def test_a_picture_has_one_name_and_no_credentials_in_it(source: str, name: str | None) -> None:
    with fetcher_for("http://me:secret@ls:8080/sub/") as fetcher:
        assert fetcher.locate(source) == (name or source)


def test_any_text_has_a_name_or_is_refused_with_one_error() -> None:
    starts = st.sampled_from(["", "http://", "https://h/", "/", "s3://"])
    with fetcher_for("http://ls") as fetcher:

        @given(st.tuples(starts, st.text()).map("".join))
        def check(source: str) -> None:
            try:
                name = fetcher.locate(source)
            except ImageError:
                return
            assert fetcher.locate(name) == name

        check()


def test_half_a_surrogate_pair_is_refused() -> None:
    assert "cannot be encoded" in str(failure("https://host/\ud800.png"))


@pytest.mark.parametrize("host", ["xn--", "xn--0", "XN--ZZZZ", "a.xn--"])
def test_a_host_that_no_name_stands_for_costs_its_own_picture(
    serve: Callable[[Answer], Server], host: str
) -> None:
    def lead_there(request: BaseHTTPRequestHandler) -> None:
        respond(request, 302, {"Location": f"http://{host}/a.png"})

    assert failure(f"http://{host}/a.png").fault in (ImageFault.SOURCE, ImageFault.HOST)
    assert isinstance(failure(serve(lead_there).url), ImageError)
    with fetcher_for(None) as fetcher, suppress(ImageError):
        fetcher.locate(f"http://{host}/a.png")


def test_whatever_a_picture_does_it_costs_its_own_task(serve: Callable[[Answer], Server]) -> None:
    def use(body: bytes) -> bytes:
        if body == b"bad":
            raise MemoryError
        return body

    def answer(request: BaseHTTPRequestHandler) -> None:
        respond(request, body=request.path[1:].encode())

    url = serve(answer).url
    with fetcher_for(None) as fetcher:
        outcome = list(
            fetcher.fetch_all([(f"{url}/{name}", None) for name in ("good", "bad")], use, ahead=2)
        )

    assert outcome[0] == b"good"
    assert isinstance(outcome[1], ImageError)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:," + "%41" * 1_000_001, "more than 1000000 escaped bytes"),
        ("data:;base64," + "AA  " * 10_000, "larger than the limit"),
    ],
    ids=["escaped", "spaced"],
)
def test_a_data_uri_costs_little_more_than_its_picture(uri: str, message: str) -> None:
    limits = replace(LIMITS, max_bytes=10_000 if "base64" in uri else 10_000_000)
    with pytest.raises(ImageError, match=message):
        fetch(uri, limits=limits)


def test_a_socks_proxy_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://me:secret@127.0.0.1:9")
    with pytest.raises(SettingsError, match="SOCKS proxy") as refused, fetcher_for(None):
        pass
    assert "secret" not in str(refused.value)
