"""What the terminal shows of work that goes on in the worker."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from backend.errors import QueueError, SettingsError
from backend.jobs.queue import JobQueue
from backend.settings import Settings
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind
from backend.store.tasks import Progress as TaskProgress
from backend.store.versions import Version

_LOOK_EVERY = 0.25

# What stands between an event and a queue that shows it, in the order in which it is done.
_DESCRIPTIONS = {
    Kind.TRAIN: "training",
    Kind.SYNC: "listing tasks",
    Kind.EMBED: "embedding pictures",
    Kind.REFRESH: "pushing predictions",
}
_WORK = tuple(_DESCRIPTIONS)


def follow(store: Store, settings: Settings, project_id: int) -> None:
    """Show a progress bar until what is wanted of a project by now is done.

    Where people annotate meanwhile something is always wanted, and is not waited for. Raises
    QueueError where nobody does the work.
    """
    queue = JobQueue(settings.redis)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        shown = bar.add_task("waiting for the worker", total=None)
        told = None
        # Each asks for the next.
        for kind in _WORK:
            asked = {
                item.request: item.requested for item in store.requests.waiting(project_id, (kind,))
            }
            while waiting := [
                item
                for item in store.requests.waiting(project_id, (kind,))
                if item.done < asked.get(item.request, 0)
            ]:
                _check_worker(queue)
                error = next((item.error for item in waiting if item.error), None)
                if error is not None and error != told:
                    bar.console.print(f"[yellow]trying again:[/] {error}", highlight=False)
                    told = error
                _, progress = _progress(store, project_id)
                bar.update(
                    shown,
                    description=_DESCRIPTIONS[kind],
                    completed=progress.predicted,
                    total=progress.open or None,
                )
                time.sleep(_LOOK_EVERY)
        version, progress = _progress(store, project_id)
        bar.update(
            shown,
            description="predicted",
            completed=progress.predicted,
            total=progress.open or 1,
        )
    console = Console()
    console.print(
        f"project {project_id}: {progress.predicted} of {progress.open} open tasks carry a "
        f"prediction of {version}",
        highlight=False,
    )
    if progress.predicted < progress.open:
        console.print(
            "The others follow: new work has come in meanwhile"
            if store.requests.waiting(project_id, _WORK)
            else "The others have pictures that cannot be had: run "
            f"`clip-backend doctor --project {project_id}`",
            highlight=False,
        )


def _progress(store: Store, project_id: int) -> tuple[str | None, TaskProgress]:
    project = store.projects.get(project_id)
    version = project.model_version if project is not None else None
    return version, store.tasks.progress(project_id, version)


def show_status(store: Store, settings: Settings) -> None:
    """Print the projects, the workers and what is waiting."""
    console = Console()
    table = Table(
        "project",
        Column("version", no_wrap=True),
        "annotated",
        "open",
        "predicted",
        "accuracy",
        "published",
        "work",
    )
    advice = []
    for project in store.projects.all():
        version = store.versions.active(project.id)
        progress = store.tasks.progress(project.id, project.model_version)
        published = "–"
        if version is not None:
            when = datetime.fromtimestamp(version.created_at, timezone.utc).astimezone()
            published = f"{when:%Y-%m-%d %H:%M:%S}"
        table.add_row(
            str(project.id),
            _version(project),
            str(version.annotations) if version is not None else "–",
            str(progress.open),
            str(progress.predicted),
            _accuracy(version),
            published,
            _work(store, project.id) if project.connected else "disconnected",
        )
        if project.pinned is not None:
            latest = store.versions.names(project.id)[0]
            advice.append(
                f"project {project.id} is pinned to {project.pinned}, the latest version is "
                f"{latest}: `clip-backend versions use latest --project {project.id}` goes to it"
            )
        for control, report in (version.report if version is not None else {}).items():
            if "advice" in report:
                advice.append(f"project {project.id}, {control}: {report['advice']}")
    console.print(table)
    for sentence in advice:
        console.print(sentence, highlight=False)
    queue = JobQueue(settings.redis)
    try:
        queue.check()
    except QueueError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return
    workers = queue.workers()
    for worker in workers:
        console.print(f"worker on {worker.device} with {worker.encoder}", highlight=False)
    if not workers:
        console.print("[red]no worker is running:[/] start one with `clip-backend up`")


def _check_worker(queue: JobQueue) -> None:
    queue.check()
    until = time.monotonic() + 60
    # A worker that is starting still loads CLIP.
    while not queue.workers():
        if time.monotonic() > until:
            raise SettingsError(
                "No worker is running: start one with `clip-backend up` or `clip-backend worker`"
            )
        time.sleep(_LOOK_EVERY)


def _accuracy(version: Version | None) -> str:
    """Return the estimated accuracy on the open tasks, control by control, with its interval."""
    estimates = [
        report["pool_accuracy"]
        for report in (version.report if version is not None else {}).values()
        if "pool_accuracy" in report
    ]
    lines = [f"{each['value']:.0%} ({each['low']:.0%} to {each['high']:.0%})" for each in estimates]
    return "\n".join(lines) or "–"


def _version(project: Project) -> str:
    return f"{project.model_version or '–'}{' (pinned)' if project.pinned else ''}"


def _work(store: Store, project_id: int) -> str:
    parts = []
    for item in store.requests.waiting(project_id, _WORK):
        text = item.request.kind.value
        if item.error is not None:
            text += f" (tried {item.attempts} times: {item.error})"
        elif item.running:
            text += " (running)"
        parts.append(text)
    return ", ".join(dict.fromkeys(parts)) or "idle"
