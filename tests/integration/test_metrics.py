"""What Prometheus is told, and at what cost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
import torch
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from backend.api.monitoring import MOST_CONTROLS
from backend.api.probe import Probe
from backend.errors import DatabaseError, ImageError, ImageFault, QueueError, SettingsError
from backend.instruments import Instruments
from backend.jobs.services import Services
from backend.jobs.worker import HANDLERS, perform
from backend.learning.head import Head
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.schema import requests
from backend.store.versions import ControlHead, Version
from tests.integration.conftest import PictureServer, StartApp, data_uri, wait_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

Samples = dict[tuple[str, ...], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(client: FlaskClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return samples_of(answer.get_data(as_text=True))


def of_process(services: Services) -> Samples:
    from prometheus_client import generate_latest

    return samples_of(generate_latest(services.instruments.registry).decode())


@pytest.fixture
def client(start_app: StartApp) -> FlaskClient:
    return start_app().test_client()


def version(project_id: int, report: dict[str, Any]) -> Version:
    heads = {
        name: ControlHead(("red", "green"), Head(torch.zeros(2, 4), torch.zeros(2), multiple=False))
        for name in report
    }
    return Version(project_id, 0, "f" * 64, "encoder", "margin", "confidence", heads, 3, report)


# The queue


def test_the_queue_is_told_by_kind_and_state_and_how_long_the_oldest_has_waited(
    client: FlaskClient, store: Store
) -> None:
    store.requests.add(Request(7, Kind.TRAIN))
    store.requests.add(Request(8, Kind.TRAIN), delay=100)
    store.requests.add(Request(7, Kind.EMBED, 1))
    store.requests.add(Request(7, Kind.EMBED, 2))
    with store.database.write() as connection:
        connection.execute(
            sa.update(requests).where(requests.c.part == 1).values(due_at=time.time() - 50)
        )

    with store.requests.claimed(Request(7, Kind.EMBED, 2)):
        found = scraped(client)

    assert found["clip_backend_waiting", "kind=train", "state=due"] == 1
    assert found["clip_backend_waiting", "kind=train", "state=scheduled"] == 1
    assert found["clip_backend_waiting", "kind=embed", "state=due"] == 1
    assert found["clip_backend_waiting", "kind=embed", "state=running"] == 1
    assert found["clip_backend_waiting", "kind=sweep", "state=due"] == 0
    assert 50 <= found["clip_backend_oldest_due_seconds", "kind=embed"] < 50 + 60
    assert found["clip_backend_oldest_due_seconds", "kind=refresh"] == 0


def test_a_request_that_fails_is_told_until_it_is_done(client: FlaskClient, store: Store) -> None:
    request = Request(7, Kind.TRAIN)
    store.requests.add(request)
    with pytest.raises(QueueError), store.requests.claimed(request):
        raise QueueError("on purpose")

    failing = scraped(client)["clip_backend_failing", "kind=train"]
    store.requests.add(request)

    assert failing == 1
    assert scraped(client)["clip_backend_failing", "kind=train"] == 0


# Projects


def test_a_projects_labels_accuracy_and_acceptance_are_told_by_control(
    client: FlaskClient, store: Store
) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    store.projects.update(7, watermark=[100, 40, "2026-01-01"])
    store.versions.publish(
        version(
            7,
            {
                "colour": {
                    "labels": 40,
                    "out_of_fold": {"top1": 0.9, "calibration_error": 0.05},
                    "pool_accuracy": {"value": 0.8},
                    "acceptance": {"shown": 20, "kept": 15, "until": 99},
                },
                'a "new"\nline': {"labels": 0},
            },
        )
    )

    found = scraped(client)

    def told(name: str) -> float:
        return found[name, "control=colour", "project=7"]

    assert told("clip_backend_labels") == 40
    assert told("clip_backend_accuracy_ratio") == 0.9
    assert told("clip_backend_pool_accuracy_ratio") == 0.8
    assert told("clip_backend_calibration_error_ratio") == 0.05
    assert told("clip_backend_shown_predictions") == 20
    assert told("clip_backend_kept_predictions") == 15
    assert told("clip_backend_acceptance_ratio") == 0.75
    assert found["clip_backend_labels", 'control=a "new"\nline', "project=7"] == 0
    assert ("clip_backend_accuracy_ratio", 'control=a "new"\nline', "project=7") not in found
    assert found["clip_backend_tasks", "project=7"] == 100
    assert found["clip_backend_annotated_tasks", "project=7"] == 3
    assert found["clip_backend_model_version", "project=7"] == 1


def test_a_disconnected_project_is_not_told_of(client: FlaskClient, store: Store) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    store.versions.publish(version(7, {"colour": {"labels": 1}}))
    store.projects.update(7, connected=False)

    found = scraped(client)

    assert found["clip_backend_projects",] == 0
    assert not [key for key in found if "project=7" in key]


def test_however_many_controls_there_are_the_number_of_series_is_bounded(
    client: FlaskClient, store: Store
) -> None:
    store.projects.set_up(7, label_config=CONFIG)
    report = {f"{'x' * 200}{number}": {"labels": 1} for number in range(10)}
    report |= {f"control-{number}": {"labels": 1} for number in range(MOST_CONTROLS)}
    store.versions.publish(version(7, report))

    labels = [key for key in scraped(client) if key[0] == "clip_backend_labels"]

    assert len(labels) <= MOST_CONTROLS
    assert max(len(part) for key in labels for part in key) < 120


# Workers


def measured(services: Services, label_studio: FakeLabelStudio, *images: str) -> Samples:
    label_studio.add_tasks(*images)
    for kind in (Kind.SYNC, Kind.EMBED, Kind.TRAIN):
        services.store.requests.add(Request(PROJECT, kind))
        perform(PROJECT, kind.value, 0)
    return of_process(services)


@pytest.fixture
def measuring(services: Services) -> Services:
    """Services whose predictor and jobs share their instruments, as a worker's do."""
    services.predictor.embedder._instruments = services.instruments
    return services


