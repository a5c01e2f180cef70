"""Does it stay quick, and lose nothing, while everybody wants something at the same time?

    python benchmarks/load.py [--seconds 60]

50 annotators submit once a second and each submit is a webhook, 20 clients ask for predictions of
100 tasks with new pictures again and again, and trainings and refreshes follow from the webhooks.
The shipped CLIP, a stand-in for Label Studio, and all of it on the same cores. Who is refused (429)
waits for as long as the answer says. In the end every label must be learnt.

A webhook is answered once it is on the disk. What the disk itself takes is measured meanwhile, by a
process that adds a page to a file of its own: where that takes long, everybody waits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import parts

sys.path.append(str(Path(__file__).parents[1] / "tests" / "integration"))

from fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

from backend.settings import Settings
from backend.store import Store

ANNOTATORS = 50
CLIENTS = 20
TASKS_OF_A_REQUEST = 100
TASKS = 4000
PAGE = 4096
CHOICES = ("red", "green", "blue")

# Label Studio waits a second for each of these.
GOALS = {"/webhook": 0.100, "/health": 0.080}  # seconds, of p99


def main() -> None:
    parser = argparse.ArgumentParser(description="everybody at the same time")
    parser.add_argument("--seconds", type=float, default=60.0)
    duration = parser.parse_args().seconds
    label_studio, port = FakeLabelStudio(), parts.free_port()
    address = f"http://127.0.0.1:{port}"
    label_studio.ml_backends = [{"id": 1, "url": address}]
    with (
        parts.temporary_folder() as folder,
        parts.running(*up(folder, port, label_studio)) as parent,
        httpx.Client(base_url=address) as api,
    ):
        annotators = Started(submit_and_look, address)
        disk = Started(write_to_disk, folder / "written")
        # What else stands for other machines gives way to the backend, as it would there.
        os.nice(10)
        with parts.picture_server(size=(256, 256)) as pictures:
            others = Started(ask_for_predictions, address, pictures)
            ids = label_studio.add_tasks(*(f"{pictures}/task/{number}" for number in range(TASKS)))
            parts.wait_until(lambda: api.get("/health").json()["encoder"] == "ready")
            api.post("/setup", json={"project": str(PROJECT), "schema": CONFIG}).raise_for_status()
            store = Store.open(Settings.read(data_dir=folder).database)
            parts.wait_until(lambda: store.embeddings.count() >= TASKS)
            memory = memory_of_children(parent.pid)
            before, most = memory(), memory()
            until = time.time() + duration
            for started in (annotators, disk, others):
                started.go(until)
            for number, task_id in zip(count(), ids, strict=False):
                # The labels that the webhooks tell of.
                if time.time() > until - 1:
                    break
                label_studio.annotate(task_id, CHOICES[number % len(CHOICES)])
                if number % ANNOTATORS == 0:
                    most = {name: max(size, most[name]) for name, size in memory().items()}
                time.sleep(1 / ANNOTATORS)
            report(annotators.finish(), others.finish(), disk.finish())
            for name, size in most.items():
                print(f"memory of {name}: {before[name]:.0f} MiB before, {size:.0f} MiB at most")
            parts.wait_until(lambda: learnt(store) == len(annotated(label_studio)))
            print(f"labels learnt: {learnt(store)} of {len(annotated(label_studio))}")
            store.close()
    label_studio.close()


def up(
    folder: Path, port: int, label_studio: FakeLabelStudio
) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the command of a whole backend, and its environment."""
    environment = {
        "DATA_DIR": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "CLIP_MODEL": "tiny",
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "IMAGE_HOSTS": "127.0.0.1",
        "LOG_LEVEL": "WARNING",
    }
    return [sys.executable, "-m", "backend.cli", "up"], environment


