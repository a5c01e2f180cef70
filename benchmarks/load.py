"""Does it stay quick, and lose nothing, while everybody wants something at the same time?

    python benchmarks/load.py [--seconds 60]

50 annotators submit once a second and each submit is a webhook, 20 clients ask for predictions of
100 tasks with new pictures again and again, and trainings and refreshes follow from the webhooks.
The shipped CLIP, a stand-in for Label Studio, and all of it on the same cores. Who is refused (429)
waits for as long as the answer says. In the end every label must be learnt.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
CHOICES = ("red", "green", "blue")

# What stands for other machines gives way to the backend, as it would there.
OTHERS = 10

# Label Studio waits a second for each of these.
GOALS = {"/webhook": 0.100, "/health": 0.080}


def main() -> None:
    parser = argparse.ArgumentParser(description="everybody at the same time")
    parser.add_argument("--seconds", type=float, default=60.0)
    duration = parser.parse_args().seconds
    # The servers of tasks and pictures; the backend itself is put back where it would be.
    os.nice(OTHERS)
    size = (256, 256)
    with parts.temporary_folder() as folder, parts.picture_server(size=size) as pictures:
        label_studio = FakeLabelStudio()
        ids = label_studio.add_tasks(*(f"{pictures}/task/{number}" for number in range(TASKS)))
        port = parts.free_port()
        address = f"http://127.0.0.1:{port}"
        label_studio.ml_backends = [{"id": 1, "url": address}]
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
        command = ["nice", "-n", str(-OTHERS), sys.executable, "-m", "backend.cli", "up"]
        with parts.running(command, environment) as parent, httpx.Client(base_url=address) as api:
            parts.wait_until(lambda: api.get("/health").json()["encoder"] == "ready")
            api.post("/setup", json={"project": str(PROJECT), "schema": CONFIG}).raise_for_status()
            store = Store.open(Settings.read(data_dir=folder).database)
            parts.wait_until(lambda: store.embeddings.count() >= TASKS)
            measure(address, pictures, label_studio, ids, duration, _child_memory(parent.pid))
            parts.wait_until(lambda: learnt(store) == len(annotated(label_studio)))
            print(f"labels learnt: {learnt(store)} of {len(annotated(label_studio))}")
            store.close()
        label_studio.close()


def measure(
    address: str,
    pictures: str,
    label_studio: FakeLabelStudio,
    ids: Sequence[int],
    duration: float,
    memory: Callable[[], dict[str, float]],
) -> None:
    spawn = multiprocessing.get_context("spawn")
    until = time.time() + duration
    seen = []
    started = []
    for target, arguments in ((submit_and_look, ()), (ask_for_predictions, (pictures,))):
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=target, args=(address, until, theirs, *arguments))
        process.start()
        started.append((process, ours))
    before, most = memory(), Counter[str]()
    for number, task_id in zip(count(), ids, strict=False):
        # The labels that the webhooks tell of.
        if time.time() > until - 1:
            break
        label_studio.annotate(task_id, CHOICES[number % len(CHOICES)])
        if number % ANNOTATORS == 0:
            for name, size in memory().items():
                most[name] = max(most[name], int(size))
        time.sleep(1 / ANNOTATORS)
    for process, ours in started:
        seen.append(ours.recv())
        process.join()
    latencies, statuses = seen[0].seconds | seen[1].seconds, seen[0].statuses + seen[1].statuses
    print(f"{'':12}{'answers':>9}{'p50 ms':>10}{'p99 ms':>10}")
    for path, taken in latencies.items():
        p50, p99 = np.percentile(taken, (50, 99))
        goal = GOALS.get(path)
        told = f"  {parts.verdict(p99, goal, at_least=False)} s" if goal else ""
        print(f"{path:12}{len(taken):9}{p50 * 1000:10.1f}{p99 * 1000:10.1f}{told}")
    print("statuses:", ", ".join(f"{path} {status}: {n}" for (path, status), n in statuses.items()))
    for name, size in most.items():
        print(f"memory of {name}: {before[name]:.0f} MiB before, {size} MiB at most")


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

    def finish(self, report: Connection) -> None:
        """Wait for all threads and tell what they saw."""
        for thread in self._threads:
            thread.join()
        self._client.close()
        report.send(self.seen)

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


def submit_and_look(address: str, until: float, report: Connection) -> None:
    os.nice(-OTHERS)
    event = {"action": "ANNOTATION_CREATED", "project": {"id": PROJECT}}
    clients = Clients(address, until)
    clients.start(ANNOTATORS, "/webhook", 1.0, lambda: event)
    clients.start(5, "/health", 0.5)
    clients.finish(report)


def ask_for_predictions(address: str, until: float, report: Connection, pictures: str) -> None:
    os.nice(OTHERS)
    numbers = count()

    def body() -> dict[str, object]:
        tasks = [
            {"id": None, "data": {"image": f"{pictures}/new/{next(numbers)}"}}
            for _ in range(TASKS_OF_A_REQUEST)
        ]
        return {"tasks": tasks, "project": str(PROJECT), "label_config": CONFIG}

    clients = Clients(address, until)
    clients.start(CLIENTS, "/predict", 0.0, body)
    clients.finish(report)


def annotated(label_studio: FakeLabelStudio) -> list[int]:
    return [task_id for task_id, task in label_studio.tasks.items() if task["annotations"]]


def learnt(store: Store) -> int:
    version = store.versions.active(PROJECT)
    return 0 if version is None else version.annotations


def _child_memory(parent: int) -> Callable[[], dict[str, float]]:
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