def test_a_worker_tells_of_jobs_batches_and_training(
    measuring: Services, label_studio: FakeLabelStudio
) -> None:
    found = measured(measuring, label_studio, data_uri("red"), data_uri("blue"))

    assert found["clip_backend_jobs_total", "kind=embed", "outcome=done"] == 1
    assert found["clip_backend_job_seconds_count", "kind=train"] == 1
    assert found["clip_backend_training_seconds_count",] == 1
    assert found["clip_backend_encoded_pictures_total",] == 2
    assert found["clip_backend_encode_batch_size_bucket", "le=2.0"] == 1
    assert found["clip_backend_encode_batch_size_sum",] == 2
    assert found["clip_backend_encode_batch_seconds_count",] == 1


def test_pictures_that_cannot_be_had_are_counted_by_reason(
    measuring: Services, label_studio: FakeLabelStudio, pictures: PictureServer
) -> None:
    found = measured(
        measuring,
        label_studio,
        f"{pictures.url}/missing",
        "http://127.0.0.1:9/closed.png",
        "http://192.0.2.1/not-allowed.png",
        "data:image/png;base64,bm8=",
    )

    reasons = {key[1]: n for key, n in found.items() if key[0] == "clip_backend_fetch_errors_total"}
    assert reasons == {
        "reason=missing": 1,
        "reason=unreachable": 1,
        "reason=host": 1,
        "reason=broken": 1,
    }


@pytest.mark.parametrize(
    ("error", "outcome"), [(QueueError("on purpose"), "failed"), (RuntimeError("a bug"), "crashed")]
)
def test_a_job_that_fails_is_counted_apart_from_one_that_crashes(
    services: Services, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    def handler(*_: object) -> None:
        raise error

    monkeypatch.setitem(HANDLERS, Kind.TRAIN, handler)
    services.store.requests.add(Request(PROJECT, Kind.TRAIN))
    with suppress(RuntimeError):
        perform(PROJECT, "train", 0)

    found = of_process(services)

    assert found["clip_backend_jobs_total", "kind=train", f"outcome={outcome}"] == 1


def test_a_worker_serves_its_metrics_on_a_port_of_its_own_until_it_stops() -> None:
    instruments = Instruments()
    instruments.describe("9.9.9", is_loaded=lambda: True)
    instruments.not_fetched(ImageError("on purpose", fault=ImageFault.TIMEOUT))
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
        with pytest.raises(SettingsError, match="METRICS_PORT"):
            instruments.serve("127.0.0.1", port)

    stop = instruments.serve("127.0.0.1", port)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = samples_of(answer.read().decode())
    stop()

    assert found["clip_backend_encoder_loaded",] == 1
    assert found["clip_backend_fetch_errors_total", "reason=timeout"] == 1
    assert any(key[0] == "clip_backend_build_info" and "version=9.9.9" in key for key in found)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


# What is away


def test_without_the_database_the_rest_is_told(client: FlaskClient, store: Store) -> None:
    up = scraped(client)["clip_backend_database_up",]
    client.get("/health")
    store.database.read = away  # type: ignore[method-assign]

    found = scraped(client)

    assert (up, found["clip_backend_database_up",]) == (1, 0)
    assert found["clip_backend_requests_total", "endpoint=/health", "status=200"] == 1
    assert not [key for key in found if key[0] == "clip_backend_waiting"]


def away() -> Any:
    raise DatabaseError("on purpose")


def test_workers_are_counted_and_redis_may_be_away(start_app: StartApp) -> None:
    alive: list[Callable[[], int]] = [lambda: 2]
    client = start_app(workers=lambda: alive[0]()).test_client()

    with_redis = scraped(client)
    alive[0] = redis_is_away
    without = scraped(client)

    assert (with_redis["clip_backend_redis_up",], with_redis["clip_backend_workers",]) == (1, 2)
    assert without["clip_backend_redis_up",] == 0
    assert ("clip_backend_workers",) not in without


def redis_is_away() -> int:
    raise QueueError("on purpose")


def test_a_server_that_hangs_keeps_nobody_waiting_and_is_asked_again_when_it_is_back(
    released: threading.Event,
) -> None:
    looks = []

    def look() -> int:
        looks.append(1)
        released.wait()
        return 5

    probe = Probe("a server", look, patience=0.01)

    assert probe.read() is None
    assert probe.read() is None
    assert looks == [1]
    released.set()
    wait_until(lambda: probe.read() == 5, "the server is asked again")


def test_a_bug_in_what_is_read_does_not_break_the_scrape(
    client: FlaskClient,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_limit: int) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(store.versions, "figures", broken)

    found = scraped(client)

    assert found["clip_backend_database_up",] == 0
    assert "cannot be read" in caplog.text


# Cost


def test_a_scrape_reads_neither_tasks_nor_pictures_nor_embeddings(
    client: FlaskClient, store: Store
) -> None:
    statements: list[str] = []
    sa.event.listen(
        store.database.engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_: statements.append(statement),
    )

    scraped(client)

    read = " ".join(statements)
    assert "FROM requests" in read
    assert "versions" in read
    for table in ("tasks ", "images", "embeddings", "heads"):
        assert table not in read
