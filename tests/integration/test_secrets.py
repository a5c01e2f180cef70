"""No secret is told on: not in logs, answers, the database or Redis."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from werkzeug.test import TestResponse

from backend import assembly
from backend.api.auth import SECRET_HEADER
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.clip.encoder import Encoder
from backend.embedding import Embedder
from backend.jobs.queue import JobQueue
from backend.jobs.services import Services, current_services
from backend.jobs.worker import perform
from backend.labelstudio.client import LabelStudio
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from backend.store.schema import metadata
from tests.integration.conftest import PictureServer, data_uri
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

PASSWORD = "planted-password"
WEBHOOK_SECRET = "planted-webhook-secret"
API_KEY = "planted-api-key"
ACCESS_TOKEN = "planted-access-token"
URL_PASSWORD = "planted-url-password"
SIGNATURE = "planted-signature"
WRONG = "planted-wrong-guess"
PLANTED = (PASSWORD, WEBHOOK_SECRET, API_KEY, ACCESS_TOKEN, URL_PASSWORD, SIGNATURE, WRONG)


def test_planted_secrets_are_found_nowhere(
    store: Store,
    encoder: Encoder,
    label_studio: FakeLabelStudio,
    pictures: PictureServer,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="backend")
    label_studio.token = API_KEY
    images = addresses(pictures.url)
    ids = label_studio.add_tasks(*images)
    label_studio.annotate(ids[0], "red")
    settings = Settings.read(
        label_studio_url=label_studio.url,
        image_hosts="127.0.0.1",
        label_studio_api_key=API_KEY,
        basic_auth_user="me",
        basic_auth_pass=PASSWORD,
        webhook_secret=WEBHOOK_SECRET,
        image_timeout=5.0,
    )
    queue = JobQueue(redis_url)
    client = LabelStudio(*settings.label_studio())
    with assembly.image_fetcher(settings, client) as fetcher:
        answers = asked(settings, store, encoder, fetcher, images)
        queued = worked(settings, store, encoder, client, fetcher, queue)
    client.close()
    queue.close()

    found = {
        "log": caplog.text,
        "answers": "".join(f"{a.status}{a.headers}{a.get_data(as_text=True)}" for a in answers),
        "database": cells(store),
        "Redis": f"{queued} {held(redis_url)}",
        "Label Studio": repr(label_studio.predictions),
    }

    assert {
        where: [secret for secret in PLANTED if secret in text] for where, text in found.items()
    } == {where: [] for where in found}
    # What is searched is what was meant.
    assert "set up project=7" in found["log"]
    assert "webhook refused" in found["log"]
    assert "cannot be reached" in found["answers"]
    assert "train-7-0" in found["Redis"]
    assert label_studio.predictions


def addresses(url: str) -> list[str]:
    """Return pictures that can and cannot be had, under addresses with credentials."""
    host = url.removeprefix("http://")
    signed = f"X-Amz-Credential=me&X-Amz-Signature={SIGNATURE}"
    return [
        data_uri("red"),
        f"http://me:{URL_PASSWORD}@{host}/blue?{signed}",
        f"http://me:{URL_PASSWORD}@{host}/missing?{signed}",
        f"http://me:{URL_PASSWORD}@127.0.0.1:9/a.png?{signed}#{SIGNATURE}",
        f"http://me:{URL_PASSWORD}@[::1/a.png?{signed}",
        f"http://me:{URL_PASSWORD}/x@{host}/a.png",
        f"http://me:x//{URL_PASSWORD}@{host}/a.png",
        f"http://me:1/{URL_PASSWORD}@{host}/a.png",
        f"http:/me:{URL_PASSWORD}@{host}/a.png",
        f"http:me:{URL_PASSWORD}@{host}/a.png",
        f"http:\\\\me:{URL_PASSWORD}@{host}\\a.png",
        f"https:///me:{URL_PASSWORD}@{host}/a.png",
        f"me:{URL_PASSWORD}@{host}/a.png",
        f"s3:/me:{URL_PASSWORD}@bucket/a.png",
        f"azure-blob:me:{URL_PASSWORD}@bucket/a.png",
        f"/data/local-files/?d=a.png&token={SIGNATURE}",
        f"ftp://me:{URL_PASSWORD}@{host}/a.png?{signed}",
        f"//me:{URL_PASSWORD}@{host}/a.png?{signed}",
        f"/data/upload/1/missing.png?token={SIGNATURE}",
        f"s3://me:{URL_PASSWORD}@bucket/a.png?{signed}",
    ]


def asked(
    settings: Settings, store: Store, encoder: Encoder, fetcher: Any, images: list[str]
) -> list[TestResponse]:
    """Ask everything of the API, rightly and wrongly; return its answers."""
    background = BackgroundEncoder(lambda: encoder)
    limits = assembly.image_limits(settings)
    app = create_app(ApiServices(settings, store, background, fetcher, limits))
    background.start()
    client = app.test_client()
    right = {"auth": ("me", PASSWORD)}
    secret = {"headers": {SECRET_HEADER: WEBHOOK_SECRET}}
    setup = {"project": "7.1", "schema": CONFIG, "access_token": ACCESS_TOKEN, "hostname": "x"}
    tasks = [{"id": n, "data": {"image": image}} for n, image in enumerate(images, 1)]
    params = {"login": "me", "password": URL_PASSWORD}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": PROJECT}, "task": tasks[1]}
    return [
        client.post("/setup", json=setup, **right),
        client.post("/setup", json={**setup, "project": ACCESS_TOKEN}, **right),
        client.post("/setup", json={**setup, "extra_params": {"prompts": {"a": 1}}}, **right),
        client.post("/setup", json=setup, auth=("me", WRONG)),
        client.post("/setup", json=setup, headers={"Authorization": f"Bearer {WRONG}"}),
        client.post("/setup", data=f'{{"access_token": "{ACCESS_TOKEN}"', **right),
        client.post("/predict", json={"tasks": tasks, "project": "7", "params": params}, **right),
        client.post("/webhook", json=event, **secret),
        client.post("/webhook", json=event, headers={SECRET_HEADER: WRONG}),
        client.post("/webhook", json=event),
        client.post("/train", json={"project": 7}, **right),
        client.get("/report?project=7", **right),
        client.get("/versions", **right),
        client.get("/metrics", **right),
        client.get("/openapi.json", **right),
        client.get(f"/report?project={ACCESS_TOKEN}", **right),
    ]


def worked(
    settings: Settings,
    store: Store,
    encoder: Encoder,
    client: LabelStudio,
    fetcher: Any,
    queue: JobQueue,
) -> str:
    """Do what is wanted as a worker does, until nothing is; return all that Redis held."""
    predictor = Predictor(
        Embedder(encoder, store.embeddings, fetcher, assembly.image_limits(settings))
    )
    current_services.set(
        Services(store, client, predictor, settings.learning, 600.0, settings.keep_unused)
    )
    seen = ""
    for _ in range(10):
        for item in store.requests.waiting(PROJECT):
            queue.enqueue(item.request)
        seen += held(queue.connection)
        for item in store.requests.waiting(PROJECT):
            store.requests.add(item.request)
            perform(PROJECT, item.request.kind.value, item.request.part)
    return seen


def held(connection: redis.Redis | str) -> str:
    """Return every key of Redis and what it holds."""
    if isinstance(connection, str):
        with redis.Redis.from_url(connection) as opened:
            return held(opened)
    # DUMP tells all types, but may compress; a string or a hash is read as it is.
    read = {
        b"string": connection.get,
        b"hash": connection.hgetall,
        b"list": lambda key: connection.lrange(key, 0, -1),
        b"set": connection.smembers,
        b"zset": lambda key: connection.zrange(key, 0, -1),
    }
    return repr([(key, read[connection.type(key)](key)) for key in connection.scan_iter()])


def cells(store: Store) -> str:
    """Return every cell of the database but Label Studio's own tasks.

    Those hold the addresses of pictures as the user has written them, or nobody could fetch them.
    """
    shown = []
    with store.database.read() as connection:
        for table in metadata.tables.values():
            columns = [column for column in table.columns if str(column) != "tasks.data"]
            for row in connection.execute(sa.select(*columns)):
                shown += [
                    cell.decode("latin-1") if isinstance(cell, bytes) else str(cell) for cell in row
                ]
    return "\n".join(shown)
