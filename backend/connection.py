"""`connect` and `disconnect`: everything that is otherwise clicked, or unknown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from backend.api.auth import SECRET_HEADER, digest
from backend.errors import LabelingConfigError, LabelStudioError, SettingsError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import parse_labeling_config
from backend.labelstudio.removal import remove_predictions
from backend.settings import Score, Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.versions import is_ours

TITLE = "CLIP"
VIEW_TITLE = "Most uncertain first"

# What the queue needs, and what annotators should see.
PROJECT_FIELDS = {"sampling": "Uncertainty sampling", "show_collab_predictions": True}

_SECRET_BYTES = 32
_STOP_WITHIN = 60.0


@dataclass(frozen=True)
class Change:
    """One thing to do in Label Studio, and how."""

    description: str
    apply: Callable[[], None]


class Connection:
    """One project's connection; what it changed is kept, so that it can be undone."""

    def __init__(
        self, store: Store, client: LabelStudio, settings: Settings, project_id: int
    ) -> None:
        self._store = store
        self._client = client
        self._settings = settings
        self._project_id = project_id
        project = store.projects.get(project_id)
        self._record: dict[str, Any] = dict((project and project.connection) or {})

    def plan(self, backend_url: str) -> list[Change]:
        """Return what differs in Label Studio from a connected project.

        Raises LabelingConfigError where the project has nothing to predict, SettingsError where
        it is connected under another address.
        """
        remote = self._client.project(self._project_id)
        config = parse_labeling_config(remote.label_config)
        if not config.controls:
            raise LabelingConfigError(f"project {self._project_id}: {config.sentence}")
        before = self._record.get("backend_url")
        if before not in (None, backend_url):
            raise SettingsError(
                f"Project {self._project_id} is connected as {before}: "
                f"first run `clip-backend disconnect --project {self._project_id}`"
            )
        return [
            *self._project_changes(remote.__dict__),
            *self._backend_changes(backend_url),
            *self._webhook_changes(f"{backend_url}/webhook"),
            *self._view_changes(),
        ]

    def page(self, backend_url: str) -> str:
        """Return where people's browsers find the project's page."""
        return f"{self._settings.public_url or backend_url}/projects/{self._project_id}"

    def connect(self, backend_url: str, changes: list[Change]) -> None:
        """Apply a plan and ask for the first version and its predictions."""
        remote = self._client.project(self._project_id)
        self._store.projects.set_up(self._project_id, label_config=remote.label_config)
        if not self._record:
            self._remember(
                backend_url=backend_url,
                project={
                    "sampling": remote.sampling,
                    "show_collab_predictions": remote.show_collab_predictions,
                    "model_version": remote.model_version or "",
                },
            )
        for change in changes:
            change.apply()
        self._store.requests.add_all(
            [Request(self._project_id, kind) for kind in (Kind.TRAIN, Kind.SYNC, Kind.RECONCILE)]
        )

    def disconnect(self, report: Callable[[str], None]) -> None:
        """Undo what `connect` changed, as far as nobody has changed it since.

        Raises SettingsError for a project that was not connected by `connect`.
        """
        if not self._record:
            raise SettingsError(
                f"Project {self._project_id} was not connected with `clip-backend connect`; "
                "remove the ML backend in Label Studio, Settings > Model"
            )
        try:
            self._client.project(self._project_id)
        except LabelStudioError as error:
            gone = error.label_studio_status == 404
            if not gone or not self._client.lacks_project(self._project_id):
                raise
            self._store.forget(self._project_id)
            report("the project no longer exists in Label Studio: forgotten")
            return
        # First of all: while Label Studio removes it, it calls /setup, which connects a project.
        self._remove("ml_backend", self._client.remove_ml_backend, report)
        # Then the jobs, so that none pushes predictions behind our back.
        self._store.projects.update(self._project_id, connected=False)
        self._wait_for_jobs()
        remote = self._client.project(self._project_id)
        self._remove("view", self._client.remove_view, report)
        # Of `review`, in records of earlier releases.
        self._remove("review_view", self._client.remove_view, report)
        for title, view_id in self._record.get("views", {}).items():
            self._remove_if_there(view_id, self._client.remove_view)
            report(f'removed the view "{title}"')
        self._undo_webhook(report)
        self._remove_predictions(report)
        before = self._record["project"]
        values = {
            name: before[name]
            for name, ours in PROJECT_FIELDS.items()
            if getattr(remote, name) == ours and before[name] != ours
        }
        if remote.model_version is None or is_ours(remote.model_version):
            values["model_version"] = before["model_version"]
        if values:
            self._client.update_project(self._project_id, **values)
            report("restored " + ", ".join(sorted(values)))
        self._store.requests.forget(self._project_id)
        self._store.tasks.forget(self._project_id)
        self._store.projects.update(
            self._project_id, connection=None, webhook_digest=None, watermark=None
        )

    def _project_changes(self, remote: dict[str, Any]) -> list[Change]:
        values = {name: value for name, value in PROJECT_FIELDS.items() if remote[name] != value}
        if not values:
            return []
        return [
            Change(
                "project: " + ", ".join(f"{name} = {value}" for name, value in values.items()),
                lambda: self._client.update_project(self._project_id, **values),
            )
        ]

    def _backend_changes(self, backend_url: str) -> list[Change]:
        wanted: dict[str, Any] = {"is_interactive": False, "auth_method": "NONE"}
        if self._settings.basic_auth_user is not None:
            wanted |= {
                "auth_method": "BASIC_AUTH",
                "basic_auth_user": self._settings.basic_auth_user,
            }
        identity = {"project": self._project_id, "url": backend_url}
        texts = self._texts(backend_url)
        credentials = {}
        if self._settings.basic_auth_pass is not None:
            credentials["basic_auth_pass"] = self._settings.basic_auth_pass.get_secret_value()
        found = _with_url(self._client.ml_backends(self._project_id), backend_url)
        if found is None:

            def add() -> None:
                self._remember(ml_backend=None)
                added = self._client.add_ml_backend(**identity, **texts, **wanted, **credentials)
                self._remember(ml_backend=added["id"])

            return [Change(f"ML backend: add {backend_url}", add)]
        # What somebody else has written stays.
        wanted |= {name: text for name, text in texts.items() if _is_ours_to_write(found.get(name))}
        differing = {name for name, value in wanted.items() if found.get(name) != value}
        if credentials and not found.get("basic_auth_pass_is_set"):
            differing.add("basic_auth_pass")
        if found.get("state") in ("ER", "DI"):
            differing.add("state")
        if not differing:
            return []
        values = identity | {"title": found["title"]} | wanted | credentials
        return [
            Change(
                "ML backend: set " + ", ".join(sorted(differing)),
                lambda: self._client.update_ml_backend(found["id"], **values),
            )
        ]

    def _texts(self, backend_url: str) -> dict[str, str]:
        # Label Studio's model settings show the title and keep the description.
        page = self.page(backend_url)
        return {"title": f"{TITLE}: {page}", "description": f"{TITLE}: see {page}"}

    def _webhook_changes(self, url: str) -> list[Change]:
        found = _with_url(self._client.webhooks(self._project_id), url)
        headers = dict((found or {}).get("headers") or {})
        project = self._store.projects.get(self._project_id)
        kept = project.webhook_digest if project is not None else None
        if self._settings.webhook_secret is not None:
            secret = self._settings.webhook_secret.get_secret_value()
            right = headers.get(SECRET_HEADER) == secret
        else:
            secret = secrets.token_urlsafe(_SECRET_BYTES)
            right = kept is not None and digest(headers.get(SECRET_HEADER, "")) == kept
        if (
            found is not None
            and right
            and found["is_active"]
            and found["send_for_all_actions"]
            and found["send_payload"]
        ):
            return []

        def apply() -> None:
            # Adding the ML backend makes Label Studio add the webhook as well.
            present = _with_url(self._client.webhooks(self._project_id), url)
            values = {
                "url": url,
                "headers": {**headers, SECRET_HEADER: secret},
                "is_active": True,
                "send_for_all_actions": True,
                "send_payload": True,
            }
            self._store.projects.update(self._project_id, webhook_digest=digest(secret))
            if present is None:
                present = self._client.add_webhook(project=self._project_id, **values)
            else:
                self._client.update_webhook(present["id"], **values)
            if "webhook" not in self._record:
                before = None if found is None else {"headers": headers}
                self._remember(webhook={"id": present["id"], "before": before})

        return [Change(f"webhook: {url} with its secret, for all actions", apply)]

    def _view_changes(self) -> list[Change]:
        order = "tasks:predictions_score"
        if self._settings.score is Score.UNCERTAINTY:
            order = f"-{order}"
        for view in self._client.views(self._project_id):
            data = view.get("data") or {}
            if data.get("title") == VIEW_TITLE and data.get("ordering") == [order]:
                return []

        def add() -> None:
            data = {"title": VIEW_TITLE, "type": "list", "target": "tasks", "ordering": [order]}
            self._remember(view=self._client.add_view(self._project_id, data)["id"])

        return [Change(f'Data Manager: add the view "{VIEW_TITLE}"', add)]

    def _remember(self, **facts: Any) -> None:
        self._record |= facts
        self._store.projects.update(self._project_id, connection=self._record)

    def _remove(
        self, what: str, remove: Callable[[int], None], report: Callable[[str], None]
    ) -> None:
        found = self._record.get(what)
        if what == "ml_backend" and what in self._record and found is None:
            # `connect` was cut off between asking and being answered.
            backend = _with_url(
                self._client.ml_backends(self._project_id), self._record["backend_url"]
            )
            found = backend["id"] if backend is not None else None
        if found is None:
            return
        self._remove_if_there(found, remove)
        report(f"removed the {what.replace('ml_backend', 'ML backend').replace('_', ' ')}")

    @staticmethod
    def _remove_if_there(found: int, remove: Callable[[int], None]) -> None:
        try:
            remove(found)
        except LabelStudioError as error:
            # Somebody else has removed it.
            if error.label_studio_status != 404:
                raise

    def _remove_predictions(self, report: Callable[[str], None]) -> None:
        counts = self._client.prediction_counts(self._project_id)
        total = sum(count for version, count in counts.items() if is_ours(version))
        removed = 0
        with Progress(console=Console(stderr=True)) as bar:
            shown = bar.add_task("removing predictions", total=total)
            for page in self._client.predictions(self._project_id):
                ours = {
                    item.id
                    for predictions in page.values()
                    for item in predictions
                    if is_ours(item.model_version)
                }
                for count in remove_predictions(self._client, self._project_id, page, ours):
                    bar.advance(shown, count)
                    removed += count
        report(f"removed {removed} predictions")

    def _undo_webhook(self, report: Callable[[str], None]) -> None:
        webhook = self._record.get("webhook")
        if webhook is None:
            return
        if webhook["before"] is None:
            self._record["webhook"] = webhook["id"]
            self._remove("webhook", self._client.remove_webhook, report)
            self._record["webhook"] = webhook
        else:
            self._client.update_webhook(webhook["id"], headers=webhook["before"]["headers"])
            report("restored the webhook")

    def _wait_for_jobs(self) -> None:
        until = time.monotonic() + _STOP_WITHIN
        while time.monotonic() < until and any(
            waiting.running for waiting in self._store.requests.waiting(self._project_id)
        ):
            time.sleep(0.1)


def _is_ours_to_write(text: str | None) -> bool:
    return not text or text == TITLE or text.startswith(f"{TITLE}: ")


def _with_url(items: list[dict[str, Any]], url: str) -> dict[str, Any] | None:
    return next((item for item in items if str(item["url"]).rstrip("/") == url), None)
