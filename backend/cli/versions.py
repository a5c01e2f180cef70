"""The commands on a project's model versions, and on models that were exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.app import (
    ProjectOption,
    app,
    open_store,
    open_store_of_connected,
    read_settings,
)

if TYPE_CHECKING:
    from backend.portable.classify import Model
    from backend.settings import Settings

VersionOption = Annotated[
    str | None, typer.Option("--version", help="Its name or number; default: the one in use.")
]

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


@app.command()
def export(
    project: ProjectOption,
    out: Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")],
    version: VersionOption = None,
) -> None:
    """Write a version as safetensors, model card and ONNX, to be used without this backend."""
    from backend.portable.export import export

    settings = read_settings()
    model, label_config = _stored(settings, project, version)
    export(
        model.version,
        label_config,
        model.config,
        model.encoder,
        out,
        pretrained=settings.clip_pretrained,
    )


@app.command()
def classify(
    folder: Annotated[Path, typer.Argument(help="The pictures, also those in folders below.")],
    out: Annotated[
        Path, typer.Option(help="A .csv, or a .json of tasks with predictions for Label Studio.")
    ],
    model: Annotated[Path | None, typer.Option(help="A folder that `export` has written.")] = None,
    project: Annotated[
        int | None, typer.Option("--project", min=1, help="Instead: a project's version.")
    ] = None,
    version: VersionOption = None,
) -> None:
    """Predict a folder of pictures, without Label Studio."""
    from backend import assembly
    from backend.errors import SettingsError
    from backend.portable.classify import check, classify

    if (model is None) == (project is None):
        raise typer.BadParameter("say which model", param_hint="--model or --project")
    if model is not None and version is not None:
        raise SettingsError("--version is for --project: an exported model is one version")
    check(folder, out)
    settings = read_settings()
    used = (
        _exported(settings, model)
        if model is not None
        else _stored(settings, project or 0, version)[0]
    )
    classify(folder, used, out, assembly.image_limits(settings))


def _stored(settings: Settings, project: int, which: str | None) -> tuple[Model, str]:
    """Return a project's version, and the labeling config that it fits."""
    from backend.portable.classify import Model
    from backend.portable.encoders import load_encoder_of
    from backend.versions import find, fitting_config

    store = open_store(settings)
    version = find(store, project, which)
    label_config, config = fitting_config(store, version)
    store.close()
    encoder = load_encoder_of(
        version, settings.clip_model, settings.clip_pretrained, settings.device
    )
    return Model(version, config, encoder), label_config


def _exported(settings: Settings, folder: Path) -> Model:
    """Return an exported model."""
    from backend.portable.classify import Model
    from backend.portable.encoders import load_encoder_of
    from backend.portable.folder import read

    card, version, config = read(folder)
    pretrained = card.encoder.pretrained
    if settings.clip_model == card.encoder.name and settings.clip_pretrained is not None:
        # Weights in a file lie elsewhere on each machine.
        pretrained = settings.clip_pretrained
    encoder = load_encoder_of(version, card.encoder.name, pretrained, settings.device)
    return Model(version, config, encoder)
