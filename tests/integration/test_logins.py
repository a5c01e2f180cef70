"""Wrong passwords and secrets are bounded, and lock out nobody who knows the right ones."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.api.auth import SECRET_HEADER, digest
from backend.api.failed_logins import OF_A_CLIENT, OF_ALL
from backend.store import Store
from tests.integration.conftest import StartApp, data_uri
from tests.integration.hostile import CONFIG

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

RIGHT = ("me", "right")
WRONG = ("me", "wrong")
STANDING_STILL: dict[str, Any] = {
    "basic_auth_user": "me",
    "basic_auth_pass": "right",
    "clock": lambda: 1000.0,
}


@pytest.fixture
def client(start_app: StartApp) -> FlaskClient:
    return start_app(**STANDING_STILL).test_client()


def log_in(
    client: FlaskClient, password: tuple[str, str], address: str = "192.0.2.1", **options: Any
) -> TestResponse:
    return client.get(
        "/versions", auth=password, environ_overrides={"REMOTE_ADDR": address}, **options
    )


def webhook(client: FlaskClient, secret: str | None, project: int = 7, **options: Any) -> int:
    headers = {} if secret is None else {SECRET_HEADER: secret}
    event = {"action": "START_TRAINING", "project": {"id": project}}
    return client.post("/webhook", json=event, headers=headers, **options).status_code


def test_an_address_that_guesses_is_told_to_wait_whatever_it_sends_next(
    client: FlaskClient,
) -> None:
    guesses = {log_in(client, WRONG).status_code for _ in range(OF_A_CLIENT.burst)}

    refused = [log_in(client, WRONG), log_in(client, RIGHT)]

    assert guesses == {401}
    for answer in refused:
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= OF_A_CLIENT.interval
        assert "try again in" in answer.get_json()["error"]
    assert log_in(client, RIGHT, "192.0.2.2").status_code == 200
    assert client.get("/health").status_code == 200


def test_guesses_from_many_addresses_are_bounded_and_label_studio_is_let_in(
    client: FlaskClient,
) -> None:
    known = "198.51.100.1"
    assert log_in(client, RIGHT, known).status_code == 200

    statuses = [
        log_in(client, WRONG, f"192.0.2.{number}").status_code
        for number in range(OF_ALL.burst + 50)
    ]

    assert set(statuses[: OF_ALL.burst]) == {401}
    assert 429 in statuses
    assert log_in(client, RIGHT, known).status_code == 200


def test_requests_without_credentials_are_no_guesses(client: FlaskClient) -> None:
    statuses = {client.get("/versions").status_code for _ in range(OF_ALL.burst + 1)}

    assert statuses == {401}
    assert log_in(client, RIGHT, "127.0.0.1").status_code == 200


def test_a_webhook_with_an_old_secret_locks_out_nothing_but_itself(
    client: FlaskClient, store: Store
) -> None:
    for project in (7, 8):
        store.projects.set_up(project, label_config=CONFIG)
        store.projects.update(project, webhook_digest=digest(f"secret of {project}"))

    old = [webhook(client, "an old secret") for _ in range(OF_A_CLIENT.burst + 1)]

    assert old == [401] * OF_A_CLIENT.burst + [429]
    assert webhook(client, "secret of 7") == 429
    assert webhook(client, "secret of 8", project=8) == 201
    assert webhook(client, None, auth=RIGHT) == 201
    task = {"id": 1, "data": {"image": data_uri("red")}}
    answer = client.post("/predict", json={"tasks": [task], "project": 7}, auth=RIGHT)
    assert answer.status_code == 200


def test_a_webhook_that_lost_its_secret_is_no_guess(client: FlaskClient, store: Store) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    store.projects.update(7, webhook_digest=digest("secret"))

    lost = {webhook(client, None) for _ in range(OF_ALL.burst + 1)}

    assert lost == {401}
    assert webhook(client, "secret") == 201


def test_a_password_cannot_be_guessed_through_the_webhook(client: FlaskClient) -> None:
    for _ in range(OF_A_CLIENT.burst):
        webhook(client, None, auth=WRONG)

    assert webhook(client, None, auth=RIGHT) == 429
    assert log_in(client, RIGHT, "127.0.0.1").status_code == 429


def test_the_address_is_the_connection_s_unless_a_proxy_is_set(start_app: StartApp) -> None:
    bare = start_app(**STANDING_STILL).test_client()
    proxied = start_app(**STANDING_STILL, proxies=1).test_client()

    for client in (bare, proxied):
        for number in range(OF_A_CLIENT.burst):
            log_in(client, WRONG, headers={"X-Forwarded-For": f"203.0.113.9, 192.0.2.{number}"})

    another = {"X-Forwarded-For": "198.51.100.1"}
    assert log_in(bare, RIGHT, headers=another).status_code == 429
    assert log_in(proxied, RIGHT, headers=another).status_code == 200


@pytest.mark.parametrize("path", ["/versions", "/webhook"])
def test_a_password_that_is_no_text_is_wrong(client: FlaskClient, path: str) -> None:
    answer = client.open(
        path,
        method="GET" if path == "/versions" else "POST",
        headers={"Authorization": "Basic \xff"},
        json={"action": "START_TRAINING", "project": {"id": 7}},
    )

    assert answer.status_code == 401


def test_guesses_with_large_webhooks_lock_out_nobody_else(
    client: FlaskClient, store: Store
) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    store.projects.update(7, webhook_digest=digest("secret"))
    guesses = [
        client.post(
            "/webhook",
            data=b"{" + b" " * 100_000,
            headers={SECRET_HEADER: f"guess {number}"},
            environ_overrides={"REMOTE_ADDR": "192.0.2.1"},
        ).status_code
        for number in range(2 * OF_ALL.burst)
    ]

    assert guesses == [401] * OF_A_CLIENT.burst + [429] * (2 * OF_ALL.burst - OF_A_CLIENT.burst)
    assert webhook(client, "secret") == 201
