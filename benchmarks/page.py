"""How much longer than the emptiest request (`GET /health`) does a project's page take?

    python benchmarks/page.py [--tasks 100000]

A project of many tasks with three controls, on SQLite. Page, panels and `/health` are asked of the
same server, in turns; Chromium (`CHROMIUM` names one) then says when it first paints the page, and
when it first paints the answer of `/health`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from playwright.sync_api import Browser, sync_playwright

from backend.demo.processes import free_port
from backend.learning.confusion import confusion
from backend.store import Store
from backend.store.contents import (
    EmbeddingMap,
    MapColours,
    QueuedTask,
    confusions_to_bytes,
    map_to_bytes,
    queue_to_bytes,
)
from backend.store.findings import FindingKind
from backend.store.tasks import StoredTask
from backend.store.versions import Version

PROJECT = 7
ROUNDS = 30
PAINTS = 5
GOAL = 1.0

# Those that ask the database alone.
PANELS = (
    *("overview", "jobs", "acceptance", "class_balance", "versions", "agreement"),
    *("learning_curve", "uncertain", "confusion", "suspects", "map"),
)
CONTROLS = ("colour", "shape", "material")
CHOICES = tuple(f"choice {number}" for number in range(100))
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    + "".join(
        f'<Choices name="{control}" toName="image">'
        + "".join(f'<Choice value="{choice}"/>' for choice in CHOICES)
        + "</Choices>"
        for control in CONTROLS
    )
    + "</View>"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    tasks = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), tasks)
        with serving(folder) as url:
            print(f"{tasks:,} tasks")
            measure_requests(url)
            measure_paints(url)


def fill(folder: Path, tasks: int) -> None:
    """Make a project with half of its open tasks predicted and some dozens of versions."""
    store = Store.open(f"sqlite:///{folder / 'clip-backend.sqlite3'}")
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})
    for number in range(30):
        version = store.versions.publish(a_version(100 * 1.2**number))
    store.findings.keep(PROJECT, version.name, findings(tasks))
    pages = (
        [
            StoredTask(number, {"image": f"/data/upload/7/{number}.jpg"}, open=number % 5 > 0)
            for number in range(first, min(first + 1000, tasks + 1))
        ]
        for first in range(1, tasks + 1, 1000)
    )
    store.tasks.mirror(PROJECT, pages)
    store.tasks.mark_predicted(PROJECT, range(1, tasks // 2), version.name)
    store.close()


def findings(tasks: int) -> dict[FindingKind, bytes]:
    """Return what is found out of 10,000 labels and as many tasks as a map has."""
    drawn = np.random.default_rng(0)
    given = torch.from_numpy(drawn.integers(0, len(CHOICES), 10_000))
    probabilities = torch.from_numpy(drawn.dirichlet(np.full(len(CHOICES), 0.1), 10_000))
    confused = confusion(probabilities, given, [*range(1, 10_001)], CHOICES, multiple=False)
    likeliest = {control: [(CHOICES[3], 0.4), (CHOICES[5], 0.3)] for control in CONTROLS}
    shown = min(tasks, 20_000)
    choice = drawn.integers(0, len(CHOICES), shown).astype(np.int32)
    drawn_map = EmbeddingMap(
        source="tiny",
        rounds=4,
        done=True,
        tasks=tasks,
        ids=np.arange(1, shown + 1, dtype=np.int64),
        places=drawn.normal(size=(shown, 2)).astype(np.float32),
        uncertainties=drawn.uniform(size=shown).astype(np.float32),
        colours=dict.fromkeys(CONTROLS, MapColours(CHOICES, choice, choice)),
    )
    return {
        FindingKind.CONFUSION: confusions_to_bytes(dict.fromkeys(CONTROLS, confused)),
        FindingKind.QUEUE: queue_to_bytes([QueuedTask(n, 0.1, likeliest) for n in range(1, 201)]),
        FindingKind.MAP: map_to_bytes(drawn_map),
    }


def a_version(labels: float) -> Version:
    drawn = random.Random(0)
    suspects = [
        {"task": number, "given": [CHOICES[1]], "suggested": [CHOICES[2]], "confidence": 0.9}
        for number in range(1000)
    ]
    accuracy = 0.95 - 2 * labels**-0.6
    of_control: dict[str, Any] = {
        "labels": round(labels),
        "per_choice": {choice: drawn.randrange(400) for choice in CHOICES},
        "out_of_fold": {"top1": accuracy - 0.05},
        "pool_accuracy": {"value": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03},
        "acceptance": {"shown": 5000, "kept": 4000, "until": 1},
        "suspects": suspects,
        "agreement": {
            "tasks": 900,
            "pairwise": 0.8,
            "alpha": 0.7,
            "annotators": [
                {"annotator": number, "tasks": 900, "compared": 900, "agreement": 0.8}
                for number in range(12)
            ],
        },
    }
    report = dict.fromkeys(CONTROLS, of_control)
    return Version(PROJECT, 0, "0" * 64, "tiny", "margin", "confidence", {}, 20_000, report)


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """Yield the address of a server that has loaded everything."""
    port = free_port()
    environment = os.environ | {
        "DATA_DIR": folder,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "CLIP_MODEL": "tiny",
        "LOG_LEVEL": "ERROR",
    }
    server = subprocess.Popen([sys.executable, "-m", "backend.cli", "serve"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not is_ready(url):
            if time.monotonic() > until:
                raise SystemExit("the backend does not start")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def is_ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health").json()["encoder"] == "ready")
    except httpx.HTTPError:
        return False


def measure_requests(url: str) -> None:
    paths = {
        "/health": "/health",
        "page": f"/projects/{PROJECT}",
        "list": "/projects",
        **{f"panel {name}": f"/projects/{PROJECT}/panels/{name}" for name in PANELS},
        "points of the map": f"/projects/{PROJECT}/map?colour=0",
    }
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(ROUNDS + 1):
            for name, path in paths.items():
                seconds[name].append(timed(lambda path=path: client.get(path).raise_for_status()))  # type: ignore[misc]
    # The first of each warms up.
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    print(f"{'':24}{'median ms':>12}{'slowest ms':>12}{'/health':>10}")
    for name, median in medians.items():
        slowest = max(seconds[name][1:])
        ratio = median / medians["/health"]
        print(f"{name:24}{median * 1000:12.1f}{slowest * 1000:12.1f}{ratio:9.1f}x")


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_paints(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or "/usr/bin/chromium", args=["--no-sandbox"]
        )
        addresses = (f"{url}/health", f"{url}/projects/{PROJECT}")
        paints = [[first_paint(browser, each) for each in addresses] for _ in range(PAINTS)]
        browser.close()
    health, page = (statistics.median(each) for each in zip(*paints, strict=True))
    slowest = max(each for _, each in paints)
    print(f"first contentful paint: /health {health * 1000:.0f} ms, page {page * 1000:.0f} ms")
    print(f"ratio of medians, page to /health: {page / health:.2f}")
    print(f"slowest page {slowest * 1000:.0f} ms, goal < {GOAL * 1000:.0f} ms")


def first_paint(browser: Browser, address: str) -> float:
    """Return the seconds from asking to the first contentful paint, with an empty cache."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    milliseconds = page.wait_for_function(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    ).json_value()
    context.close()
    return float(milliseconds) / 1000


if __name__ == "__main__":
    main()
