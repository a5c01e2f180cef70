"""What Sentry is sent: the error and where it is, and nothing that is nobody's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.errors import SettingsError
from backend.settings import Settings
from backend.telemetry import report_to_sentry
from tests.integration.fake_label_studio import CONFIG
from tests.integration.posted import Collector

PASSWORD = "planted-password"
API_KEY = "planted-api-key"
WEBHOOK_SECRET = "planted-webhook-secret"
HEADER = "planted-header"
BODY = "planted-body"
QUERY = "planted-query"
SIGNATURE = "planted-signature"
URL_PASSWORD = "planted-url-password"
PLANTED = (PASSWORD, API_KEY, WEBHOOK_SECRET, HEADER, BODY, QUERY, SIGNATURE, URL_PASSWORD)


# An API with a bug whose message and variables hold all that there is to hide.
PROGRAM = f"""
import logging
from backend.api import actions
from backend.settings import Settings
from backend.wsgi import create

def broken(text):
    hidden = {SIGNATURE!r}
    raise RuntimeError(
        "{PASSWORD} {API_KEY} {WEBHOOK_SECRET} "
        "http://me:{URL_PASSWORD}@host/a.png?X-Amz-Signature={SIGNATURE}"
    )

actions.parse_labeling_config = broken
client = create(Settings.read()).test_client()
answer = client.post(
    "/setup?x={QUERY}",
    json={{"project": "7.1", "schema": {CONFIG!r}, "access_token": "{BODY}"}},
    headers={{"X-Request-ID": "abc", "Cookie": "a={HEADER}", "X-Other": "{HEADER}"}},
    auth=("me", "{PASSWORD}"),
)
assert answer.status_code == 500, answer.status
"""


def test_a_bug_is_reported_without_secrets_requests_and_variables(
    collector: Collector, tmp_path: Path
) -> None:
    host = collector.url.removeprefix("http://")
    environment = {
        **os.environ,
        "SENTRY_DSN": f"http://public-key@{host}/1",
        "DATA_DIR": str(tmp_path),
        "CLIP_MODEL": "tiny",
        "LABEL_STUDIO_API_KEY": API_KEY,
        "BASIC_AUTH_USER": "me",
        "BASIC_AUTH_PASS": PASSWORD,
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
    }

    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)

    sent = b"\n".join(collector.bodies).decode()
    assert [secret for secret in PLANTED if secret in sent] == []
    event = next(
        event
        for body in collector.bodies
        for line in body.splitlines()
        if "exception" in (event := json.loads(line))
    )
    # What is searched is what was meant.
    (error,) = event["exception"]["values"]
    assert error["type"] == "RuntimeError"
    assert "//[removed]@host/a.png?[removed]" in error["value"]
    assert error["stacktrace"]["frames"][-1]["function"] == "broken"
    assert event["tags"] == {"request": "abc", "service": "clip-backend-api"}
    assert event["release"].startswith("clip-backend@")
    assert not {"request", "user", "breadcrumbs", "extra"} & event.keys()


def test_a_wrong_dsn_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^SENTRY_DSN: must be a DSN"):
        report_to_sentry("nonsense", release="1", service="test", secrets=[])


def test_without_the_extra_a_dsn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)

    with pytest.raises(SettingsError, match=r"SENTRY_DSN: .*\[sentry\]"):
        report_to_sentry("http://key@localhost/1", release="1", service="test", secrets=[])


def test_every_setting_that_is_a_secret_is_known_as_one() -> None:
    settings = Settings.read(
        label_studio_api_key="one-secret",
        basic_auth_user="me",
        basic_auth_pass="two-secret",
        webhook_secret="three-secret",
        sentry_dsn="http://four-secret@host/1",
        database_url="postgresql+psycopg://me:five@secret@host/name",
        redis_url="rediss://:six-secret@host:6379/0?sentinel_password=seven-secret&db=1",
    )

    assert {*settings.secrets} == {
        "one-secret",
        "two-secret",
        "three-secret",
        "http://four-secret@host/1",
        "five@secret",
        "six-secret",
        "seven-secret",
    }
