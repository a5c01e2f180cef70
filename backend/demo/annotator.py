"""Annotates the demo's project by itself, and measures what that teaches the backend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from backend.demo.project import AnnotatedProject, ServedTask, ShownPrediction, picture_name
from backend.errors import ClipBackendError
from backend.labelstudio.client import LabelStudio
from backend.store import Store

# Labels after which the learning curve is told in the end.
MILESTONES = (0, 10, 30, 100)

_STEP = 10
_REFRESHED_WITHIN = 180.0
_LOOK_EVERY = 0.1
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Measurement:
    """A version, and how right it is about the tasks that nobody has annotated."""

    labels: int
    model_version: str
    correct: int
    open: int
    seconds: float | None

    @property
    def accuracy(self) -> float:
        """Share of the open tasks whose prediction is the truth."""
        return self.correct / self.open


class Annotator:
    """Submits the truth of each task that the queue serves; `truth` is by picture name."""

    def __init__(
        self,
        project: AnnotatedProject,
        client: LabelStudio,
        store: Store,
        truth: Mapping[str, str],
    ) -> None:
        self._project = project
        self._client = client
        self._store = store
        self._truth = truth
        self.served = 0
        self.out_of_order = 0

    def annotate(self, count: int) -> int:
        """Annotate what the queue serves; return how many tasks it had left to serve."""
        for done in range(count):
            task = self._take()
            if task is None:
                return done
            self._project.annotate(task.id, self._truth[task.picture])
        return count

    def measure(self, since: float | None) -> Measurement:
        """Wait until the queue is ordered by a version that has learnt all labels; measure it.

        `since` is when the last of them was submitted (`time.monotonic()`). Raises
        ClipBackendError if the version does not come.
        """
        tasks = [task for page in self._client.tasks(self._project.id) for task in page]
        labels = sum(not task.open for task in tasks)
        names = {task.id: picture_name(task.data) for task in tasks if task.open}
        until = time.monotonic() + _REFRESHED_WITHIN
        while True:
            version = self._store.versions.active(self._project.id)
            learnt = version is not None and version.annotations >= labels
            if version is not None and learnt and self._current_version() == version.name:
                shown = {
                    prediction.task: prediction
                    for prediction in self._project.predictions()
                    if prediction.model_version == version.name
                }
                if names.keys() <= shown.keys():
                    break
            if time.monotonic() > until:
                raise ClipBackendError(
                    f"the predictions were not refreshed within {_REFRESHED_WITHIN:.0f} s of "
                    f"annotation {labels}: see the log of the backend"
                )
            time.sleep(_LOOK_EVERY)
        seconds = None if since is None else time.monotonic() - since
        correct = sum(shown[task].choices == (self._truth[name],) for task, name in names.items())
        return Measurement(labels, version.name, correct, len(names), seconds)

    def _take(self) -> ServedTask | None:
        """Take the next task, and check that none of the open ones is less certain."""
        before = self._current_version()
        predictions = self._project.predictions()
        task = self._project.next()
        # A refresh that comes between the looks leaves nothing to compare with, and so does a task
        # that was taken earlier: Label Studio keeps it for its user, whatever is refreshed.
        if task is not None and not task.resumed and self._current_version() == before:
            self.served += 1
            self.out_of_order += not self._is_least_certain(task, predictions, before)
        return task

    def _is_least_certain(
        self, task: ServedTask, predictions: Sequence[ShownPrediction], version: str | None
    ) -> bool:
        open_tasks = {
            item.id for page in self._client.tasks(self._project.id) for item in page if item.open
        }
        scores = {
            prediction.task: prediction.score
            for prediction in predictions
            if prediction.model_version == version and prediction.task in open_tasks
        }
        return task.id in scores and scores[task.id] <= min(scores.values())

    def _current_version(self) -> str | None:
        return self._client.project(self._project.id).model_version


def annotate_and_measure(annotator: Annotator, console: Console) -> int:
    """Annotate a hundred tasks in steps, tell the learning curve, and return an exit code.

    It is 0 if accuracy rose and the queue always served the least certain task.
    """
    curve = [annotator.measure(None)]
    _tell(console, curve[0])
    while len(curve) <= MILESTONES[-1] // _STEP:
        done = annotator.annotate(_STEP)
        # The last open task leaves nothing to measure on.
        if done < _STEP or curve[-1].open <= _STEP:
            break
        curve.append(annotator.measure(time.monotonic()))
        _tell(console, curve[-1])
    rose = curve[-1].accuracy > curve[0].accuracy
    milestones = [point for step, point in enumerate(curve) if step * _STEP in MILESTONES]
    console.print(_table(milestones))
    console.print(f"learning curve {_sparkline([point.accuracy for point in curve])}")
    console.print(
        f"the queue served the least certain task {annotator.served - annotator.out_of_order} of "
        f"{annotator.served} times",
        highlight=False,
    )
    if not rose:
        console.print("[red]accuracy did not rise[/]")
    return 0 if rose and not annotator.out_of_order else 1


def _tell(console: Console, point: Measurement) -> None:
    took = "" if point.seconds is None else f", queue re-ordered in {point.seconds:.1f} s"
    console.print(
        f"  {point.labels:4d} annotations  {point.model_version}  {point.accuracy:6.1%} of the "
        f"other {point.open} predicted right{took}",
        highlight=False,
        soft_wrap=True,
    )


def _table(points: Sequence[Measurement]) -> Table:
    table = Table("annotations")
    table.add_column("model version", no_wrap=True)
    table.add_column("right about others")
    table.add_column("new queue after")
    for point in points:
        table.add_row(
            str(point.labels) if point.labels else "0 (zero-shot)",
            point.model_version,
            f"{point.accuracy:.1%} of {point.open}",
            "–" if point.seconds is None else f"{point.seconds:.1f} s",
        )
    return table


def _sparkline(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in values)
