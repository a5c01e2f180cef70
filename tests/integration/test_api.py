from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from backend import assembly
from backend.api import load
from backend.api.auth import SECRET_HEADER, digest
from backend.clip.encoder import Encoder
from backend.embedding import Embedder
from backend.errors import DatabaseError, EncoderError
from backend.labelstudio.config import parse_labeling_config
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Requests
from backend.store.versions import Version
from tests.integration.conftest import PictureServer, StartApp, data_uri, png
from tests.integration.fetching import Answer, Server, respond

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="red"/><Choice value="green"/><Choice value="blue"/>
  </Choices>
</View>
"""
NOTHING_FOR_US = '<View><Text name="t" value="$t"/><TextArea name="a" toName="t"/></View>'
PROJECT = "7.1718000000"
SECRET = "a-webhook-secret"


@pytest.fixture
def client(start_app: StartApp) -> FlaskClient:
    return start_app().test_client()


def task(task_id: int, image: object) -> dict[str, object]:
    return {"id": task_id, "data": {"image": image}, "annotations": [], "meta": {}}


def setup(client: FlaskClient, config: str = CONFIG, **body: Any) -> TestResponse:
    message = {"project": PROJECT, "schema": config, "hostname": "http://ls", "access_token": "t"}
    return client.post("/setup", json=message | body)


def predict(client: FlaskClient, tasks: list[Any], **body: Any) -> list[dict[str, Any]]:
    message = {"tasks": tasks, "project": PROJECT, "label_config": CONFIG, "params": {}}
    answer = client.post("/predict", json=message | body)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    results = answer.get_json()["results"]
    assert isinstance(results, list)
    return results


def webhook(client: FlaskClient, action: str, **options: Any) -> TestResponse:
    body = options.pop("body", {"project": {"id": 7, "label_config": CONFIG}})
    return client.post("/webhook", json={"action": action, **body}, **options)


def wanted(store: Store, project_id: int = 7) -> set[Kind]:
    return {waiting.request.kind for waiting in store.requests.waiting(project_id)}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def assert_alike(item: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two predictions differ at most by what a row's place in a product rounds to."""
    results = [nearly(region) for region in other["result"]]
    assert item == nearly(other) | {"result": results}


def nearly(scored: dict[str, Any]) -> dict[str, Any]:
    return scored | {"score": pytest.approx(scored["score"], abs=2e-6)}


def assert_refused(answer: TestResponse, status: int) -> str:
    """Check that an answer is a sentence in JSON, and return it."""
    text = answer.get_data(as_text=True)
    assert answer.status_code == status, text
    assert answer.mimetype == "application/json"
    assert "Traceback" not in text
    error = json.loads(text)["error"]
    assert isinstance(error, str)
    assert error
    return error


# Predictions


def test_each_task_gets_its_prediction_in_the_tasks_order(client: FlaskClient) -> None:
    colours = ["red", "green", "blue", "white", "black", "red"]
    tasks = [task(index, data_uri(colour)) for index, colour in enumerate(colours)]

    forwards = predict(client, tasks)
    backwards = predict(client, tasks[::-1])

    assert len(forwards) == len(colours)
    for item, same in zip(backwards, forwards[::-1], strict=True):
        assert_alike(item, same)
    assert_alike(forwards[0], forwards[5])
    assert len({json.dumps(item["result"]) for item in forwards}) > 1


def test_a_prediction_is_what_label_studio_s_editor_shows(client: FlaskClient) -> None:
    (item,) = predict(client, [task(1, data_uri("red"))])

    assert item.keys() == {"result", "score", "model_version"}
    assert 0 <= item["score"] <= 1
    (choice,) = item["result"]
    assert (choice["from_name"], choice["to_name"], choice["type"]) == (
        "colour",
        "image",
        "choices",
    )
    assert choice["value"]["choices"][0] in {"red", "green", "blue"}
    assert item["model_version"].startswith("clip-backend-")


def test_no_tasks_give_no_results(client: FlaskClient) -> None:
    assert predict(client, []) == []


def test_five_hundred_tasks_are_one_request(client: FlaskClient) -> None:
    colours = [(index % 50, 100, 200) for index in range(500)]

    tasks = [task(index, data_uri(colour)) for index, colour in enumerate(colours)]
    results = predict(client, tasks)

    assert len(results) == 500
    assert all("result" in item for item in results)
    assert [item["score"] for item in results[:50]] == [item["score"] for item in results[50:100]]


