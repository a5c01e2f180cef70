from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from backend.store import Store
from backend.store.tasks import Progress, StoredTask

PROJECT, OTHER = 7, 8


def task(task_id: int, *, is_open: bool = True, image: str = "a.png") -> StoredTask:
    return StoredTask(task_id, {"image": image}, is_open)


def mirrored(store: Store, *tasks: StoredTask, project_id: int = PROJECT) -> None:
    store.tasks.mirror(project_id, [list(tasks)])


def ids(pages: Iterable[list[StoredTask]]) -> list[int]:
    return [task.id for page in pages for task in page]


def test_the_mirror_holds_what_label_studio_lists(store: Store) -> None:
    listed = [task(1), task(2, is_open=False, image="ünï'code%.png")]

    store.tasks.mirror(PROJECT, [listed[:1], [], listed[1:]])

    assert [each for page in store.tasks.all(PROJECT) for each in page] == listed


def test_mirroring_again_updates_adds_and_removes(store: Store) -> None:
    mirrored(store, task(1), task(2), task(3))

    mirrored(store, task(1, image="new.png"), task(3, is_open=False), task(4))

    assert [each for page in store.tasks.all(PROJECT) for each in page] == [
        task(1, image="new.png"),
        task(3, is_open=False),
        task(4),
    ]


def test_mirroring_again_keeps_what_was_predicted(store: Store) -> None:
    mirrored(store, task(1), task(2))
    store.tasks.mark_predicted(PROJECT, [1], "v1")

    mirrored(store, task(1), task(2))

    assert store.tasks.predicted(PROJECT, "v1") == {1}


def test_projects_do_not_see_each_other_s_tasks(store: Store) -> None:
    mirrored(store, task(1), task(2))
    mirrored(store, task(1), project_id=OTHER)

    store.tasks.mark_predicted(PROJECT, [1, 2], "v1")
    store.tasks.remove(PROJECT, [2])
    store.tasks.forget(OTHER)

    assert ids(store.tasks.all(PROJECT)) == [1]
    assert ids(store.tasks.all(OTHER)) == []


def test_open_tasks_without_the_version_s_prediction_are_listed(store: Store) -> None:
    mirrored(store, task(1), task(2), task(3), task(4, is_open=False))
    store.tasks.mark_predicted(PROJECT, [1], "v1")
    store.tasks.mark_predicted(PROJECT, [2], "v2")

    assert ids(store.tasks.open_without(PROJECT, "v2")) == [1, 3]


def test_progress_counts_open_tasks_that_carry_the_version(store: Store) -> None:
    mirrored(store, task(1), task(2), task(3, is_open=False), task(4))
    store.tasks.mark_predicted(PROJECT, [1, 3], "v2")
    store.tasks.mark_predicted(PROJECT, [2], "v1")

    assert store.tasks.progress(PROJECT, "v2") == Progress(tasks=4, open=3, predicted=1)
    assert store.tasks.progress(PROJECT, None) == Progress(tasks=4, open=3, predicted=0)
    assert store.tasks.progress(OTHER, "v2") == Progress(tasks=0, open=0, predicted=0)


def test_annotated_tasks_close_and_others_open_again(store: Store) -> None:
    mirrored(store, task(1), task(2, is_open=False), task(3, is_open=False))

    store.tasks.close_all_but(PROJECT, {1, 3, 99})

    assert ids(store.tasks.open_without(PROJECT, "v1")) == [2]


def test_predictions_can_be_unrecorded(store: Store) -> None:
    mirrored(store, task(1), task(2), task(3))
    store.tasks.mark_predicted(PROJECT, [1, 2, 3], "v1")

    store.tasks.mark_unpredicted(PROJECT, [2])
    assert store.tasks.predicted(PROJECT, "v1") == {1, 3}

    store.tasks.mark_unpredicted(PROJECT, [])
    assert store.tasks.predicted(PROJECT, "v1") == {1, 3}


