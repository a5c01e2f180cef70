"""The commands on a project's model versions."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.cli.app import (
    ProjectOption,
    app,
    open_store,
    open_store_of_connected,
    read_settings,
)

versions = typer.Typer(invoke_without_command=True)
app.add_typer(versions, name="versions")


@versions.callback()
def list_versions(
    context: typer.Context,
    project: Annotated[
        int | None, typer.Option("--project", min=1, help="Label Studio's project id.")
    ] = None,
) -> None:
    """List a project's versions: labels, accuracy, calibration, which is active or pinned."""
    if context.invoked_subcommand is not None:
        return
    if project is None:
        raise typer.BadParameter("say which project", param_hint="--project")
    from backend.versions import show

    show(open_store(read_settings()), project)


@versions.command()
def use(
    version: Annotated[
        str,
        typer.Argument(help="Name or number to pin, or `latest` to follow the trainings again."),
    ],
    project: ProjectOption,
) -> None:
    """Roll back: use a version from now on, whatever is trained; the queue follows."""
    from backend.jobs.queue import JobQueue
    from backend.progress import follow
    from backend.versions import LATEST, use

    settings = read_settings()
    store = open_store_of_connected(settings, project)
    name = use(store, JobQueue(settings.redis), project, version)
    typer.echo(
        f"project {project} uses {name} and follows its trainings"
        if version == LATEST
        else f"project {project} is pinned to {name}: trainings are stored and not used, until "
        f"`clip-backend versions use {LATEST} --project {project}`"
    )
    follow(store, settings, project)
