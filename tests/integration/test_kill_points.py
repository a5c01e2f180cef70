"""A worker that is killed at any moment loses nothing: the next one ends where a clean run does."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageColor

from backend.jobs.refresh import SHOWN_FOR
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import PictureServer, data_uri
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio
from tests.integration.killed_worker import WarmWorker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")

TASKS = 18


@pytest.fixture(scope="module")
def worker() -> Iterator[WarmWorker]:
    worker = WarmWorker()
    yield worker
    worker.close()


class Stage:
    """A project in Label Studio and in the database, which can be put back as it was."""

    def __init__(self, folder: Path, label_studio: FakeLabelStudio, worker: WarmWorker) -> None:
        self.label_studio = label_studio
        self.slow_imports: tuple[int, ...] = ()
        self.shown_for = SHOWN_FOR
        self.looked_at: int | None = None
        self._file = folder / "store.sqlite3"
        self._worker = worker
        self._snapshot: object = None
        with self.store() as store:
            store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})

    def store(self) -> closing[Store]:
        return closing(Store.open(f"sqlite:///{self._file}"))

    def ask_for(self, *kinds: Kind) -> None:
        with self.store() as store:
            store.requests.add_all([Request(PROJECT, kind) for kind in kinds])

    def work(
        self, kill_at: int | None = None, *, worker: WarmWorker | None = None
    ) -> list[str] | None:
        """Have a worker do what is wanted; return its effects, None where it was killed."""
        return (worker or self._worker).live(
            (self.label_studio.url, self.label_studio.token),
            f"sqlite:///{self._file}",
            kill_at=kill_at,
            slow_imports=self.slow_imports,
            shown_for=self.shown_for,
        )

    def keep(self) -> None:
        """Keep all as it is now."""
        self._snapshot = self.label_studio.snapshot()
        # Not a copy of the file alone: what was written last is beside it.
        with (
            closing(sqlite3.connect(self._file)) as file,
            closing(sqlite3.connect(self._file.with_suffix(".kept"))) as kept,
        ):
            file.backup(kept)

    def put_back(self) -> None:
        """Put all back as it was kept."""
        self.label_studio.restore(self._snapshot)
        for leftover in self._file.parent.glob(f"{self._file.name}-*"):
            leftover.unlink()
        shutil.copy(self._file.with_suffix(".kept"), self._file)

    def outcome(self) -> dict[str, Any]:
        """Return what must be the same however often a worker died."""
        with self.store() as store:
            project, version = store.projects.get(PROJECT), store.versions.active(PROJECT)
            assert project is not None
            assert version is not None
            remote = self.label_studio.project
            assert remote is not None
            return {
                "version": version.name,
                "labels": version.report["colour"]["per_choice"],
                "predictions": self.label_studio.predicted(version.name),
                "superseded": self.label_studio.predicted()
                - self.label_studio.predicted(version.name),
                "served": remote["model_version"],
                "recorded": store.tasks.predicted(PROJECT, version.name),
                "surplus": {name: n for name, n in project.surplus.items() if n},
                "states": store.tasks.states(PROJECT),
                "embeddings": store.embeddings.count(),
                # Predictions that are added or removed alone change their tasks later.
                "watermark": project.watermark is not None
                and [
                    *project.watermark[:2],
                    project.watermark[2] >= self.label_studio.last_annotated_at,
                ],
                "is_mirrored": project.mirrored is not None,
                "looked_at": [
                    each["result"]
                    for each in self.label_studio.predictions.values()
                    if each["task"] == self.looked_at
                ],
                "wanted": [
                    (item.request.kind, item.running, item.attempts, item.error)
                    for item in store.requests.waiting(PROJECT)
                ],
            }


@pytest.fixture
def stage(tmp_path: Path, label_studio: FakeLabelStudio, worker: WarmWorker) -> Stage:
    return Stage(tmp_path, label_studio, worker)


@pytest.fixture
def assert_no_kill_matters(
    stage: Stage, request: pytest.FixtureRequest
) -> Callable[[], dict[str, Any]]:
    """Check what comes of it when a worker is killed at any effect; return the clean outcome."""

    def check() -> dict[str, Any]:
        stage.keep()
        effects = stage.work()
        assert effects is not None
        clean = stage.outcome()
        every = request.config.getoption("--every-kill-point")
        points = range(len(effects)) if every else sorted(first_and_last(effects))
        wrong = {}
        for point in points:
            stage.put_back()
            assert stage.work(kill_at=point) is None
            assert stage.work() is not None
            outcome = stage.outcome()
            if outcome != clean:
                wrong[f"{point} {effects[point]}"] = {
                    key: value for key, value in outcome.items() if value != clean[key]
                }
        sys.stdout.write(f"killed at {len(points)} of {len(effects)} effects\n")
        assert wrong == {}
        return clean

    return check


def first_and_last(effects: list[str]) -> set[int]:
    """Return the first and last of each kind of effect that changes the world."""
    last = {
        name: point
        for point, name in enumerate(effects)
        if "after" in name and "after GET" not in name
    }
    return {*last.values(), *(effects.index(name) for name in last)}


def shades(count: int, blue: int = 60) -> list[str]:
    return [data_uri((index * 255 // count, 60, blue)) for index in range(count)]


def settled(stage: Stage) -> list[int]:
    """Have a project with two labels, everything done, and no page open; return its tasks."""
    stage.shown_for = -1.0
    ids = stage.label_studio.add_tasks(*shades(TASKS))
    stage.label_studio.annotate(ids[0], "blue")
    stage.label_studio.annotate(ids[-1], "red")
    stage.ask_for(Kind.TRAIN, Kind.SYNC)
    assert stage.work() is not None
    return ids


def annotate_and_train(stage: Stage, task_id: int, choice: str) -> None:
    stage.label_studio.annotate(task_id, choice)
    stage.ask_for(Kind.TRAIN)


def test_of_a_new_project(stage: Stage, assert_no_kill_matters: Any) -> None:
    ids = stage.label_studio.add_tasks(*shades(TASKS))
    stage.label_studio.annotate(ids[0], "blue")
    stage.ask_for(Kind.TRAIN, Kind.SYNC)

    clean = assert_no_kill_matters()

    assert clean["predictions"] == dict.fromkeys(ids[1:], 1)
    assert clean["served"] == clean["version"]
    assert clean["wanted"] == [(Kind.RECONCILE, False, 0, None)]


def test_of_annotations_that_become_a_version(stage: Stage, assert_no_kill_matters: Any) -> None:
    ids = settled(stage)
    annotate_and_train(stage, ids[5], "green")
    annotate_and_train(stage, ids[6], "green")

    clean = assert_no_kill_matters()

    assert clean["labels"] == {"red": 1, "green": 2, "blue": 1}
    assert clean["superseded"] == {}
    assert clean["served"] == clean["version"]


def test_of_tasks_that_arrive_later(stage: Stage, assert_no_kill_matters: Any) -> None:
    settled(stage)
    late = stage.label_studio.add_tasks(*shades(12, blue=200))
    stage.ask_for(Kind.SYNC)

    clean = assert_no_kill_matters()

    assert clean["predictions"].keys() >= set(late)
    assert clean["embeddings"] == TASKS + len(late)


def test_of_a_task_whose_data_change(stage: Stage, assert_no_kill_matters: Any) -> None:
    ids = settled(stage)
    stage.looked_at = ids[5]
    (before,) = stage.outcome()["looked_at"]
    stage.label_studio.change(ids[5], image=data_uri("teal"))

    clean = assert_no_kill_matters()

    assert clean["predictions"] == dict.fromkeys(ids[1:-1], 1)
    assert clean["looked_at"] != [before]


@pytest.mark.parametrize("imports_are_slow", [False, True], ids=["", "slow_imports"])
def test_of_what_is_swept_after_several_versions(
    stage: Stage, assert_no_kill_matters: Any, imports_are_slow: bool
) -> None:
    ids = settled(stage)
    if imports_are_slow:
        stage.slow_imports = (PROJECT,)
    version = stage.outcome()["version"]
    # An older version's predictions, and of some tasks two of this: a /predict at a bad moment.
    for task_id in ids[1:-1]:
        stage.label_studio.predict(task_id, "clip-backend-1-01234567")
    for task_id in ids[3:6]:
        stage.label_studio.predict(task_id, version)
    annotate_and_train(stage, ids[7], "green")

    clean = assert_no_kill_matters()

    assert clean["superseded"] == {}
    assert set(clean["predictions"].values()) == {1}


def test_two_workers_at_once_fetch_no_picture_and_add_no_prediction_twice(
    stage: Stage, pictures: PictureServer, worker: WarmWorker
) -> None:
    colours = list(ImageColor.colormap)[:30]
    ids = stage.label_studio.add_tasks(*(f"{pictures.url}/{name}" for name in colours))
    stage.label_studio.annotate(ids[0], "blue")
    with closing(WarmWorker()) as other:
        stage.ask_for(Kind.TRAIN, Kind.SYNC)
        with ThreadPoolExecutor(2) as both:
            lives = [both.submit(stage.work, worker=each) for each in (worker, other)]
        assert None not in [life.result() for life in lives]
    assert stage.work() is not None

    outcome = stage.outcome()
    assert sorted(pictures.paths) == sorted(f"/{name}" for name in colours)
    assert outcome["predictions"] == dict.fromkeys(ids[1:], 1)
    assert outcome["superseded"] == {}
