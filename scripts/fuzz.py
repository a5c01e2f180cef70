"""Send hostile requests to the API in this process, and count its answers.

    PYTHONPATH=tests/integration python scripts/fuzz.py [--bodies 200000] [--seed N]

Stops at the first answer that is a server's error, that the OpenAPI description does not know, or
after which a good prediction is not what it was; the same seed finds it again.
"""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections import Counter
from pathlib import Path

import hostile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.settings import Settings
from backend.store import Store

# Hypothesis remembers what it has tried, so one run of it may not be long.
_BODIES_A_RUN = 2_000
# A good prediction takes longer than most hostile requests.
_BODIES_A_PREDICTION = 50


def main() -> None:
    """Run until all bodies are sent."""
    parser = argparse.ArgumentParser(description="hostile requests to the API")
    parser.add_argument("--bodies", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    options = parser.parse_args()
    console = Console()
    console.print(f"seed {options.seed}")
    counts: Counter[tuple[str, int]] = Counter()
    with tempfile.TemporaryDirectory() as folder, _progress(console) as progress:
        task = progress.add_task("hostile requests", total=options.bodies)
        store = Store.open(f"sqlite:///{Path(folder) / 'fuzz.sqlite3'}")
        configured = Settings.read(
            clip_model="tiny", device="cpu", precision="float32", image_timeout=1
        )
        encoder = BackgroundEncoder(lambda: assembly.encoder(configured))
        with assembly.image_fetcher(configured, None) as images:
            limits = assembly.image_limits(configured)
            app = create_app(ApiServices(configured, store, encoder, images, limits))
            encoder.start()
            encoder.wait(600)
            expected = hostile.Expected(app)
            run = 0
            try:
                while (left := options.bodies - counts.total()) > 0:
                    path = hostile.PATHS[run % len(hostile.PATHS)]
                    _send(app, path, min(left, _BODIES_A_RUN), options.seed + run, expected, counts)
                    progress.update(task, completed=counts.total())
                    run += 1
            except KeyboardInterrupt:
                console.print("stopped")
        store.close()
    console.print(_table(counts))


def _send(app, path, bodies, seed, expected, counts) -> None:  # type: ignore[no-untyped-def]
    done = counts.total() + bodies

    @seeded(seed)
    @settings(
        max_examples=bodies,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @given(hostile.requests_to(path))
    def send(request: hostile.Hostile) -> None:
        answer = hostile.send(app, request)
        expected.check(request, answer)
        if counts.total() < done:
            counts[path, answer.status] += 1
        if counts.total() % _BODIES_A_PREDICTION == 0:
            expected.check_prediction()

    send()


def _progress(console: Console) -> Progress:
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("left"), console=console)


def _table(counts: Counter[tuple[str, int]]) -> Table:
    statuses = sorted({status for _, status in counts})
    table = Table("endpoint", *(str(status) for status in statuses), "all")
    for path in hostile.PATHS:
        of_path = [counts[path, status] for status in statuses]
        table.add_row(path, *(f"{count:,}" for count in of_path), f"{sum(of_path):,}")
    totals = [sum(counts[path, status] for path in hostile.PATHS) for status in statuses]
    table.add_row("all", *(f"{count:,}" for count in totals), f"{counts.total():,}")
    return table


if __name__ == "__main__":
    main()