def test_a_task_or_picture_that_is_broken_costs_itself_alone(
    client: FlaskClient, pictures: PictureServer
) -> None:
    broken: list[Any] = [
        None,
        "task",
        7,
        [],
        {},
        {"id": 1},
        {"data": None},
        task(2, None),
        task(3, ""),
        task(4, 17),
        task(5, ["a", "b"]),
        task(6, {"url": "a"}),
        task(7, "not an address"),
        task(8, "http://["),
        task(9, "http://a\0b/"),
        task(10, "file:///etc/passwd"),
        task(11, "data:image/png;base64,AAAA"),
        task(12, "data:"),
        task(13, f"{pictures.url}/missing"),
        task(14, "/data/upload/1/a.png"),
        task(15, "s3://bucket/a.png"),
        {"id": 16, "data": {"other": "a"}},
        {"id": "x" * 100_000, "data": {"image": "data:x"}},
    ]
    good = [task(100, data_uri("red")), task(2**70, data_uri("blue"))]

    results = predict(client, [good[0], *broken, good[1]])

    assert len(results) == len(broken) + 2
    assert "result" in results[0]
    assert "result" in results[-1]
    for item, result in zip(broken, results[1:-1], strict=True):
        assert result.keys() == {"error"}, item
        assert result["error"], item


def test_a_task_without_an_id_is_predicted(client: FlaskClient) -> None:
    (item,) = predict(client, [{"data": {"image": data_uri("red")}}])

    assert "result" in item


def test_a_picture_is_fetched_and_encoded_once(
    client: FlaskClient, pictures: PictureServer, store: Store
) -> None:
    tasks = [task(1, f"{pictures.url}/red"), task(2, f"{pictures.url}/red?copy")]

    first = predict(client, [*tasks, tasks[0]])
    pictures.close()
    second = predict(client, [*tasks, tasks[0]])

    assert second == first
    assert all("result" in item for item in first)
    assert sorted(pictures.paths) == ["/red", "/red?copy"]
    assert store.embeddings.count() == 1


def test_several_controls_are_predicted_and_the_least_certain_gives_the_score(
    client: FlaskClient,
) -> None:
    second = '<Choices name="mood" toName="image"><Choice value="dark"/><Choice value="light"/>'
    both = CONFIG.replace("</View>", f"{second}</Choices></View>")
    only = both[: both.index('<Choices name="colour"')] + both[both.index('<Choices name="mood"') :]
    tasks = [task(1, data_uri("red")), task(2, data_uri("white"))]

    together = predict(client, tasks, label_config=both)
    colour = predict(client, tasks)
    mood = predict(client, tasks, label_config=only)

    assert [[each["from_name"] for each in item["result"]] for item in together] == [
        ["colour", "mood"]
    ] * 2
    for item, one, other in zip(together, colour, mood, strict=True):
        assert item["score"] == pytest.approx(min(one["score"], other["score"]), abs=2e-6)


def test_a_picture_field_may_be_missing_for_one_of_several_controls(client: FlaskClient) -> None:
    second = (
        '<Image name="back" value="$back"/><Choices name="mood" toName="back">'
        '<Choice value="dark"/><Choice value="light"/></Choices>'
    )
    both = CONFIG.replace("</View>", f"{second}</View>")

    (item,) = predict(client, [task(1, data_uri("red"))], label_config=both)

    assert "back" in item["error"]


def test_a_config_with_nothing_for_us_gives_errors_and_no_failure(client: FlaskClient) -> None:
    (item,) = predict(client, [task(1, data_uri("red"))], label_config=NOTHING_FOR_US)

    assert "nothing to predict" in item["error"]


def test_the_config_of_setup_is_used_where_the_request_has_none(client: FlaskClient) -> None:
    setup(client)

    (item,) = predict(client, [task(1, data_uri("red"))], label_config=None)

    assert "result" in item


def test_a_project_that_was_never_set_up_must_bring_its_config(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [task(1, data_uri("red"))], "project": PROJECT})

    assert "label_config" in assert_refused(answer, 400)


