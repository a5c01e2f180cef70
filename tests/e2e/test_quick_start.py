"""The quick start for annotation leads, typed as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from backend.demo.label_studio import LabelStudioServer
from backend.demo.processes import ChildProcess, free_port
from tests.e2e.parts import PATIENCE, LabelledProject

NewProject = Callable[..., LabelledProject]

PAGE = Path(__file__).parents[2] / "docs" / "quick-start-annotation-lead.md"


def typed(page: str) -> list[str]:
    """Return the page's blocks from "Use it with your project" on, without what installs it."""
    [_, after] = page.split("\n## Use it with your project\n")
    blocks = [
        re.sub(r"^ +", "", block, flags=re.MULTILINE)
        for block in re.findall(r"^ *```bash\n(.*?)^ *```$", after, re.MULTILINE | re.DOTALL)
    ]
    return [block.replace(". clip-backend/bin/activate\n", "") for block in blocks[1:]]


@pytest.fixture
def environment() -> dict[str, str]:
    """Return one with the program on the path, and the shipped CLIP instead of a download."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "CLIP_MODEL": "tiny", "HOST": "127.0.0.1"}


def test_the_quick_start_for_annotation_leads_works_to_the_letter(
    label_studio: LabelStudioServer,
    project: NewProject,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    images = project(pictures=30)
    port = free_port()
    environment["PORT"] = str(port)
    here = {
        "http://localhost:8080": label_studio.url,
        "the-token": label_studio.token,
        "http://localhost:9090": f"http://127.0.0.1:{port}",
        "--project 7": f"--project {images.id}",
    }

    def script(block: str) -> list[str]:
        for written, meant in here.items():
            block = block.replace(written, meant)
        return ["bash", "-euc", f"cd {tmp_path}\n{block}"]

    start, connect, *others = typed(PAGE.read_text(encoding="utf-8"))
    assert start.endswith("clip-backend up\n")
    backend = ChildProcess("the backend", script(start), environment, tmp_path / "log")
    backend.start(lambda: _is_ready(port), PATIENCE)
    try:
        exports = connect.partition("clip-backend")[0]
        for block in (connect, *(exports + other for other in others)):
            done = subprocess.run(
                script(block),
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    finally:
        backend.stop()

    assert len(others) == 3
    assert images.next().choices  # type: ignore[union-attr]


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["encoder"] == "ready"
    except httpx.HTTPError:
        return False
