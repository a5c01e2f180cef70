"""What the tests of image, compose files and manifests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from backend.cli import app
from backend.settings import Settings

ROOT = Path(__file__).parents[2]

BASE = ("docker-compose.yml",)
GPU = (*BASE, "docker-compose.gpu.yml")

ReadCompose = Callable[..., dict[str, Any]]


def compose_command() -> list[str]:
    """Return Docker Compose, the program of its own or the plugin; skip where there is neither."""
    program = find_program("docker-compose")
    if program is not None:
        return [program]
    docker = find_program("docker")
    if docker is not None:
        asked = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return [docker, "compose"]
    pytest.skip("Docker Compose is not installed")


def find_program(name: str) -> str | None:
    """Return a program that is installed, beside Python or elsewhere."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=f"{beside}{os.pathsep}{os.environ['PATH']}")


def read_compose(
    files: Sequence[str] = BASE,
    profiles: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the resolved configuration, without a developer's `.env`."""
    arguments = ["--project-directory", str(ROOT), "--env-file", os.devnull]
    for file in files:
        arguments += ["--file", str(ROOT / file)]
    for profile in profiles:
        arguments += ["--profile", profile]
    done = subprocess.run(
        [*compose_command(), *arguments, "config", "--format", "json", "--no-env-resolution"],
        env={"PATH": os.environ["PATH"], "HOME": os.devnull, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def check_command(arguments: Sequence[str]) -> None:
    """Fail where `clip-backend` does not take these arguments, or no document shows them."""
    name, *options = arguments
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(options))
    assert f"| `clip-backend {name}` |" in (ROOT / "docs/commands.md").read_text()


def check_settings(names: Sequence[str]) -> None:
    """Fail where a name is no setting."""
    assert {name.lower() for name in names} <= Settings.model_fields.keys()
