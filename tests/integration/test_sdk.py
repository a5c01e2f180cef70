"""`backend.sdk` in label-studio-ml 1.0.9, hosted as its users do: with its own `init_app`.

`make test` installs that release into `.label-studio-ml/` without its pins, beside current Flask.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from backend.jobs.queue import JobQueue
from backend.jobs.services import Services
from backend.store import Store
from backend.store.requests import Kind
from tests.integration.conftest import PATIENCE, StartApp, data_uri, free_port, wait_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

ROOT = Path(__file__).parents[2]
SDK = ROOT / ".label-studio-ml"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs sockets"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

COLOURS = ("red", "green", "blue", "navy")


@pytest.fixture
def host(
    database_url: str, label_studio: FakeLabelStudio, tmp_path: Path
) -> Iterator[httpx.Client]:
    assert SDK.is_dir(), f"{SDK} is not there: `make {SDK.name}/.installed`"
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SDK)]),
        "LABEL_STUDIO_ML_BACKEND_V2": "true",
        "DATABASE_URL": database_url,
        "CLIP_MODEL": "tiny",
        "DEVICE": "cpu",
        "PRECISION": "float32",
        "RETRAIN_DELAY": "0",
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
    }
    program = Path(__file__).with_name("label_studio_ml_host.py")
    said = tmp_path / "host.log"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), str(port), str(tmp_path / "models")],
            env=environment,
            stdout=output,
            stderr=output,
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:

        def is_up() -> bool:
            assert process.poll() is None, said.read_text()
            with suppress(httpx.TransportError):
                return client.get("/health").is_success
            return False

        try:
            wait_until(is_up, "label-studio-ml answers")
            yield client
        finally:
            process.terminate()
            process.wait()


def set_up(host: httpx.Client, label_studio: FakeLabelStudio) -> httpx.Response:
    return host.post(
        "/setup",
        json={
            "project": f"{PROJECT}.1718000000",
            "schema": CONFIG,
            "hostname": label_studio.url,
            "access_token": label_studio.token,
        },
    )


def predict_request(ids: list[int]) -> dict[str, Any]:
    return {
        "tasks": [
            {"id": task_id, "project": PROJECT, "data": {"image": data_uri(colour)}}
            for task_id, colour in zip(ids, COLOURS, strict=True)
        ],
        "project": f"{PROJECT}.1718000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }


def is_wanted(store: Store) -> bool:
    return bool(store.requests.waiting(PROJECT, (Kind.TRAIN,)))


def do_what_is_queued(store: Store, redis_url: str) -> list[str]:
    """Queue what is due and do it, as a worker does; return the jobs."""
    with closing(JobQueue(redis_url)) as queue:
        for request in store.requests.due():
            queue.enqueue(request)
        jobs = [job_id for each in queue.queues.values() for job_id in each.job_ids]
        worker = SimpleWorker(
            [queue.queues[kind] for kind in Kind],
            connection=queue.connection,
            serializer=JSONSerializer,
        )
        worker.work(burst=True)
    return jobs


def test_it_answers_as_our_own_api_does(
    host: httpx.Client,
    label_studio: FakeLabelStudio,
    services: Services,
    start_app: StartApp,
) -> None:
    ids = label_studio.add_tasks(*(data_uri(colour) for colour in COLOURS))

    health, told = host.get("/health"), set_up(host, label_studio)
    answer = host.post("/predict", json=predict_request(ids))
    ours = start_app().test_client().post("/predict", json=predict_request(ids))

    assert health.json()["status"] == "UP"
    assert told.status_code == 200
    assert answer.status_code == 200
    assert answer.json()["results"] == ours.json["results"]
    assert answer.json()["results"][0]["result"][0]["value"] == {"choices": ["red"]}


def test_a_task_that_fails_has_an_error_and_the_others_their_results(
    host: httpx.Client, label_studio: FakeLabelStudio, services: Services
) -> None:
    set_up(host, label_studio)
    request = predict_request([1, 2, 3, 4])
    request["tasks"][1]["data"] = {}

    results = host.post("/predict", json=request).json()["results"]

    assert ["result" in item for item in results] == [True, False, True, True]
    assert "error" in results[1]


def test_a_project_is_registered_by_its_first_prediction(
    host: httpx.Client, label_studio: FakeLabelStudio, store: Store
) -> None:
    set_up(host, label_studio)

    host.post("/predict", json=predict_request([1, 2, 3, 4]))

    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.label_config == CONFIG
    assert {item.request.kind for item in store.requests.waiting(PROJECT)} >= {
        Kind.TRAIN,
        Kind.SYNC,
    }


@pytest.mark.parametrize("by", ["webhook", "train"])
def test_fit_asks_a_worker_for_a_training_and_trains_nothing_itself(
    host: httpx.Client,
    label_studio: FakeLabelStudio,
    services: Services,
    store: Store,
    redis_url: str,
    by: str,
) -> None:
    ids = label_studio.add_tasks(*(data_uri(colour) for colour in COLOURS))
    set_up(host, label_studio)
    label_studio.annotate(ids[0], "red")
    label_studio.annotate(ids[1], "green")
    task = {"id": ids[1], "project": PROJECT, "annotations": [{"result": []}]}
    body: dict[str, Any]
    if by == "webhook":
        body = {
            "action": "ANNOTATION_CREATED",
            "project": {"id": PROJECT, "label_config": CONFIG},
            "task": task,
            "annotation": {"id": 1, "project": PROJECT},
        }
    else:
        body = {"annotations": [task], "project": f"{PROJECT}.1", "label_config": CONFIG}

    answer = host.post(f"/{by}", json=body)
    wait_until(lambda: is_wanted(store), "a training is asked for")

    assert answer.status_code == 201
    assert store.versions.names(PROJECT) == []
    asked = [path for _, path in label_studio.requests]
    assert asked == [], "only a worker reads annotations"

    assert f"train-{PROJECT}-0" in do_what_is_queued(store, redis_url)

    (version,) = store.versions.names(PROJECT)
    results = host.post("/predict", json=predict_request(ids)).json()["results"]
    assert {item["model_version"] for item in results} == {version}