def test_the_published_version_predicts(
    client: FlaskClient, store: Store, encoder: Encoder
) -> None:
    setup(client)
    published = publish_zero_shot(store, encoder)

    (item,) = predict(client, [task(1, data_uri("red"))])

    assert item["model_version"] == published.name
    assert client.get("/versions").get_json() == {"versions": [published.name]}
    assert setup(client).get_json()["model_version"] == published.name


def test_the_report_tells_of_the_active_version(
    client: FlaskClient, store: Store, encoder: Encoder
) -> None:
    setup(client)
    before = client.get("/report?project=7").get_json()
    published = publish_zero_shot(store, encoder)
    store.versions.amend(published, {"colour": {"labels": 3}})

    after = client.get("/report?project=7").get_json()

    assert before == {"project": 7, "model_version": None, "pinned": False, "controls": {}}
    assert after == {
        "project": 7,
        "model_version": published.name,
        "pinned": False,
        "controls": {"colour": {"labels": 3}},
    }


@pytest.mark.parametrize(
    ("address", "status"),
    [("/report", 400), ("/report?project=x", 400), ("/report?project=8", 404)],
)
def test_a_report_needs_a_known_project(client: FlaskClient, address: str, status: int) -> None:
    setup(client)

    assert_refused(client.get(address), status)


def test_a_version_that_no_longer_fits_the_config_is_not_used(
    client: FlaskClient, store: Store, encoder: Encoder
) -> None:
    setup(client)
    published = publish_zero_shot(store, encoder)
    changed = CONFIG.replace('"blue"', '"purple"')

    (item,) = predict(client, [task(1, data_uri("red"))], label_config=changed)

    assert item["model_version"] != published.name
    assert "result" in item


def test_pictures_in_the_servers_own_network_are_not_fetched_unless_listed(
    start_app: StartApp, pictures: PictureServer
) -> None:
    private, listed = (
        start_app(image_hosts=hosts).test_client() for hosts in ("public", "public,127.0.0.1")
    )
    (refused,) = predict(private, [task(1, f"{pictures.url}/red")])
    (fetched,) = predict(listed, [task(2, f"{pictures.url}/blue")])

    assert "IMAGE_HOSTS" in refused["error"]
    assert "result" in fetched
    assert pictures.paths == ["/blue"]


def publish_zero_shot(store: Store, encoder: Encoder) -> Version:
    """Publish what `/predict` itself uses before a training."""
    settings = Settings.read()
    with assembly.image_fetcher(settings, None) as images:
        predictor = Predictor(
            Embedder(encoder, store.embeddings, images, assembly.image_limits(settings))
        )
        config = parse_labeling_config(CONFIG)
        return store.versions.publish(predictor.zero_shot(7, config, settings.learning))


@pytest.mark.parametrize("strategy", ["margin", "entropy", "least"])
def test_score_uncertainty_orders_the_other_way_round(start_app: StartApp, strategy: str) -> None:
    confident = start_app(query_strategy=strategy).test_client()
    uncertain = start_app(query_strategy=strategy, score="uncertainty").test_client()
    tasks = [task(index, data_uri((index * 20, 90, 255 - index * 20))) for index in range(12)]

    confidence = [item["score"] for item in predict(confident, tasks)]
    uncertainty = [item["score"] for item in predict(uncertain, tasks)]

    assert uncertainty == pytest.approx([1 - score for score in confidence], abs=2e-6)
    assert len(set(confidence)) > 1


# Setup