def report(*seen: Seen) -> None:
    print(f"{'':12}{'times':>9}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    for path, taken in (item for one in seen for item in one.seconds.items()):
        times = "".join(f"{each * 1000:10.1f}" for each in np.percentile(taken, (50, 99, 100)))
        goal = GOALS.get(path)
        met = parts.verdict(np.percentile(taken, 99), goal, at_least=False) if goal else ""
        print(f"{path:12}{len(taken):9}{times}  {met}")
    for (path, status), number in sum((one.statuses for one in seen), Counter()).items():
        print(f"{path} answered {status}: {number} times")


class Started:
    """A process of clients that waits to be told until when (Unix time) to ask."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=target, args=(theirs, *arguments))
        self._process.start()

    def go(self, until: float) -> None:
        self._ours.send(until)

    def finish(self) -> Seen:
        seen: Seen = self._ours.recv()
        self._process.join()
        return seen


@dataclass
class Seen:
    """What a process of clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)


class Clients:
    """Threads that ask again and again until a time (Unix), and what they saw."""

    def __init__(self, address: str, until: float) -> None:
        self.seen = Seen()
        self._until = until
        self._client = httpx.Client(
            base_url=address, timeout=120, limits=httpx.Limits(max_connections=None)
        )
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(
        self, number: int, path: str, every: float, body: Callable[[], Any] | None = None
    ) -> None:
        """Have so many threads ask for a path, each every so many seconds."""
        self.seen.seconds[path] = []
        for index in range(number):
            arguments = (path, every, body, every * index / number)
            thread = threading.Thread(target=self._ask, args=arguments)
            self._threads.append(thread)
            thread.start()

    def finish(self, pipe: Connection) -> None:
        """Wait for all threads and tell what they saw."""
        for thread in self._threads:
            thread.join()
        self._client.close()
        pipe.send(self.seen)

    def _ask(self, path: str, every: float, body: Callable[[], Any] | None, wait: float) -> None:
        time.sleep(wait)
        while time.time() < self._until:
            content = None if body is None else body()
            began = time.perf_counter()
            if content is None:
                answer = self._client.get(path)
            else:
                answer = self._client.post(path, json=content)
            taken = time.perf_counter() - began
            with self._lock:
                self.seen.statuses[path, answer.status_code] += 1
                if answer.is_success:
                    self.seen.seconds[path].append(taken)
            refused_for = float(answer.headers.get("Retry-After", 0))
            time.sleep(max(0.0, every - taken, refused_for))


def submit_and_look(pipe: Connection, address: str) -> None:
    event = {"action": "ANNOTATION_CREATED", "project": {"id": PROJECT}}
    clients = Clients(address, pipe.recv())
    clients.start(ANNOTATORS, "/webhook", 1.0, lambda: event)
    clients.start(5, "/health", 0.5)
    clients.finish(pipe)


def write_to_disk(pipe: Connection, file: Path) -> None:
    until, taken = pipe.recv(), []
    with file.open("wb", buffering=0) as written:
        while time.time() < until:
            began = time.perf_counter()
            written.write(bytes(PAGE))
            os.fdatasync(written.fileno())
            taken.append(time.perf_counter() - began)
            time.sleep(0.02)
    pipe.send(Seen({"the disk": taken}))


def ask_for_predictions(pipe: Connection, address: str, pictures: str) -> None:
    numbers = count()

    def body() -> dict[str, object]:
        tasks = [
            {"id": None, "data": {"image": f"{pictures}/new/{next(numbers)}"}}
            for _ in range(TASKS_OF_A_REQUEST)
        ]
        return {"tasks": tasks, "project": str(PROJECT), "label_config": CONFIG}

    clients = Clients(address, pipe.recv())
    clients.start(CLIENTS, "/predict", 0.0, body)
    clients.finish(pipe)


def annotated(label_studio: FakeLabelStudio) -> list[int]:
    return [task_id for task_id, task in label_studio.tasks.items() if task["annotations"]]


def learnt(store: Store) -> int:
    version = store.versions.active(PROJECT)
    return 0 if version is None else version.annotations


def memory_of_children(parent: int) -> Callable[[], dict[str, float]]:
    """Return what reads the resident memory, in MiB, of the API and of the worker."""

    def read() -> dict[str, float]:
        found = {}
        for child in parts.children(parent):
            name = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[-2].decode()
            if name in ("serve", "worker"):
                found[name] = parts.resident_memory(child)
        return found

    return read


if __name__ == "__main__":
    main()
