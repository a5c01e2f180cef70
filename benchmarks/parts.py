"""What several benchmarks need: pictures over HTTP, a CLIP of random weights, running servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

MODEL = "ViT-B-32"

LABELS = 40

Work = Callable[[], Any]


def photograph(kind: str = "JPEG", size: tuple[int, int] = (1024, 768)) -> bytes:
    """Return a picture with detail of all scales; a JPEG of 1024 x 768 has some 300 kB."""
    draw = np.random.default_rng(0)
    image = np.full((size[1], size[0], 3), 128.0)
    for scale in (2, 4, 8, 16, 32, 64):
        coarse = draw.normal(128, 20, (size[1] // scale + 1, size[0] // scale + 1, 3))
        layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        image += np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) - 128.0
    file = BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, kind, quality=90)
    return file.getvalue()


class Pictures(BaseHTTPRequestHandler):
    """Each address has bytes of its own, and all show the same."""

    protocol_version = "HTTP/1.1"
    # As servers of pictures do. What fits into one packet would come 40 ms late.
    disable_nagle_algorithm = True
    body = b""

    def do_GET(self) -> None:
        # No decoder reads past a picture's end.
        body = self.body + self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def serve_pictures(kind: str, width: int, height: int) -> None:
    """Serve pictures and print the port; runs in a process of its own."""
    Pictures.body = photograph(kind, (width, height))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def picture_server(kind: str = "JPEG", size: tuple[int, int] = (1024, 768)) -> Iterator[str]:
    """Yield the address under which every path is another picture."""
    code = f"import parts; parts.serve_pictures({kind!r}, {size[0]}, {size[1]})"
    with running([sys.executable, "-c", code], cwd=Path(__file__).parent) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


def random_weights(folder: Path, model: str) -> Path:
    """Write weights that are as much work as trained ones."""
    import logging

    import open_clip
    import torch

    logging.getLogger().setLevel(logging.ERROR)
    path = folder / f"{model}.pt"
    torch.manual_seed(0)
    torch.save(open_clip.create_model(model).state_dict(), path)
    return path


@contextmanager
def backend(folder: Path, **settings: str) -> Iterator[httpx.Client]:
    """Yield a client of a backend that has loaded its encoder."""
    port = free_port()
    environment = {
        "DATA_DIR": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "IMAGE_HOSTS": "127.0.0.1",
    } | settings
    command = [sys.executable, "-m", "backend.cli", "serve"]
    with (
        running(command, environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        wait_until(lambda: client.get("/health").json()["encoder"] == "ready")
        yield client


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that is stopped in the end."""
    process = subprocess.Popen(
        command,
        env=os.environ | (environment or {}),
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def wait_until(is_so: Callable[[], bool], timeout: float = 300.0) -> None:
    """Return once something is so; exits where it does not come to that."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            if is_so():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise SystemExit("what was to be measured did not start")


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def children(process: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def resident_memory(process: int) -> float:
    """Return what a process and its children hold, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    own = int(found[1]) / 1024 if found else 0.0
    return own + sum(resident_memory(child) for child in children(process))


def label_config(labels: int = LABELS) -> str:
    choices = "".join(f'<Choice value="class {number}"/>' for number in range(labels))
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="label" toName="image">{choices}</Choices></View>'
    )


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return the median seconds of each; they take turns, so that a busy machine slows all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: float(np.median(of_one)) for name, of_one in taken.items()}


def verdict(ratio: float, goal: float, *, at_least: bool) -> str:
    met = ratio >= goal if at_least else ratio <= goal
    return f"goal {'>=' if at_least else '<='} {goal:g}: {'met' if met else 'missed'}"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def result(label: int) -> list[dict[str, object]]:
    """Return what a prediction of a class says."""
    return [
        {
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [f"class {label}"]},
        }
    ]
