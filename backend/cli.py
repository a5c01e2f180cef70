"""The commands of `clip-backend`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend import __version__
from backend.errors import NOT_CONFIGURED, ClipBackendError, EncoderError, SettingsError

if TYPE_CHECKING:
    from backend.settings import Settings
    from backend.store import Store

app = typer.Typer(
    name="clip-backend",
    help="Pre-annotates Label Studio's images with CLIP and learns from every annotation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProjectOption = Annotated[int, typer.Option("--project", min=1, help="Label Studio's project id.")]


def main() -> None:
    """Run a command; an error that a user can mend is one line."""
    try:
        app()
    except (SettingsError, EncoderError) as error:
        _fail(error, NOT_CONFIGURED)
    except ClipBackendError as error:
        _fail(error, 1)


@app.callback()
def _describe() -> None:
    """Give every command the same front."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def up() -> None:
    """Start API, worker and Redis; stop them all with Ctrl-C."""
    from backend import supervisor

    raise typer.Exit(supervisor.up(_settings()))


@app.command()
def serve() -> None:
    """Start the API alone."""
    from backend.wsgi import Server

    Server(_settings()).run()


@app.command()
def worker() -> None:
    """Start a worker alone: it embeds, trains and refreshes."""
    from backend import assembly
    from backend.jobs.queue import JobQueue
    from backend.jobs.services import Services
    from backend.jobs.worker import work
    from backend.prediction import Predictor
    from backend.store import Store

    settings = _settings()
    client = assembly.label_studio(settings)
    queue = JobQueue(settings.redis)
    queue.check()
    store = Store.open(settings.database)
    with assembly.image_fetcher(settings, client) as images:
        predictor = Predictor(
            assembly.encoder(settings), store.embeddings, images, assembly.image_limits(settings)
        )
        work(Services(store, client, predictor, settings.learning, settings.reconcile_every), queue)
    store.close()


@app.command()
def connect(
    project: ProjectOption,
    backend_url: Annotated[
        str | None,
        typer.Option(help="This backend as seen from Label Studio; default: BACKEND_URL."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only show what would change.")] = False,
) -> None:
    """Connect a project: ML backend, webhook, queue and view; then predict every task."""
    from backend import assembly
    from backend.connection import Connection
    from backend.progress import follow

    settings = _settings(**({"backend_url": backend_url} if backend_url else {}))
    if settings.backend_url is None:
        raise SettingsError(
            "Say where Label Studio finds this backend: --backend-url or BACKEND_URL, "
            f"such as http://localhost:{settings.port}"
        )
    store = _store(settings)
    connection = Connection(store, assembly.label_studio(settings), settings, project)
    changes = connection.plan(settings.backend_url)
    for change in changes:
        typer.echo(f"{'would change' if dry_run else 'change'}  {change.description}")
    if not changes:
        typer.echo(f"project {project} is connected as it should be")
    if dry_run:
        return
    connection.connect(settings.backend_url, changes)
    follow(store, settings, project)


@app.command()
def disconnect(project: ProjectOption) -> None:
    """Undo exactly what `connect` did, and remove our predictions."""
    from backend import assembly
    from backend.connection import Connection

    settings = _settings()
    Connection(_store(settings), assembly.label_studio(settings), settings, project).disconnect(
        lambda done: typer.echo(done)
    )
    typer.echo(f"project {project} is disconnected")


@app.command()
def doctor(
    project: Annotated[
        list[int] | None, typer.Option(help="Check this project; default: all connected ones.")
    ] = None,
) -> None:
    """Check each link in turn; say what is wrong and the command that mends it."""
    from backend.doctor import examine

    raise typer.Exit(0 if examine(_settings(), project or []) else 1)


@app.command()
def status() -> None:
    """Show the projects, their versions, and what is being done."""
    from backend.progress import show_status

    settings = _settings()
    show_status(_store(settings), settings)


@app.command()
def train(project: ProjectOption) -> None:
    """Train a project now, whatever RETRAIN_DELAY says."""
    _request(project, "train")


@app.command()
def refresh(project: ProjectOption) -> None:
    """Look for new tasks and push the predictions that Label Studio lacks."""
    _request(project, "sync")


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
) -> None:
    """Start a Label Studio with a project of drawn pictures, connected to this backend."""
    from backend.demo.run import run_demo

    raise typer.Exit(run_demo(label_studio=label_studio, folder=folder, auto=auto))


def _request(project: int, kind: str) -> None:
    from backend.progress import follow
    from backend.store.requests import Kind, Request

    settings = _settings()
    store = _store(settings)
    known = store.projects.get(project)
    if known is None or not known.connected:
        raise SettingsError(
            f"Project {project} is not connected: run `clip-backend connect --project {project}`"
        )
    store.requests.add(Request(project, Kind(kind)))
    follow(store, settings, project)


def _settings(**overrides: object) -> Settings:
    from backend.logs import configure_logging
    from backend.settings import Settings

    settings = Settings.read(**overrides)
    configure_logging(settings.log_level)
    return settings


def _store(settings: Settings) -> Store:
    from backend.store import Store

    return Store.open(settings.database)


def _fail(error: ClipBackendError, code: int) -> None:
    typer.secho(f"Error: {error}", err=True, fg=typer.colors.RED)
    sys.exit(code)


if __name__ == "__main__":
    main()
