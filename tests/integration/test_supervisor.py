"""`clip-backend up` as a user starts it: real processes, an own folder, no Label Studio."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from tests.integration.conftest import PATIENCE, wait_until

UP = [sys.executable, "-m", "backend.cli", "up"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(folder: Path, **changes: str | None) -> dict[str, str]:
    values: dict[str, str | None] = {
        **{
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        },
        "LABEL_STUDIO_URL": "http://127.0.0.1:9",
        "LABEL_STUDIO_API_KEY": "a-token",
        "CLIP_MODEL": "tiny",
        "DEVICE": "cpu",
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "DATA_DIR": str(folder),
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        UP, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


class Running:
    """A running `clip-backend up`, and what its log tells."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment(folder)
        self.url = f"http://127.0.0.1:{self.environment['PORT']}"
        self._database = f"sqlite:///{folder / 'clip-backend.sqlite3'}"
        self._log = folder.parent / f"{folder.name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                UP, env=self.environment, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pids(self, name: str = r"\w+") -> list[int]:
        """Return the processes that were started under a name, in order."""
        return [int(pid) for pid in re.findall(rf"started {name} pid=(\d+)", self.log)]

    def health(self) -> int:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health").status_code
        return 0

    def does_work(self) -> bool:
        """Ask for something that is done at once: training a project that nobody knows."""
        store = Store.open(self._database)
        store.requests.add(Request(999, Kind.TRAIN))
        wait_until(lambda: not store.requests.waiting(999), "the worker does what is wanted")
        store.close()
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that nobody has waited for is no longer running either.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    up = Running(tmp_path_factory.mktemp("up"))
    yield up
    up.stop()


def test_it_answers_and_does_what_is_wanted(running: Running) -> None:
    wait_until(lambda: running.health() == 200, "/health answers")

    assert running.does_work()
    assert [len(running.pids(name)) for name in ("redis", "api", "worker")] == [1, 1, 1]


def test_the_worker_gives_way_to_the_api_that_people_wait_for(running: Running) -> None:
    wait_until(lambda: running.health() == 200, "/health answers")

    niceness = {
        name: os.getpriority(os.PRIO_PROCESS, running.pids(name)[-1]) for name in ("api", "worker")
    }

    assert niceness["worker"] > niceness["api"]


@pytest.mark.parametrize("name", ["worker", "redis", "api"])
def test_a_process_that_dies_is_started_again(running: Running, name: str) -> None:
    wait_until(lambda: running.pids(name), f"{name} is started")
    before = running.pids(name)

    os.kill(before[-1], signal.SIGKILL)

    wait_until(lambda: len(running.pids(name)) > len(before), f"{name} is started again")
    wait_until(lambda: running.health() == 200, "/health answers")
    assert running.does_work()
    assert alive(running.pids(name)[-1])


def test_a_second_one_in_the_same_folder_is_refused_in_one_line(running: Running) -> None:
    wait_until(running.pids, "it holds the folder")

    second = run(running.environment)

    assert second.returncode == 78
    (line,) = second.stderr.splitlines()
    assert "already runs" in line
    assert "DATA_DIR" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(
    tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    up = Running(tmp_path_factory.mktemp("up"))
    try:
        wait_until(lambda: up.health() == 200, "/health answers")

        up.process.send_signal(number)

        assert up.process.wait(PATIENCE) == 0
        assert len(up.pids()) >= 3
        assert [pid for pid in up.pids() if alive(pid)] == []
        assert "Traceback" not in up.log
    finally:
        up.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="children learn of their parent's end on Linux")
def test_a_parent_that_is_killed_outright_leaves_nothing_running(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    up = Running(tmp_path_factory.mktemp("up"))
    wait_until(lambda: up.health() == 200, "/health answers")

    up.process.kill()
    up.process.wait()

    wait_until(lambda: not [pid for pid in up.pids() if alive(pid)], "all have stopped")


@pytest.mark.parametrize("missing", ["LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"])
def test_a_missing_setting_is_one_line(tmp_path: Path, missing: str) -> None:
    outcome = run(environment(tmp_path, **{missing: None}))

    assert outcome.returncode == 78
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"Error: {missing} is not set")
    assert list(tmp_path.iterdir()) == []


def test_a_data_dir_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    outcome = run(environment(tmp_path, DATA_DIR=str(file)))

    assert outcome.returncode == 78
    assert outcome.stderr.splitlines() == [f"Error: DATA_DIR={file} cannot be used (File exists)"]


def test_weights_that_are_not_there_stop_it_with_one_line(tmp_path: Path) -> None:
    outcome = run(environment(tmp_path, CLIP_PRETRAINED="/no/such/file.safetensors"))

    assert outcome.returncode == 78
    lines = outcome.stderr.splitlines()
    assert len([line for line in lines if line.startswith("Error: CLIP_PRETRAINED: ")]) == 1
    assert "Traceback" not in outcome.stderr
