"""What does it cost to write `cluster` into Label Studio, and what does its queue make of it?

    python benchmarks/clusters.py [--tasks 1000] [--rounds 3]

A real Label Studio on SQLite. The bulk import drops `cluster`; `POST /api/predictions` keeps it,
one prediction a request: one after the other and eight at a time, against one bulk import of as
many. Then what `next` serves to several annotators.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import parts

from backend.demo.label_studio import LabelStudioServer

PROGRAM = Path(__file__).parents[1] / ".venv-label-studio" / "bin" / "label-studio"
AT_ONCE = 8
CLUSTERS = 20

# A refresh writes so many first, and the others in requests of so many.
HEAD, PART = 200, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="predictions with a cluster")
    parser.add_argument("--tasks", type=int, default=PART)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with parts.temporary_folder() as folder, LabelStudioServer(PROGRAM, folder / "ls") as server:
        owner = Annotator(server.url, server.token)
        measure(owner, options.tasks, options.rounds)
        others = [sign_up(server.url, f"annotator-{number}@example.com") for number in range(2)]
        look(owner, *others)


class Annotator:
    """A user of Label Studio."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Token {token}"},
            timeout=600,
            limits=httpx.Limits(max_connections=AT_ONCE),
        )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        response = self.http.request(method, path, **arguments).raise_for_status()
        return response.json() if response.content else None

    def next(self, project: int) -> int:
        return int(self.call("GET", f"/api/projects/{project}/next")["id"])

    def annotate(self, task: int) -> int:
        self.call("POST", f"/api/tasks/{task}/annotations/", json={"result": parts.result(0)})
        return task

    def annotate_next(self, project: int) -> int:
        return self.annotate(self.next(project))


def sign_up(url: str, email: str) -> Annotator:
    with httpx.Client(base_url=url, timeout=600, follow_redirects=True) as http:
        http.get("/user/signup/")
        form = {
            "email": email,
            "password": "not-a-secret-1",
            "csrfmiddlewaretoken": http.cookies["csrftoken"],
        }
        http.post("/user/signup/", data=form, headers={"Referer": url}).raise_for_status()
        token = http.get("/api/current-user/token").raise_for_status().json()["token"]
    return Annotator(url, token)


# What it costs


def measure(owner: Annotator, tasks: int, rounds: int) -> None:
    project, ids = new_project(owner, tasks)
    versions = (f"version {number}" for number in count())

    def imported(of: Sequence[int]) -> str:
        version = next(versions)
        path = f"/api/projects/{project}/import/predictions"
        owner.call("POST", path, json=predictions(of, version))
        return version

    def one_by_one(of: Sequence[int]) -> str:
        version = next(versions)
        for each in predictions(of, version):
            owner.call("POST", "/api/predictions/", json=each)
        return version

    def at_once(of: Sequence[int]) -> str:
        version = next(versions)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            post = partial(owner.call, "POST", "/api/predictions/")
            list(threads.map(lambda each: post(json=each), predictions(of, version)))
        return version

    works = {
        "bulk import, which drops it": imported,
        "one by one": one_by_one,
        f"{AT_ONCE} at a time": at_once,
    }
    print(f"{tasks:,} tasks; seconds, median of {rounds}")
    for size in sorted({min(HEAD, tasks), tasks}):
        turns = {name: partial(work, ids[:size]) for name, work in works.items()}
        taken = parts.in_turns(turns, rounds)
        baseline = next(iter(taken.values()))
        for name, seconds in taken.items():
            print(f"{size:6,} predictions, {name:30} {seconds:7.2f}  {seconds / baseline:6.1f} x")

    for name, write in (("without cluster", imported), ("with cluster", at_once)):
        owner.call("PATCH", f"/api/projects/{project}", json={"model_version": write(ids)})
        for _ in range(CLUSTERS):
            owner.annotate_next(project)
        taken_by_next = [parts.seconds(partial(owner.next, project)) for _ in range(5)]
        print(f"next, {name:20} {np.median(taken_by_next):7.3f} s")


def predictions(of: Sequence[int], version: str) -> list[dict[str, object]]:
    return [
        prediction(task, (place + 1) / 10_000, place % CLUSTERS, version)
        for place, task in enumerate(of)
    ]


