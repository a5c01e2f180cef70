from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from backend.errors import DatabaseError, SettingsError
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask

PROJECT = 7


def test_a_project_that_was_never_set_up_is_none(store: Store) -> None:
    assert store.projects.get(PROJECT) is None
    assert store.projects.all() == []


def test_setting_up_creates_a_connected_project(store: Store) -> None:
    changed = store.projects.set_up(PROJECT, label_config="<View/>", extra_params={"score": "x"})

    assert changed
    assert store.projects.get(PROJECT) == Project(PROJECT, "<View/>", {"score": "x"})


def test_setting_up_the_same_again_changes_nothing(store: Store) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>", extra_params={})

    assert not store.projects.set_up(PROJECT, label_config="<View/>", extra_params={})
    assert not store.projects.set_up(PROJECT)


def test_a_labeling_config_and_extra_params_can_hold_any_characters(store: Store) -> None:
    store.projects.set_up(PROJECT, label_config="<View>\0</View>", extra_params={"\0": "日本"})

    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.label_config == "<View>\ufffd</View>"
    assert project.extra_params == {"\0": "日本"}


def test_what_is_not_given_stays(store: Store) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>", extra_params={"score": "x"})

    assert store.projects.set_up(PROJECT, label_config="<View>new</View>")
    assert store.projects.set_up(PROJECT, extra_params={})

    assert store.projects.get(PROJECT) == Project(PROJECT, "<View>new</View>", {})


def test_setting_up_connects_a_disconnected_project_again(store: Store) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>")
    store.projects.update(PROJECT, connected=False)

    assert store.projects.set_up(PROJECT, label_config="<View/>")

    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.connected


def test_what_connect_changed_and_the_watermark_come_back_as_they_were(store: Store) -> None:
    store.projects.set_up(PROJECT)

    store.projects.update(PROJECT, connection={"view": 3}, watermark=[10, 2, "2026-01-01"])
    kept = store.projects.get(PROJECT)
    store.projects.update(PROJECT, connection=None, watermark=None)
    cleared = store.projects.get(PROJECT)

    assert kept is not None
    assert (kept.connection, kept.watermark) == ({"view": 3}, [10, 2, "2026-01-01"])
    assert cleared is not None
    assert (cleared.connection, cleared.watermark) == (None, None)


def test_views_are_remembered_by_title_of_projects_that_can_be_disconnected(store: Store) -> None:
    store.projects.set_up(PROJECT)
    store.projects.remember_view(PROJECT, "Suspects", 4)
    by_hand = store.projects.get(PROJECT)
    store.projects.update(PROJECT, connection={"backend_url": "http://backend:9090"})

    store.projects.remember_view(PROJECT, "Suspects", 4)
    store.projects.remember_view(PROJECT, "Found", 5)
    store.projects.remember_view(PROJECT, "Suspects", 6)

    connected = store.projects.get(PROJECT)
    assert by_hand is not None
    assert by_hand.connection is None
    assert connected is not None
    assert connected.connection == {
        "backend_url": "http://backend:9090",
        "views": {"Suspects": 6, "Found": 5},
    }


def test_projects_are_listed_by_id(store: Store) -> None:
    for project_id in (9, 3, 7):
        store.projects.set_up(project_id)

    assert [project.id for project in store.projects.all()] == [3, 7, 9]


def test_two_that_set_up_the_same_project_at_once_create_it_once(store: Store) -> None:
    barrier = threading.Barrier(4)
    errors: list[Exception] = []

    def set_up() -> None:
        barrier.wait()
        try:
            store.projects.set_up(PROJECT, label_config="<View/>")
        except Exception as error:  # noqa: BLE001 — shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=set_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert [project.id for project in store.projects.all()] == [PROJECT]


def test_forgetting_drops_everything_about_a_project_and_nothing_of_others(store: Store) -> None:
    for project_id in (PROJECT, 8):
        store.projects.set_up(project_id)
        store.tasks.mirror(project_id, [[StoredTask(1, {}, True)]])
        store.requests.add(Request(project_id, Kind.TRAIN))

    store.forget(PROJECT)

    assert store.projects.get(PROJECT) is None
    assert list(store.tasks.all(PROJECT)) == []
    assert store.requests.waiting(PROJECT) == []
    assert store.projects.get(8) is not None
    assert list(store.tasks.all(8)) != []
    assert store.requests.waiting(8) != []


def test_opening_a_database_again_finds_what_is_there(store: Store, database_url: str) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>")

    again = Store.open(database_url)

    assert again.projects.get(PROJECT) == Project(PROJECT, "<View/>")
    again.close()


def test_processes_that_start_together_open_one_database(database_url: str) -> None:
    barrier = threading.Barrier(4)
    errors: list[Exception] = []

    def open_it() -> None:
        barrier.wait()
        try:
            Store.open(database_url).close()
        except Exception as error:  # noqa: BLE001 — shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_a_new_database_that_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "new.sqlite3"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE of_another (id)")

    with ThreadPoolExecutor() as pool:
        opening = pool.submit(Store.open, f"sqlite:///{file}")
        # For as long as it takes to fail; it does not, however long that is.
        wait([opening], timeout=0.5)
        other.execute("COMMIT")
        opening.result().close()

    other.close()


@pytest.mark.parametrize("url", ["clip", "", "mysql://localhost/clip", "oracle://x"])
def test_an_address_that_is_no_database_is_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: "):
        Store.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:9/clip",
        "postgresql+psycopg://me:hunter2@127.0.0.1:9/clip",
        "sqlite:////proc/clip.sqlite3",
    ],
)
def test_a_database_that_cannot_be_opened_is_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        Store.open(url)

    message = str(caught.value)
    assert "DATABASE_URL" in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_a_data_folder_that_cannot_be_made_is_a_sentence() -> None:
    with pytest.raises(DatabaseError, match="DATA_DIR"):
        Store.open("sqlite:////proc/clip/clip-backend.sqlite3")
