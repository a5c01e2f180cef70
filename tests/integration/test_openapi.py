"""The description of the API is what the API does."""

from __future__ import annotations

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from backend.api import openapi
from backend.store import Store
from tests.integration.conftest import StartApp
from tests.integration.hostile import CONFIG

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture
def app(start_app: StartApp) -> Flask:
    return start_app(image_timeout=1.0)


GENERATED = [
    pytest.param(endpoint, mode, id=f"{endpoint.method} {endpoint.path} {mode.value}")
    for endpoint in openapi.endpoints()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    # What takes nothing cannot be given what is wrong.
    if mode.is_positive or endpoint.body is not None or endpoint.needs_project
]


@pytest.mark.parametrize(("endpoint", "mode"), GENERATED)
def test_every_answer_is_as_described(
    app: Flask, store: Store, endpoint: openapi.Endpoint, mode: GenerationMode
) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    operation = schema[endpoint.path][endpoint.method]

    @settings(max_examples=50, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


def test_every_route_is_described_and_nothing_else(app: Flask) -> None:
    document = app.test_client().get("/openapi.json").get_json()

    served = {
        (rule.rule, method)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert served == {
        (path, method.upper())
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert document["openapi"].startswith("3.1.")


def test_every_operation_has_an_id_of_its_own(app: Flask) -> None:
    document = app.test_client().get("/openapi.json").get_json()

    ids = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(ids)) == len(ids)


def test_the_description_asks_for_credentials_like_the_rest(start_app: StartApp) -> None:
    client = start_app(basic_auth_user="me", basic_auth_pass="x").test_client()

    assert client.get("/openapi.json").status_code == 401
    assert client.get("/openapi.json", auth=("me", "x")).status_code == 200
