"""The commands that run the backend, and tell how it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend import __version__
from backend.cli.app import app, open_store, read_settings


@app.command()
def up() -> None:
    """Start API, worker and Redis; stop them all with Ctrl-C."""
    from backend import supervisor

    raise typer.Exit(supervisor.up(read_settings()))


@app.command()
def serve() -> None:
    """Start the API alone."""
    from backend.wsgi import Server

    Server(read_settings()).run()


@app.command()
def worker() -> None:
    """Start a worker alone: it embeds, trains and refreshes."""
    from backend import assembly
    from backend.jobs.queue import JobQueue
    from backend.jobs.services import Services
    from backend.jobs.worker import work
    from backend.prediction import Predictor
    from backend.store import Store

    settings = read_settings()
    client = assembly.label_studio(settings)
    queue = JobQueue(settings.redis)
    queue.check()
    store = Store.open(settings.database)
    with assembly.image_fetcher(settings, client) as images:
        predictor = Predictor(
            assembly.encoder(settings), store.embeddings, images, assembly.image_limits(settings)
        )
        services = Services(
            store,
            client,
            predictor,
            settings.learning,
            settings.reconcile_every,
            settings.keep_unused,
        )
        work(services, queue)
    store.close()


@app.command()
def doctor(
    project: Annotated[
        list[int] | None, typer.Option(help="Check this project; default: all connected ones.")
    ] = None,
) -> None:
    """Check each link in turn; say what is wrong and the command that mends it."""
    from backend.doctor import examine

    raise typer.Exit(0 if examine(read_settings(), project or []) else 1)


@app.command()
def status() -> None:
    """Show the projects, their versions, and what is being done."""
    from backend.progress import show_status

    settings = read_settings()
    show_status(open_store(settings), settings)


@app.command()
def demo(
    auto: Annotated[
        bool, typer.Option(help="Annotate by itself and print how accuracy rises.")
    ] = False,
    label_studio: Annotated[
        Path, typer.Option(help="The label-studio program; `make demo` installs it.")
    ] = Path(".venv-label-studio/bin/label-studio"),
    folder: Annotated[
        Path, typer.Option(help="Where the demo keeps its data; delete it to start anew.")
    ] = Path("demo-data"),
    no_label_studio: Annotated[
        bool,
        typer.Option("--no-label-studio", help="Start none: simulate annotators, and end."),
    ] = False,
) -> None:
    """Start a Label Studio with a project of drawn pictures, connected to this backend."""
    if no_label_studio:
        from rich.console import Console

        from backend.offline_demo import run_offline_demo

        raise typer.Exit(run_offline_demo(Console()))
    from backend.demo.run import run_demo

    raise typer.Exit(run_demo(label_studio=label_studio, folder=folder, auto=auto))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
