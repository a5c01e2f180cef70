"""Do time and memory of a refresh grow in step with the number of tasks?

    python benchmarks/growth.py [--tasks 10000 100000]

Synthetic vectors of 512 components, 50 choices; in place of Label Studio something that takes
whatever it is sent. Each size has a process of its own, whose memory is counted beyond what it has
once the libraries are loaded. A million tasks need a quarter of an hour and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import parts
import torch

from backend.addresses import AllowedHosts
from backend.clip.encoder import load_encoder
from backend.embedding import Embedder
from backend.jobs.refresh import refresh
from backend.jobs.services import Services
from backend.jobs.sweep import sweep
from backend.labelstudio.client import LabelStudio, RemotePrediction
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.images import ImageFetcher
from backend.learning.head import Head
from backend.prediction import Predictor, fingerprint
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask
from backend.store.versions import ControlHead, Version

SIZE, LABELS, PAGE = 512, 50, 1000
PROJECT = 1
MOST_MEMORY = 1.5
LIMITS = ImageLimits(max_bytes=1, max_pixels=1, timeout=1, attempts=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="growth of a refresh")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{'tasks':>10}{'refresh s':>12}{'ms a task':>12}{'sweep s':>10}{'GB more':>10}")
    each: list[float] = []
    for count in options.tasks:
        with parts.temporary_folder() as folder:
            fill(folder, count)
            command = [sys.executable, __file__, "--measure", str(folder)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(output)
        each.append(found["refresh"] / count)
        print(
            f"{count:10,}{found['refresh']:12.1f}{1000 * each[-1]:12.2f}{found['sweep']:10.1f}"
            f"{found['gigabytes']:10.2f}",
            flush=True,
        )
    linear = each[-1] / each[0]
    print(f"time of a task, last size to first: {linear:.2f} x")
    memory = found["gigabytes"]
    print(f"memory: {memory:.2f} GB; {parts.verdict(memory, MOST_MEMORY, at_least=False)}")


# ruff: noqa: ARG002 - the methods are Label Studio's


class Anything:
    """Takes what Label Studio would, and keeps of it as little as can be given back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[str, int] = {}
        count = store.tasks.progress(PROJECT, None).tasks
        self._classes = np.zeros(count + 1, np.int16)
        self._scores = np.zeros(count + 1)

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> None:
        name = str(predictions[0]["model_version"])
        self._versions[name] = self._versions.get(name, 0) + len(predictions)
        for prediction in predictions:
            (result,) = prediction["result"]
            (choice,) = result["value"]["choices"]
            self._classes[prediction["task"]] = choice.removeprefix("class ")
            self._scores[prediction["task"]] = result["score"]

    def project(self, project_id: int) -> SimpleNamespace:
        return SimpleNamespace(model_version=None)

    def update_project(self, project_id: int, **values: object) -> None:
        pass

    def prediction_counts(self, project_id: int) -> dict[str, int]:
        return self._versions

    def predictions(self, project_id: int) -> Iterator[dict[int, list[Any]]]:
        (name,) = self._versions
        for page in self._store.tasks.all(project_id):
            yield {
                task.id: [RemotePrediction(task.id, task.id, name, self._result(task.id), score=0)]
                for task in page
            }

    def _result(self, task_id: int) -> list[dict[str, object]]:
        return [
            {
                "from_name": "label",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [f"class {self._classes[task_id]}"]},
                "score": float(self._scores[task_id]),
            }
        ]


def measure(folder: Path) -> dict[str, float]:
    store = Store.open(f"sqlite:///{folder / 'store.sqlite3'}")
    encoder = load_encoder("tiny", None, "cpu", "float32")
    encoder.identity = "benchmark"
    with ImageFetcher(
        label_studio_url=None,
        authorization=None,
        allowed=AllowedHosts(),
        limits=LIMITS,
        connections=1,
    ) as images:
        predictor = Predictor(Embedder(encoder, store.embeddings, images, LIMITS))
        services = Services(
            store,
            cast(LabelStudio, Anything(store)),
            predictor,
            Settings.read().learning,
            reconcile_every=600.0,
            keep_unused=30 * 86_400.0,
        )
        publish(services)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken = {
            "refresh": parts.seconds(lambda: run(services, Kind.REFRESH)),
            "sweep": parts.seconds(lambda: run(services, Kind.SWEEP)),
        }
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert not store.tasks.outdated(PROJECT)
    return taken | {"gigabytes": (after - before) / 1e6}


def run(services: Services, kind: Kind) -> None:
    request = Request(PROJECT, kind)
    services.store.requests.add(request)
    with services.store.requests.claimed(request) as claim:
        assert claim is not None
        {Kind.REFRESH: refresh, Kind.SWEEP: sweep}[kind](services, claim)


def publish(services: Services) -> None:
    from backend.labelstudio.config import parse_labeling_config

    config = parse_labeling_config(parts.label_config(LABELS))
    learning = services.learning
    weights = 20 * torch.randn(LABELS, SIZE, generator=torch.Generator().manual_seed(0))
    head = Head(weights, torch.zeros(LABELS), multiple=False)
    services.store.versions.publish(
        Version(
            project_id=PROJECT,
            number=0,
            fingerprint=fingerprint("benchmark", config, learning),
            encoder="benchmark",
            query_strategy=learning.query_strategy.value,
            score=learning.score.value,
            heads={"label": ControlHead(config.controls[0].values, head)},
        )
    )


def fill(folder: Path, count: int) -> None:
    store = Store.open(f"sqlite:///{folder / 'store.sqlite3'}")
    store.projects.set_up(PROJECT, label_config=parts.label_config(LABELS))
    draw = np.random.default_rng(0)

    def pages() -> Iterator[list[StoredTask]]:
        for start in range(0, count, PAGE):
            ids = range(start + 1, min(start + PAGE, count) + 1)
            vectors = draw.normal(size=(len(ids), SIZE)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            sources = [f"http://pictures/{task_id}.jpg" for task_id in ids]
            contents = [f"{task_id:064x}" for task_id in ids]
            store.embeddings.save(
                "benchmark",
                dict(zip(sources, contents, strict=True)),
                dict(zip(contents, vectors, strict=True)),
                {},
            )
            yield [
                StoredTask(task_id, {"image": source}, open=True)
                for task_id, source in zip(ids, sources, strict=True)
            ]

    store.tasks.mirror(PROJECT, pages())
    store.close()


if __name__ == "__main__":
    main()