def test_setup_that_the_database_cuts_off_leaves_nothing_and_is_done_whole_the_next_time(
    client: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise DatabaseError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(Requests, "add_all", fail)
        body = {"project": PROJECT, "schema": CONFIG}
        assert_refused(client.post("/setup", json=body), 503)
        assert_refused(webhook(client, "ANNOTATION_CREATED"), 503)
    assert store.projects.get(7) is None

    setup(client)

    assert wanted(store) == {Kind.TRAIN, Kind.SYNC, Kind.RECONCILE}


def test_setup_again_changes_nothing_and_asks_for_nothing(
    client: FlaskClient, store: Store
) -> None:
    first = setup(client, extra_params={"query_strategy": "entropy"})
    assert wanted(store) == {Kind.TRAIN, Kind.SYNC, Kind.RECONCILE}
    store.requests.forget(7)

    second = setup(client, extra_params='{"query_strategy": "entropy"}')

    assert first.status_code == second.status_code == 200
    assert first.get_json() == second.get_json()
    assert first.get_json()["model_version"] == "clip-backend"
    assert wanted(store) == set()


@pytest.mark.parametrize(
    "change",
    [{"schema": CONFIG.replace("blue", "pink")}, {"extra_params": {"score": "uncertainty"}}],
)
def test_setup_with_a_change_asks_for_a_training(
    client: FlaskClient, store: Store, change: dict[str, Any]
) -> None:
    setup(client)
    store.requests.forget(7)

    setup(client, **change)

    assert Kind.TRAIN in wanted(store)


@pytest.mark.parametrize("config", ["", NOTHING_FOR_US])
def test_a_config_with_nothing_for_us_is_accepted_with_a_sentence(
    client: FlaskClient, config: str
) -> None:
    answer = setup(client, config)

    assert answer.status_code == 200
    assert "Nothing is predicted" in answer.get_json()["message"]


@pytest.mark.parametrize(
    "params", [{"querry": 1}, {"query_strategy": "best"}, "{", '{"score": 3}', {"prompts": [1]}]
)
def test_bad_extra_params_are_refused_in_the_status_line_that_label_studio_shows(
    client: FlaskClient, store: Store, params: object
) -> None:
    answer = setup(client, extra_params=params)

    error = assert_refused(answer, 400)
    assert error.startswith("extra params: ")
    assert answer.status.startswith("400 extra params: ")
    assert store.projects.get(7) is None


def test_a_reason_for_the_status_line_is_one_short_line_of_ascii(client: FlaskClient) -> None:
    answer = setup(client, extra_params={"é\r\nX-Injected: 1" + "x" * 1000: 1})

    assert_refused(answer, 400)
    assert answer.status.isascii()
    assert "\n" not in answer.status
    assert "X-Injected" not in answer.headers
    assert len(answer.status) < 400


@pytest.mark.parametrize(
    "config",
    ["<View>", "no xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>", "<View>\0</View>"],
)
def test_a_config_that_cannot_be_read_is_refused(client: FlaskClient, config: str) -> None:
    assert "labeling config" in assert_refused(setup(client, config), 400)


# Webhooks


@pytest.mark.parametrize(
    ("action", "kinds"),
    [
        ("ANNOTATION_CREATED", {Kind.TRAIN}),
        ("ANNOTATION_UPDATED", {Kind.TRAIN}),
        ("ANNOTATION_DELETED", {Kind.TRAIN}),
        ("ANNOTATIONS_CREATED", {Kind.TRAIN}),
        ("ANNOTATIONS_DELETED", {Kind.TRAIN}),
        ("START_TRAINING", {Kind.TRAIN}),
        ("TASKS_CREATED", {Kind.SYNC}),
        ("TASKS_DELETED", {Kind.SYNC, Kind.TRAIN}),
        ("PROJECT_DELETED", {Kind.RECONCILE}),
        ("PROJECT_UPDATED", set()),
        ("PROJECT_CREATED", set()),
        ("LABEL_LINK_CREATED", set()),
        ("SOMETHING_NEW", set()),
        ("", set()),
    ],
)
def test_an_action_asks_for_what_it_makes_necessary(
    client: FlaskClient, store: Store, action: str, kinds: set[Kind]
) -> None:
    setup(client)
    store.requests.forget(7)

    answer = webhook(client, action)

    assert answer.status_code == 201
    assert wanted(store) == kinds


def test_an_annotation_waits_for_the_next_and_the_button_does_not(
    start_app: StartApp, store: Store
) -> None:
    client = start_app(retrain_delay=600).test_client()
    setup(client)
    store.requests.forget(7)

    webhook(client, "ANNOTATION_CREATED")
    assert store.requests.due() == []

    webhook(client, "START_TRAINING")
    assert [request.kind for request in store.requests.due()] == [Kind.TRAIN]


def test_many_annotations_are_one_training(client: FlaskClient, store: Store) -> None:
    setup(client)
    store.requests.forget(7)

    for _ in range(20):
        webhook(client, "ANNOTATION_CREATED")

    assert len(store.requests.waiting(7)) == 1


def test_the_project_s_own_retrain_delay_counts(client: FlaskClient, store: Store) -> None:
    setup(client, extra_params={"retrain_delay": 0})
    store.requests.forget(7)

    webhook(client, "ANNOTATION_CREATED")

    assert [request.kind for request in store.requests.due()] == [Kind.TRAIN]


def test_a_changed_config_asks_for_a_training_and_a_look_at_the_tasks(
    client: FlaskClient, store: Store
) -> None:
    setup(client)
    store.requests.forget(7)

    webhook(
        client,
        "PROJECT_UPDATED",
        body={"project": {"id": 7, "label_config": CONFIG.replace("blue", "pink")}},
    )

    assert wanted(store) == {Kind.TRAIN, Kind.SYNC}


def test_a_webhook_of_a_project_that_the_database_lost_sets_it_up(
    client: FlaskClient, store: Store
) -> None:
    answer = webhook(client, "ANNOTATION_CREATED")

    project = store.projects.get(7)
    assert answer.status_code == 201
    assert project is not None
    assert project.label_config == CONFIG
    assert {Kind.TRAIN, Kind.SYNC, Kind.RECONCILE} <= wanted(store)


def test_a_disconnected_project_s_webhooks_are_ignored(client: FlaskClient, store: Store) -> None:
    setup(client)
    store.requests.forget(7)
    store.projects.update(7, connected=False)

    answer = webhook(client, "ANNOTATION_CREATED")

    project = store.projects.get(7)
    assert answer.status_code == 200
    assert wanted(store) == set()
    assert project is not None
    assert not project.connected


def test_a_webhook_that_came_is_remembered(client: FlaskClient, store: Store) -> None:
    setup(client)

    webhook(client, "PROJECT_UPDATED")

    project = store.projects.get(7)
    assert project is not None
    assert project.webhook_at is not None


# Who may ask


def methods(app: Flask) -> list[tuple[str, str]]:
    """Return each endpoint with one of its methods."""
    return [
        (rule.rule, "POST" if "POST" in (rule.methods or ()) else "GET")
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
    ]


def test_basic_auth_is_asked_of_everything_but_the_root_and_health(start_app: StartApp) -> None:
    app = start_app(basic_auth_user="me", basic_auth_pass="pass:word")
    client = app.test_client()
    wrong = [
        {},
        basic("me", "wrong"),
        basic("you", "pass:word"),
        basic("me", ""),
        basic("", "pass:word"),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer pass:word"},
        {"Authorization": "Token pass:word"},
        {"Authorization": "Digest username=me"},
    ]

    endpoints = methods(app)
    # Wrong credentials are counted by address.
    addresses = (f"192.0.2.{number}" for number in count(1))

    assert {"/predict", "/setup", "/webhook", "/metrics", "/versions"} <= {p for p, _ in endpoints}
    for path, method in endpoints:
        for headers in wrong:
            answer = client.open(
                path,
                method=method,
                json=minimal(path),
                headers=headers,
                environ_overrides={"REMOTE_ADDR": next(addresses)},
            )
            if path in ("/", "/health"):
                assert answer.status_code == 200
            else:
                assert_refused(answer, 401)
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        right = client.open(
            path, method=method, json=minimal(path), headers=basic("me", "pass:word")
        )
        if path == "/report":
            # It asks which project, and so has let us in.
            assert_refused(right, 400)
        else:
            assert right.status_code < 300, (path, right.get_data(as_text=True))


def minimal(path: str) -> dict[str, Any] | None:
    """Return a body that each endpoint takes, of project 7."""
    return {
        "/setup": {"project": "7", "schema": CONFIG},
        "/predict": {"tasks": [], "project": "7", "label_config": CONFIG},
        "/webhook": {"action": "START_TRAINING", "project": {"id": 7}},
        "/train": {"project": "7"},
        "/delete": {"project": "7"},
        "/validate": {"config": CONFIG},
        "/job_status": {"job": "train-7"},
        "/duplicate_model": {"project_src": "7", "project_dst": "8"},
    }.get(path)


@pytest.mark.parametrize("path", ["/static/x", "/no-such-page", "/Predict", "/health/"])
def test_paths_that_do_not_exist_ask_for_credentials_too(start_app: StartApp, path: str) -> None:
    client = start_app(basic_auth_user="me", basic_auth_pass="x").test_client()

    assert client.get(path).status_code == 401


def test_nothing_is_asked_where_no_credentials_are_set(client: FlaskClient) -> None:
    for path, method in methods(client.application):
        answer = client.open(path, method=method, json=minimal(path))
        # A report needs a project, whoever asks.
        expected = 400 if path == "/report" else 200
        assert expected <= answer.status_code < expected + 100, answer.get_data(as_text=True)


def test_a_webhook_with_the_secret_is_let_in_without_basic_auth(start_app: StartApp) -> None:
    client = start_app(
        basic_auth_user="me", basic_auth_pass="x", webhook_secret=SECRET
    ).test_client()

    right = webhook(client, "PROJECT_UPDATED", headers={SECRET_HEADER: SECRET})
    wrong = webhook(client, "PROJECT_UPDATED", headers={SECRET_HEADER: "other"})
    missing = webhook(client, "PROJECT_UPDATED")

    assert right.status_code == 201
    for refused in (wrong, missing):
        error = assert_refused(refused, 401)
        assert "clip-backend connect --project 7" in error
        assert SECRET not in error


def test_a_webhook_with_the_project_s_own_secret_is_let_in(
    start_app: StartApp, store: Store
) -> None:
    client = start_app(basic_auth_user="me", basic_auth_pass="x").test_client()
    for project_id in (7, 8):
        store.projects.set_up(project_id, label_config=CONFIG)
        store.projects.update(project_id, webhook_digest=digest(f"{SECRET}-{project_id}"))

    own = webhook(client, "START_TRAINING", headers={SECRET_HEADER: f"{SECRET}-7"})
    other_s = webhook(client, "START_TRAINING", headers={SECRET_HEADER: f"{SECRET}-8"})

    assert own.status_code == 201
    assert_refused(other_s, 401)


def test_a_refused_webhook_changes_nothing(start_app: StartApp, store: Store) -> None:
    client = start_app(webhook_secret=SECRET).test_client()
    store.projects.set_up(7, label_config=CONFIG)

    assert_refused(webhook(client, "ANNOTATION_CREATED"), 401)
    assert_refused(webhook(client, "ANNOTATION_CREATED", body={"project": {"id": 8}}), 401)

    project = store.projects.get(7)
    assert wanted(store) == set()
    assert store.projects.get(8) is None
    assert project is not None
    assert project.webhook_at is None


def test_an_unknown_project_without_a_digest_is_not_let_in_by_an_empty_secret(
    start_app: StartApp,
) -> None:
    client = start_app(basic_auth_user="me", basic_auth_pass="x").test_client()

    assert_refused(webhook(client, "START_TRAINING", headers={SECRET_HEADER: ""}), 401)


# Older flows


def test_training_is_asked_for_and_followed(client: FlaskClient, store: Store) -> None:
    setup(client)
    store.requests.forget(7)

    job = client.post("/train", json={"project": PROJECT}).get_json()["job"]
    queued = client.post("/job_status", json={"job": job}).get_json()
    store.requests.forget(7)
    finished = client.post("/job_status", json={"job": job}).get_json()

    assert queued["job_status"] == "queued"
    assert finished["job_status"] == "finished"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/train", {"project": "99"}),
        ("/delete", {"project": "99"}),
        ("/job_status", {"job": "train-99"}),
        ("/duplicate_model", {"project_src": "99", "project_dst": "8"}),
    ],
)
def test_an_unknown_project_is_not_found(
    client: FlaskClient, path: str, body: dict[str, Any]
) -> None:
    assert "project 99 is not known" in assert_refused(client.post(path, json=body), 404)


