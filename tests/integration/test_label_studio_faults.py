"""What is left when Label Studio fails, hangs, refuses or changes while it is worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import tenacity

from backend.errors import DatabaseError, LabelStudioUnreachableError
from backend.jobs import refresh as refresh_module
from backend.jobs import train as train_module
from backend.jobs.services import Services, current_services
from backend.jobs.worker import perform
from backend.labelstudio import client as client_module
from backend.labelstudio.client import LabelStudio, RemoteProject
from backend.labelstudio.config import parse_labeling_config
from backend.prediction import Prediction
from backend.store import Store
from backend.store.projects import Projects
from backend.store.requests import NO_PROJECT, Kind, Request
from backend.store.schema import images, requests
from backend.store.tasks import Task
from tests.integration.conftest import data_uri, png, wait_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio, Odd
from tests.integration.fetching import Answer, Server, answering, respond

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not wait between two tries, but tell how long it would have been."""
    pauses: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


def work(store: Store, *, rounds: int = 50) -> None:
    """Compare, and do all that is wanted and comes of it, whatever fails on the way."""
    store.requests.add(Request(PROJECT, Kind.RECONCILE))
    urgency = list(Kind)
    for _ in range(rounds):
        due = store.requests.due()
        if not due:
            bring_forward(store)
            due = store.requests.due()
        if not due:
            return
        request = min(due, key=lambda each: urgency.index(each.kind))
        perform(request.project_id, request.kind.value, request.part)
    pytest.fail(f"never comes to rest: {store.requests.waiting(PROJECT)}")


