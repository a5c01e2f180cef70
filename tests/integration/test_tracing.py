"""What OpenTelemetry's collector is sent: a span a request, a span a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from backend.telemetry import no_span, trace_jobs
from tests.integration.posted import Collector

SECRET = "planted-secret"

API = f"""
from backend.wsgi import create

client = create().test_client()
client.get("/health")
client.get("/report?project=9", headers={{"Authorization": "Basic {SECRET}"}})
"""

JOBS = f"""
from backend.logs import at_hand
from backend.telemetry import trace_jobs

span = trace_jobs("clip-backend-worker")
with at_hand(job="train-7-0"), span("job train"):
    pass
try:
    with at_hand(job="embed-7-1"), span("job embed"):
        raise ValueError("{SECRET}")
except ValueError:
    pass
"""


def exported(collector: Collector, tmp_path: Path, program: str, **more: str) -> list[tuple]:
    """Run a program that is traced; return (service, name, attributes, is an error) of spans."""
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "DATA_DIR": str(tmp_path),
        "CLIP_MODEL": "tiny",
        **more,
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert {*collector.paths} == {"/v1/traces"}
    assert not any(SECRET.encode() in body for body in collector.bodies)
    spans = []
    for body in collector.bodies:
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            told = {each.key: each.value.string_value for each in of_service.resource.attributes}
            for scope in of_service.scope_spans:
                for span in scope.spans:
                    attributes = {each.key: each.value.string_value for each in span.attributes}
                    spans.append(
                        (told["service.name"], span.name, attributes, span.status.code == 2)
                    )
    return spans


def test_each_request_is_a_span(collector: Collector, tmp_path: Path) -> None:
    spans = exported(collector, tmp_path, API)

    assert [(service, name) for service, name, *_ in spans] == [
        ("clip-backend-api", "GET /health"),
        ("clip-backend-api", "GET /report"),
    ]


def test_each_job_is_a_span_that_tells_which_and_whether_it_failed(
    collector: Collector, tmp_path: Path
) -> None:
    spans = exported(collector, tmp_path, JOBS)

    assert spans == [
        ("clip-backend-worker", "job train", {"clip_backend.job": "train-7-0"}, False),
        ("clip-backend-worker", "job embed", {"clip_backend.job": "embed-7-1"}, True),
    ]


def test_opentelemetrys_own_variables_count(collector: Collector, tmp_path: Path) -> None:
    spans = exported(collector, tmp_path, JOBS, OTEL_SERVICE_NAME="ours")

    assert {service for service, *_ in spans} == {"ours"}


def test_without_the_extra_nothing_is_traced_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backend.telemetry._is_installed", lambda module: False)

    assert trace_jobs("clip-backend-worker") is no_span
    assert "[otel]" in caplog.text
