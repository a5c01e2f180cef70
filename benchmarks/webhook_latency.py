"""How much longer than the emptiest request (`GET /health`) does a durable webhook take?

    python benchmarks/webhook_latency.py

Both go to the same server, in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import httpx
import numpy as np

ROUNDS = 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | {
            "DATA_DIR": folder,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "CLIP_MODEL": "tiny",
        }
        server = subprocess.Popen([sys.executable, "-m", "backend.cli", "serve"], env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                measure(client)
        finally:
            server.terminate()
            server.wait()


def measure(client: httpx.Client) -> None:
    until = time.monotonic() + 60
    while not is_ready(client):
        if time.monotonic() > until:
            raise SystemExit("the backend does not start")
        time.sleep(0.2)
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}

    def webhook() -> None:
        client.post("/webhook", json=event).raise_for_status()

    def health() -> None:
        client.get("/health").raise_for_status()

    for warm_up in (webhook, health):
        for _ in range(20):
            warm_up()
    webhooks, healths = zip(*((timed(webhook), timed(health)) for _ in range(ROUNDS)), strict=True)
    print(f"{'':12}{'p50 ms':>10}{'p99 ms':>10}")
    for name, seconds in (("/webhook", webhooks), ("/health", healths)):
        p50, p99 = np.percentile(seconds, (50, 99)) * 1000
        print(f"{name:12}{p50:10.2f}{p99:10.2f}")
    print(f"ratio of medians, /webhook to /health: {np.median(webhooks) / np.median(healths):.2f}")


def is_ready(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/health").json()["encoder"] == "ready")
    except httpx.HTTPError:
        return False


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
