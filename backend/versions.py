"""`versions`: what is stored of a project, and going back to one of them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from backend.errors import NotFoundError, QueueError, SettingsError
from backend.jobs.queue import JobQueue
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.prediction import fits
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind, Request
from backend.store.versions import Summary, Version

LATEST = "latest"


def show(store: Store, project_id: int) -> None:
    """Print a project's stored versions, newest first. Raises NotFoundError for an unknown one."""
    project = _known(store, project_id)
    table = Table(
        Column("version", no_wrap=True),
        "in use",
        "control",
        Column("labels", justify="right"),
        Column("accuracy", justify="right"),
        Column("calibration error", justify="right"),
        "published",
        "query strategy",
        Column("encoder", overflow="fold"),
    )
    for version in store.versions.summaries(project_id):
        reports = version.report
        table.add_row(
            version.name,
            _use(project, version),
            "\n".join(map(escape, reports)),
            _lines([str(report.get("labels", "–")) for report in reports.values()]),
            _lines([_out_of_fold(report, "top1", "{:.0%}") for report in reports.values()]),
            _lines(
                [_out_of_fold(report, "calibration_error", "{:.3f}") for report in reports.values()]
            ),
            _when(version.created_at),
            version.query_strategy,
            version.encoder,
        )
    Console().print(table)


def use(store: Store, workers: JobQueue, project_id: int, which: str) -> str:
    """Have a project use a stored version from now on, whatever is trained; return its name.

    `which` is the version's name or number; `latest` lets the project follow its trainings again.
    Label Studio follows with the refresh that is asked for.

    Raises NotFoundError for a version that is not stored, SettingsError for one that cannot
    predict what the labeling config asks for, or was made with another CLIP than the workers run.
    """
    project = _known(store, project_id)
    if which == LATEST:
        if project.pinned is not None:
            store.versions.unpin(project_id, project.pinned)
        name = _known(store, project_id).model_version
        if name is None:
            raise NotFoundError(
                f"Project {project_id} has no model version yet: "
                f"run `clip-backend train --project {project_id}`"
            )
    else:
        version = find(store, project_id, which)
        fitting_config(store, version)
        _check_encoder(version, _encoders(workers))
        store.versions.pin(project_id, version.name)
        name = version.name
    store.requests.add(Request(project_id, Kind.REFRESH))
    return name


def find(store: Store, project_id: int, which: str | None) -> Version:
    """Return the version of a name or number, by default the active one.

    Raises NotFoundError where it is not stored.
    """
    project = _known(store, project_id)
    wanted = which if which is not None else project.model_version
    for summary in store.versions.summaries(project_id):
        if wanted in (summary.name, str(summary.number)):
            found = store.versions.get(project_id, summary.number)
            if found is not None:
                return found
    raise NotFoundError(
        f"Project {project_id} has no version {wanted} stored: "
        f"`clip-backend versions --project {project_id}` lists them"
        if wanted is not None
        else f"Project {project_id} has no model version yet: "
        f"run `clip-backend train --project {project_id}`"
    )


def fitting_config(store: Store, version: Version) -> tuple[str, LabelingConfig]:
    """Return the labeling config of a version's project, as it is written and parsed.

    Raises SettingsError where the version has other choices.
    """
    label_config = _known(store, version.project_id).label_config
    config = parse_labeling_config(label_config)
    if not config.controls or not fits(version, config, version.encoder):
        raise SettingsError(
            f"{version.name} has other choices than the labeling config of project "
            f"{version.project_id}: choose a version that was published since the config was "
            "changed, or change it back"
        )
    return label_config, config


def _known(store: Store, project_id: int) -> Project:
    project = store.projects.get(project_id)
    if project is None:
        raise NotFoundError(
            f"Project {project_id} is not known here: "
            f"run `clip-backend connect --project {project_id}`"
        )
    return project


def _check_encoder(version: Version, encoders: set[str]) -> None:
    if encoders and version.encoder not in encoders:
        raise SettingsError(
            f"{version.name} was made with the CLIP {version.encoder}, and the worker runs "
            f"{', '.join(sorted(encoders))}: start the backend with CLIP_MODEL, CLIP_PRETRAINED "
            "and PRECISION as they were, or choose another version"
        )


def _encoders(workers: JobQueue) -> set[str]:
    try:
        return {worker.encoder for worker in workers.workers()}
    except QueueError:
        # Without Redis no worker runs. One that is started finds out by itself.
        return set()


def _use(project: Project, version: Summary) -> str:
    if version.name != project.model_version:
        return ""
    return "pinned" if project.pinned is not None else "active"


def _when(published_at: float) -> str:
    return f"{datetime.fromtimestamp(published_at, timezone.utc).astimezone():%Y-%m-%d %H:%M}"


def _out_of_fold(report: dict[str, Any], figure: str, shown: str) -> str:
    figures = report.get("out_of_fold")
    return "–" if figures is None else shown.format(figures[figure])


def _lines(cells: list[str]) -> str:
    return "\n".join(cells)
