"""How long after a submit is the queue in its new order, to Label Studio's own bulk import?

    python benchmarks/reordering.py [--tasks 10000]

A real Label Studio on SQLite, 10,000 tasks whose pictures are embedded. The baseline is one import
of a prediction for each. Ours reads the annotations, trains, puts the tasks in order and imports
predictions, in one process, from the moment that the webhook would ask for it; what is superseded
is removed later. The two take turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import httpx
import numpy as np
import parts

from backend import assembly
from backend.clip.encoder import Encoder
from backend.demo.label_studio import LabelStudioServer
from backend.embedding import Embedder
from backend.jobs.embed import sync
from backend.jobs.refresh import refresh
from backend.jobs.services import Services
from backend.jobs.train import train
from backend.labelstudio.client import LabelStudio
from backend.prediction import Predictor
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request

PROGRAM = Path(__file__).parents[1] / ".venv-label-studio" / "bin" / "label-studio"
ROUNDS = 3
HEAD_WITHIN = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description="a queue put in order")
    parser.add_argument("--tasks", type=int, default=10_000)
    count = parser.parse_args().tasks
    with parts.temporary_folder() as folder, LabelStudioServer(PROGRAM, folder / "ls") as server:
        settings = Settings.read(
            label_studio_url=server.url,
            label_studio_api_key=server.token,
            clip_model="tiny",
            data_dir=folder,
        )
        store = Store.open(settings.database)
        encoder = assembly.encoder(settings)
        with assembly.image_fetcher(settings, assembly.label_studio(settings)) as images:
            client = Timed(*settings.label_studio())
            predictor = Predictor(
                Embedder(encoder, store.embeddings, images, assembly.image_limits(settings))
            )
            services = Services(
                store, client, predictor, settings.learning, 600.0, settings.keep_unused
            )
            measure(server, services, count, encoder)
        store.close()


class Timed(LabelStudio):
    """A client that notes when the queue follows a version."""

    switched_at = 0.0

    def update_project(self, project_id: int, **values: object) -> None:
        super().update_project(project_id, **values)
        self.switched_at = time.perf_counter()


def measure(server: LabelStudioServer, services: Services, count: int, encoder: Encoder) -> None:
    http = httpx.Client(
        base_url=server.url, headers={"Authorization": f"Token {server.token}"}, timeout=600
    )
    project = project_with_tasks(http, count)
    store, client = services.store, services.label_studio
    assert isinstance(client, Timed)
    store.projects.set_up(project, label_config=parts.label_config())
    embed(services, project, encoder)
    run(services, project, Kind.TRAIN)
    run(services, project, Kind.REFRESH)
    ids = [task_id for page in store.tasks.all(project) for task_id in (task.id for task in page)]

    baseline, whole, head, trained = [], [], [], []
    for turn in range(ROUNDS):
        some = [
            {
                "task": task_id,
                "result": parts.result(task_id % parts.LABELS),
                "score": 0.5,
                "model_version": f"baseline-{turn}",
            }
            for task_id in ids
        ]
        baseline.append(parts.seconds(lambda some=some: client.import_predictions(project, some)))
        for task_id in ids[turn * 20 : turn * 20 + 20]:
            body = {"result": parts.result(task_id % parts.LABELS)}
            http.post(f"/api/tasks/{task_id}/annotations/", json=body).raise_for_status()
        started = time.perf_counter()
        run(services, project, Kind.TRAIN)
        published = time.perf_counter()
        run(services, project, Kind.REFRESH)
        whole.append(time.perf_counter() - started)
        trained.append(published - started)
        head.append(client.switched_at - published)

    ratio = float(np.median(whole) / np.median(baseline))
    print(f"{count:,} tasks; seconds, median of {ROUNDS}")
    print(f"Label Studio's import of a prediction each  {np.median(baseline):7.2f}")
    print(f"annotations read and trained                {np.median(trained):7.2f}")
    print(f"published until the head is in the queue    {np.median(head):7.2f}")
    print(f"submit until all are in order               {np.median(whole):7.2f}")
    print(f"submit to re-ordered: {ratio:.2f} x; {parts.verdict(ratio, 1.5, at_least=False)}")
    within = float(np.median(head))
    print(
        f"head of the queue: {within:.2f} s; {parts.verdict(within, HEAD_WITHIN, at_least=False)}"
    )


def run(services: Services, project: int, kind: Kind) -> None:
    request = Request(project, kind)
    services.store.requests.add(request)
    with services.store.requests.claimed(request) as claim:
        assert claim is not None
        {Kind.SYNC: sync, Kind.TRAIN: train, Kind.REFRESH: refresh}[kind](services, claim)


def project_with_tasks(http: httpx.Client, count: int) -> int:
    created = http.post(
        "/api/projects", json={"title": "Benchmark", "label_config": parts.label_config()}
    )
    project = int(created.raise_for_status().json()["id"])
    tasks = [{"data": {"image": f"http://pictures/{number}.jpg"}} for number in range(count)]
    http.post(f"/api/projects/{project}/import", json=tasks).raise_for_status()
    return project


def embed(services: Services, project: int, encoder: Encoder) -> None:
    run(services, project, Kind.SYNC)
    draw = np.random.default_rng(0)
    size = encoder.encode_texts(["a photo"]).shape[1]
    means = draw.normal(size=(parts.LABELS, size))
    for page in services.store.tasks.all(project):
        vectors = means[[task.id % parts.LABELS for task in page]]
        vectors = vectors + 0.8 * draw.normal(size=vectors.shape)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        sources = [str(task.data["image"]) for task in page]
        contents = [f"{task.id:064x}" for task in page]
        services.store.embeddings.save(
            encoder.identity,
            dict(zip(sources, contents, strict=True)),
            dict(zip(contents, vectors, strict=True)),
            {},
        )


if __name__ == "__main__":
    main()
