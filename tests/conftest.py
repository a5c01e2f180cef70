"""What every test needs: few threads, and an environment without anybody's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch is first imported, also by the processes that tests start. Threads of small
# models mostly wait for each other, for long where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from backend.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=3.0, help="how long the soak takes")
    parser.addoption(
        "--screenshots", type=Path, help="Folder for the documentation's pictures of Label Studio."
    )
    parser.addoption(
        "--every-kill-point",
        action="store_true",
        help="Kill workers at every effect, not only at the first and last of each kind.",
    )
