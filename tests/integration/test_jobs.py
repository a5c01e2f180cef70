"""What the worker does with a project, against a Label Studio that is kept in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from backend import assembly
from backend.clip.encoder import Encoder
from backend.embedding import Embedder
from backend.jobs import refresh as refresh_module
from backend.jobs import worker as worker_module
from backend.jobs.queue import JobQueue
from backend.jobs.services import Services, current_services
from backend.jobs.worker import perform
from backend.labelstudio import client as client_module
from backend.labelstudio import removal
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import parse_labeling_config
from backend.prediction import Predictor
from backend.settings import QueryStrategy, Settings
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind, Request, Waiting
from backend.store.schema import requests
from backend.store.tasks import Task
from backend.store.versions import Version
from tests.integration.conftest import PictureServer, data_uri, work_until
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MULTIPLE = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image" choice="multiple">
    <Choice value="Red" alias="r" predicted_values="crimson, scarlet"/>
    <Choice value="Green" alias="g"/>
    <Choice value="Blue" alias="b"/>
  </Choices>
</View>
"""

TWO = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="red"/><Choice value="blue"/>
  </Choices>
  <Choices name="mood" toName="image" choice="multiple">
    <Choice value="warm"/><Choice value="cold"/>
  </Choices>
</View>
"""

MakeServices = Callable[..., Services]


@pytest.fixture
def make_services(
    store: Store, encoder: Encoder, label_studio: FakeLabelStudio
) -> Iterator[MakeServices]:
    closing: list[Callable[[], None]] = []

    def make(**values: object) -> Services:
        settings = Settings.read(
            label_studio_url=label_studio.url,
            label_studio_api_key=label_studio.token,
            image_hosts="127.0.0.1",
            **values,
        )
        client = LabelStudio(*settings.label_studio())
        images = assembly.image_fetcher(settings, client)
        closing.extend((client.close, images.close))
        predictor = Predictor(
            Embedder(encoder, store.embeddings, images, assembly.image_limits(settings))
        )
        services = Services(
            store, client, predictor, settings.learning, 600.0, settings.keep_unused
        )
        current_services.set(services)
        return services

    yield make
    for close in reversed(closing):
        close()


@pytest.fixture
def services(make_services: MakeServices, store: Store) -> Services:
    """Services, with the project set up as `/setup` does it."""
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})
    return make_services()


@pytest.fixture
def nothing_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no task spared because an annotator's page may show it."""
    monkeypatch.setattr(refresh_module, "HEAD", 0)


def do(store: Store, kind: Kind, part: int = 0) -> None:
    """Have one request done now, and nothing that it asks for."""
    request = Request(PROJECT, kind, part)
    store.requests.add(request)
    perform(PROJECT, kind.value, part)
    errors = [item.error for item in store.requests.waiting(PROJECT) if item.error]
    assert errors == []


def do_all(store: Store) -> None:
    """Have everything done that is wanted, whatever its delay, but the next comparison."""
    while waiting := [
        item for item in store.requests.waiting(PROJECT) if item.request.kind is not Kind.RECONCILE
    ]:
        for item in waiting:
            make_due(store, item.request)
            perform(PROJECT, item.request.kind.value, item.request.part)
        errors = [item.error for item in store.requests.waiting(PROJECT) if item.error]
        assert errors == []


def make_due(store: Store, request: Request) -> None:
    with store.database.write() as connection:
        connection.execute(
            sa.update(requests)
            .where(requests.c.kind == request.kind.value, requests.c.part == request.part)
            .values(due_at=time.time() - 1)
        )


def waiting(store: Store) -> set[Kind]:
    return {item.request.kind for item in store.requests.waiting(PROJECT)}


def failed(store: Store, kind: Kind) -> Waiting:
    (item,) = store.requests.waiting(PROJECT, [kind])
    assert item.error is not None
    return item


def predicted_and_settled(store: Store) -> Version:
    """Have everything trained, embedded, pushed; return the active version."""
    store.requests.add_all([Request(PROJECT, Kind.TRAIN), Request(PROJECT, Kind.SYNC)])
    do_all(store)
    return active(store)


def active(store: Store) -> Version:
    version = store.versions.active(PROJECT)
    assert version is not None
    return version


def project_of(store: Store) -> Project:
    project = store.projects.get(PROJECT)
    assert project is not None
    return project


