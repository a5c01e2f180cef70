"""How many labels do strategies and heads need, ours and others', on the same pictures?

    python benchmarks/learning/run.py --report docs/learning.md

Curves are kept as they are measured, so that it goes on where it was stopped; those whose code or
data have changed are measured again, and an empty folder as `--out` measures all of them.
`--report` puts the tables of what was asked for into a document; without it they are printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple
from pathlib import Path

from curves import ALL_HEADS, DATASETS, METHODS, OURS, Point, Task, applies, digest, measure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tables import Study, tables, write_report

from backend.simulation.atomic import replacing

# Ours first: the goals are about the first of them.
OUR_METHODS = ("our auto", "our margin", "our random")
PEERS = tuple(name for name in METHODS if not name.startswith("our "))

# What a target is a share of, and what it is stated beside.
OF_ALL_LABELS = (OURS, "linear probe")


def main() -> None:
    options = parse(sys.argv[1:])
    tasks = list(wanted(options))
    kept = Curves(options.out)
    missing = [task for task in tasks if kept[task] is None]
    for task, points in measured(missing, options.jobs):
        kept[task] = points
    curves = {task: curve for task in tasks if (curve := kept[task]) is not None}
    if len(curves) < len(tasks):
        raise SystemExit(f"{len(tasks) - len(curves)} of {len(tasks)} curves have failed")
    study = Study(options.sets, options.methods, options.heads, options.seeds, curves)
    if options.report:
        write_report(study, options.report)
    else:
        print(tables(study))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=tuple(DATASETS), default=list(DATASETS))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=tuple(METHODS),
        metavar="METHOD",
        default=[*OUR_METHODS, *PEERS],
        help=f"the first one is judged; {', '.join(METHODS)}",
    )
    parser.add_argument(
        "--heads", nargs="*", choices=ALL_HEADS, metavar="HEAD", default=list(ALL_HEADS)
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--report", type=Path, help="a document with the markers of the tables")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.methods if name not in METHODS]:
        parser.error(f"--methods: not known: {', '.join(unknown)}")
    return options


def wanted(options: argparse.Namespace) -> Iterator[Task]:
    """Yield seed by seed, so that what is there after a stop covers all sets and methods."""
    for seed in range(options.seeds):
        for dataset in options.sets:
            tasks = (
                *(Task("all labels", dataset, head, seed) for head in OF_ALL_LABELS),
                *(Task("heads", dataset, head, seed) for head in options.heads),
                *(Task("strategies", dataset, method, seed) for method in options.methods),
            )
            yield from filter(applies, tasks)


def measured(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, list[Point]]]:
    """Yield curves as they are done; those that fail are told and left out."""
    # Before the processes import what counts its threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    progress = Progress(
        TextColumn("curves"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # Curves take from a tenth of a second to a minute.
        speed_estimate_period=1800,
    )
    try:
        running = {executor.submit(measure, task): task for task in tasks}
        with progress:
            for future in progress.track(as_completed(running), total=len(tasks)):
                if error := future.exception():
                    progress.console.print(f"{running[future]}: {error!r}")
                else:
                    yield running[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


class Curves:
    """The measured curves, a file of all seeds for each method or head of each set."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, task: Task) -> list[Point] | None:
        """Return a curve, None where there is none or what made it has changed."""
        rows = self._fresh(task).get(str(task.seed))
        if rows is None:
            return None
        return [Point(int(labels), *figures) for labels, *figures in rows]

    def __setitem__(self, task: Task, points: Sequence[Point]) -> None:
        rows = [[_rounded(value) for value in astuple(point)] for point in points]
        seeds = {**self._fresh(task), str(task.seed): rows}
        lines = [
            f"{json.dumps(seed)}: {json.dumps(seeds[seed])}" for seed in sorted(seeds, key=int)
        ]
        with replacing(self._path(task)) as file:
            file.write(
                f'{{"digest": "{_digest(task)}", "seeds": {{\n'.encode()
                + ",\n".join(lines).encode()
                + b"\n}}\n"
            )

    def _fresh(self, task: Task) -> dict[str, list[list[float]]]:
        path = self._path(task)
        if not path.exists():
            return {}
        stored = json.loads(path.read_text())
        return stored["seeds"] if stored["digest"] == _digest(task) else {}

    def _path(self, task: Task) -> Path:
        parts = (task.kind, task.dataset, f"{task.name}.json")
        return self._folder.joinpath(*(part.replace(" ", "-") for part in parts))


def _digest(task: Task) -> str:
    return digest(task.kind, task.dataset, task.name)


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


if __name__ == "__main__":
    main()
