"""`clip-backend doctor`: each link in turn, what is wrong with it, and what mends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console

from backend import assembly
from backend.errors import ClipBackendError, ImageHostError
from backend.jobs.queue import JobQueue
from backend.labelstudio.client import LabelStudio, RemoteProject
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.labelstudio.task_data import image_source
from backend.settings import Settings
from backend.store import Store
from backend.store.projects import Project

_PICTURES = 3
_WEBHOOK_WITHIN = 10.0
_LONG_QUEUE = 10_000
_SAMPLING = "Uncertainty sampling"

_BLOCKED = (
    "start Label Studio with ML_BLOCK_LOCAL_IP=false (ML backends) and "
    "SSRF_PROTECTION_ENABLED=false (webhooks): since 1.23 it refuses private addresses"
)


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well, and how to mend it where it is not."""

    link: str
    well: bool
    detail: str
    mend: str = ""


def examine(settings: Settings, project_ids: list[int]) -> bool:
    """Print a line for each link; tell whether all are well."""
    console = Console(highlight=False)
    well = True
    for finding in findings(settings, project_ids):
        mark = "[green]ok[/]   " if finding.well else "[red]wrong[/]"
        console.print(f"{mark} ", end="")
        console.print(f"{finding.link}: {finding.detail}", markup=False)
        if not finding.well:
            well = False
            console.print(f"      mend: {finding.mend}", markup=False)
    return well


def findings(
    settings: Settings, project_ids: list[int], *, sends_webhook: bool = True
) -> Iterator[Finding]:
    """Look at each link of some projects, or of all that are connected.

    To prove that webhooks arrive, each project is saved in Label Studio as it is, unless
    `sends_webhook` is false.
    """
    with ExitStack() as opened:
        yield from _links(settings, project_ids, sends_webhook, opened)