def test_a_deleted_project_is_disconnected(client: FlaskClient, store: Store) -> None:
    setup(client)

    client.post("/delete", json={"project": PROJECT})

    project = store.projects.get(7)
    assert project is not None
    assert not project.connected


def test_a_duplicated_project_takes_config_and_params_over(
    client: FlaskClient, store: Store
) -> None:
    setup(client, extra_params={"query_strategy": "entropy"})

    client.post("/duplicate_model", json={"project_src": PROJECT, "project_dst": "8.1"})

    copy = store.projects.get(8)
    assert copy is not None
    assert (copy.label_config, copy.extra_params) == (CONFIG, {"query_strategy": "entropy"})
    assert {Kind.TRAIN, Kind.SYNC, Kind.RECONCILE} <= wanted(store, 8)


def test_a_config_is_validated_with_a_sentence(client: FlaskClient) -> None:
    good = client.post("/validate", json={"config": CONFIG}).get_json()
    bad = client.post("/validate", json={"config": "<View>"})

    assert "Predicts" in good["message"]
    assert_refused(bad, 400)


# What cannot be understood

POSTS = ["/setup", "/predict", "/webhook", "/train", "/job_status", "/validate", "/delete"]


@pytest.mark.parametrize("path", [*POSTS, "/duplicate_model"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"3", b'"x"', b"{}", b"\xff\xfe", b"a=1&b=2"),
        b'{"project": NaN}',
        b'{"project": 1e999, "action": Infinity}',
        b'{"project": "\\ud800"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_message_is_refused(client: FlaskClient, path: str, body: bytes) -> None:
    assert_refused(client.post(path, data=body, content_type="application/json"), 400)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/setup", {"project": PROJECT, "schema": 3}),
        ("/setup", {"project": PROJECT, "schema": None}),
        ("/setup", {"project": "seven", "schema": CONFIG}),
        ("/setup", {"schema": CONFIG}),
        ("/setup", {"project": PROJECT, "schema": CONFIG, "extra_params": 3}),
        ("/predict", {"tasks": None, "label_config": CONFIG}),
        ("/predict", {"tasks": {"1": {}}, "label_config": CONFIG}),
        ("/predict", {"tasks": "all", "label_config": CONFIG}),
        ("/predict", {"tasks": [], "label_config": ["<View/>"]}),
        ("/predict", {"tasks": [], "label_config": "<View>"}),
        ("/predict", {"tasks": [], "label_config": CONFIG, "project": {"id": 7}}),
        ("/predict", {"tasks": [], "label_config": CONFIG, "project": True}),
        ("/webhook", {"project": {"id": 7}}),
        ("/webhook", {"action": 3, "project": {"id": 7}}),
        ("/webhook", {"action": None, "project": {"id": 7}}),
        ("/webhook", {"action": "ANNOTATION_CREATED"}),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": "seven"}}),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 2**31}}),
        ("/train", {"project": [7]}),
        ("/job_status", {"job": 7}),
        ("/job_status", {"job": "nonsense"}),
        ("/validate", {"config": None}),
        ("/duplicate_model", {"project_src": "7"}),
    ],
)
def test_a_message_of_wrong_types_or_with_fields_missing_is_refused(
    client: FlaskClient, path: str, body: dict[str, Any]
) -> None:
    assert_refused(client.post(path, json=body), 400)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_wrong_method_is_refused_with_the_right_ones(client: FlaskClient, method: str) -> None:
    for path, right in methods(client.application):
        if method != right:
            answer = client.open(path, method=method, data=b"{}")
            assert method in assert_refused(answer, 405)
            assert right in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/nothing", "/predict/", "/../etc/passwd", "/static/x", "/%00"])
