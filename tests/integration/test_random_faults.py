"""What is left when people, faults and workers come in any order.

Each seed is one such order, but for what depends on the clock; `--random-faults 500` tries more.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import httpx
import pytest
import tenacity
from sqlalchemy.engine.default import DefaultDialect

from backend.jobs import refresh as refresh_module
from backend.jobs.services import Services
from backend.jobs.worker import perform
from backend.labelstudio import client as client_module
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.test_label_studio_faults import (
    assert_predicted_of_the_data,
    assert_right,
    bring_forward,
    end_leases,
    let_a_day_pass,
    shades,
    work,
)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

STEPS = 40


class KilledError(BaseException):
    """Ends a worker where it is, but for what it does on its way out.

    `test_kill_points.py` leaves it no way out.
    """


class World:
    """People, faults and workers, one of which acts at a time."""

    def __init__(
        self, seed: int, store: Store, label_studio: FakeLabelStudio, pictures: list[str]
    ) -> None:
        self._random = random.Random(seed)
        self._store = store
        self._label_studio = label_studio
        self._pictures = pictures
        self._copy: object = None
        self._depth = 0

    def step(self) -> None:
        """Let people act, a worker work, or time pass."""
        kinds: list[Callable[[], None]] = [self._people, self._worker, self._pass_time]
        (act,) = self._random.choices(kinds, (4, 5, 2))
        act()

    def happen(self, *, is_request: bool) -> None:
        """Let something happen while a worker works."""
        if not self._depth:
            return
        if self._random.random() < 0.02:
            raise KilledError
        if is_request and self._random.random() < 0.04:
            self._people()
        if is_request and self._depth == 1 and self._random.random() < 0.04:
            self._pass_time()
            self._worker()

    def is_unlucky(self) -> bool:
        """Tell whether a request, or its answer, gets lost."""
        return self._depth > 0 and self._random.random() < 0.02

    def _people(self) -> None:
        acts: list[Callable[[], Kind | None]] = [
            self._annotate,
            self._take_back,
            self._add,
            self._delete,
            self._change,
            self._keep_a_copy,
            self._restore_the_copy,
        ]
        (act,) = self._random.choices(acts, (5, 1, 2, 1, 4, 2, 2))
        wanted = act()
        if wanted is not None and self._random.random() < 0.6:
            self._store.requests.add(Request(PROJECT, wanted))

    def _annotate(self) -> Kind | None:
        tasks = self._tasks(annotated=False)
        if not tasks:
            return None
        self._label_studio.annotate(
            self._random.choice(tasks), self._random.choice(["red", "green", "blue"])
        )
        return Kind.TRAIN

    def _take_back(self) -> Kind | None:
        tasks = self._tasks(annotated=True)
        if not tasks:
            return None
        self._label_studio.unannotate(self._random.choice(tasks))
        return Kind.TRAIN

    def _add(self) -> Kind | None:
        self._label_studio.add_tasks(self._random.choice(self._pictures))
        return Kind.SYNC

    def _delete(self) -> Kind | None:
        if len(self._label_studio.tasks) < 4:
            return None
        self._label_studio.delete_task(self._random.choice(sorted(self._label_studio.tasks)))
        return Kind.SYNC

    def _change(self) -> Kind | None:
        self._label_studio.change(
            self._random.choice(sorted(self._label_studio.tasks)),
            image=self._random.choice(self._pictures),
        )
        return Kind.SYNC

    def _keep_a_copy(self) -> None:
        self._copy = self._label_studio.snapshot()

    def _restore_the_copy(self) -> None:
        if self._copy is not None:
            self._label_studio.restore(self._copy)

    def _tasks(self, *, annotated: bool) -> list[int]:
        return [
            key
            for key, task in sorted(self._label_studio.tasks.items())
            if bool(task["annotations"]) is annotated
        ]

    def _worker(self) -> None:
        due = self._store.requests.due()
        if not due:
            return
        request = self._random.choice(sorted(due, key=lambda each: each.name))
        self._depth += 1
        with suppress(KilledError):
            try:
                perform(request.project_id, request.kind.value, request.part)
            finally:
                self._depth -= 1

    def _pass_time(self) -> None:
        if self._random.random() < 0.5:
            self._store.requests.add(Request(PROJECT, Kind.RECONCILE))
        bring_forward(self._store)
        end_leases(self._store, *Kind)


def have_accidents(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let things happen before and after each commit and each request to Label Studio."""
    commit = DefaultDialect.do_commit
    handle = httpx.HTTPTransport.handle_request

    def do_commit(dialect: DefaultDialect, connection: object) -> None:
        world.happen(is_request=False)
        commit(dialect, connection)  # type: ignore[arg-type]
        world.happen(is_request=False)

    def handle_request(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        world.happen(is_request=True)
        if world.is_unlucky():
            raise httpx.ReadTimeout("never sent")
        response = handle(transport, request)
        world.happen(is_request=True)
        if world.is_unlucky():
            response.close()
            raise httpx.ReadTimeout("never answered")
        return response

    monkeypatch.setattr(DefaultDialect, "do_commit", do_commit)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_request)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(metafunc.config.getoption("--random-faults")))


def test_whatever_comes_in_whatever_order_all_is_right_in_the_end(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setattr(client_module, "PAGE", 5)
    monkeypatch.setattr(refresh_module, "FIRST", 4)
    monkeypatch.setattr(refresh_module, "AT_ONCE", 4)
    # No page shows anything any more.
    monkeypatch.setattr(refresh_module, "SHOWN_FOR", -1.0)
    label_studio.add_tasks(*shades(10))
    world = World(seed, store, label_studio, shades(20, blue=120))
    with monkeypatch.context() as patched:
        have_accidents(world, patched)
        for _ in range(STEPS):
            world.step()

    end_leases(store, *Kind)
    if not any(not task["annotations"] for task in label_studio.tasks.values()):
        label_studio.add_tasks(shades(1)[0])
    work(store)
    work(store)
    # For what Label Studio's counts and dates do not tell.
    let_a_day_pass(store)
    work(store)

    assert_right(store, label_studio)
    # A prediction of other data that says the same is left where it is.
    assert_predicted_of_the_data(services, store, label_studio, within=1e-3)