def _links(
    settings: Settings, project_ids: list[int], sends_webhook: bool, opened: ExitStack
) -> Iterator[Finding]:
    store: Store | None = None
    try:
        store = Store.open(settings.database)
        opened.callback(store.close)
        yield Finding("database", True, "can be used")
    except ClipBackendError as error:
        yield _wrong("database", error, "set DATABASE_URL or DATA_DIR")
    yield from _queue(settings)
    yield from _api(settings)

    client: LabelStudio | None = None
    try:
        client = assembly.label_studio(settings)
        opened.callback(client.close)
        yield Finding("Label Studio", True, f"{client.version()} at {client.url}")
        yield Finding("token", True, f"of {client.user()}")
    except ClipBackendError as error:
        yield _wrong("Label Studio", error, "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
        client = None
    if store is None or client is None:
        return
    connected = [project.id for project in store.projects.all() if project.connected]
    if not project_ids and not connected:
        yield Finding("projects", False, "none is connected", "clip-backend connect --project ID")
    for project_id in project_ids or connected:
        try:
            yield from _project(settings, store, client, project_id, sends_webhook)
        except ClipBackendError as error:
            yield _wrong(f"project {project_id}", error, "see above")


def _queue(settings: Settings) -> Iterator[Finding]:
    try:
        with closing(JobQueue(settings.redis)) as queue:
            queue.check()
            lengths = queue.lengths()
            workers = queue.workers()
    except ClipBackendError as error:
        yield _wrong("Redis", error, "clip-backend up")
        return
    length = sum(lengths.values())
    yield Finding("Redis", True, "answers")
    yield Finding(
        "queue",
        length < _LONG_QUEUE,
        f"{length} jobs wait",
        "start more workers: clip-backend worker",
    )
    if not workers:
        yield Finding("worker", False, "none is running", "clip-backend up, or clip-backend worker")
    for worker in workers:
        yield Finding("worker", True, f"on {worker.device} with {worker.encoder}")


def _api(settings: Settings) -> Iterator[Finding]:
    address = f"http://127.0.0.1:{settings.port}"
    try:
        health = httpx.get(f"{address}/health", timeout=5).json()
        encoder = str(health["encoder"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        yield Finding(
            "API",
            False,
            f"does not answer at {address} ({type(error).__name__})",
            "clip-backend up; where it runs on another machine, run doctor there",
        )
        return
    yield Finding("API", True, f"answers at {address}")
    yield Finding(
        "weights",
        encoder == "ready",
        f"CLIP is {encoder}",
        "wait a moment; if it stays so, see the log of `clip-backend serve`: "
        "CLIP_MODEL and CLIP_PRETRAINED name the weights",
    )


def _project(
    settings: Settings, store: Store, client: LabelStudio, project_id: int, sends_webhook: bool
) -> Iterator[Finding]:
    name = f"project {project_id}"
    reconnect = f"clip-backend connect --project {project_id}"
    remote = client.project(project_id)
    project = store.projects.get(project_id)
    if project is None or not project.connected:
        yield Finding(name, False, "is not connected", reconnect)
        return
    config = parse_labeling_config(remote.label_config)
    yield Finding(
        f"{name} labeling config",
        bool(config.controls),
        config.sentence,
        "add <Choices> over an <Image>",
    )
    address = _address(settings, project)
    yield _backend(client, name, project_id, address, reconnect)
    yield from _webhook(store, client, name, remote, address, reconnect, sends_webhook)
    yield Finding(
        f"{name} queue order",
        remote.sampling == _SAMPLING,
        f"sampling is {remote.sampling!r}",
        reconnect,
    )
    in_use = project.model_version is not None and remote.model_version == project.model_version
    yield Finding(
        f"{name} model version",
        in_use,
        f"Label Studio uses {remote.model_version}, the active one is {project.model_version}",
        f"clip-backend refresh --project {project_id}",
    )
    progress = store.tasks.progress(project_id, project.model_version)
    yield Finding(
        f"{name} predictions",
        progress.predicted == progress.open,
        f"{progress.predicted} of {progress.open} open tasks",
        f"clip-backend refresh --project {project_id}",
    )
    for item in store.requests.waiting(project_id):
        if item.error is not None:
            yield Finding(
                f"{name} {item.request.kind.value}",
                False,
                f"failed {item.attempts} times: {item.error}",
                "mend that; it is tried again by itself",
            )
    yield from _images(settings, client, name, project_id, config)


def _address(settings: Settings, project: Project) -> str | None:
    if project.connection is not None:
        return str(project.connection["backend_url"])
    return settings.backend_url


def _backend(
    client: LabelStudio, name: str, project_id: int, address: str | None, reconnect: str
) -> Finding:
    link = f"{name} ML backend"
    backends = client.ml_backends(project_id)
    ours = [
        backend
        for backend in backends
        if address is None or str(backend["url"]).rstrip("/") == address
    ]
    if not ours:
        return Finding(link, False, f"{address} is not among its ML backends", reconnect)
    # Listing the backends makes Label Studio call each one's /health and /setup.
    backend = ours[0]
    if backend.get("state") == "CO":
        return Finding(link, True, f"Label Studio reaches {backend['url']}")
    detail = str(backend.get("error_message") or "no answer within 1 s")
    return Finding(
        link,
        False,
        f"Label Studio does not reach {backend['url']}: {detail}",
        f"{reconnect} (after a change of password); if the address is private, {_BLOCKED}",
    )


def _webhook(
    store: Store,
    client: LabelStudio,
    name: str,
    remote: RemoteProject,
    address: str | None,
    reconnect: str,
    sends_webhook: bool,
) -> Iterator[Finding]:
    link = f"{name} webhook"
    hooks: list[dict[str, Any]] = [
        hook
        for hook in client.webhooks(remote.id)
        if address is None or str(hook["url"]).rstrip("/") == f"{address}/webhook"
    ]
    if not any(hook["is_active"] and hook["send_for_all_actions"] for hook in hooks):
        yield Finding(link, False, "none sends all actions to this backend", reconnect)
        return
    if not sends_webhook:
        yield Finding(link, True, "is set up")
        return
    # Saving a project as it is sends a webhook: what arrives proves address, network and secret.
    before = time.time()
    client.update_project(remote.id, title=remote.title)
    arrived = _comes_true(lambda: _last_webhook(store, remote.id) >= before)
    yield Finding(
        link,
        arrived,
        "arrives and is let in" if arrived else "is sent and does not arrive, or is refused",
        f"{reconnect}; if the address is private, {_BLOCKED}",
    )


def _last_webhook(store: Store, project_id: int) -> float:
    project = store.projects.get(project_id)
    return (project.webhook_at if project is not None else None) or 0.0


def _comes_true(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + _WEBHOOK_WITHIN
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _images(
    settings: Settings, client: LabelStudio, name: str, project_id: int, config: LabelingConfig
) -> Iterator[Finding]:
    link = f"{name} pictures"
    tasks = next(iter(client.tasks(project_id)), [])[:_PICTURES]
    if not tasks or not config.controls:
        yield Finding(link, True, "no task to look at")
        return
    problems: list[tuple[int, ClipBackendError]] = []
    with assembly.image_fetcher(settings, client) as images:
        for task in tasks:
            for control in config.controls:
                try:
                    images.fetch(image_source(control, task.data), task.id)
                except ClipBackendError as error:
                    problems.append((task.id, error))
    if not problems:
        yield Finding(link, True, f"{len(tasks)} looked at, all can be fetched")
        return
    task_id, problem = problems[0]
    mend = (
        "list that host in IMAGE_HOSTS and start the backend anew, if you trust it"
        if isinstance(problem, ImageHostError)
        else "check the token's rights, the storage's settings in Label Studio, and the task's data"
    )
    yield Finding(link, False, f"task {task_id}: {problem}", mend)


def _wrong(link: str, error: ClipBackendError, mend: str) -> Finding:
    return Finding(link, False, str(error), mend)