def test_an_unknown_path_is_refused(client: FlaskClient, path: str) -> None:
    assert_refused(client.get(path), 404)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: FlaskClient) -> None:
    answer = client.post(
        "/predict",
        data=b"{}",
        environ_overrides={"CONTENT_LENGTH": str(load.LARGEST_BODY + 1)},
        content_type="application/json",
    )

    assert "larger than" in assert_refused(answer, 413)


def test_hostile_task_data_nested_deeply_costs_itself_alone(client: FlaskClient) -> None:
    nested: Any = "x"
    for _ in range(200):
        nested = {"image": nested}

    results = predict(client, [{"id": 1, "data": nested}, task(2, data_uri("red"))])

    assert results[0].keys() == {"error"}
    assert "result" in results[1]


# An encoder that cannot be had


# The bug of the second case goes on to the thread's own report.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [EncoderError("CLIP_PRETRAINED: no such file"), None])
def test_without_an_encoder_predictions_are_refused_with_a_sentence_and_the_rest_goes_on(
    start_app: StartApp, store: Store, error: EncoderError | None
) -> None:
    def load() -> Encoder:
        raise error or RuntimeError("a bug")

    client = start_app(load).test_client()

    answer = client.post("/predict", json={"tasks": [], "label_config": CONFIG})

    assert "CLIP" in assert_refused(answer, 503)
    assert answer.status.startswith("503 CLIP")
    assert client.get("/health").status_code == 200
    assert setup(client).status_code == 200
    assert webhook(client, "ANNOTATION_CREATED").status_code == 201
    assert client.get("/metrics").status_code == 200
    # A report that comes later would fail the test that is next.
    for thread in threading.enumerate():
        if thread.name == "load-encoder":
            thread.join()


