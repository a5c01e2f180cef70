"""What do threads that wait in busy loops cost a training, to threads that sleep meanwhile?

    python benchmarks/waiting.py [--labels 4000] [--rounds 3]

OpenMP's default is the first, ours the second. Once with the cores to itself, once beside as many
busy programs as there are cores, as Label Studio, the API and the worker are to each other on one
machine. Each training in a process of its own, by turns, for OpenMP asks as it is loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import parts
import training

from backend.learning.training import train

POLICIES = {"busy loops": "active", "sleeping": "passive"}


def main() -> None:
    parser = argparse.ArgumentParser(description="ways to wait compared")
    parser.add_argument("--labels", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        vectors, targets, prior = training.labelled(given.labels)
        print(parts.seconds(lambda: train(vectors, targets, prior)))
        return
    cores = os.cpu_count() or 1
    print(f"{given.labels:,} x {training.SIZE}, {training.CLASSES} classes, {cores} cores")
    for others in (0, cores):
        taken: dict[str, list[float]] = {name: [] for name in POLICIES}
        with busy(others):
            for _ in range(given.rounds):
                for name, policy in POLICIES.items():
                    taken[name].append(trained(given.labels, policy))
        median = {name: statistics.median(seconds) for name, seconds in taken.items()}
        figures = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in median.items())
        ratio = median["busy loops"] / median["sleeping"]
        print(
            f"beside {others} busy programs: {figures}; sleeping is {ratio:.2f} x as fast",
            flush=True,
        )


def trained(labels: int, policy: str) -> float:
    """Return the seconds of a training in a process whose threads wait by a policy."""
    command = [sys.executable, __file__, "--alone", "--labels", str(labels)]
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many cores busy with programs of one thread."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


if __name__ == "__main__":
    main()
