"""What goes once nobody uses it, and what stays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256

import pytest
import sqlalchemy as sa

from backend import assembly
from backend.clip.encoder import Encoder
from backend.embedding import Embedder
from backend.jobs.services import Services, current_services
from backend.jobs.tidy import EVERY
from backend.jobs.worker import perform
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import parse_labeling_config
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from backend.store.embeddings import Failure, Vector
from backend.store.requests import NO_PROJECT, Kind, Request
from backend.store.schema import embeddings, encoders, images, projects, requests
from backend.store.tasks import StoredTask
from tests.integration.conftest import data_uri
from tests.integration.fake_label_studio import CONFIG

DAY = 86_400.0
RED, GREEN, BLUE = (data_uri(colour) for colour in ("red", "green", "blue"))
OTHER_CONFIG = CONFIG.replace("$image", "$other")

ONE, TWO = 1, 2


@pytest.fixture
def services(store: Store, encoder: Encoder) -> Iterator[Services]:
    settings = Settings.read(label_studio_url="http://127.0.0.1:9", label_studio_api_key="token")
    client = LabelStudio(*settings.label_studio())
    with assembly.image_fetcher(settings, client) as fetcher:
        predictor = Predictor(
            Embedder(encoder, store.embeddings, fetcher, assembly.image_limits(settings))
        )
        yield Services(store, client, predictor, settings.learning, 600.0, 30 * DAY)
    client.close()


def project(services: Services, project_id: int, *pictures: str, config: str = CONFIG) -> None:
    """Have a connected project with a task a picture, all of them embedded."""
    services.store.projects.set_up(project_id, label_config=config, extra_params={})
    tasks = [
        StoredTask(1000 * project_id + index, {"image": picture}, True)
        for index, picture in enumerate(pictures)
    ]
    services.store.tasks.mirror(project_id, [tasks])
    services.predictor.embedder.embed(tasks, parse_labeling_config(config))


def days_pass(store: Store, days: float) -> None:
    """Have all that is recorded be so much older."""
    with store.database.write() as connection:
        for column in (images.c.used_at, encoders.c.used_at, projects.c.marked_at):
            connection.execute(sa.update(column.table).values({column: column - days * DAY}))


def tidy(services: Services) -> None:
    """Have a whole round done now."""
    current_services.set(services)
    store = services.store
    while True:
        with store.database.write() as connection:
            connection.execute(sa.delete(requests).where(requests.c.project_id == NO_PROJECT))
        store.requests.add(Request(NO_PROJECT, Kind.TIDY))
        perform(NO_PROJECT, Kind.TIDY.value, 0)
        (waiting,) = store.requests.waiting(NO_PROJECT)
        assert waiting.error is None
        if waiting.due_at > time.time():
            return


def kept(services: Services, *pictures: str) -> list[str]:
    """Return those pictures that the store has an embedding of."""
    found = services.store.embeddings.find(services.predictor.encoder.identity, pictures)
    return [picture for picture in pictures if picture in found]


def test_pictures_of_tasks_stay_however_old_they_are(services: Services) -> None:
    project(services, ONE, RED, GREEN)

    for _ in range(3):
        days_pass(services.store, 31)
        tidy(services)

    assert kept(services, RED, GREEN) == [RED, GREEN]


def test_a_picture_that_no_task_has_goes_after_the_time_and_not_before(services: Services) -> None:
    project(services, ONE, RED, GREEN)
    services.store.tasks.remove(ONE, [1001])

    days_pass(services.store, 29)
    tidy(services)
    assert kept(services, RED, GREEN) == [RED, GREEN]

    days_pass(services.store, 2)
    tidy(services)
    assert kept(services, RED, GREEN) == [RED]
    assert services.store.embeddings.count() == 1


@pytest.mark.parametrize("in_a_round", [False, True])
def test_a_clock_that_goes_back_keeps_nothing_longer(services: Services, in_a_round: bool) -> None:
    project(services, ONE, RED, GREEN)
    tidy(services)
    if in_a_round:
        marking = {
            "began_at": time.time() + 400 * DAY,
            "after": -1,
            "label_config": sha256(CONFIG.encode()).hexdigest(),
        }
        services.store.projects.update(ONE, marking=marking)

    days_pass(services.store, -400)
    tidy(services)
    services.store.tasks.remove(ONE, [1001])
    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED, GREEN) == [RED]


def test_a_picture_stays_while_one_of_its_projects_has_it(services: Services) -> None:
    project(services, ONE, RED)
    project(services, TWO, RED, GREEN)
    services.store.forget(ONE)
    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED, GREEN) == [RED, GREEN]

    services.store.forget(TWO)
    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED, GREEN) == []
    assert services.store.embeddings.count() == 0


def test_a_task_that_comes_back_is_embedded_again(services: Services) -> None:
    project(services, ONE, RED)
    services.store.tasks.forget(ONE)
    days_pass(services.store, 31)
    tidy(services)
    assert kept(services, RED) == []

    project(services, ONE, RED)

    assert kept(services, RED) == [RED]


def test_one_picture_under_two_addresses_keeps_its_embedding_with_either(
    services: Services,
) -> None:
    project(services, ONE, RED)
    again = RED.replace("data:image/png", "data:image/png;name=again")
    project(services, TWO, again)
    assert services.store.embeddings.count() == 1
    services.store.forget(ONE)

    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED, again) == [again]


def test_what_a_changed_config_no_longer_looks_at_goes(services: Services) -> None:
    project(services, ONE, RED)
    services.store.projects.update(ONE, label_config=OTHER_CONFIG)

    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED) == []


@pytest.mark.parametrize("config", ["", "<View>"])
def test_a_config_that_cannot_be_read_does_not_stop_the_rest(
    services: Services, config: str
) -> None:
    project(services, ONE, RED)
    project(services, TWO, GREEN)
    services.store.projects.update(ONE, label_config=config)

    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED, GREEN) == [GREEN]


def test_pictures_and_tasks_of_a_disconnected_project_go(services: Services) -> None:
    project(services, ONE, RED)
    services.store.projects.update(ONE, connected=False)

    days_pass(services.store, 31)
    tidy(services)

    assert kept(services, RED) == []
    assert list(services.store.tasks.all(ONE)) == []


def test_what_a_job_wrote_of_a_forgotten_project_goes(services: Services) -> None:
    project(services, ONE, RED)
    services.store.forget(ONE)
    services.store.tasks.mirror(ONE, [[StoredTask(1, {"image": RED}, True)]])
    services.store.requests.add(Request(ONE, Kind.REFRESH), delay=3600)

    tidy(services)

    assert services.store.usage.project_ids() == set()


def test_embeddings_of_an_encoder_that_nobody_uses_go_after_the_time(services: Services) -> None:
    store = services.store
    project(services, ONE, RED)
    (content,) = _contents(store)
    store.embeddings.save("former", {}, {content: _vector(services, RED)}, {})
    tidy(services)

    days_pass(store, 29)
    tidy(services)
    assert store.embeddings.count("former") == 1

    days_pass(store, 2)
    tidy(services)
    assert store.embeddings.count("former") == 0
    assert kept(services, RED) == [RED]


def test_an_encoder_stays_as_long_as_an_active_version_is_of_it(services: Services) -> None:
    store = services.store
    project(services, ONE, RED)
    config = parse_labeling_config(CONFIG)
    version = services.predictor.zero_shot(ONE, config, services.learning)
    store.versions.publish(replace(version, encoder="former"))
    (content,) = _contents(store)
    store.embeddings.save("former", {}, {content: _vector(services, RED)}, {})

    for _ in range(2):
        days_pass(store, 31)
        tidy(services)

    assert store.embeddings.count("former") == 1


def test_a_round_makes_way_for_urgent_work_and_goes_on_where_it_was(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = services.store
    monkeypatch.setattr("backend.store.tasks.CHUNK", 1)
    project(services, ONE, RED, GREEN, BLUE)
    store.requests.add(Request(ONE, Kind.TRAIN))
    current_services.set(services)
    looked_at: list[Sequence[int]] = []
    sources = services.predictor.embedder.sources

    def watched(page: Sequence[StoredTask], config: object) -> set[str]:
        looked_at.append([task.id for task in page])
        (own,) = store.requests.waiting(NO_PROJECT)
        assert own.running
        return sources(page, config)  # type: ignore[arg-type]

    monkeypatch.setattr(services.predictor.embedder, "sources", watched)
    days_pass(store, 31)
    for _ in range(3):
        assert store.projects.get(ONE).marked_at is None  # type: ignore[union-attr]
        store.requests.add(Request(NO_PROJECT, Kind.TIDY))
        perform(NO_PROJECT, Kind.TIDY.value, 0)
    with store.database.write() as connection:
        connection.execute(sa.delete(requests).where(requests.c.kind == Kind.TRAIN.value))
    tidy(services)

    assert looked_at == [[1000], [1001], [1002]]
    assert kept(services, RED, GREEN, BLUE) == [RED, GREEN, BLUE]


def test_a_config_that_changes_during_a_round_has_it_start_over(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = services.store
    monkeypatch.setattr("backend.store.tasks.CHUNK", 1)
    project(services, ONE)
    tasks = [
        StoredTask(1, {"image": RED, "other": GREEN}, True),
        StoredTask(2, {"image": RED, "other": BLUE}, True),
    ]
    store.tasks.mirror(ONE, [tasks])
    services.predictor.embedder.embed(tasks, parse_labeling_config(OTHER_CONFIG))
    days_pass(store, 31)
    store.requests.add(Request(ONE, Kind.TRAIN))
    store.requests.add(Request(NO_PROJECT, Kind.TIDY))
    current_services.set(services)
    perform(NO_PROJECT, Kind.TIDY.value, 0)

    store.projects.update(ONE, label_config=OTHER_CONFIG)
    store.requests.forget(ONE)
    tidy(services)

    assert kept(services, GREEN, BLUE) == [GREEN, BLUE]


def test_nothing_goes_before_every_project_was_looked_at(services: Services) -> None:
    project(services, ONE, RED)
    project(services, TWO, GREEN)
    services.store.requests.add(Request(ONE, Kind.TRAIN))
    current_services.set(services)
    days_pass(services.store, 31)

    services.store.requests.add(Request(NO_PROJECT, Kind.TIDY))
    perform(NO_PROJECT, Kind.TIDY.value, 0)

    assert kept(services, RED, GREEN) == [RED, GREEN]


def test_the_next_round_is_a_day_later(services: Services) -> None:
    before = time.time()

    tidy(services)

    (waiting,) = services.store.requests.waiting(NO_PROJECT)
    assert before + EVERY <= waiting.due_at <= time.time() + EVERY


def _contents(store: Store) -> list[str]:
    with store.database.read() as connection:
        return list(connection.scalars(sa.select(embeddings.c.content)))


def _vector(services: Services, picture: str) -> Vector:
    vector = services.store.embeddings.find(services.predictor.encoder.identity, [picture])[picture]
    assert not isinstance(vector, Failure)
    return vector
