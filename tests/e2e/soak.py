"""Annotators, imports, deletions, config changes and kills, all at once, and what is left.

In the first half processes are killed and Redis is emptied; the second half is spared, so that it
tells whether memory grows.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rq.registry import StartedJobRegistry

from backend.demo.label_studio import LabelStudioServer
from backend.demo.project import CONTROL, label_config, picture_name
from backend.errors import LabelStudioError
from backend.jobs.queue import JobQueue
from backend.store.requests import Kind
from tests.e2e.parts import SOME_CHOICES, LabelledProject, RunningBackend, is_refreshed, wait_for

PICTURES = 200
ANNOTATORS = 3

# A choice that comes and goes and that nobody ever picks.
PASSING_CHOICE = "Something else"

# Beyond this a process that lives on has grown, in MiB. What the second half adds to the project
# (vectors, versions) is far below.
GROWTH = 64.0

_PIDS = re.compile(r"started (\w+) pid=(\d+)")


@dataclass
class Outcome:
    """What was done, what Label Studio or the backend refused, and memory by process, in MiB.

    `lost` are annotations that were refused of tasks that are still there.
    """

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def growth(self) -> dict[str, float]:
        """Return by process the medians of the last quarter's memory less the one's before."""
        ends = max(at for samples in self.memory.values() for at, _ in samples)
        grown = {}
        for process, samples in self.memory.items():
            third = [size for at, size in samples if 0.5 * ends < at <= 0.75 * ends]
            last = [size for at, size in samples if at > 0.75 * ends]
            grown[process] = statistics.median(last) - statistics.median(third)
        return grown


class Soak:
    """Everything that happens to one project, each in a thread of its own."""

    def __init__(self, backend: RunningBackend, project: LabelledProject, seconds: float) -> None:
        self.outcome = Outcome()
        self._backend = backend
        self._project = project
        self._seconds = seconds
        self._stopped = threading.Event()
        self._broken: list[BaseException] = []
        self._started = time.monotonic()

    def run(self) -> None:
        """Let it all happen; raises what an actor met and did not expect."""
        actors = [(self._annotate, (0.05, 1.0))] * ANNOTATORS + [
            (self._change_an_annotation, (3.0, 8.0)),
            (self._import, (5.0, 12.0)),
            (self._delete, (5.0, 12.0)),
            (self._change_the_config, (15.0, 30.0)),
            (self._kill, (6.0, 15.0)),
            (self._measure, (1.0, 1.0)),
        ]
        threads = [
            threading.Thread(target=self._repeat, args=(act, pause, random.Random(number)))
            for number, (act, pause) in enumerate(actors)
        ]
        for thread in threads:
            thread.start()
        try:
            for second in track(range(int(self._seconds)), "soaking"):
                while not self._broken and self._elapsed() < second:
                    time.sleep(0.1)
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        if self._broken:
            raise self._broken[0]

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _repeat(
        self,
        act: Callable[[random.Random], None],
        pause: tuple[float, float],
        draw: random.Random,
    ) -> None:
        try:
            while not self._stopped.wait(draw.uniform(*pause)):
                try:
                    act(draw)
                except LabelStudioError as error:
                    # It fails to list a task that is deleted meanwhile.
                    self.outcome.refused[f"{act.__name__}: {error.label_studio_status}"] += 1
        except BaseException as error:  # noqa: BLE001 - raised again where it is seen
            self._broken.append(error)

    def _call(self, what: str, method: str, path: str, **arguments: Any) -> Any:
        """Ask Label Studio; None where it refuses, as it may when others get in between."""
        response = self._project.raw.request(method, path, **arguments)
        if response.is_success:
            self.outcome.done[what] += 1
            return response.json() if response.content else True
        self.outcome.refused[f"{what}: {response.status_code} {_reason(response)}"] += 1
        return None

    def _annotate(self, draw: random.Random) -> None:
        task = self._call("served", "GET", f"/api/projects/{self._project.id}/next")
        if task is None:
            return
        truth = self._project.truth[picture_name(task["data"])]
        skipped = draw.random() < 0.05
        shown = task["predictions"][0]["id"] if task["predictions"] else None
        # Somebody looks at the picture: predictions come and go meanwhile.
        self._stopped.wait(draw.uniform(0.0, 2.0))
        answer = self._call(
            "skipped" if skipped else "annotated",
            "POST",
            f"/api/tasks/{task['id']}/annotations/",
            json={
                "result": [] if skipped else _chosen(truth),
                "was_cancelled": skipped,
                "parent_prediction": shown,
                "lead_time": 1.0,
            },
        )
        if answer is None and self._call("looked again", "GET", f"/api/tasks/{task['id']}/"):
            # Nobody has deleted it meanwhile, with all that it had.
            self.outcome.lost += 1

    def _change_an_annotation(self, draw: random.Random) -> None:
        annotated = [annotation for task in self._annotated() for annotation in task.annotations]
        if not annotated:
            return
        path = f"/api/annotations/{draw.choice(annotated)['id']}/"
        if draw.random() < 0.5:
            self._call("annotation deleted", "DELETE", path)
        else:
            result = _chosen(draw.choice(SOME_CHOICES))
            self._call("annotation changed", "PATCH", path, json={"result": result})

    def _import(self, draw: random.Random) -> None:
        self._project.draw(draw.randint(1, 5))
        self.outcome.done["imports"] += 1

    def _delete(self, draw: random.Random) -> None:
        tasks = self._project.tasks()
        if len(tasks) > PICTURES // 2:
            self._call("task deleted", "DELETE", f"/api/tasks/{draw.choice(tasks).id}/")

    def _change_the_config(self, _draw: random.Random) -> None:
        now = self._project.client.project(self._project.id).label_config
        choices = SOME_CHOICES if PASSING_CHOICE in now else (*SOME_CHOICES, PASSING_CHOICE)
        self._call(
            "config changed",
            "PATCH",
            f"/api/projects/{self._project.id}",
            json={"label_config": label_config(choices)},
        )

    def _kill(self, draw: random.Random) -> None:
        if self._elapsed() > self._seconds / 2:
            return
        victim = draw.choice(("api", "worker", "worker", "redis", "queue"))
        if victim == "queue":
            with suppress(redis.RedisError), self._backend.redis() as queue:
                queue.flushall()
                self.outcome.done["Redis emptied"] += 1
        else:
            with suppress(ProcessLookupError):
                os.kill(_pids(self._backend)[victim], signal.SIGKILL)
                self.outcome.done[f"{victim} killed"] += 1

    def _measure(self, _draw: random.Random) -> None:
        for process, pid in _pids(self._backend).items():
            with suppress(OSError):
                self.outcome.memory[process].append((self._elapsed(), resident_memory(pid)))

    def _annotated(self) -> list[Any]:
        return [
            task for page in self._project.client.annotated_tasks(self._project.id) for task in page
        ]


def resident_memory(pid: int) -> float:
    """Return what a process and its children hold, in MiB; raises OSError where it is gone."""
    process = Path(f"/proc/{pid}")
    found = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    children = (process / "task" / str(pid) / "children").read_text().split()
    own = int(found[1]) / 1024 if found else 0.0
    return own + sum(resident_memory(int(child)) for child in children)


def assert_nothing_is_lost(backend: RunningBackend, project: LabelledProject) -> None:
    """Wait for the predictions to settle; check labels, requests and jobs."""
    wait_for(
        lambda: is_refreshed(backend, project),
        "each open task has one current prediction",
        lambda: (
            backend.work(project.id),
            Counter(each.model_version for each in project.predictions()),
            backend.log()[-10_000:],
        ),
        # Each version leaves superseded predictions, and Label Studio removes them one by one.
        left=lambda: len(project.predictions()),
    )
    labels, ties = labels_in_label_studio(project)
    version = backend.store.versions.active(project.id)
    assert version is not None
    report = version.report[CONTROL]
    assert report["per_choice"] == dict.fromkeys(report["per_choice"], 0) | Counter(labels.values())
    assert (report["labels"], report["ties"]) == (len(labels), ties)
    queue = JobQueue(f"unix://{backend.folder / 'redis.sock'}")
    try:
        wait_for(lambda: not any(_jobs(queue)), "nothing is left in RQ", lambda: _jobs(queue))
    finally:
        queue.close()


def labels_in_label_studio(project: LabelledProject) -> tuple[dict[int, str], int]:
    """Return each task's majority of the annotations that were not skipped, and the ties."""
    labels, ties = {}, 0
    for page in project.client.annotated_tasks(project.id):
        for task in page:
            votes = Counter(
                annotation["result"][0]["value"]["choices"][0]
                for annotation in task.annotations
                if not annotation["was_cancelled"]
            ).most_common(2)
            if len(votes) == 2 and votes[0][1] == votes[1][1]:
                ties += 1
            elif votes:
                labels[task.id] = votes[0][0]
    return labels, ties


