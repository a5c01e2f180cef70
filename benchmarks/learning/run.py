"""How many labels do strategies and heads need, ours and others', on the same pictures?

    python benchmarks/learning/run.py --report docs/learning.md

Every curve is a file, so that it goes on where it was stopped; those whose code or data have
changed are measured again. `--report` puts the tables of what was asked for into a document;
without it they are printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
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
    curves = {task: points for task in tasks if (points := kept(options.out, task)) is not None}
    missing = [task for task in tasks if task not in curves]
    for task, points in measured(missing, options.jobs):
        curves[task] = points
        keep(options.out, task, points)
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / ".cache" / "results")
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


def kept(folder: Path, task: Task) -> list[Point] | None:
    """Return the curve that is kept, None where there is none or what made it has changed."""
    path = _path(folder, task)
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    if stored["digest"] != digest(task.kind, task.dataset, task.name):
        return None
    return [Point(**point) for point in stored["points"]]


def keep(folder: Path, task: Task, points: Sequence[Point]) -> None:
    content = {
        "digest": digest(task.kind, task.dataset, task.name),
        "points": [asdict(point) for point in points],
    }
    with replacing(_path(folder, task)) as file:
        file.write(json.dumps(content, indent=1).encode())


def _path(folder: Path, task: Task) -> Path:
    parts = (task.kind, task.dataset, task.name, f"{task.seed}.json")
    return folder.joinpath(*(part.replace(" ", "-") for part in parts))


if __name__ == "__main__":
    main()
