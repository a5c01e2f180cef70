"""How much faster do two workers embed than one, each with a core of its own?

    python benchmarks/workers.py [--tasks 2048]
    python benchmarks/workers.py --simulated 1 2 4 8

ViT-B-32 and small pictures, so that the encoder is what takes the time. A worker gets its core by
`taskset`, as containers get theirs; Redis and the servers of pictures and tasks share all. What is
to be embedded is asked for once the encoders are loaded, and no picture may be fetched twice.
`--simulated` is for more workers than there are cores: the shipped CLIP, and a pause for each
picture in place of the time that another core or machine would compute.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import parts

sys.path.append(str(Path(__file__).parents[1] / "tests" / "integration"))

from fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

from backend.jobs.embed import CHUNK
from backend.jobs.queue import JobQueue
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask
from backend.supervisor import redis_command

# What ViT-B-32 takes for a picture on one core, in seconds.
PAUSE = 0.05

WORKER = [sys.executable, "-m", "backend.cli", "worker"]
SIMULATED_WORKER = [
    sys.executable,
    "-c",
    f"""
import sys, time
from backend import cli
from backend.clip.encoder import Encoder
encode = Encoder.encode_preprocessed
def encode_after_a_pause(self, images, encoded=None):
    time.sleep({PAUSE} * len(images))
    return encode(self, images, encoded)
Encoder.encode_preprocessed = encode_after_a_pause
sys.argv = ["clip-backend", "worker"]
cli.main()
""",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="one worker, and more")
    parser.add_argument("--tasks", type=int, default=2048)
    parser.add_argument("--simulated", type=int, nargs="+", metavar="WORKERS")
    arguments = parser.parse_args()
    count = arguments.tasks
    with parts.temporary_folder() as folder:
        if arguments.simulated:
            commands, model = [SIMULATED_WORKER] * max(arguments.simulated), {"CLIP_MODEL": "tiny"}
        else:
            weights = parts.random_weights(folder, parts.MODEL)
            cores = sorted(os.sched_getaffinity(0))[:2]
            commands = [["taskset", "--cpu-list", str(core), *WORKER] for core in cores]
            model = {"CLIP_MODEL": parts.MODEL, "CLIP_PRETRAINED": str(weights)}
        taken = {
            number: embedding(folder / str(number), commands[:number], model, count)
            for number in arguments.simulated or (1, 2)
        }
    fewest = min(taken)
    for number, seconds in taken.items():
        ratio = taken[fewest] / seconds
        goal = ""
        if (fewest, number) == (1, 2):
            goal = f"; {parts.verdict(ratio, 1.8, at_least=True)}"
        named = f"{number} worker{'s' * (number > 1)}"
        print(f"{named:10} {count / seconds:7.1f} pictures/s {ratio:6.2f} x{goal}")


def embedding(
    folder: Path, commands: Sequence[Sequence[str]], model: Mapping[str, str], count: int
) -> float:
    """Return how long the workers of these commands take to embed so many tasks."""
    label_studio, pictures = FakeLabelStudio(), CountingPictures()
    environment = {
        **model,
        "DATA_DIR": str(folder),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "IMAGE_HOSTS": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "WARNING",
    }
    settings = Settings.read(data_dir=folder)
    store = Store.open(settings.database)
    ids = label_studio.add_tasks(*(f"{pictures.url}/{number}" for number in range(count)))
    with ExitStack() as stack:
        stack.callback(label_studio.close)
        stack.callback(pictures.close)
        stack.enter_context(parts.running(redis_command(settings)))
        queue = JobQueue(settings.redis)
        parts.wait_until(lambda: settings.redis_socket.exists())
        for command in commands:
            stack.enter_context(parts.running(command, environment))
        parts.wait_until(lambda: len(queue.workers()) == len(commands))
        store.projects.set_up(PROJECT, label_config=CONFIG)
        tasks = [StoredTask(i, label_studio.tasks[i]["data"], open=True) for i in ids]
        store.tasks.mirror(PROJECT, [tasks])
        chunks = sorted({task_id // CHUNK for task_id in ids})

        def embed() -> None:
            store.requests.add_all([Request(PROJECT, Kind.EMBED, chunk) for chunk in chunks])
            parts.wait_until(lambda: store.embeddings.count() == count)

        taken = parts.seconds(embed)
    store.close()
    if twice := [path for path, times in pictures.asked.items() if times > 1]:
        raise SystemExit(f"{len(twice)} pictures were fetched more than once")
    return taken


class CountingPictures:
    """Small pictures over HTTP, and how often each was asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        asked, body = self.asked, parts.photograph("PNG", (64, 64))

        class Handler(parts.Pictures):
            def do_GET(self) -> None:  # noqa: N802 - http.server's name
                asked[self.path] += 1
                super().do_GET()

        Handler.body = body
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


if __name__ == "__main__":
    main()
