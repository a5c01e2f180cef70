from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import wait_until

PROJECT = 7
OTHERS = 8


def is_at_it(store: Store) -> bool:
    """Tell whether somebody has taken all that waited and is at the database."""
    return store.webhooks._turn.locked() and not store.webhooks._waiting


@pytest.fixture
def other(database_url: str, store: Store) -> Iterator[Store]:
    """Another process that uses the database."""
    store.projects.set_up(PROJECT)
    other = Store.open(database_url)
    yield other
    other.close()


def test_webhooks_that_wait_together_are_one_transaction(store: Store, other: Store) -> None:
    committed: list[int] = []
    sa.event.listen(store.database.engine, "commit", lambda _: committed.append(1))

    with ThreadPoolExecutor(OTHERS + 1) as annotators:
        with other.database.write() as connection:
            other.projects.update(PROJECT, within=connection, surplus={"v1": 1})
            first = annotators.submit(store.webhooks.note, PROJECT, {Kind.TRAIN: 2.0})
            wait_until(lambda: is_at_it(store), "the first waits for the database")
            rest = [
                annotators.submit(store.webhooks.note, PROJECT, {Kind.TRAIN: 2.0, Kind.SYNC: 0.5})
                for _ in range(OTHERS)
            ]
            wait_until(lambda: len(store.webhooks._waiting) == OTHERS, "the others wait for it")
        for each in [first, *rest]:
            each.result()

    assert len(committed) == 2
    assert {waiting.request.kind for waiting in store.requests.waiting(PROJECT)} == {
        Kind.TRAIN,
        Kind.SYNC,
    }
    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.webhook_at is not None


def test_of_what_comes_together_the_soonest_counts(store: Store, other: Store) -> None:
    with ThreadPoolExecutor(3) as annotators:
        with other.database.write() as connection:
            other.projects.update(PROJECT, within=connection, surplus={"v1": 1})
            notes = [annotators.submit(store.webhooks.note, PROJECT, {})]
            wait_until(lambda: is_at_it(store), "the first waits for the database")
            for delay in (0.0, 1000.0):
                notes.append(annotators.submit(store.webhooks.note, PROJECT, {Kind.TRAIN: delay}))
            wait_until(lambda: len(store.webhooks._waiting) == 2, "the others wait for it")
        for each in notes:
            each.result()

    assert store.requests.due() == [Request(PROJECT, Kind.TRAIN)]


def test_whoever_waits_is_told_when_it_cannot_be_kept(store: Store, other: Store) -> None:
    with ThreadPoolExecutor(OTHERS + 1) as annotators:
        with other.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE requests RENAME TO lost")
            notes = [annotators.submit(store.webhooks.note, PROJECT, {Kind.TRAIN: 0.0})]
            wait_until(lambda: is_at_it(store), "the first waits for the database")
            notes += [
                annotators.submit(store.webhooks.note, PROJECT, {Kind.TRAIN: 0.0})
                for _ in range(OTHERS)
            ]
            wait_until(lambda: len(store.webhooks._waiting) == OTHERS, "the others wait for it")
        errors = [each.exception() for each in notes]

    assert None not in errors
    with other.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE lost RENAME TO requests")
    store.webhooks.note(PROJECT, {Kind.TRAIN: 0.0})
    assert store.requests.due() == [Request(PROJECT, Kind.TRAIN)]