@contextmanager
def connected_project(server: LabelStudioServer, folder: Path) -> Iterator[Any]:
    """Yield a running backend and a project of drawn pictures that is connected to it."""
    from tests.e2e.parts import new_project

    backend = RunningBackend(server, folder, RECONCILE_EVERY="5")
    with ExitStack() as opened:
        backend.start()
        opened.callback(backend.stop)
        project = new_project(server, title="Soak")
        opened.callback(project.close)
        project.draw(PICTURES)
        backend.connect(project)
        yield backend, project


def _jobs(queue: JobQueue) -> dict[str, int]:
    """Return by kind what RQ holds, queued or started."""
    held = Counter(queue.lengths())
    for kind, of_kind in queue.queues.items():
        # A comparison is always about to be made.
        if kind is not Kind.RECONCILE:
            held[kind.value] += StartedJobRegistry(queue=of_kind).count
    return +held


def _chosen(choice: str) -> list[dict[str, object]]:
    return [
        {
            "from_name": CONTROL,
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [choice]},
        }
    ]


def _pids(backend: RunningBackend) -> dict[str, int]:
    return {name: int(pid) for name, pid in _PIDS.findall(backend.log())}


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:80]
    return str(body.get("validation_errors") or body.get("detail") or body)[:120]


def show(outcome: Outcome) -> None:
    """Print what happened."""
    console = Console()
    table = Table("what", "times")
    for what, times in sorted(outcome.done.items()):
        table.add_row(what, str(times))
    for what, times in sorted(outcome.refused.items()):
        table.add_row(f"refused: {what}", str(times))
    console.print(table)
    memory = Table("process", "median MiB at the end", "more than a quarter before")
    for process, grown in outcome.growth().items():
        ends = outcome.memory[process][-1][0]
        last = statistics.median(size for at, size in outcome.memory[process] if at > 0.75 * ends)
        memory.add_row(process, f"{last:.0f}", f"{grown:+.1f}")
    console.print(memory)