def shades(count: int) -> list[str]:
    steps = [index * 255 // count for index in range(count)]
    return [data_uri((step, 60, 255 - step)) for step in steps]


# From connected to predicted


def test_a_new_project_ends_with_a_prediction_of_every_open_task(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(5))
    label_studio.annotate(ids[0], "red")

    version = predicted_and_settled(store)

    assert label_studio.predicted(version.name) == dict.fromkeys(ids[1:], 1)
    assert label_studio.predicted() == label_studio.predicted(version.name)
    assert label_studio.project is not None
    assert label_studio.project["model_version"] == version.name


def test_predictions_carry_what_label_studio_s_queue_and_editor_need(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    (task_id,) = label_studio.add_tasks(data_uri("red"))

    version = predicted_and_settled(store)

    ((item,),) = label_studio.imports
    assert item.keys() == {"task", "result", "score", "model_version"}
    assert item["task"] == task_id
    assert item["model_version"] == version.name
    assert 0 <= item["score"] <= 1
    assert item["result"][0]["value"]["choices"][0] in {"red", "green", "blue"}


def test_a_picture_that_cannot_be_had_costs_its_task_alone(
    services: Services, store: Store, label_studio: FakeLabelStudio, pictures: PictureServer
) -> None:
    good = label_studio.add_tasks(data_uri("red"), f"{pictures.url}/blue")
    label_studio.add_tasks(f"{pictures.url}/missing", "", "data:image/png;base64,AAAA")

    version = predicted_and_settled(store)

    assert label_studio.predicted(version.name).keys() == set(good)


def test_tasks_that_arrive_later_are_predicted_by_the_same_version(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(2))
    version = predicted_and_settled(store)

    (late,) = label_studio.add_tasks(data_uri("green"))
    store.requests.add(Request(PROJECT, Kind.SYNC))
    do_all(store)

    assert active(store).name == version.name
    assert label_studio.predicted(version.name)[late] == 1
    assert sum(label_studio.predicted().values()) == 3


def test_embedding_is_asked_for_in_chunks_and_only_of_what_is_missing(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(130))

    do(store, Kind.SYNC)
    chunks = store.requests.waiting(PROJECT, [Kind.EMBED])
    do_all(store)
    do(store, Kind.SYNC)

    assert len(chunks) == 3
    assert store.embeddings.count() == len(set(shades(130)))
    assert store.requests.waiting(PROJECT, [Kind.EMBED]) == []


# Training


def test_the_same_labels_are_published_once(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    first, second = label_studio.add_tasks(data_uri("red"), data_uri("blue"))
    label_studio.annotate(first, "red")
    label_studio.annotate(second, "blue")

    do(store, Kind.TRAIN)
    once = active(store)
    do(store, Kind.TRAIN)

    assert active(store).name == once.name
    assert store.versions.names(PROJECT) == [once.name]
    assert once.annotations == 2
    assert once.report["colour"]["labels"] == 2
    assert once.report["colour"]["per_choice"] == {"red": 1, "green": 0, "blue": 1}


def test_a_version_comes_with_what_is_known_of_it(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    reds = [data_uri((200 + 5 * n, 10, 10)) for n in range(8)]
    blues = [data_uri((10, 10, 200 + 5 * n)) for n in range(8)]
    ids = label_studio.add_tasks(*reds, *blues, *shades(20))
    for index, task_id in enumerate(ids[:16]):
        # One red is called blue.
        label_studio.annotate(task_id, "red" if 0 < index < 8 else "blue")
    predicted_and_settled(store)
    do(store, Kind.TRAIN)

    do_all(store)

    report = active(store).report["colour"]
    assert report["labels"] == report["out_of_fold"]["labels"] == 16
    assert report["out_of_fold"]["top1"] > 0.7
    assert report["out_of_fold"].keys() == {
        *("labels", "top1", "top5", "log_loss", "calibration_error"),
    }
    assert [suspect["task"] for suspect in report["suspects"]] == ids[:1]
    assert report["suspects"][0]["suggested"] == ["red"]


def test_the_report_looks_ahead_once_the_pool_is_embedded(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(20))
    predicted_and_settled(store)
    for index in (0, 1, 2):
        label_studio.annotate(ids[index], "blue")
    for index in (17, 18, 19):
        label_studio.annotate(ids[index], "red")

    do(store, Kind.TRAIN)

    report = active(store).report["colour"]
    accuracy, gain = report["pool_accuracy"], report["gain"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert gain["labels"] == 50
    assert 0 <= gain["low"] <= gain["value"] <= gain["high"] <= 1
    assert "50 labels" in report["advice"]


def test_a_second_annotator_who_agrees_is_counted_without_a_new_version(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    (task_id,) = label_studio.add_tasks(data_uri("red"))
    label_studio.annotate(task_id, "red")
    do(store, Kind.TRAIN)
    before = active(store)

    label_studio.annotate(task_id, "red")
    for annotator, annotation in enumerate(label_studio.tasks[task_id]["annotations"], start=1):
        annotation["completed_by"] = annotator
    do(store, Kind.TRAIN)

    assert active(store).name == before.name
    assert before.report["colour"]["agreement"]["annotators"] == []
    annotators = active(store).report["colour"]["agreement"]["annotators"]
    assert [(each["annotator"], each["agreement"]) for each in annotators] == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize("change", ["annotation", "config", "params"])
def test_what_changes_predictions_is_published_as_a_new_version(
    services: Services, store: Store, label_studio: FakeLabelStudio, change: str
) -> None:
    first, second = label_studio.add_tasks(data_uri("red"), data_uri("blue"))
    label_studio.annotate(first, "red")
    do(store, Kind.TRAIN)
    before = active(store)

    assert label_studio.project is not None
    if change == "annotation":
        label_studio.annotate(second, "blue")
    elif change == "config":
        label_studio.project["label_config"] = CONFIG.replace('"green"', '"pink"')
    else:
        store.projects.set_up(PROJECT, extra_params={"query_strategy": "entropy"})
    do(store, Kind.TRAIN)

    assert active(store).number == before.number + 1
    assert active(store).fingerprint != before.fingerprint


def test_labels_move_the_predictions_of_similar_pictures_towards_them(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    # Named the other way round: what is learnt comes from the labels, not from the names.
    reds = [data_uri((200 + 5 * n, 10, 10)) for n in range(10)]
    blues = [data_uri((10, 10, 200 + 5 * n)) for n in range(10)]
    ids = label_studio.add_tasks(*reds, *blues)
    do(store, Kind.TRAIN)
    before = active(store).heads["colour"].head
    for task_id in ids[:9]:
        label_studio.annotate(task_id, "blue")
    for task_id in ids[10:19]:
        label_studio.annotate(task_id, "red")

    do(store, Kind.TRAIN)

    after = active(store).heads["colour"].head
    (control,) = parse_labeling_config(CONFIG).controls
    held_out = [Task(1, {"image": reds[9]}), Task(2, {"image": blues[9]})]
    _, vectors = services.predictor.embedder.vectors_of(held_out, control)
    labels = [control.values.index("blue"), control.values.index("red")]
    before_for_labels = before.probabilities(vectors)[[0, 1], labels]
    after_for_labels = after.probabilities(vectors)[[0, 1], labels]
    assert after_for_labels.log().sum() > before_for_labels.log().sum() + 0.1


def test_fewer_labels_than_min_annotations_leave_the_head_zero_shot(
    make_services: MakeServices, store: Store, label_studio: FakeLabelStudio
) -> None:
    store.projects.set_up(PROJECT, label_config=CONFIG)
    make_services(min_annotations=3)
    ids = label_studio.add_tasks(data_uri("red"), data_uri("blue"), data_uri("green"))
    do(store, Kind.TRAIN)
    zero_shot = active(store).heads["colour"].head

    label_studio.annotate(ids[0], "blue")
    label_studio.annotate(ids[1], "red")
    do(store, Kind.TRAIN)
    two = active(store).heads["colour"].head
    label_studio.annotate(ids[2], "green")
    do(store, Kind.TRAIN)
    three = active(store).heads["colour"].head

    assert two.weights.equal(zero_shot.weights)
    assert not three.weights.equal(zero_shot.weights)


def test_multiple_choices_are_stored_by_alias_and_learnt_each_for_itself(
    make_services: MakeServices, store: Store, label_studio: FakeLabelStudio
) -> None:
    assert label_studio.project is not None
    label_studio.project["label_config"] = MULTIPLE
    store.projects.set_up(PROJECT, label_config=MULTIPLE)
    make_services()
    ids = label_studio.add_tasks(*shades(4))
    label_studio.annotate(ids[0], "b", "g")
    label_studio.annotate(ids[1])
    label_studio.annotate(ids[2], "r")

    version = predicted_and_settled(store)

    assert version.heads["colour"].values == ("r", "g", "b")
    assert version.heads["colour"].head.multiple
    assert version.report["colour"]["per_choice"] == {"r": 1, "g": 1, "b": 1}
    ((item,),) = label_studio.imports
    assert item["task"] == ids[3]
    assert all(
        set(result["value"]["choices"]) <= {"r", "g", "b"} and result["value"]["choices"]
        for result in item["result"]
    )


def test_ties_unknown_choices_and_missing_pictures_are_left_out_and_counted(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    tied, unknown, broken, good = label_studio.add_tasks(
        data_uri("red"), data_uri("blue"), "data:image/png;base64,AAAA", data_uri("green")
    )
    label_studio.annotate(tied, "red")
    label_studio.annotate(tied, "blue")
    label_studio.annotate(unknown, "mauve")
    label_studio.annotate(broken, "red")
    label_studio.annotate(good, "green")

    do(store, Kind.TRAIN)

    report = active(store).report["colour"]
    assert report["labels"] == 1
    assert (report["ties"], report["unknown_choices"], report["without_picture"]) == (1, 1, 1)


def test_a_task_that_was_only_skipped_is_predicted_and_not_counted(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    skipped, annotated = label_studio.add_tasks(*shades(2))
    label_studio.skip(skipped)
    label_studio.annotate(annotated, "red")

    version = predicted_and_settled(store)

    assert version.annotations == 1
    assert label_studio.predicted(version.name) == {skipped: 1}


def test_a_config_with_nothing_for_us_publishes_nothing(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    assert label_studio.project is not None
    label_studio.project["label_config"] = "<View/>"
    label_studio.add_tasks(data_uri("red"))

    do(store, Kind.TRAIN)
    do(store, Kind.SYNC)
    do_all(store)

    assert store.versions.active(PROJECT) is None
    assert label_studio.imports == []


def test_a_training_that_label_studio_refuses_is_kept_with_its_reason(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.token = "another"
    store.requests.add(Request(PROJECT, Kind.TRAIN))

    perform(PROJECT, "train", 0)

    assert "LABEL_STUDIO_API_KEY" in str(failed(store, Kind.TRAIN).error)


# Refreshing


@pytest.mark.parametrize("score", ["confidence", "uncertainty"])
def test_the_most_uncertain_are_pushed_first_and_in_chunks(
    make_services: MakeServices,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    score: str,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 4)
    monkeypatch.setattr(refresh_module, "AT_ONCE", 4)
    store.projects.set_up(PROJECT, label_config=CONFIG)
    make_services(score=score)
    label_studio.add_tasks(*shades(10))

    predicted_and_settled(store)

    assert [len(chunk) for chunk in label_studio.imports] == [4, 4, 2]
    scores = [item["score"] for chunk in label_studio.imports for item in chunk]
    assert scores == sorted(scores, reverse=score == "uncertainty")
    assert len(set(scores)) > 1


def test_where_imports_are_slow_the_head_is_added_alone_and_the_others_in_one_request(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 2)
    monkeypatch.setattr(refresh_module, "FIRST", 4)
    monkeypatch.setattr(refresh_module, "AT_ONCE", 4)
    monkeypatch.setattr(refresh_module, "SLOW", 0.0)
    ids = label_studio.add_tasks(*shades(12))
    old = predicted_and_settled(store)
    assert [len(chunk) for chunk in label_studio.imports] == [4, 4, 4]
    label_studio.imports.clear()
    at_the_switch = []

    def look(method: str, path: str) -> None:
        if method == "PATCH" and "/projects/" in path:
            at_the_switch.append(label_studio.predicted(active(store).name).total())

    label_studio.before = look
    new = store.versions.publish(replace(old, fingerprint="f" * 64))
    do(store, Kind.REFRESH)

    assert at_the_switch == [2]
    assert [len(chunk) for chunk in label_studio.imports] == [10]
    assert label_studio.predicted(new.name) == dict.fromkeys(ids, 1)


def served_colours(label_studio: FakeLabelStudio, ids: list[int], count: int) -> list[int]:
    """Return the groups of three that the first tasks of the queue belong to."""
    items = [item for chunk in label_studio.imports for item in chunk]
    items.sort(key=lambda item: item["score"])
    return [ids.index(item["task"]) // 3 for item in items[:count]]


def test_neighbours_in_the_queue_are_not_the_same_picture_again(
    make_services: MakeServices, store: Store, label_studio: FakeLabelStudio
) -> None:
    store.projects.set_up(PROJECT, label_config=CONFIG)
    pictures = [
        data_uri((shade + copy, 60, 255 - shade))
        for shade in range(0, 250, 50)
        for copy in range(3)
    ]
    ids = label_studio.add_tasks(*pictures)

    make_services(query_strategy="auto")
    version = predicted_and_settled(store)
    diverse = served_colours(label_studio, ids, 4)

    assert version.query_strategy == "auto"
    assert len(set(diverse)) == 4
    scores = sorted(item["score"] for chunk in label_studio.imports for item in chunk)
    assert len(set(scores)) == len(scores)
    assert 0 <= scores[0] < scores[-1] <= 1


@pytest.mark.parametrize("strategy", [each.value for each in QueryStrategy])
def test_every_strategy_orders_the_live_queue(
    make_services: MakeServices, store: Store, label_studio: FakeLabelStudio, strategy: str
) -> None:
    label_studio.project["label_config"] = TWO
    store.projects.set_up(PROJECT, label_config=TWO, extra_params={"query_strategy": strategy})
    make_services()
    ids = label_studio.add_tasks(*shades(8))
    for task_id, choice in ((ids[0], "blue"), (ids[7], "red")):
        label_studio.annotate(task_id, choice)

    version = predicted_and_settled(store)

    assert version.query_strategy == strategy
    assert label_studio.predicted(version.name) == dict.fromkeys(ids[1:7], 1)
    (chunk,) = label_studio.imports
    scores = [item["score"] for item in chunk]
    assert scores == sorted(scores)
    assert all(0 <= score <= 1 for score in scores)


def test_what_is_pushed_after_a_pause_goes_behind_the_head_of_the_queue(
    make_services: MakeServices, store: Store, label_studio: FakeLabelStudio
) -> None:
    store.projects.set_up(PROJECT, label_config=CONFIG)
    services = make_services()
    label_studio.add_tasks(*shades(30))
    version = predicted_and_settled(store)
    (first,) = label_studio.imports
    order = [item["task"] for item in first]
    for task_id in order[10:]:
        label_studio.predictions = {
            key: value
            for key, value in label_studio.predictions.items()
            if value["task"] != task_id
        }
    services.store.tasks.mark_unpredicted(PROJECT, order[10:])

    do(store, Kind.REFRESH)

    again = [item for chunk in label_studio.imports[1:] for item in chunk]
    assert {item["task"] for item in again} == set(order[10:])
    assert {item["task"]: item["score"] for item in first[10:]} == {
        item["task"]: item["score"] for item in again
    }
    assert version.name == active(store).name


def test_a_new_version_replaces_our_predictions_and_leaves_others_alone(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    first, second, third = label_studio.add_tasks(*shades(3))
    label_studio.predict(first, "somebody-elses-model")
    label_studio.predict(second, "clip-backend")
    old = predicted_and_settled(store)

    label_studio.annotate(first, "red")
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    do_all(store)

    new = active(store)
    assert new.name != old.name
    assert not label_studio.predicted(old.name)
    assert label_studio.predicted(new.name) == {second: 1, third: 1}
    assert label_studio.predicted("somebody-elses-model") == {first: 1}
    assert label_studio.predicted("clip-backend") == {second: 1}
    assert label_studio.project is not None
    assert label_studio.project["model_version"] == new.name


@pytest.mark.parametrize("refresh_is_asked_for", [True, False])
def test_a_sweep_before_the_refresh_of_a_new_version_leaves_nothing_for_good(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    nothing_shown: None,
    refresh_is_asked_for: bool,
) -> None:
    ids = label_studio.add_tasks(*shades(6))
    old = predicted_and_settled(store)

    new = store.versions.publish(replace(old, fingerprint="f" * 64))
    if refresh_is_asked_for:
        store.requests.add(Request(PROJECT, Kind.REFRESH))
    do(store, Kind.SWEEP)
    store.requests.add(Request(PROJECT, Kind.REFRESH))
    do_all(store)

    assert label_studio.predicted() == dict.fromkeys(ids, 1)
    assert label_studio.predicted(new.name) == dict.fromkeys(ids, 1)


def test_what_a_page_may_show_stays_so_that_its_annotation_is_taken(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 2)
    ids = label_studio.add_tasks(*shades(6))
    old = predicted_and_settled(store)
    before = {item["task"]: key for key, item in label_studio.predictions.items()}
    shown = sorted(ids, key=lambda task: label_studio.predictions[before[task]]["score"])[:2]

    new = store.versions.publish(replace(old, fingerprint="f" * 64))
    store.requests.add(Request(PROJECT, Kind.REFRESH))
    do_all(store)

    assert label_studio.predicted(new.name) == dict.fromkeys(ids, 1)
    assert label_studio.predicted(old.name) == dict.fromkeys(shown, 1)
    assert all(before[task] in label_studio.predictions for task in shown)
    do(store, Kind.RECONCILE)
    assert waiting(store) == {Kind.RECONCILE}

    # Another annotator may have been served it at the same time.
    label_studio.annotate(shown[0], "red")
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    do_all(store)

    assert before[shown[0]] in label_studio.predictions


def test_of_two_of_one_version_one_stays(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    first, *_ = ids = label_studio.add_tasks(*shades(3))
    version = predicted_and_settled(store)
    label_studio.predict(first, version.name)

    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.predicted() == dict.fromkeys(ids, 1)
    assert all(item["result"] for item in label_studio.predictions.values())


def test_two_of_one_version_that_a_page_may_show_stay_without_end(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    first, *_ = label_studio.add_tasks(*shades(3))
    version = predicted_and_settled(store)
    label_studio.predict(first, version.name)
    do(store, Kind.SWEEP)
    # A prediction changes its task, which is looked into once.
    do(store, Kind.RECONCILE)
    do_all(store)

    do(store, Kind.RECONCILE)

    assert label_studio.predicted()[first] == 2
    assert waiting(store) == {Kind.RECONCILE}


def test_the_queue_follows_as_soon_as_its_head_is_there(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = label_studio.add_tasks(*shades(6))
    old = predicted_and_settled(store)
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    scores = {item["task"]: item["score"] for item in label_studio.predictions.values()}
    head = sorted(ids, key=scores.__getitem__)[:2]
    new = store.versions.publish(replace(old, fingerprint="f" * 64))
    at_the_switch = []

    def look(method: str, path: str) -> None:
        if method == "PATCH" and "/projects/" in path:
            at_the_switch.append(
                (label_studio.predicted(old.name), label_studio.predicted(new.name))
            )

    label_studio.before = look
    store.requests.add(Request(PROJECT, Kind.REFRESH))
    do_all(store)

    assert at_the_switch == [(dict.fromkeys(ids, 1), dict.fromkeys(head, 1))]


def test_a_refresh_of_what_is_already_there_pushes_nothing(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(3))
    predicted_and_settled(store)
    before = dict(label_studio.predictions)
    label_studio.requests.clear()

    do(store, Kind.REFRESH)

    assert label_studio.predictions == before
    assert {method for method, _ in label_studio.requests} == {"GET"}


def test_predictions_that_label_studio_asked_for_meanwhile_are_no_duplicates_in_the_end(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    ids = label_studio.add_tasks(*shades(4))

    def ask_for_two_meanwhile(method: str, path: str) -> None:
        if path.endswith("/import/predictions"):
            label_studio.before = lambda method, path: None
            for task_id in ids[:2]:
                label_studio.predict(task_id, active(store).name)

    label_studio.before = ask_for_two_meanwhile

    version = predicted_and_settled(store)

    assert label_studio.predicted(version.name) == dict.fromkeys(ids, 1)
    assert store.tasks.predicted(PROJECT, version.name) == set(ids)


def test_predictions_that_somebody_deleted_are_pushed_again(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    version = predicted_and_settled(store)
    label_studio.predictions.popitem()

    store.requests.add(Request(PROJECT, Kind.REFRESH))
    do_all(store)

    assert label_studio.predicted(version.name) == dict.fromkeys(ids, 1)


def test_a_task_deleted_since_it_was_mirrored_does_not_stop_the_rest(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(4))
    gone = ids[1]

    def delete_before_the_import(method: str, path: str) -> None:
        if path.endswith("/import/predictions") and gone in label_studio.tasks:
            label_studio.delete_task(gone)

    label_studio.before = delete_before_the_import

    version = predicted_and_settled(store)

    assert label_studio.predicted(version.name) == dict.fromkeys(set(ids) - {gone}, 1)


def test_an_import_that_label_studio_always_refuses_is_kept_with_its_reason(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(2))
    do(store, Kind.TRAIN)
    do(store, Kind.SYNC)
    do(store, Kind.EMBED)

    hidden: dict[int, Any] = {}

    def hide_the_tasks_from_imports(method: str, path: str) -> None:
        label_studio.tasks.update(hidden)
        hidden.clear()
        if path.endswith("/import/predictions"):
            hidden.update(label_studio.tasks)
            label_studio.tasks.clear()

    label_studio.before = hide_the_tasks_from_imports
    store.requests.add(Request(PROJECT, Kind.REFRESH))
    perform(PROJECT, "refresh", 0)

    assert "unknown tasks" in str(failed(store, Kind.REFRESH).error)


def test_a_version_published_between_two_chunks_takes_over(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    monkeypatch.setattr(refresh_module, "AT_ONCE", 2)
    monkeypatch.setattr(refresh_module, "HEAD", 0)
    ids = label_studio.add_tasks(*shades(8))
    do(store, Kind.TRAIN)
    do(store, Kind.SYNC)
    do(store, Kind.EMBED)
    old = active(store)

    def publish_after_the_first_chunk(method: str, path: str) -> None:
        if method == "PATCH":
            label_studio.before = lambda method, path: None
            store.versions.publish(replace(old, fingerprint="f" * 64))

    label_studio.before = publish_after_the_first_chunk
    do_all(store)

    new = active(store)
    names = [chunk[0]["model_version"] for chunk in label_studio.imports]
    # The last one is what the sweep imports anew.
    assert names == [old.name] + [new.name] * 5
    assert label_studio.predicted() == dict.fromkeys(ids, 1)
    assert label_studio.predicted(new.name) == dict.fromkeys(ids, 1)


def test_a_project_disconnected_between_two_chunks_gets_no_more(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    label_studio.add_tasks(*shades(8))

    def disconnect(method: str, path: str) -> None:
        if path.endswith("/import/predictions"):
            store.projects.update(PROJECT, connected=False)

    label_studio.before = disconnect

    predicted_and_settled(store)

    assert [len(chunk) for chunk in label_studio.imports] == [2]


def test_a_disconnected_project_is_left_alone(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(2))
    store.projects.update(PROJECT, connected=False)

    for kind in set(Kind) - {Kind.TIDY}:  # which is no project's
        do(store, kind)

    assert label_studio.requests == []
    assert store.requests.waiting(PROJECT) == []


def test_while_another_training_is_waited_for_only_the_most_uncertain_are_pushed(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    ids = label_studio.add_tasks(*shades(6))
    do(store, Kind.TRAIN)
    do(store, Kind.SYNC)
    do(store, Kind.EMBED)
    store.requests.add(Request(PROJECT, Kind.TRAIN), delay=600)

    do(store, Kind.REFRESH)
    pushed = [len(chunk) for chunk in label_studio.imports]
    do_all(store)

    assert pushed == [2]
    assert label_studio.predicted(active(store).name) == dict.fromkeys(ids, 1)


# Sweeping


def annotated_under_an_old_version(
    store: Store, label_studio: FakeLabelStudio, tasks: int
) -> tuple[Version, list[int]]:
    """Leave tasks with predictions of an old version; the first is open, with a new one too."""
    ids = label_studio.add_tasks(*shades(tasks))
    old = predicted_and_settled(store)
    for task_id in ids[1:]:
        label_studio.annotate(task_id, "red")
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    do(store, Kind.TRAIN)
    do(store, Kind.REFRESH)
    assert label_studio.predicted(old.name) == dict.fromkeys(ids, 1)
    return active(store), ids


def test_superseded_predictions_are_removed(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    version, ids = annotated_under_an_old_version(store, label_studio, tasks=30)
    label_studio.predict(ids[1], "somebody-elses-model")

    do_all(store)

    assert label_studio.predicted(version.name) == {ids[0]: 1}
    assert label_studio.predicted() == {ids[0]: 1, ids[1]: 1}


def test_an_old_version_s_prediction_that_arrives_late_does_not_replace_the_active_one_s(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    ids = label_studio.add_tasks(*shades(2))
    old = predicted_and_settled(store)
    store.versions.publish(replace(old, fingerprint="f" * 64))
    do(store, Kind.REFRESH)
    label_studio.predict(ids[0], old.name)

    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.predicted() == dict.fromkeys(ids, 1)
    # Not the one above: a prediction changes its task, and a training finds other labels.
    assert label_studio.predicted() == label_studio.predicted(active(store).name)
    assert active(store).number > old.number


def test_tasks_are_known_to_be_shown_before_the_queue_serves_them(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    known: list[set[int]] = []

    def look(method: str, path: str) -> None:
        if method == "PATCH" and path == f"/api/projects/{PROJECT}":
            known.append(store.tasks.shown(PROJECT, len(ids)))

    label_studio.before = look
    predicted_and_settled(store)

    assert known[0] == {*ids}


def test_an_older_prediction_stays_where_there_is_no_newer_one(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    old = predicted_and_settled(store)
    store.versions.publish(replace(old, fingerprint="f" * 64))

    do(store, Kind.SWEEP)

    assert label_studio.predicted(old.name) == dict.fromkeys(ids, 1)


def test_sweeping_makes_way_for_what_is_more_urgent_and_goes_on_afterwards(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    nothing_shown: None,
) -> None:
    monkeypatch.setattr(removal, "PORTION", 2)
    version, ids = annotated_under_an_old_version(store, label_studio, tasks=6)
    assert label_studio.predicted().total() == len(ids) + 1
    store.requests.add(Request(8, Kind.TRAIN))

    do(store, Kind.SWEEP)
    meanwhile = label_studio.predicted()
    wanted = waiting(store)
    perform(8, "train", 0)
    do_all(store)

    assert meanwhile.total() == len(ids)
    assert Kind.SWEEP in wanted
    assert label_studio.predicted() == label_studio.predicted(version.name) == {ids[0]: 1}


def test_a_worker_that_is_stopped_leaves_outdated_predictions_to_the_next_one(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    nothing_shown: None,
) -> None:
    monkeypatch.setattr(refresh_module, "LISTED", 2)
    monkeypatch.setattr(refresh_module, "FIRST", 1)
    ids = label_studio.add_tasks(*shades(6))
    version = predicted_and_settled(store)
    for task_id, shade in zip(ids, reversed(shades(6)), strict=True):
        label_studio.change(task_id, image=shade)
    do(store, Kind.RECONCILE)
    outdated = dict(label_studio.predictions)
    services.stopping.set()

    do(store, Kind.REFRESH)
    left = outdated.keys() & label_studio.predictions.keys()
    wanted = waiting(store)
    services.stopping.clear()
    do_all(store)

    assert len(left) == 4
    assert Kind.REFRESH in wanted
    assert label_studio.predicted(version.name) == dict.fromkeys(ids, 1)
    assert not outdated.keys() & label_studio.predictions.keys()


def test_a_worker_that_is_stopped_lists_no_further_predictions(
    services: Services, store: Store, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE", 1)
    label_studio.add_tasks(*shades(3))
    predicted_and_settled(store)
    label_studio.requests.clear()

    def stop(method: str, path: str) -> None:
        services.stopping.set()

    label_studio.before = stop
    do(store, Kind.SWEEP)

    assert label_studio.requests == [("GET", "/api/tasks")]
    assert Kind.SWEEP in waiting(store)


def test_a_version_that_another_worker_pushes_during_a_sweep_keeps_its_predictions(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    old = predicted_and_settled(store)
    label_studio.predict(ids[0], "clip-backend-0-00000000")

    def push(_method: str, path: str) -> None:
        if path == "/api/tasks" and active(store).name == old.name:
            new = store.versions.publish(replace(old, fingerprint="f" * 64))
            label_studio.predict(ids[1], new.name)

    label_studio.before = push
    store.requests.add(Request(PROJECT, Kind.SWEEP))
    do(store, Kind.SWEEP)

    assert label_studio.predicted(active(store).name) == {ids[1]: 1}
    store.requests.add(Request(PROJECT, Kind.REFRESH))
    do_all(store)
    assert label_studio.predicted() == dict.fromkeys(ids, 1)
    assert label_studio.predicted() == label_studio.predicted(active(store).name)


def test_where_imports_are_slow_a_sweep_imports_what_stays_in_one_request(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
    nothing_shown: None,
) -> None:
    monkeypatch.setattr(removal, "PORTION", 4)
    ids = label_studio.add_tasks(*shades(10))
    old = predicted_and_settled(store)
    version = store.versions.publish(replace(old, fingerprint="f" * 64))
    do(store, Kind.REFRESH)
    label_studio.imports.clear()
    services.slow_imports.add(PROJECT)

    do(store, Kind.SWEEP)

    assert [len(chunk) for chunk in label_studio.imports] == [len(ids)]
    assert label_studio.predicted() == label_studio.predicted(version.name)
    assert label_studio.predicted() == dict.fromkeys(ids, 1)


def test_sweeping_comes_to_rest(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    annotated_under_an_old_version(store, label_studio, tasks=4)
    do_all(store)

    do(store, Kind.RECONCILE)

    assert waiting(store) == {Kind.RECONCILE}


def test_predictions_that_vanish_while_they_are_swept_do_no_harm(
    services: Services, store: Store, label_studio: FakeLabelStudio, nothing_shown: None
) -> None:
    version, ids = annotated_under_an_old_version(store, label_studio, tasks=5)
    gone = ids[1]
    label_studio.predict(gone, "somebody-elses-model")

    def delete_a_task(method: str, path: str) -> None:
        if method == "DELETE" and gone in label_studio.tasks:
            label_studio.delete_task(gone)

    label_studio.before = delete_a_task
    do_all(store)

    assert gone not in label_studio.tasks
    assert label_studio.predicted() == label_studio.predicted(version.name) == {ids[0]: 1}


# Reconciling


def settled(store: Store) -> Version:
    """Have everything done; a comparison then asks for nothing."""
    version = predicted_and_settled(store)
    do(store, Kind.RECONCILE)
    assert waiting(store) == {Kind.RECONCILE}
    return version


def test_a_comparison_that_finds_nothing_asks_for_the_next_one_alone(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    label_studio.annotate(ids[0], "red")

    settled(store)

    (item,) = store.requests.waiting(PROJECT)
    assert item.request.kind is Kind.RECONCILE
    assert item.due_at > time.time() + 60


def test_an_annotation_whose_webhook_was_lost_is_found(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    before = settled(store)
    label_studio.annotate(ids[0], "red")

    do(store, Kind.RECONCILE)
    do_all(store)

    assert active(store).number > before.number
    assert active(store).annotations == 1


def test_an_annotation_that_was_changed_without_a_webhook_is_found(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    label_studio.annotate(ids[0], "red")
    before = settled(store)
    label_studio.tasks[ids[0]]["annotations"].clear()
    label_studio.annotate(ids[0], "blue")

    do(store, Kind.RECONCILE)
    do_all(store)

    assert active(store).number > before.number
    assert active(store).report["colour"]["per_choice"]["blue"] == 1


def test_tasks_whose_webhook_was_lost_are_found(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    settled(store)
    label_studio.delete_task(ids[0])
    late = label_studio.add_tasks(data_uri("green"), data_uri("white"))

    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.predicted(active(store).name) == dict.fromkeys([*ids[1:], *late], 1)


def test_lost_predictions_are_found(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(3))
    version = settled(store)
    label_studio.predictions.clear()

    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.predicted(version.name) == dict.fromkeys(ids, 1)


def test_a_model_version_that_somebody_changed_is_set_again(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(3))
    version = settled(store)
    assert label_studio.project is not None
    label_studio.project["model_version"] = "CLIP"

    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.project["model_version"] == version.name


def test_a_labeling_config_that_changed_without_a_webhook_is_found(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(3))
    settled(store)
    assert label_studio.project is not None
    label_studio.project["label_config"] = CONFIG.replace('"green"', '"pink"')

    do(store, Kind.RECONCILE)
    do_all(store)

    assert active(store).heads["colour"].values == ("red", "pink", "blue")


def test_a_picture_that_can_be_had_again_is_predicted(
    services: Services, store: Store, label_studio: FakeLabelStudio, pictures: PictureServer
) -> None:
    (task_id,) = label_studio.add_tasks(f"{pictures.url}/missing")
    version = predicted_and_settled(store)
    assert label_studio.predicted() == {}

    # The picture is put right, and the time to try again has come.
    label_studio.tasks[task_id]["data"]["image"] = f"{pictures.url}/red"
    do(store, Kind.SYNC)
    do(store, Kind.RECONCILE)
    do_all(store)

    assert label_studio.predicted(version.name) == {task_id: 1}


def test_a_worker_asks_for_comparisons_that_were_cut_off(
    services: Services, store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEAT", 0.1)
    store.projects.forget(PROJECT)
    with closing(JobQueue(redis_url)) as queue:

        def is_compared() -> bool:
            # Not before the worker has looked, as it starts, at what there is.
            if queue.workers() and store.projects.get(PROJECT) is None:
                store.projects.set_up(PROJECT)
            return Kind.RECONCILE in waiting(store)

        work_until(services, queue, is_compared)


def test_a_project_whose_ml_backend_was_removed_is_disconnected(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(2))
    settled(store)
    label_studio.ml_backends.clear()
    store.requests.forget(PROJECT)

    do(store, Kind.RECONCILE)

    assert not project_of(store).connected
    assert waiting(store) == set()


def test_an_ml_backend_that_is_added_again_while_it_is_looked_for_stays_connected(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = list(label_studio.ml_backends)
    label_studio.ml_backends.clear()
    listed = LabelStudio.ml_backends

    def list_and_add(client: LabelStudio, project_id: int) -> list[dict[str, Any]]:
        found = listed(client, project_id)
        label_studio.ml_backends[:] = held
        # What /setup does, which Label Studio calls once it has added it.
        store.set_up(project_id, label_config=CONFIG, compare_in=60.0)
        return found

    monkeypatch.setattr(LabelStudio, "ml_backends", list_and_add)
    do(store, Kind.RECONCILE)

    assert project_of(store).connected
    assert Kind.RECONCILE in waiting(store)


def test_another_ml_backend_does_not_stand_for_ours(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    store.projects.update(PROJECT, connection={"backend_url": "http://ours:9090"})
    label_studio.ml_backends.append({"id": 2, "url": "http://ours:9090/"})
    do(store, Kind.RECONCILE)
    assert project_of(store).connected

    del label_studio.ml_backends[1]
    do(store, Kind.RECONCILE)

    assert not project_of(store).connected


@pytest.mark.parametrize("kind", [Kind.RECONCILE, Kind.TRAIN])
def test_a_project_that_label_studio_no_longer_has_is_forgotten(
    services: Services, store: Store, label_studio: FakeLabelStudio, kind: Kind
) -> None:
    label_studio.add_tasks(*shades(2))
    settled(store)
    label_studio.project = None

    do(store, kind)

    assert store.projects.get(PROJECT) is None
    assert store.versions.names(PROJECT) == []
    assert list(store.tasks.all(PROJECT)) == []
    assert store.requests.waiting(PROJECT) == []
