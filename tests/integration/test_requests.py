from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from backend.store import Store
from backend.store.requests import (
    LEASE,
    LONGEST_BACKOFF,
    ClaimLostError,
    Kind,
    Request,
    Waiting,
)
from backend.store.schema import requests

TRAIN = Request(7, Kind.TRAIN)
EMBED = Request(7, Kind.EMBED, 3)


def the_one(store: Store) -> Waiting:
    (waiting,) = store.requests.waiting(7)
    return waiting


def rewrite(store: Store, **values: object) -> None:
    """Put rows into a state that otherwise takes time to come about."""
    with store.database.write() as connection:
        connection.execute(sa.update(requests).values(**values))


def rows(store: Store) -> list[Any]:
    with store.database.read() as connection:
        return list(connection.execute(sa.select(requests)))


def do(store: Store, request: Request, work: Callable[[], object] = lambda: None) -> bool:
    """Do a request as a worker does; tells whether it was to be had."""
    with store.requests.claimed(request) as claim:
        if claim is not None:
            work()
    return claim is not None


def fail(store: Store, request: Request, error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        do(store, request, work)


# Asking


def test_what_is_asked_for_is_due_at_once(store: Store) -> None:
    store.requests.add(TRAIN)

    assert store.requests.due() == [TRAIN]
    assert the_one(store).running is False


def test_what_is_asked_for_with_a_delay_is_due_later(store: Store) -> None:
    before = time.time()
    store.requests.add(TRAIN, delay=600)
    after = time.time()

    assert store.requests.due() == []
    assert not do(store, TRAIN)
    assert before + 600 <= the_one(store).due_at <= after + 600


def test_asking_again_moves_the_time_and_adds_no_second_request(store: Store) -> None:
    store.requests.add(TRAIN, delay=600)
    first = the_one(store).due_at

    store.requests.add(TRAIN, delay=600)

    assert the_one(store).due_at > first


def test_asking_again_and_again_delays_no_longer_than_five_times(store: Store) -> None:
    store.requests.add(TRAIN, delay=100)
    long_ago = time.time() - 450
    rewrite(store, first_at=long_ago, due_at=long_ago + 100)

    store.requests.add(TRAIN, delay=100)

    assert the_one(store).due_at == pytest.approx(long_ago + 500, abs=1)


def test_asking_without_delay_makes_a_delayed_request_due(store: Store) -> None:
    store.requests.add(TRAIN, delay=600)

    store.requests.add(TRAIN)

    assert store.requests.due() == [TRAIN]


def test_the_bound_counts_from_the_first_asking_since_it_was_last_done(store: Store) -> None:
    store.requests.add(TRAIN)
    assert do(store, TRAIN)
    rewrite(store, first_at=time.time() - 10_000)

    before = time.time()
    store.requests.add(TRAIN, delay=100)

    assert the_one(store).due_at >= before + 100


def test_kinds_parts_and_projects_are_requests_of_their_own(store: Store) -> None:
    wanted = [TRAIN, EMBED, Request(7, Kind.EMBED, 4), Request(8, Kind.TRAIN)]

    store.requests.add_all(wanted)
    store.requests.add_all([])

    assert set(store.requests.due()) == set(wanted)
    assert len(store.requests.waiting(7)) == 3
    assert [waiting.request for waiting in store.requests.waiting(7, [Kind.TRAIN])] == [TRAIN]
    assert store.requests.waiting(7, []) == []


def test_the_longest_due_come_first_and_no_more_than_wanted(store: Store) -> None:
    parts = [Request(7, Kind.EMBED, part) for part in range(5)]
    now = time.time()
    for part, request in enumerate(parts):
        store.requests.add(request)
        with store.database.write() as connection:
            connection.execute(
                sa.update(requests).where(requests.c.part == part).values(due_at=now - part)
            )

    assert store.requests.due(limit=2) == [parts[4], parts[3]]


def test_connected_projects_of_which_a_kind_is_not_wanted_are_found(store: Store) -> None:
    for project_id in (7, 8, 9):
        store.projects.set_up(project_id)
    store.projects.update(9, connected=False)
    store.requests.add_all([TRAIN, Request(8, Kind.SYNC)])
    assert store.requests.without(Kind.TRAIN) == [8]

    assert do(store, TRAIN)

    assert sorted(store.requests.without(Kind.TRAIN)) == [7, 8]


def test_a_thousand_requests_can_be_asked_for_at_once(store: Store) -> None:
    store.requests.add_all([Request(7, Kind.EMBED, part) for part in range(1500)])

    assert len(store.requests.due(limit=2000)) == 1500


def test_a_large_pool_keeps_nothing_more_urgent_from_being_seen(store: Store) -> None:
    store.requests.add_all([Request(7, Kind.EMBED, part) for part in range(1000)])
    urgent = [Request(8, Kind.TRAIN), Request(7, Kind.REFRESH), Request(7, Kind.RECONCILE)]
    store.requests.add_all(urgent[::-1])

    assert store.requests.due()[:3] == urgent


# Doing


def test_what_is_done_is_no_longer_waiting(store: Store) -> None:
    store.requests.add(TRAIN)

    assert do(store, TRAIN)

    assert store.requests.waiting(7) == []
    assert store.requests.due() == []
    assert not do(store, TRAIN)


def test_what_nobody_asked_for_is_not_done(store: Store) -> None:
    assert not do(store, TRAIN)


def test_while_it_is_done_it_is_running_and_nobody_else_gets_it(store: Store) -> None:
    store.requests.add(TRAIN)

    def work() -> None:
        assert the_one(store).running
        assert store.requests.due() == []
        assert not do(store, TRAIN)

    assert do(store, TRAIN, work)


def test_what_is_asked_for_while_it_is_done_is_due_again(store: Store) -> None:
    store.requests.add(TRAIN)

    assert do(store, TRAIN, lambda: store.requests.add(TRAIN))

    assert store.requests.due() == [TRAIN]
    assert do(store, TRAIN)
    assert store.requests.due() == []


def test_of_workers_that_claim_at_once_one_wins(store: Store) -> None:
    store.requests.add(TRAIN)
    barrier = threading.Barrier(4)
    release = threading.Event()
    outcomes: list[bool] = []

    def claim() -> None:
        barrier.wait()
        with store.requests.claimed(TRAIN) as claim:
            outcomes.append(claim is not None)
            if len(outcomes) == 4:
                release.set()
            release.wait()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == [False, False, False, True]


def test_chunks_that_are_done_leave_no_row(store: Store) -> None:
    store.requests.add(EMBED)

    assert do(store, EMBED)

    assert rows(store) == []


def test_a_chunk_that_is_asked_for_again_meanwhile_keeps_its_row(store: Store) -> None:
    store.requests.add(EMBED)

    assert do(store, EMBED, lambda: store.requests.add(EMBED))

    assert store.requests.due() == [EMBED]


def test_forgetting_a_project_while_its_request_is_done_leaves_nothing(store: Store) -> None:
    store.requests.add(TRAIN)

    assert do(store, TRAIN, lambda: store.requests.forget(7))

    assert rows(store) == []


# Failing


def test_a_failure_is_kept_and_tried_again_after_a_pause(store: Store) -> None:
    store.requests.add(TRAIN)

    fail(store, TRAIN, ValueError("no network"))

    waiting = the_one(store)
    assert (waiting.attempts, waiting.error, waiting.running) == (1, "no network", False)
    assert store.requests.due() == []
    rewrite(store, due_at=time.time() - 1)
    assert store.requests.due() == [TRAIN]


def test_pauses_double_up_to_a_bound(store: Store) -> None:
    store.requests.add(TRAIN)
    pauses = []
    for _ in range(9):
        rewrite(store, due_at=time.time() - 1)
        before = time.time()
        fail(store, TRAIN, ValueError())
        pauses.append(the_one(store).due_at - before)

    assert pauses[:5] == pytest.approx([2, 4, 8, 16, 32], abs=1.9)
    assert pauses[5:] == pytest.approx([LONGEST_BACKOFF] * 4, abs=1.9)


def test_success_clears_the_failure(store: Store) -> None:
    store.requests.add(TRAIN)
    fail(store, TRAIN, ValueError("no network"))
    rewrite(store, due_at=time.time() - 1)

    assert do(store, TRAIN)
    store.requests.add(TRAIN)

    assert (the_one(store).attempts, the_one(store).error) == (0, None)


def test_asking_again_after_a_failure_does_not_wait_out_the_pause(store: Store) -> None:
    store.requests.add(TRAIN)
    fail(store, TRAIN, ValueError("no network"))

    store.requests.add(TRAIN)

    assert store.requests.due() == [TRAIN]


def test_a_long_error_is_cut(store: Store) -> None:
    store.requests.add(TRAIN)

    fail(store, TRAIN, ValueError("x" * 100_000))

    assert the_one(store).error == "x" * 500


@pytest.mark.parametrize("text", ["a\x00b", "\udcff", "'; DROP TABLE requests; --"])
def test_any_error_can_be_kept(store: Store, text: str) -> None:
    store.requests.add(TRAIN)

    fail(store, TRAIN, ValueError(text))

    assert the_one(store).attempts == 1
    assert the_one(store).running is False


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_a_worker_that_is_stopped_leaves_its_request_to_the_next(
    store: Store, error: BaseException
) -> None:
    store.requests.add(TRAIN)

    fail(store, TRAIN, error)

    assert store.requests.due() == [TRAIN]
    assert (the_one(store).attempts, the_one(store).error) == (0, None)


# Dying


def test_the_request_of_a_worker_that_died_is_free_once_its_lease_ends(store: Store) -> None:
    store.requests.add(TRAIN)
    rewrite(store, owner="a worker that died", lease_until=time.time() + LEASE)
    assert store.requests.due() == []
    assert the_one(store).running

    rewrite(store, lease_until=time.time() - 1)

    assert store.requests.due() == [TRAIN]
    assert not the_one(store).running
    assert do(store, TRAIN)
    assert store.requests.waiting(7) == []


def test_a_worker_whose_lease_another_has_taken_does_not_end_the_other_s_claim(
    store: Store,
) -> None:
    store.requests.add(TRAIN)

    with store.requests.claimed(TRAIN) as slow:
        rewrite(store, lease_until=time.time() - 1)
        second = store.requests.claimed(TRAIN)
        assert second.__enter__() is not None

    assert slow is not None
    assert the_one(store).running
    second.__exit__(None, None, None)
    assert store.requests.waiting(7) == []


def test_a_worker_whose_lease_another_has_taken_writes_nothing(store: Store) -> None:
    store.requests.add(TRAIN)

    with store.requests.claimed(TRAIN) as slow:
        assert slow is not None
        rewrite(store, lease_until=time.time() - 1)
        with store.requests.holding(slow):
            # As long as nobody has taken it, all is as it was.
            pass
        assert do(store, TRAIN)
        with pytest.raises(ClaimLostError), store.requests.holding(slow):
            pytest.fail("it went on")
        assert slow.lost.is_set()


def test_nobody_takes_a_claim_under_which_somebody_writes(store: Store) -> None:
    store.requests.add(TRAIN)
    written: list[str] = []

    def take() -> None:
        do(store, TRAIN, lambda: written.append("the other"))

    with store.requests.claimed(TRAIN) as slow:
        assert slow is not None
        rewrite(store, lease_until=time.time() - 1)
        other = threading.Thread(target=take)
        with store.requests.holding(slow):
            other.start()
            other.join(0.5)
            written.append("the slow one")
        other.join()

    assert written == ["the slow one", "the other"]


def held_by(store: Store, request: Request, owner: str) -> None:
    store.requests.add(request)
    with store.database.write() as connection:
        connection.execute(
            sa.update(requests)
            .where(requests.c.project_id == request.project_id)
            .values(owner=owner, lease_until=time.time() + LEASE)
        )


def test_a_worker_that_starts_frees_what_the_dead_of_its_machine_held(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    here = socket.gethostname()
    dead, own_number, alive, elsewhere = (Request(number, Kind.TRAIN) for number in range(1, 5))
    held_by(store, dead, f"{here}:{process.pid}:a")
    held_by(store, own_number, f"{here}:{os.getpid()}:b")
    held_by(store, alive, f"{here}:{os.getppid()}:c")
    held_by(store, elsewhere, f"{here}-other:{process.pid}:d")

    store.requests.free_of_the_dead()

    assert set(store.requests.due()) == {dead, own_number}


# Clocks that jump


def put_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the clock of the requests differ from what it was by so many seconds."""
    clock = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr("backend.store.requests.time", clock)


HOUR, DAY = 3600.0, 86_400.0


def test_a_clock_that_goes_back_does_not_delay_what_was_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.requests.add(TRAIN, delay=2)

    put_clock(monkeypatch, -HOUR)

    assert store.requests.due() == [TRAIN]
    assert do(store, TRAIN)
    assert store.requests.waiting(7) == []


def test_a_clock_that_goes_back_does_not_delay_what_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_clock(monkeypatch, -DAY)
    store.requests.add(TRAIN)
    put_clock(monkeypatch, 0)
    fail(store, TRAIN, RuntimeError("no answer"))
    assert store.requests.due() == []

    put_clock(monkeypatch, -HOUR)

    assert store.requests.due() == [TRAIN]


def test_a_clock_that_goes_back_does_not_prolong_a_dead_worker_s_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_clock(monkeypatch, -DAY)
    store.requests.add(TRAIN)
    put_clock(monkeypatch, 0)
    rewrite(store, owner="a worker that died", lease_until=time.time() + LEASE)
    assert store.requests.due() == []

    put_clock(monkeypatch, -HOUR)

    assert not the_one(store).running
    assert do(store, TRAIN)


def test_a_clock_that_jumps_ahead_makes_all_due_and_lets_a_worker_finish(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.requests.add(TRAIN)
    store.requests.add(EMBED, delay=600)

    with store.requests.claimed(TRAIN):
        put_clock(monkeypatch, DAY)

    assert store.requests.due() == [EMBED]


def test_clocks_that_differ_a_little_leave_a_worker_its_request(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.requests.add(TRAIN)

    with store.requests.claimed(TRAIN):
        put_clock(monkeypatch, -LEASE)

        assert store.requests.due() == []
        assert not do(store, TRAIN)
