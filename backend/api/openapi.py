"""The OpenAPI 3.1 description of the endpoints, made from their messages."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from backend import __version__
from backend.api import messages
from backend.api.auth import OPEN_PATHS, SECRET_HEADER, WEBHOOK_PATH

_SCHEMAS = "#/components/schemas/"

_OK, _CREATED = HTTPStatus.OK, HTTPStatus.CREATED

# What any endpoint may answer that asks for credentials and reads the database.
_ALWAYS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_OF_A_BODY = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: its messages, and the statuses of its errors beside those of all."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    statuses: tuple[HTTPStatus, ...] = (_OK,)
    errors: tuple[HTTPStatus, ...] = ()
    needs_project: bool = False


def endpoints() -> tuple[Endpoint, ...]:
    """Return the endpoints; the answer of `/metrics` is text, all others are JSON."""
    not_found = (HTTPStatus.NOT_FOUND,)
    return (
        Endpoint("get", "/", "Whether the process is up", messages.HealthAnswer),
        Endpoint("get", "/health", "Whether the process is up", messages.HealthAnswer),
        Endpoint(
            "post",
            "/setup",
            "Registers a project",
            messages.SetupAnswer,
            messages.SetupRequest,
        ),
        Endpoint(
            "post",
            "/predict",
            "Predicts tasks, in their order",
            messages.PredictAnswer,
            messages.PredictRequest,
        ),
        Endpoint(
            "post",
            "/webhook",
            "Takes note of an event; 200 for a project that is not connected",
            messages.StatusAnswer,
            messages.WebhookRequest,
            statuses=(_OK, _CREATED),
        ),
        Endpoint(
            "post",
            "/train",
            "Asks for a training now",
            messages.JobAnswer,
            messages.ProjectRequest,
            statuses=(_CREATED,),
            errors=not_found,
        ),
        Endpoint(
            "post",
            "/job_status",
            "Tells how a training stands",
            messages.JobStatusAnswer,
            messages.JobStatusRequest,
            errors=not_found,
        ),
        Endpoint(
            "post",
            "/validate",
            "Tells what a labeling config gives",
            messages.ValidateAnswer,
            messages.ValidateRequest,
        ),
        Endpoint(
            "post",
            "/delete",
            "Stops serving a project",
            messages.StatusAnswer,
            messages.ProjectRequest,
            errors=not_found,
        ),
        Endpoint(
            "post",
            "/duplicate_model",
            "Serves a copied project",
            messages.StatusAnswer,
            messages.DuplicateRequest,
            errors=not_found,
        ),
        Endpoint("get", "/versions", "The stored model versions", messages.VersionsAnswer),
        Endpoint(
            "get",
            "/report",
            "What is known of a project's active version",
            messages.ReportAnswer,
            errors=(HTTPStatus.BAD_REQUEST, *not_found),
            needs_project=True,
        ),
        Endpoint("get", "/metrics", "Prometheus metrics", None),
        Endpoint("get", "/openapi.json", "This description", messages.Description),
    )


def describe() -> dict[str, Any]:
    """Return the description, as JSON."""
    described = endpoints()
    models: dict[tuple[type[BaseModel], Literal["validation", "serialization"]], None] = {
        (messages.Problem, "serialization"): None
    }
    for each in described:
        if each.body is not None:
            models[each.body, "validation"] = None
        if each.answer is not None:
            models[each.answer, "serialization"] = None
    references, schemas = models_json_schema([*models], ref_template=_SCHEMAS + "{model}")
    of_model = {model: schema for (model, _), schema in references.items()}
    paths: dict[str, Any] = {}
    for each in described:
        paths.setdefault(each.path, {})[each.method] = _operation(each, of_model)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "label-studio-clip-backend",
            "version": __version__,
            "description": "A machine-learning backend for Label Studio. Each error is a sentence "
            "in JSON, and in the reason phrase of the status line.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "password": {"type": "http", "scheme": "basic"},
                "secret": {"type": "apiKey", "in": "header", "name": SECRET_HEADER},
            },
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[Any, Any]) -> dict[str, Any]:
    is_open = endpoint.path in OPEN_PATHS
    answer: dict[str, Any] = (
        {"text/plain": {"schema": {"type": "string"}}}
        if endpoint.answer is None
        else {"application/json": {"schema": schemas[endpoint.answer]}}
    )
    errors = {
        *endpoint.errors,
        *(() if is_open else _ALWAYS),
        *(_OF_A_BODY if endpoint.body else ()),
    }
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.path.strip("/").partition(".")[0] or "root",
        "security": [] if is_open else _security(endpoint.path),
        "responses": {
            **{
                str(status.value): {"description": status.phrase, "content": answer}
                for status in endpoint.statuses
            },
            **{str(status.value): _error(status, schemas) for status in sorted(errors)},
        },
    }
    if endpoint.body is not None:
        content = {"application/json": {"schema": schemas[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.needs_project:
        project = messages.ProjectRequest.model_json_schema()["properties"]["project"]
        operation["parameters"] = [
            {"name": "project", "in": "query", "required": True, "schema": project}
        ]
    return operation


def _security(path: str) -> list[dict[str, list[str]]]:
    # An installation without credentials asks for none.
    asked: list[dict[str, list[str]]] = [{}, {"password": []}]
    return [*asked, {"secret": []}] if path == WEBHOOK_PATH else asked


def _error(status: HTTPStatus, schemas: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": status.phrase,
        "content": {"application/json": {"schema": schemas[messages.Problem]}},
    }
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        described["headers"] = {
            "Retry-After": {
                "description": "Seconds to wait",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
            }
        }
    return described
