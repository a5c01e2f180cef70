"""How long until the backend answers, and its commands are there?

    python benchmarks/start.py

The baseline is a Python that does nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import httpx
import parts

ROUNDS = 7


def main() -> None:
    def python(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    taken = parts.in_turns(
        {
            "nothing": lambda: python("pass"),
            "import backend.cli": lambda: python("import backend.cli"),
        },
        ROUNDS,
    )
    taken["/health"] = statistics.median(until_healthy() for _ in range(ROUNDS))
    for name, seconds in taken.items():
        print(f"{name:20} {seconds:6.2f} s")
    importing = taken["import backend.cli"] - taken["nothing"]
    print(f"import: {importing:.2f} s; {parts.verdict(importing, 0.3, at_least=False)}")
    health = taken["/health"]
    print(f"/health: {health:.2f} s; {parts.verdict(health, 1.0, at_least=False)}")


def until_healthy() -> float:
    """Return the seconds from the command to the first answer; to stop takes time as well."""
    with parts.temporary_folder() as folder:
        port = str(parts.free_port())
        environment = {"DATA_DIR": str(folder), "CLIP_MODEL": "tiny", "PORT": port}
        command = [sys.executable, "-m", "backend.cli", "serve"]
        address = f"http://127.0.0.1:{port}/health"
        with httpx.Client(timeout=1) as client:
            started = time.perf_counter()
            with parts.running(command, environment | {"HOST": "127.0.0.1"}):
                parts.wait_until(lambda: client.get(address).is_success)
                return time.perf_counter() - started


if __name__ == "__main__":
    main()
