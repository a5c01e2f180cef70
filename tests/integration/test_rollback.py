"""Going back to an earlier version, while trainings and the queue go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from backend import versions
from backend.cli import app
from backend.errors import NotFoundError, SettingsError
from backend.jobs import refresh as refresh_module
from backend.jobs.queue import JobQueue, WorkerStatus
from backend.jobs.services import Services, current_services
from backend.jobs.worker import perform
from backend.progress import follow, show_status
from backend.settings import Settings
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind, Request
from backend.store.schema import requests
from backend.store.versions import KEPT, Version
from tests.integration.conftest import StartApp, data_uri
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

Use = Callable[[str], str]


@pytest.fixture
def queue(redis_url: str) -> JobQueue:
    return JobQueue(redis_url)


@pytest.fixture
def use(store: Store, queue: JobQueue) -> Use:
    return lambda which: versions.use(store, queue, PROJECT, which)


def do_all(store: Store) -> None:
    """Have everything done that is wanted, whatever its delay, but the next comparison."""
    while waiting := [
        item for item in store.requests.waiting(PROJECT) if item.request.kind is not Kind.RECONCILE
    ]:
        for item in waiting:
            with store.database.write() as connection:
                connection.execute(sa.update(requests).values(due_at=time.time() - 1))
            perform(PROJECT, item.request.kind.value, item.request.part)
        assert [item.error for item in store.requests.waiting(PROJECT) if item.error] == []


def settled(store: Store, *kinds: Kind) -> Version:
    """Have these done and all that follows; return the active version."""
    store.requests.add_all([Request(PROJECT, kind) for kind in kinds])
    do_all(store)
    active = store.versions.active(PROJECT)
    assert active is not None
    return active


def two_versions(store: Store, label_studio: FakeLabelStudio, *, tasks: int = 14) -> list[Version]:
    """Return the first version and the one after an annotation; the queue is at the second."""
    steps = [index * 255 // tasks for index in range(tasks)]
    ids = label_studio.add_tasks(*(data_uri((step, 60, 255 - step)) for step in steps))
    first = settled(store, Kind.TRAIN, Kind.SYNC)
    label_studio.annotate(ids[0], "red")
    second = settled(store, Kind.TRAIN)
    assert first.name != second.name
    return [first, second]


def open_ids(label_studio: FakeLabelStudio) -> list[int]:
    return [key for key, task in label_studio.tasks.items() if not task["annotations"]]


def project_of(store: Store) -> Project:
    project = store.projects.get(PROJECT)
    assert project is not None
    return project


def assert_the_queue_follows(label_studio: FakeLabelStudio, version: Version) -> None:
    assert label_studio.project is not None
    assert label_studio.project["model_version"] == version.name
    predicted = label_studio.predicted(version.name)
    assert {key: predicted[key] for key in open_ids(label_studio)} == dict.fromkeys(
        open_ids(label_studio), 1
    )
    assert set(predicted.values()) == {1}


def test_label_studio_s_queue_follows_a_roll_back(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, _ = two_versions(store, label_studio)

    assert use(first.name) == first.name
    do_all(store)

    assert_the_queue_follows(label_studio, first)
    assert project_of(store).model_version == project_of(store).pinned == first.name
    # A comparison finds nothing to do.
    perform_reconcile(store)
    assert [item.request.kind for item in store.requests.waiting(PROJECT)] == [Kind.RECONCILE]


def test_a_command_does_not_wait_for_people_to_stop_annotating(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    use: Use,
    queue: JobQueue,
    redis_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, _ = two_versions(store, label_studio)
    queue.beat(WorkerStatus("a worker", "cpu", services.predictor.encoder.identity))
    annotations = iter(range(2_000))
    ended = threading.Event()

    def work_beside_annotators() -> None:
        current_services.set(services)
        while waiting := store.requests.waiting(PROJECT, (Kind.TRAIN, Kind.REFRESH)):
            for item in waiting:
                if not ended.is_set() and next(annotations, None) is not None:
                    store.requests.add(Request(PROJECT, Kind.TRAIN))
                perform(PROJECT, item.request.kind.value, 0)

    use(first.name)
    worker = threading.Thread(target=work_beside_annotators)
    worker.start()
    follow(store, Settings.read(redis_url=redis_url), PROJECT)
    left = next(annotations, None)
    ended.set()
    worker.join()

    assert left is not None
    assert f"open tasks carry a prediction of {first.name}" in capsys.readouterr().out


def test_a_version_is_rolled_back_to_without_redis(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    first, _ = two_versions(store, label_studio)

    assert versions.use(store, JobQueue("redis://127.0.0.1:9/0"), PROJECT, first.name) == first.name

    assert project_of(store).model_version == first.name


def perform_reconcile(store: Store) -> None:
    store.requests.add(Request(PROJECT, Kind.RECONCILE))
    perform(PROJECT, Kind.RECONCILE.value, 0)


def test_what_is_left_of_its_first_time_is_not_added_again(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    # Pages may show the head of the queue, so that it keeps its older predictions as well.
    first, second = two_versions(store, label_studio)
    assert label_studio.predicted(first.name)

    for which, version in (("1", first), ("2", second), ("1", first)):
        use(which)
        do_all(store)
        assert_the_queue_follows(label_studio, version)


def test_of_its_first_time_few_may_be_left_and_many_tasks_annotated_since(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "HEAD", 2)
    ids = label_studio.add_tasks(
        *(data_uri((step * 18, 60, 255 - step * 18)) for step in range(14))
    )
    first = settled(store, Kind.TRAIN, Kind.SYNC)
    scores = {item["task"]: item["score"] for item in label_studio.predictions.values()}
    for surest in sorted(ids, key=scores.__getitem__)[-5:]:
        label_studio.annotate(surest, "red")
    settled(store, Kind.TRAIN)
    assert 0 < len(label_studio.predicted(first.name)) < 5

    use("1")
    do_all(store)

    assert_the_queue_follows(label_studio, first)


def test_what_a_sweep_left_of_an_active_version_says_nothing_once_another_is_pinned(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, second = two_versions(store, label_studio)
    use("1")

    # By a sweep that began before.
    store.projects.note_surplus(PROJECT, second.name, {first.name: 10})

    assert project_of(store).surplus == {}


def test_a_training_does_not_replace_a_pinned_version(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, second = two_versions(store, label_studio)
    use("1")
    do_all(store)

    label_studio.annotate(open_ids(label_studio)[0], "blue")
    settled(store, Kind.TRAIN)

    assert_the_queue_follows(label_studio, first)
    third = store.versions.latest(PROJECT)
    assert third is not None
    assert third.annotations == 2
    assert not label_studio.predicted(third.name)
    # The same labels again make no further version.
    settled(store, Kind.TRAIN)
    assert store.versions.names(PROJECT) == [third.name, second.name, first.name]

    assert use("latest") == third.name
    do_all(store)

    assert_the_queue_follows(label_studio, third)
    assert project_of(store).pinned is None
    label_studio.annotate(open_ids(label_studio)[0], "red")
    assert settled(store, Kind.TRAIN).number == 4


def test_the_version_in_use_can_be_pinned_as_it_is(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    _, second = two_versions(store, label_studio)
    imports = len(label_studio.imports)

    use("2")
    do_all(store)

    assert project_of(store).pinned == second.name
    assert len(label_studio.imports) == imports
    assert_the_queue_follows(label_studio, second)


def test_tasks_that_arrive_are_predicted_by_the_pinned_version(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, _ = two_versions(store, label_studio)
    use("1")
    do_all(store)

    (arrived,) = label_studio.add_tasks(data_uri("orange"))
    settled(store, Kind.SYNC)

    assert label_studio.predicted(first.name)[arrived] == 1
    assert_the_queue_follows(label_studio, first)


def test_a_roll_back_between_two_chunks_of_a_refresh_takes_over(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    monkeypatch.setattr(refresh_module, "AT_ONCE", 2)
    first, second = two_versions(store, label_studio)
    third = store.versions.publish(replace(second, fingerprint="f" * 64))

    def roll_back_after_the_first_chunk(method: str, path: str) -> None:
        if method == "PATCH":
            label_studio.before = lambda method, path: None
            use("1")

    label_studio.before = roll_back_after_the_first_chunk
    settled(store, Kind.REFRESH)

    assert_the_queue_follows(label_studio, first)
    assert sum(chunk[0]["model_version"] == third.name for chunk in label_studio.imports) == 1


def test_a_roll_back_during_a_sweep_adds_nothing_twice(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, _ = two_versions(store, label_studio)
    assert label_studio.predicted(first.name)
    for key in open_ids(label_studio):
        label_studio.predict(key, "clip-backend-0-00000000")

    def roll_back_at_the_first_removal(method: str, path: str) -> None:
        if method == "DELETE" or path.startswith("/api/dm/actions"):
            label_studio.before = lambda method, path: None
            use("1")

    label_studio.before = roll_back_at_the_first_removal
    store.requests.add(Request(PROJECT, Kind.SWEEP))
    perform(PROJECT, Kind.SWEEP.value, 0)
    assert project_of(store).pinned == first.name
    do_all(store)

    assert_the_queue_follows(label_studio, first)


def test_a_pinned_version_that_no_longer_fits_is_let_go_of(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    use: Use,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, _ = two_versions(store, label_studio)
    use("1")
    do_all(store)

    assert label_studio.project is not None
    added = CONFIG.replace('<Choice value="blue"/>', '<Choice value="blue"/><Choice value="grey"/>')
    label_studio.project["label_config"] = added
    latest = settled(store, Kind.TRAIN)

    assert f"unpinned project=7 version={first.name}: the labeling config" in caplog.text
    assert project_of(store).pinned is None
    assert latest.heads["colour"].values == ("red", "green", "blue", "grey")
    assert_the_queue_follows(label_studio, latest)


@pytest.mark.parametrize("told", [True, False], ids=["by a webhook", "unnoticed"])
def test_what_a_pinned_version_predicted_follows_the_config(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use, told: bool
) -> None:
    first, _ = two_versions(store, label_studio)
    for task in label_studio.tasks.values():
        task["data"]["other"] = data_uri("blue")
    settled(store, Kind.SYNC)
    use("1")
    do_all(store)

    assert label_studio.project is not None
    renamed = CONFIG.replace('me="image"', 'me="photo"').replace('="$image"', '="$other"')
    label_studio.project["label_config"] = renamed.replace('toName="image"', 'toName="photo"')
    if told:
        store.set_up(PROJECT, compare_in=60, label_config=label_studio.project["label_config"])
    settled(store, Kind.TRAIN, Kind.SYNC)

    assert project_of(store).pinned == first.name
    assert_the_queue_follows(label_studio, first)
    results = [
        item
        for prediction in label_studio.predictions.values()
        if prediction["task"] in open_ids(label_studio)
        and prediction["model_version"] == first.name
        for item in prediction["result"]
    ]
    assert {item["to_name"] for item in results} == {"photo"}
    # All show the same picture now.
    assert len({item["score"] for item in results}) == 1


def test_a_version_that_does_not_fit_is_refused(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use, queue: JobQueue
) -> None:
    first, second = two_versions(store, label_studio)

    with pytest.raises(NotFoundError, match="no version 9 stored: `clip-backend versions"):
        use("9")
    other = replace(first, fingerprint="e" * 64, encoder="another-clip")
    store.versions.publish(other)
    queue.beat(WorkerStatus("worker", "cpu", second.encoder))
    with pytest.raises(SettingsError, match="CLIP another-clip, and the worker runs tiny-"):
        use("3")
    store.projects.update(PROJECT, label_config=CONFIG.replace("red", "crimson"))
    with pytest.raises(SettingsError, match="other choices than the labeling config"):
        use("1")

    assert project_of(store).pinned is None


def test_a_pinned_version_is_kept_however_old(
    services: Services, store: Store, label_studio: FakeLabelStudio, use: Use
) -> None:
    first, second = two_versions(store, label_studio)
    use("1")

    for _ in range(KEPT):
        store.versions.publish(second)

    numbers = [summary.number for summary in store.versions.summaries(PROJECT)]
    assert numbers == [*range(KEPT + 2, 2, -1), 1]
    assert store.versions.active(PROJECT) is not None
    use("latest")
    store.versions.publish(second)
    assert first.name not in store.versions.names(PROJECT)


def test_the_api_serves_and_reports_what_another_process_has_pinned(
    services: Services,
    store: Store,
    database_url: str,
    label_studio: FakeLabelStudio,
    queue: JobQueue,
    start_app: StartApp,
) -> None:
    first, _ = two_versions(store, label_studio)
    client = start_app().test_client()
    other_process = Store.open(database_url)

    versions.use(other_process, queue, PROJECT, "1")

    other_process.close()
    report = client.get("/report?project=7").get_json()
    assert (report["model_version"], report["pinned"]) == (first.name, True)
    body = {"tasks": [{"id": 1, "data": {"image": data_uri("red")}}], "project": "7.1"}
    assert client.post("/predict", json=body).get_json()["model_version"] == first.name


def test_status_and_the_list_say_what_is_pinned(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    use: Use,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    first, second = two_versions(store, label_studio)
    use("1")

    versions.show(store, PROJECT)
    listed = capsys.readouterr().out.splitlines()
    show_status(store, Settings.read(redis_url=redis_url))

    (of_first,) = [line for line in listed if first.name in line]
    (of_second,) = [line for line in listed if second.name in line]
    assert "pinned" in of_first
    assert "colour" in of_first
    assert "pinned" not in of_second
    assert first.encoder in of_first
    printed = capsys.readouterr().out
    assert f"{first.name} (pinned)" in printed
    assert "`clip-backend versions use latest --project 7` goes to it" in " ".join(printed.split())


def test_the_list_needs_a_project() -> None:
    outcome = CliRunner().invoke(app, ["versions"])

    assert outcome.exit_code == 2
    assert "--project" in outcome.output
