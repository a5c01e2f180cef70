"""The commands on one project of Label Studio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.app import (
    ProjectOption,
    app,
    open_store,
    open_store_of_connected,
    read_settings,
)
from backend.errors import SettingsError

if TYPE_CHECKING:
    from backend.settings import Settings

BackendUrlOption = Annotated[
    str | None,
    typer.Option(
        "--backend-url", help="This backend as seen from Label Studio; default: BACKEND_URL."
    ),
]


@app.command()
def connect(
    project: ProjectOption,
    backend_url: BackendUrlOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only show what would change.")] = False,
) -> None:
    """Connect a project: ML backend, webhook, queue and view; then predict every task."""
    _connect(*_read_settings_and_url(backend_url), project, dry_run=dry_run)


@app.command()
def example(
    backend_url: BackendUrlOption = None,
    if_empty: Annotated[
        bool, typer.Option(help="Only add it to a Label Studio that has no project yet.")
    ] = False,
) -> None:
    """Add a project of drawn pictures to Label Studio, and connect it."""
    from rich.console import Console

    from backend.demo.example import TITLE, add_example_project

    settings, ours = _read_settings_and_url(backend_url)
    theirs, token = settings.label_studio()
    project = add_example_project(theirs, token, Console(stderr=True), if_empty=if_empty)
    if project is None:
        typer.echo(f"Label Studio has projects, and none is {TITLE!r}: nothing is added")
        return
    _connect(settings, ours, project, dry_run=False)


@app.command()
def disconnect(project: ProjectOption) -> None:
    """Undo exactly what `connect` did, and remove our predictions."""
    from backend import assembly
    from backend.connection import Connection

    settings = read_settings()
    Connection(open_store(settings), assembly.label_studio(settings), settings, project).disconnect(
        lambda done: typer.echo(done)
    )
    typer.echo(f"project {project} is disconnected")


@app.command()
def train(project: ProjectOption) -> None:
    """Train a project now, whatever RETRAIN_DELAY says."""
    _request(project, "train")


@app.command()
def refresh(project: ProjectOption) -> None:
    """Look for new tasks and push the predictions that Label Studio lacks."""
    _request(project, "sync")


@app.command()
def review(
    project: ProjectOption,
    limit: Annotated[int, typer.Option(min=1, help="Suspected labels to list a control.")] = 50,
) -> None:
    """List labels that are probably wrong, make a view of them, and compare the annotators."""
    from backend import assembly
    from backend.review import review

    settings = read_settings()
    review(
        open_store_of_connected(settings, project),
        assembly.label_studio(settings),
        project,
        limit=limit,
    )


def _read_settings_and_url(backend_url: str | None) -> tuple[Settings, str]:
    settings = read_settings(**({"backend_url": backend_url} if backend_url else {}))
    if settings.backend_url is None:
        raise SettingsError(
            "Say where Label Studio finds this backend: --backend-url or BACKEND_URL, "
            f"such as http://localhost:{settings.port}"
        )
    return settings, settings.backend_url


def _connect(settings: Settings, backend_url: str, project: int, *, dry_run: bool) -> None:
    from backend import assembly
    from backend.connection import Connection
    from backend.progress import follow

    store = open_store(settings)
    connection = Connection(store, assembly.label_studio(settings), settings, project)
    changes = connection.plan(backend_url)
    for change in changes:
        typer.echo(f"{'would change' if dry_run else 'change'}  {change.description}")
    if not changes:
        typer.echo(f"project {project} is connected as it should be")
    if dry_run:
        return
    connection.connect(backend_url, changes)
    follow(store, settings, project)
    typer.echo(f"see the project at {connection.page(backend_url)}")


def _request(project: int, kind: str) -> None:
    from backend.progress import follow
    from backend.store.requests import Kind, Request

    settings = read_settings()
    store = open_store_of_connected(settings, project)
    store.requests.add(Request(project, Kind(kind)))
    follow(store, settings, project)
