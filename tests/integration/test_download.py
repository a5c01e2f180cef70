"""`clip-backend download`, from a server that answers as Hugging Face's hub does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backend.clip.encoder import TINY
from backend.settings import Settings

# Weights of the shipped architecture as open_clip finds those of others: by a tag, in a hub.
COMMAND = """
import sys
from open_clip import pretrained
pretrained._PRETRAINED["tiny"] = {"hub": dict(hf_hub="somebody/tiny/open_clip_model.safetensors")}
from backend.cli import main
sys.argv = ["clip-backend", *sys.argv[1:]]
main()
"""
LOAD = """
from open_clip import pretrained
pretrained._PRETRAINED["tiny"] = {"hub": dict(hf_hub="somebody/tiny/open_clip_model.safetensors")}
from backend.clip.encoder import load_encoder
print(load_encoder("tiny", "hub", "cpu", "float32").identity)
"""
WEIGHTS = "/somebody/tiny/resolve/main/open_clip_model.safetensors"


class Hub:
    def __init__(self) -> None:
        self.asked: list[str] = []
        hub = self
        content = (TINY / "tiny.safetensors").read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                if self._answer():
                    self.wfile.write(content)

            def _answer(self) -> bool:
                hub.asked.append(f"{self.command} {self.path}")
                found = self.path == WEIGHTS
                self.send_response(200 if found else 404)
                if found:
                    self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("Content-Length", str(len(content) if found else 0))
                self.end_headers()
                return found

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in Settings.model_fields and not name.startswith("HF_")
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_weights_are_fetched_once_and_then_need_no_network(hub: Hub, tmp_path: Path) -> None:
    settings = {
        "CLIP_MODEL": "tiny",
        "CLIP_PRETRAINED": "hub",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
    }

    first = run(COMMAND, "download", **settings)
    second = run(COMMAND, "download", **settings)
    hub.close()
    offline = run(LOAD, **settings, HF_HUB_OFFLINE="1")

    assert first.returncode == 0, first.stderr
    kept = Path(first.stdout.split(" are in ")[1].strip())
    assert kept.is_relative_to(tmp_path)
    assert kept.read_bytes() == (TINY / "tiny.safetensors").read_bytes()
    assert second.stdout == first.stdout
    assert hub.asked.count(f"GET {WEIGHTS}") == 1
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.startswith("tiny-")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_weights_that_cannot_be_had_are_one_line(hub: Hub, tmp_path: Path, offline: str) -> None:
    # Where nothing listens the hub's client tries for most of a minute: this one has no such file.
    done = run(
        COMMAND,
        "download",
        CLIP_MODEL="ViT-B-32-256",
        HF_ENDPOINT=hub.url,
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE=offline,
    )

    assert done.returncode == 78
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "clip-backend download" in error
    assert "Traceback" not in done.stderr


def test_the_shipped_weights_are_there_already(tmp_path: Path) -> None:
    done = run(COMMAND, "download", CLIP_MODEL="tiny", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(TINY / "tiny.safetensors"))
    assert not list(tmp_path.iterdir())