# What the queue makes of it


@dataclass(frozen=True)
class Situation:
    """A project of eight tasks; a task is told by its score in tenths."""

    project: int
    ids: Sequence[int]

    def score(self, task: int) -> str:
        return f"0.{self.ids.index(task) + 1}"


def look(owner: Annotator, second: Annotator, third: Annotator) -> None:
    print("what `next` serves; tasks of score 0.1 to 0.8, the first four of cluster 0")
    clusters = [0, 0, 0, 0, 1, 1, 2, 2]

    here = situation(owner, [None] * 8)
    got = [each.next(here.project) for each in (owner, second, third)]
    print("no cluster, three annotators look in turn:", *map(here.score, got))

    here = situation(owner, clusters)
    got = [owner.annotate_next(here.project) for _ in range(6)]
    print("clusters, one annotator:", *map(here.score, got))

    here = situation(owner, clusters)
    got = [each.annotate_next(here.project) for _ in range(2) for each in (owner, second, third)]
    print("clusters, three annotators in turn:", *map(here.score, got))

    here = situation(owner, clusters)
    got = [owner.annotate_next(here.project)]
    for place, task in enumerate(here.ids):
        # The same pictures under another number; the labelled one keeps the old one.
        if task not in got:
            number = (clusters[place] + 1) % 3
            each = prediction(task, (place + 1) / 10, number, "renumbered")
            owner.call("POST", "/api/predictions/", json=each)
    owner.call("PATCH", f"/api/projects/{here.project}", json={"model_version": "renumbered"})
    got += [owner.annotate_next(here.project) for _ in range(2)]
    print("clusters, a version with other numbers after the first:", *map(here.score, got))

    here = situation(owner, clusters, maximum_annotations=2, overlap_cohort_percentage=100)
    got = [owner.annotate_next(here.project) for _ in range(3)]
    print("clusters, two annotations a task: the first is served", *map(here.score, got))
    got = [second.annotate_next(here.project) for _ in range(3)]
    print("  and then the second", *map(here.score, got))

    here = situation(owner, clusters, imported=True)
    path = f"/api/predictions/?project={here.project}"
    kept = {each["cluster"] for each in owner.call("GET", path)}
    print("cluster of imported predictions:", kept)


def situation(
    owner: Annotator,
    clusters: Sequence[int | None],
    *,
    imported: bool = False,
    **settings: object,
) -> Situation:
    project, ids = new_project(owner, len(clusters))
    given = [
        prediction(task, (place + 1) / 10, clusters[place], "first")
        for place, task in enumerate(ids)
    ]
    if imported:
        owner.call("POST", f"/api/projects/{project}/import/predictions", json=given)
    else:
        for each in given:
            owner.call("POST", "/api/predictions/", json=each)
    changes = {"model_version": "first", **settings}
    owner.call("PATCH", f"/api/projects/{project}", json=changes)
    return Situation(project, ids)


def new_project(owner: Annotator, tasks: int) -> tuple[int, list[int]]:
    created = owner.call(
        "POST",
        "/api/projects",
        json={
            "title": "Benchmark",
            "label_config": parts.label_config(),
            "sampling": "Uncertainty sampling",
        },
    )
    project = int(created["id"])
    data = [{"data": {"image": f"http://pictures/{number}.jpg"}} for number in range(tasks)]
    owner.call("POST", f"/api/projects/{project}/import", json=data)
    owner.call("PATCH", f"/api/projects/{project}", json={"sampling": "Uncertainty sampling"})
    ids: list[int] = []
    for page in count(1):
        found = owner.call(
            "GET",
            "/api/tasks",
            params={"project": project, "page": page, "page_size": 500, "fields": "task_only"},
        )
        ids += [task["id"] for task in found["tasks"]]
        if len(ids) >= tasks:
            return project, sorted(ids)
    raise AssertionError


def prediction(task: int, score: float, cluster: int | None, version: str) -> dict[str, object]:
    return {
        "task": task,
        "result": parts.result(task % parts.LABELS),
        "score": score,
        "model_version": version,
        "cluster": cluster,
    }


if __name__ == "__main__":
    main()
