"""Processes of ours: which of them end together, and which exclude each other."""

from __future__ import annotations

import ctypes
import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.errors import SettingsError

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask the kernel to stop this process with its parent, however that one ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep every other `up` and `restore` with this DATA_DIR from running meanwhile.

    Raises SettingsError where one runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"`clip-backend up` already runs with DATA_DIR={folder}: stop it, "
                "or set another DATA_DIR"
            ) from None
        yield