def test_health_is_up_while_the_encoder_is_loaded(start_app: StartApp, encoder: Encoder) -> None:
    go_on = threading.Event()

    def load() -> Encoder:
        go_on.wait()
        return encoder

    client = start_app(load).test_client()

    loading = client.get("/health").get_json()
    go_on.set()
    (item,) = predict(client, [task(1, data_uri("red"))])
    ready = client.get("/").get_json()

    assert (loading["status"], loading["encoder"]) == ("UP", "loading")
    assert "result" in item
    assert (ready["status"], ready["encoder"]) == ("UP", "ready")


def test_a_bug_is_a_sentence_without_a_traceback(client: FlaskClient, store: Store) -> None:
    setup(client)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE projects SET extra_params = '{'")

    assert "see the log" in assert_refused(setup(client), 500)


# Metrics


def test_metrics_tell_of_requests_predictions_and_work(client: FlaskClient) -> None:
    setup(client)
    predict(client, [task(1, data_uri("red")), {}, task(2, data_uri("blue"))])
    client.get("/nothing")

    text = client.get("/metrics").get_data(as_text=True)

    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["clip_backend_predictions_total", "ok"] == 2
    assert samples["clip_backend_predictions_total", "error"] == 1
    assert samples["clip_backend_requests_total", "/setup", "200"] == 1
    assert samples["clip_backend_requests_total", "404", "none"] == 1
    assert samples["clip_backend_request_seconds_count", "/predict", "2xx"] == 1
    assert samples["clip_backend_encoder_loaded",] == 1
    assert samples["clip_backend_encoded_pictures_total",] == 2
    assert samples["clip_backend_waiting", "due", "train"] == 1
    assert samples["clip_backend_projects",] == 1