def test_tasks_that_pages_may_show_are_known_for_a_while(store: Store) -> None:
    finished = (task(4, is_open=False), task(5, is_open=False))
    mirrored(store, task(1), task(2), task(3), *finished)
    store.tasks.mark_shown(PROJECT, [2], -1)
    store.tasks.mark_shown(PROJECT, [1, 4], 60)
    store.tasks.mark_shown(PROJECT, [3, 5], 120)

    assert store.tasks.shown(PROJECT, 10) == {1, 3, 4, 5}
    assert store.tasks.shown(PROJECT, 1) == {3, 5}
    assert store.tasks.shown(OTHER, 10) == set()
    assert store.tasks.states(PROJECT) == {1: True, 2: True, 3: True, 4: False, 5: False}


def test_a_clock_that_goes_back_has_no_task_shown_for_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour, day, goes_by = 3600.0, 86_400.0, [0.0]
    clock = SimpleNamespace(time=lambda: time.time() + goes_by[0])
    monkeypatch.setattr("backend.store.tasks.time", clock)
    mirrored(store, task(1), task(2))
    store.tasks.mark_shown(PROJECT, [1], 12 * hour)

    goes_by[0] = -day
    store.tasks.mark_shown(PROJECT, [2], 12 * hour)

    assert store.tasks.shown(PROJECT, 1) == {2}
    assert store.tasks.shown(PROJECT, 10) == {1, 2}
    goes_by[0] += 12 * hour
    assert store.tasks.shown(PROJECT, 10) == set()


def test_a_range_of_tasks_includes_its_start_and_not_its_end(store: Store) -> None:
    mirrored(store, *map(task, (63, 64, 65, 127, 128)))

    assert [each.id for each in store.tasks.in_range(PROJECT, 64, 128)] == [64, 65, 127]


def test_more_tasks_than_a_statement_takes_go_through_every_call(store: Store) -> None:
    count = 2503
    everyone = list(range(1, count + 1))
    store.tasks.mirror(PROJECT, [[task(each) for each in everyone]])

    store.tasks.mark_predicted(PROJECT, everyone[:1500], "v1")
    store.tasks.close_all_but(PROJECT, set(everyone[:1200]))
    pages = list(store.tasks.open_without(PROJECT, "v1"))

    assert ids(store.tasks.all(PROJECT)) == everyone
    assert ids(pages) == everyone[1500:]
    assert len(pages) > 1
    assert store.tasks.progress(PROJECT, "v1") == Progress(tasks=count, open=1303, predicted=300)

    store.tasks.mark_unpredicted(PROJECT, everyone)
    store.tasks.remove(PROJECT, everyone[1:])

    assert store.tasks.predicted(PROJECT, "v1") == set()
    assert ids(store.tasks.all(PROJECT)) == [1]


def test_pages_hold_while_the_listed_tasks_change(store: Store) -> None:
    everyone = list(range(1, 2101))
    store.tasks.mirror(PROJECT, [[task(each) for each in everyone]])

    seen = []
    for page in store.tasks.open_without(PROJECT, "v1"):
        seen += [each.id for each in page]
        store.tasks.mark_predicted(PROJECT, [each.id for each in page], "v1")

    assert seen == everyone


def test_some_tasks_are_drawn_and_stay_drawn_as_others_are_added(store: Store) -> None:
    mirrored(store, *(task(number, is_open=number % 3 > 0) for number in range(1, 301)))

    drawn = {each.id for each in store.tasks.some(PROJECT, 50)}
    closed = store.tasks.some(PROJECT, 1000, is_open=False)
    mirrored(store, *(task(number) for number in range(1, 331)))
    later = {each.id for each in store.tasks.some(PROJECT, 50)}

    assert len(drawn) == 50
    # From all over, not what was imported first.
    assert 25 < sum(number > 150 for number in drawn) + 12 < 50
    assert {each.id for each in closed} == set(range(3, 301, 3))
    assert len(drawn & later) >= 40
