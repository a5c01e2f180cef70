"""Each request has a name: in its answer, and in the lines that are logged meanwhile."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from backend.jobs.services import Services
from backend.jobs.worker import HANDLERS, perform
from backend.logs import formatter
from backend.store.requests import Kind, Request
from tests.integration.conftest import StartApp
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio


@pytest.fixture
def client(start_app: StartApp) -> FlaskClient:
    return start_app().test_client()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the process would write."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter("text"))
    ours = logging.getLogger("backend")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel("INFO")
    yield written
    ours.removeHandler(handler)
    ours.setLevel(level)


def test_a_sound_id_is_kept_and_told_in_answer_and_log(
    client: FlaskClient, logged: io.StringIO
) -> None:
    body = {"project": "7.1", "schema": CONFIG}

    answer = client.post("/setup", json=body, headers={"X-Request-ID": "from-the.proxy_1"})
    another = client.post("/setup", json={**body, "project": "8.1"})

    assert answer.headers["X-Request-ID"] == "from-the.proxy_1"
    first, second = logged.getvalue().splitlines()
    assert ": request=from-the.proxy_1 set up project=7" in first
    assert f": request={another.headers['X-Request-ID']} set up project=8" in second


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "ä", "a=b", "a%0ab", "../a"])
def test_an_id_that_could_forge_a_line_is_replaced(client: FlaskClient, given: str) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given})

    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/nothing", "/report?project=9", "/metrics"])
def test_every_answer_has_an_id(client: FlaskClient, path: str) -> None:
    assert client.get(path).headers["X-Request-ID"]


def test_a_request_that_is_refused_has_an_id_too(start_app: StartApp) -> None:
    client = start_app(basic_auth_user="me", basic_auth_pass="secret").test_client()

    answer = client.get("/versions", headers={"X-Request-ID": "abc"})

    assert (answer.status_code, answer.headers["X-Request-ID"]) == (401, "abc")


def test_each_line_of_a_job_tells_which_job(
    services: Services, label_studio: FakeLabelStudio, logged: io.StringIO
) -> None:
    services.store.requests.add(Request(PROJECT, Kind.SYNC))

    perform(PROJECT, "sync", 0)

    (line,) = logged.getvalue().splitlines()
    assert f": job=sync-{PROJECT}-0 mirrored project={PROJECT}" in line


def test_a_job_that_crashes_is_logged_with_its_id(
    services: Services, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setitem(HANDLERS, Kind.TRAIN, handler)
    services.store.requests.add(Request(PROJECT, Kind.TRAIN))

    with pytest.raises(RuntimeError):
        perform(PROJECT, "train", 0)

    assert f": job=train-{PROJECT}-0 job crashed kind=train" in logged.getvalue()
    assert "RuntimeError: a bug" in logged.getvalue()
