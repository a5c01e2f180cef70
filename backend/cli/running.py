"""The commands that run the backend, and tell how it runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from backend import __version__
from backend.cli.app import app, open_store, read_settings

_WORKER = "clip-backend-worker"


@app.command()
def up() -> None:
    """Start API, worker and Redis; stop them all with Ctrl-C."""
    from backend import supervisor

    raise typer.Exit(supervisor.up(read_settings()))


@app.command()
def serve() -> None:
    """Start the API alone."""
    # What is imported stays: to look through it for garbage meanwhile takes a sixth of a start.
    gc.disable()
    from backend.wsgi import Server

    gc.freeze()
    gc.enable()
    Server(read_settings()).run()


@app.command()
def worker() -> None:
    """Start a worker alone: it embeds, trains and refreshes."""
    from contextlib import ExitStack

    from backend import assembly
    from backend.embedding import Embedder
    from backend.instruments import Instruments
    from backend.jobs.queue import JobQueue
    from backend.jobs.services import Services
    from backend.jobs.worker import work
    from backend.prediction import Predictor
    from backend.store import Store
    from backend.telemetry import no_span, trace_jobs

    settings = read_settings()
    assembly.report_errors(settings, _WORKER)
    client = assembly.label_studio(settings)
    queue = JobQueue(settings.redis)
    queue.check()
    store = Store.open(settings.database)
    instruments = Instruments()
    with ExitStack() as stack:
        if settings.metrics_port is not None:
            stack.callback(instruments.serve(settings.host, settings.metrics_port))
        images = stack.enter_context(assembly.image_fetcher(settings, client))
        predictor = Predictor(
            Embedder(
                assembly.encoder(settings),
                store.embeddings,
                images,
                assembly.image_limits(settings),
                instruments,
            )
        )
        instruments.describe(__version__, is_loaded=lambda: True)
        services = Services(
            store,
            client,
            predictor,
            settings.learning,
            settings.reconcile_every,
            settings.keep_unused,
            instruments=instruments,
            span=trace_jobs(_WORKER) if settings.otel_exporter_otlp_endpoint else no_span,
        )
        work(services, queue)
    store.close()


@app.command()
def download() -> None:
    """Fetch the weights of CLIP_MODEL, so that API and worker need no network for them."""
    from backend.clip.encoder import download_weights

    settings = read_settings()
    weights = download_weights(settings.clip_model, settings.clip_pretrained)
    typer.echo(f"The weights of {settings.clip_model} are in {weights}")


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