def bring_forward(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(
            sa.update(requests)
            .where(
                requests.c.requested > requests.c.done,
                sa.or_(requests.c.kind != Kind.RECONCILE.value, requests.c.attempts > 0),
            )
            .values(due_at=0.0)
        )


def let_a_day_pass(store: Store) -> None:
    """Do the daily round, and leave the next one to another day."""
    store.requests.add(Request(NO_PROJECT, Kind.TIDY))
    perform(NO_PROJECT, Kind.TIDY.value, 0)
    store.requests.forget(NO_PROJECT)


def end_leases(store: Store, *kinds: Kind) -> None:
    """Let the leases of requests of some kinds end."""
    with store.database.write() as connection:
        connection.execute(
            sa.update(requests)
            .where(requests.c.kind.in_([kind.value for kind in kinds]))
            .values(lease_until=0.0)
        )


def assert_right(store: Store, label_studio: FakeLabelStudio) -> None:
    """Check that all is as a clean run leaves it."""
    version = store.versions.active(PROJECT)
    assert version is not None
    given = {
        key: task["annotations"] for key, task in label_studio.tasks.items() if task["annotations"]
    }
    open_tasks = label_studio.tasks.keys() - given.keys()
    labels = [each["result"][0]["value"]["choices"][0] for (each,) in given.values()]
    per_choice = version.report["colour"]["per_choice"]
    assert {name: count for name, count in per_choice.items() if count} == {
        name: labels.count(name) for name in labels
    }
    current = label_studio.predicted(version.name)
    assert {key: current[key] for key in open_tasks} == dict.fromkeys(open_tasks, 1)
    assert label_studio.project is not None
    assert label_studio.project["model_version"] == version.name
    assert {task.id: dict(task.data) for page in store.tasks.all(PROJECT) for task in page} == {
        key: task["data"] for key, task in label_studio.tasks.items()
    }
    assert [(item.request.kind, item.error) for item in store.requests.waiting(PROJECT)] == [
        (Kind.RECONCILE, None)
    ]


def assert_predicted_of_the_data(
    services: Services, store: Store, label_studio: FakeLabelStudio, *, within: float = 2e-6
) -> None:
    """Check that the current predictions are what their version makes of the tasks as they are.

    A score depends in its last digit on which tasks are predicted together.
    """
    version = store.versions.active(PROJECT)
    assert version is not None
    given = {
        each["task"]: each["result"]
        for each in label_studio.predictions.values()
        if each["model_version"] == version.name
    }
    tasks = [Task(key, label_studio.tasks[key]["data"]) for key in sorted(given)]
    for outcome in services.predictor.predict(tasks, parse_labeling_config(CONFIG), version):
        assert isinstance(outcome, Prediction)
        assert outcome.task_id is not None
        (expected,), (found,) = outcome.result, given[outcome.task_id]
        assert found == {**expected, "score": pytest.approx(expected["score"], abs=within)}


def shades(count: int, blue: int = 60) -> list[str]:
    return [data_uri((index * 255 // count, 60, blue)) for index in range(count)]


def settled(store: Store, label_studio: FakeLabelStudio) -> list[int]:
    """Have a project with two labels and everything done; return its tasks."""
    ids = label_studio.add_tasks(*shades(8))
    label_studio.annotate(ids[0], "blue")
    label_studio.annotate(ids[-1], "red")
    work(store)
    assert_right(store, label_studio)
    return ids


# Answers

ANSWERS: dict[str, Odd] = {
    "internal_error": (500, {}, b"<h1>Server Error (500)</h1>"),
    "busy": (503, {}, b""),
    "too_many_requests": (429, {"Retry-After": "7"}, b"{}"),
    "cut_off": (200, {"Content-Length": "1000"}, b'{"tasks": [{"id": 1, '),
    "not_json": (200, {}, b"<html>Welcome to our portal</html>"),
    "a_list": (200, {}, b"[]"),
    "an_empty_object": (200, {}, b"{}"),
    "null": (200, {}, b"null"),
    "words": (200, {}, b'"later"'),
    # What stands before Label Studio answers while that is down.
    "not_found": (404, {"Content-Type": "text/plain"}, b"404 page not found\n"),
    "not_found_in_json": (404, {}, b'{"detail": "Not Found"}'),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("times", [1, 5])
def test_odd_answers_to_each_kind_of_request_cost_time_alone(
    services: Services, store: Store, label_studio: FakeLabelStudio, name: str, times: int
) -> None:
    ids = label_studio.add_tasks(*shades(8))
    label_studio.annotate(ids[0], "blue")
    seen: list[tuple[str, str]] = []

    def instead(method: str, path: str) -> Odd | None:
        # To say that there are no ML backends is to disconnect the project.
        if (name, path) == ("a_list", "/api/ml"):
            return None
        seen.append((method, path))
        return ANSWERS[name] if seen.count((method, path)) <= times else None

    label_studio.instead = instead
    work(store)
    label_studio.annotate(ids[3], "red")
    work(store)

    label_studio.instead = lambda method, path: None
    work(store)
    assert_right(store, label_studio)


def test_a_pause_that_label_studio_asks_for_is_kept_up_to_a_bound(
    services: Services, store: Store, label_studio: FakeLabelStudio, pauses: list[float]
) -> None:
    asked = iter(["7", "86400", "Wed, 21 Oct 2026 07:28:00 GMT"])

    def instead(method: str, path: str) -> Odd | None:
        value = next(asked, None)
        return None if value is None else (429, {"Retry-After": value}, b"")

    label_studio.instead = instead
    services.label_studio.import_predictions(PROJECT, [])

    assert pauses[:2] == [7.0, 30.0]
    assert pauses[2] <= 5.0


def test_an_import_that_hangs_and_is_done_in_the_end_is_not_done_twice(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(8))
    label_studio.annotate(ids[0], "blue")
    goes_on, arrived = threading.Event(), []

    def instead(method: str, path: str) -> None:
        if path.endswith("/import/predictions"):
            arrived.append(path)
            goes_on.wait()

    label_studio.instead = instead
    impatient = LabelStudio(label_studio.url, label_studio.token, timeout=httpx.Timeout(0.5))
    with closing(impatient):
        current_services.set(replace(services, label_studio=impatient))
        store.requests.add_all([Request(PROJECT, kind) for kind in (Kind.TRAIN, Kind.SYNC)])
        while not arrived:
            for request in store.requests.due():
                perform(request.project_id, request.kind.value, request.part)
    goes_on.set()
    wait_until(lambda: label_studio.imports, "the import is done after all")

    current_services.set(services)
    work(store)

    assert len(arrived) == 1
    assert_right(store, label_studio)


def test_a_token_that_is_revoked_is_told_of_and_asks_no_more_than_a_job_once(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[3], "green")
    asked: list[str] = []

    def refuse(method: str, path: str) -> Odd | None:
        asked.append(path)
        return (401, {}, b'{"detail": "Invalid token."}') if len(asked) > 3 else None

    label_studio.instead = refuse
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    while due := store.requests.due():
        perform(PROJECT, due[0].kind.value, due[0].part)

    (failed,) = [item for item in store.requests.waiting(PROJECT) if item.error]
    assert "refuses the token" in (failed.error or "")
    assert "LABEL_STUDIO_API_KEY" in (failed.error or "")
    assert len(asked) == 4
    label_studio.instead = lambda method, path: None
    work(store)
    assert_right(store, label_studio)


@pytest.mark.parametrize("name", ["not_found", "not_found_in_json"])
def test_a_proxy_s_404_while_label_studio_is_down_does_not_forget_the_project(
    services: Services, store: Store, label_studio: FakeLabelStudio, name: str
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[3], "green")
    project, versions = store.projects.get(PROJECT), store.versions.names(PROJECT)

    label_studio.instead = lambda method, path: ANSWERS[name]
    store.requests.add_all([Request(PROJECT, kind) for kind in (Kind.TRAIN, Kind.RECONCILE)])
    for request in store.requests.due():
        perform(request.project_id, request.kind.value, request.part)

    assert store.projects.get(PROJECT) == project
    assert store.versions.names(PROJECT) == versions
    assert {item.request.kind for item in store.requests.waiting(PROJECT) if item.error} == {
        Kind.TRAIN,
        Kind.RECONCILE,
    }
    label_studio.instead = lambda method, path: None
    work(store)
    assert_right(store, label_studio)


def test_a_proxy_s_last_404_does_not_forget_a_project_of_a_label_studio_that_is_back(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    settled(store, label_studio)
    left = [ANSWERS["not_found_in_json"]]
    label_studio.instead = lambda method, path: left.pop() if left else None
    work(store)
    assert_right(store, label_studio)


@pytest.mark.parametrize(
    "odd",
    [
        ANSWERS["not_found"],
        ANSWERS["not_found_in_json"],
        (404, {}, b'{"detail": "Invalid page."}'),
        (200, {}, b'{"tasks": [], "total": 0}'),
    ],
)
@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_of_annotated_tasks_that_is_missing_costs_no_label(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    odd: Odd,
    page: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "ANNOTATED_PAGE", 4)
    ids = label_studio.add_tasks(*shades(12))
    for task_id in ids[:6]:
        label_studio.annotate(task_id, "blue")
    work(store)
    for task_id in ids[6:11]:
        label_studio.annotate(task_id, "red")
    lists = count(0)

    def instead(method: str, path: str) -> Odd | None:
        # The first list is of the task that was changed last.
        return odd if path == "/api/tasks" and next(lists) == page else None

    label_studio.instead = instead
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)
    label_studio.instead = lambda method, path: None
    work(store)

    assert_right(store, label_studio)
    label_studio.requests.clear()
    work(store)
    assert len([path for _, path in label_studio.requests if path == "/api/tasks"]) == 1


def test_tasks_that_are_deleted_between_two_pages_cost_no_other_s_label(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "ANNOTATED_PAGE", 4)
    ids = label_studio.add_tasks(*shades(12))
    for task_id in ids[:9]:
        label_studio.annotate(task_id, "blue")
    lists = count(0)

    def before(method: str, path: str) -> None:
        if path == "/api/tasks" and next(lists) == 2:
            label_studio.delete_task(ids[0])

    label_studio.before = before
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)
    work(store)

    assert_right(store, label_studio)


def test_a_counter_of_annotations_that_is_wrong_for_good_is_read_after_once_more(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = LabelStudio.project

    def miscounted(client: LabelStudio, project_id: int) -> RemoteProject:
        found = project(client, project_id)
        return replace(found, annotation_count=found.annotation_count + 1)

    monkeypatch.setattr(LabelStudio, "project", miscounted)
    settled(store, label_studio)
    work(store)
    label_studio.requests.clear()
    work(store)

    assert len([path for _, path in label_studio.requests if path == "/api/tasks"]) == 1


# Changes meanwhile


def once(condition: Callable[[str, str], bool], change: Callable[[], Any]) -> Any:
    """Return a hook that has something happen ahead of the first request of a kind."""
    left = [change]

    def before(method: str, path: str) -> None:
        if left and condition(method, path):
            left.pop()()

    return before


def test_a_config_that_changes_during_a_training_is_trained_on_next(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[3], "blue")
    assert label_studio.project is not None
    project = label_studio.project

    def change() -> None:
        project["label_config"] = CONFIG.replace('"green"', '"pink"')

    label_studio.before = once(lambda method, path: path == "/api/tasks", change)
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)
    trained_meanwhile = store.versions.active(PROJECT)
    work(store)

    version = store.versions.active(PROJECT)
    assert trained_meanwhile is not None
    assert trained_meanwhile.heads["colour"].values == ("red", "green", "blue")
    assert version is not None
    assert version.heads["colour"].values == ("red", "pink", "blue")
    assert_right(store, label_studio)


def test_a_project_that_is_forgotten_during_a_training_leaves_no_version(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[3], "green")

    def forget() -> None:
        # Another worker compares, just after the project was deleted.
        store.forget(PROJECT)

    label_studio.before = once(lambda method, path: path == "/api/tasks", forget)
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)

    assert store.projects.get(PROJECT) is None
    assert store.versions.names() == []
    assert store.requests.waiting(PROJECT) == []


def test_a_project_that_is_deleted_during_a_training_is_forgotten(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[3], "green")

    def delete() -> None:
        label_studio.project = None
        label_studio.tasks.clear()
        label_studio.predictions.clear()

    label_studio.before = once(lambda method, path: path == "/api/tasks", delete)
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)
    work(store)

    assert store.projects.get(PROJECT) is None
    assert store.versions.names() == []
    assert store.requests.waiting(PROJECT) == []


@pytest.mark.parametrize("added", [0, 2, 3])
def test_a_label_studio_from_an_older_copy_is_followed(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    added: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 0)
    ids = settled(store, label_studio)
    copy = label_studio.snapshot()
    label_studio.add_tasks(*shades(2, blue=200))
    label_studio.annotate(ids[2], "green")
    label_studio.annotate(ids[3], "green")
    work(store)
    assert_right(store, label_studio)

    label_studio.restore(copy)
    # They are given the ids of those that are gone.
    label_studio.add_tasks(*shades(added, blue=120) if added else ())
    work(store)

    assert_right(store, label_studio)


@pytest.mark.parametrize("added", [0, 2, 3])
def test_a_label_studio_from_an_older_copy_is_followed_after_a_training_too(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    added: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 0)
    ids = settled(store, label_studio)
    copy = label_studio.snapshot()
    label_studio.add_tasks(*shades(2, blue=200))
    work(store)

    label_studio.restore(copy)
    label_studio.add_tasks(*shades(added, blue=120) if added else ())
    label_studio.annotate(ids[2], "green")
    # Its webhook comes before the next comparison.
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)
    work(store)

    assert_right(store, label_studio)


@pytest.mark.parametrize("changed_again", [0, 1, 3])
def test_an_older_copy_is_known_also_after_people_have_gone_on_with_it(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    changed_again: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "PAGE", 3)
    ids = settled(store, label_studio)
    # The copy is kept before the next comparison: it holds a prediction of the data before.
    label_studio.change(ids[1], image=data_uri("teal"))
    copy = label_studio.snapshot()
    work(store)
    for changed in ids[2:6]:
        label_studio.change(changed, image=data_uri((0, 255, changed)))
        work(store)

    label_studio.restore(copy)
    for changed in reversed(ids[2:6][-changed_again:] if changed_again else []):
        label_studio.change(changed, image=data_uri((255, 0, changed)))
    label_studio.add_tasks(*shades(1, blue=200))
    work(store)

    assert_right(store, label_studio)
    assert_predicted_of_the_data(services, store, label_studio)


def test_of_a_task_that_takes_another_s_place_is_known(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    label_studio.delete_task(ids[3])
    label_studio.add_tasks(*shades(1, blue=200))

    work(store)

    assert_right(store, label_studio)


def test_a_task_that_gets_its_picture_later_is_predicted(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    settled(store, label_studio)
    (late,) = label_studio.add_tasks("none yet")
    label_studio.change(late, text="a picture follows")
    work(store)
    label_studio.change(late, text="a picture follows", image=data_uri("teal"))

    work(store)

    assert_right(store, label_studio)


@pytest.mark.parametrize("page", [4, 500])
def test_a_task_whose_data_change_is_predicted_anew(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    page: int,
) -> None:
    monkeypatch.setattr(client_module, "PAGE", page)
    ids = settled(store, label_studio)
    # Somebody else's predictions are nobody's to remove.
    label_studio.predict(ids[3], "another model")
    work(store)
    for changed in ids[1:7]:
        label_studio.change(changed, image=data_uri((0, 255, changed)))

    work(store)

    assert_right(store, label_studio)
    assert label_studio.predicted("another model") == {ids[3]: 1}
    assert_predicted_of_the_data(services, store, label_studio)


def test_a_task_whose_data_change_while_its_prediction_is_added_is_predicted_anew(
    services: Services, store: Store, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = settled(store, label_studio)
    real = LabelStudio.import_predictions
    left = [ids[3]]

    def import_predictions(client: LabelStudio, project_id: int, predictions: Any) -> None:
        if left:
            label_studio.change(left.pop(), image=data_uri("teal"))
            # Another worker sees it before this one's request comes to an end.
            store.requests.add(Request(PROJECT, Kind.SYNC))
            perform(PROJECT, Kind.SYNC.value, 0)
        real(client, project_id, predictions)

    monkeypatch.setattr(LabelStudio, "import_predictions", import_predictions)
    label_studio.annotate(ids[2], "green")
    work(store)

    assert_right(store, label_studio)
    assert_predicted_of_the_data(services, store, label_studio)


def test_an_import_that_comes_after_the_data_have_changed_is_not_taken_for_theirs(
    services: Services, store: Store, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = settled(store, label_studio)
    real = LabelStudio.import_predictions
    late: list[Any] = []

    def import_predictions(client: LabelStudio, project_id: int, predictions: Any) -> None:
        if not late:
            late.extend(predictions)
            raise LabelStudioUnreachableError("the time limit is over")
        real(client, project_id, predictions)

    with monkeypatch.context() as patched:
        patched.setattr(LabelStudio, "import_predictions", import_predictions)
        label_studio.annotate(ids[2], "green")
        store.requests.add(Request(PROJECT, Kind.TRAIN))
        for kind in (Kind.TRAIN, Kind.REFRESH):
            perform(PROJECT, kind.value, 0)
    assert [item["task"] for item in late].count(ids[3]) == 1
    label_studio.change(ids[3], image=data_uri("teal"))
    counts = LabelStudio.prediction_counts

    def prediction_counts(client: LabelStudio, project_id: int) -> dict[str, int]:
        # Nothing of the old data was there when it was looked for.
        if late and not store.tasks.outdated(PROJECT):
            real(client, project_id, late)
            late.clear()
        return counts(client, project_id)

    monkeypatch.setattr(LabelStudio, "prediction_counts", prediction_counts)
    work(store)

    assert_right(store, label_studio)
    assert_predicted_of_the_data(services, store, label_studio)


def test_a_worker_that_mirrors_old_lists_beside_another_is_corrected(
    services: Services, store: Store, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = settled(store, label_studio)
    client = services.label_studio
    old = list(client.tasks(PROJECT)), list(client.latest_tasks(PROJECT))
    label_studio.change(ids[3], image=data_uri("teal"))
    real = type(store.tasks).put

    def put(*args: Any, **given: Any) -> None:
        real(*args, **given)
        with monkeypatch.context() as patched:
            patched.setattr(type(store.tasks), "put", real)
            # Another worker listed all tasks before that, and writes them after this one.
            patched.setattr(LabelStudio, "tasks", lambda *_: iter(old[0]))
            patched.setattr(LabelStudio, "latest_tasks", lambda *_, **_given: iter(old[1]))
            store.requests.add(Request(PROJECT, Kind.SYNC))
            perform(PROJECT, Kind.SYNC.value, 0)

    with monkeypatch.context() as patched:
        patched.setattr(type(store.tasks), "put", put)
        store.requests.add(Request(PROJECT, Kind.RECONCILE))
        perform(PROJECT, Kind.RECONCILE.value, 0)
    work(store)

    assert_right(store, label_studio)


def test_a_task_whose_other_data_change_keeps_its_prediction(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    predictions = dict(label_studio.predictions)
    label_studio.change(ids[3], **label_studio.tasks[ids[3]]["data"], note="seen")

    work(store)

    assert_right(store, label_studio)
    assert label_studio.predictions == predictions


def test_what_changed_is_found_by_a_look_at_the_latest_alone(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "PAGE", 2)
    ids = settled(store, label_studio)
    label_studio.change(ids[3], image=data_uri("teal"))
    label_studio.requests.clear()

    store.requests.add(Request(PROJECT, Kind.RECONCILE))
    perform(PROJECT, Kind.RECONCILE.value, 0)

    # When the last change was, and what changed.
    assert label_studio.requests.count(("GET", "/api/tasks")) == 2
    (task,) = store.tasks.named(PROJECT, [ids[3]])
    assert task.data == label_studio.tasks[ids[3]]["data"]


def test_a_labelled_task_whose_picture_is_replaced_is_learnt_anew(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = settled(store, label_studio)
    before = store.versions.active(PROJECT)
    label_studio.change(ids[0], image=data_uri((9, 200, 30)))

    work(store)

    assert_right(store, label_studio)
    after = store.versions.active(PROJECT)
    assert before is not None
    assert after is not None
    assert after.number == before.number + 1
    label_studio.change(ids[0], **label_studio.tasks[ids[0]]["data"], note="seen")
    work(store)
    assert store.versions.names(PROJECT)[0] == after.name


def test_as_many_predictions_lost_as_doubled_are_found_once_a_day(
    services: Services, store: Store, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 0)
    ids = settled(store, label_studio)
    version = store.versions.active(PROJECT)
    assert version is not None
    (lost,) = [key for key, each in label_studio.predictions.items() if each["task"] == ids[2]]
    del label_studio.predictions[lost]
    label_studio.predict(ids[3], version.name)
    # Nor does Label Studio tell that these changed.
    label_studio.tasks[ids[4]]["data"] = {"image": data_uri("teal")}
    of_task = {each["task"]: each for each in label_studio.predictions.values()}
    of_task[ids[5]]["result"] = of_task[ids[1]]["result"]

    let_a_day_pass(store)
    work(store)

    assert_right(store, label_studio)
    assert_predicted_of_the_data(services, store, label_studio)


# Workers that are frozen, and go on


def frozen_after(
    monkeypatch: pytest.MonkeyPatch, listing: str, meanwhile: Callable[[], None]
) -> None:
    """Have something happen once between the answer to a listing and what is made of it."""
    real = getattr(LabelStudio, listing)
    left = [meanwhile]

    def frozen(client: LabelStudio, project_id: int) -> Any:
        for page in [*real(client, project_id)]:
            if left:
                left.pop()()
            yield page

    monkeypatch.setattr(LabelStudio, listing, frozen)


@pytest.mark.parametrize("listing", ["annotated_tasks", "tasks"])
def test_who_goes_on_after_its_lease_with_old_lists_opens_and_closes_no_task(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    listing: str,
) -> None:
    ids = settled(store, label_studio)
    kind = Kind.TRAIN if listing == "annotated_tasks" else Kind.SYNC

    def another_does_it() -> None:
        end_leases(store, kind)
        label_studio.unannotate(ids[0])
        store.requests.add_all([Request(PROJECT, Kind.TRAIN), Request(PROJECT, kind)])
        perform(PROJECT, Kind.TRAIN.value, 0)
        perform(PROJECT, Kind.SYNC.value, 0)

    frozen_after(monkeypatch, listing, another_does_it)
    store.requests.add(Request(PROJECT, kind))
    perform(PROJECT, kind.value, 0)

    assert store.tasks.states(PROJECT)[ids[0]]
    work(store)
    assert_right(store, label_studio)


def test_a_training_during_a_listing_of_tasks_has_the_last_word(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = settled(store, label_studio)

    def train() -> None:
        label_studio.unannotate(ids[0])
        store.requests.add(Request(PROJECT, Kind.TRAIN))
        perform(PROJECT, Kind.TRAIN.value, 0)

    frozen_after(monkeypatch, "tasks", train)
    store.requests.add(Request(PROJECT, Kind.SYNC))
    perform(PROJECT, Kind.SYNC.value, 0)
    work(store)

    assert_right(store, label_studio)


def test_a_training_that_another_has_overtaken_publishes_nothing(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = settled(store, label_studio)
    label_studio.annotate(ids[2], "green")
    real = train_module.confusions_to_bytes
    overtaken: list[list[str]] = []

    def frozen(confusions: Any) -> bytes:
        if not overtaken:
            overtaken.append([])
            end_leases(store, Kind.TRAIN)
            label_studio.annotate(ids[3], "green")
            store.requests.add(Request(PROJECT, Kind.TRAIN))
            perform(PROJECT, Kind.TRAIN.value, 0)
            overtaken[0] += store.versions.names(PROJECT)
        return real(confusions)

    monkeypatch.setattr(train_module, "confusions_to_bytes", frozen)
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    perform(PROJECT, Kind.TRAIN.value, 0)

    assert store.versions.names(PROJECT) == overtaken[0]
    work(store)
    assert_right(store, label_studio)


def test_a_version_and_what_it_was_read_from_are_written_together(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = settled(store, label_studio)
    before = store.versions.names(PROJECT)
    label_studio.annotate(ids[2], "green")
    real = Projects.update

    def cut_off(projects: Projects, project_id: int, **values: Any) -> None:
        if "watermark" in values:
            raise DatabaseError("The database cannot be used (server closed the connection)")
        real(projects, project_id, **values)

    with monkeypatch.context() as patched:
        patched.setattr(Projects, "update", cut_off)
        store.requests.add(Request(PROJECT, Kind.TRAIN))
        perform(PROJECT, Kind.TRAIN.value, 0)
    assert store.versions.names(PROJECT) == before

    work(store)
    assert_right(store, label_studio)


# Pictures


def let_pauses_of_pictures_end(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(sa.update(images).values(retry_at=0.0))


def test_a_label_whose_picture_is_away_for_a_moment_is_learnt_once_it_is_there(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    serve: Callable[[Answer], Server],
) -> None:
    is_up = threading.Event()
    host = serve(lambda each: respond(each, *((200, png("blue")) if is_up.is_set() else (503,))))
    settled(store, label_studio)
    (late,) = label_studio.add_tasks(f"{host.url}/late.png")
    label_studio.annotate(late, "blue")
    work(store)
    without = store.versions.active(PROJECT)
    tried = len(host.paths)
    is_up.set()
    work(store)
    assert len(host.paths) == tried

    let_pauses_of_pictures_end(store)
    work(store)

    assert without is not None
    assert without.report["colour"]["without_picture"] == 1
    assert_right(store, label_studio)


def test_a_label_whose_picture_never_comes_asks_for_no_training(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    serve: Callable[[Answer], Server],
) -> None:
    host = serve(answering(404))
    settled(store, label_studio)
    (broken,) = label_studio.add_tasks(f"{host.url}/broken.png")
    label_studio.annotate(broken, "blue")
    work(store)
    asked, tried = len(label_studio.requests), len(host.paths)
    let_pauses_of_pictures_end(store)
    work(store)
    work(store)

    assert len(host.paths) == tried + 1
    # What the training reads, above all.
    listings = [path for _, path in label_studio.requests[asked:] if path == "/api/tasks"]
    assert len(listings) == 2
