"""Processes and threads of ours: which end together, exclude each other, or give way."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from backend.errors import SettingsError

_PR_SET_PDEATHSIG = 1

# A tenth of the time of a thread that answers somebody, where both want the same core.
_NICENESS = 10


def end_with_parent() -> None:
    """Ask the kernel to stop this process with its parent, however that one ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, so that what was begun is cleaned up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def give_way() -> None:
    """Have the calling thread, and those that it starts, compute when others need no core.

    For threads that only compute: one that holds a lock meanwhile would let others wait for it
    longer. Linux only, elsewhere a process has one priority.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep every other `up` and `restore` with this DATA_DIR from running meanwhile.

    Raises SettingsError where one runs, and where the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "up.lock").open("w")
    except OSError as error:
        raise SettingsError(f"DATA_DIR={folder} cannot be used ({error.strerror})") from None
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"`clip-backend up` already runs with DATA_DIR={folder}: stop it, "
                "or set another DATA_DIR"
            ) from None
        yield