@pytest.mark.parametrize(
    ("answer", "pause"),
    [((503, b""), 30), ((404, b""), 600), ((418, b""), 600), ((200, b"no picture"), 3600)],
    ids=lambda value: str(value),
)
def test_a_picture_that_could_not_be_had_is_asked_for_again_in_time(
    client: FlaskClient,
    serve: Callable[[Answer], Server],
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, bytes],
    pause: float,
) -> None:
    answers = (
        [*3 * [answer], (200, png("red"))] if answer[0] == 503 else [answer, (200, png("red"))]
    )

    def answer_in_turn(request: BaseHTTPRequestHandler) -> None:
        status, body = answers.pop(0)
        respond(request, status, body=body)

    task = {"id": 1, "data": {"image": f"{serve(answer_in_turn).url}/picture"}}
    now = time.time()
    outcome = []
    for later in (0, pause - 1, pause + 1):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        outcome.append("error" in predict(client, [task])[0])

    assert outcome == [True, True, False]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/setup", {"project": "8.1", "schema": CONFIG}),
        ("/predict", {"tasks": [], "label_config": CONFIG}),
        ("/webhook", {"action": "START_TRAINING", "project": {"id": 8}}),
        ("/train", {"project": 7}),
        ("/delete", {"project": 7}),
        ("/duplicate_model", {"project_src": "7.1", "project_dst": "8.1"}),
    ],
)
def test_a_page_of_another_site_has_nothing_done(
    start_app: StartApp, store: Store, path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    client = start_app().test_client()
    store.projects.set_up(7, label_config=CONFIG)

    # As a form sends it, for which a browser asks nobody.
    answer = client.post(path, data=json.dumps(body), content_type="text/plain", headers=headers)

    assert_refused(answer, 403)
    assert wanted(store) == set()
    assert [(project.id, project.connected) for project in store.projects.all()] == [(7, True)]
