"""Label Studio's API: the calls that this backend makes, with either kind of token."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from backend.errors import LabelStudioError, LabelStudioUnreachableError, SettingsError
from backend.labelstudio.retrying import BUSY, retry_after, retrying
from backend.labelstudio.tokens import TIMEOUT, TokenAuth

# On SQLite, Label Studio fails with 500 from 999 tasks a page on ("Expression tree is too large").
PAGE = 500
# Full annotations are a hundred times larger than a task's id and data.
ANNOTATED_PAGE = 200

_NOT_FOUND = 404
# What Label Studio says of a page after the last one.
_PAST_THE_END = "Invalid page."


@dataclass(frozen=True)
class RemoteProject:
    """A project as Label Studio describes it."""

    id: int
    title: str
    label_config: str
    model_version: str | None
    sampling: str
    show_collab_predictions: bool
    task_count: int
    annotation_count: int


@dataclass(frozen=True)
class RemotePrediction:
    """A prediction as Label Studio keeps it."""

    id: int
    task: int
    model_version: str
    result: list[Any]
    score: float | None


@dataclass(frozen=True)
class RemoteTask:
    """A task as Label Studio lists it; `annotations` only where they were asked for.

    `predictions` are those that an annotation was made from; the moments sort as text.
    """

    id: int
    data: Mapping[str, object]
    is_labeled: bool
    annotation_count: int
    annotations: tuple[Mapping[str, object], ...] = ()
    predictions: tuple[RemotePrediction, ...] = ()
    created_at: str = ""
    updated_at: str = ""

    @property
    def open(self) -> bool:
        """Whether annotators will still be shown the task."""
        # A skipped task can count as labelled and still has no annotation.
        return not self.is_labeled or self.annotation_count == 0


class LabelStudio:
    """A client of one Label Studio; safe to share between threads.

    Every call raises LabelStudioUnreachableError after some tries where nobody answers, and
    LabelStudioError with a sentence where Label Studio refuses.
    """

    def __init__(self, url: str, token: str, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        if not token.isascii() or any(character.isspace() for character in token):
            raise SettingsError("LABEL_STUDIO_API_KEY contains characters that no token has")
        self.auth = TokenAuth(self.url, token)
        self._client = httpx.Client(
            auth=self.auth,
            timeout=timeout,
            # Label Studio answers a token with a session cookie, which would outlive the token.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()

    def authorization(self) -> dict[str, str]:
        """Return the header that fetches pictures from Label Studio."""
        try:
            return self.auth.headers()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def version(self) -> str:
        """Return Label Studio's release."""
        with self._expecting_label_studio():
            return str(self._get("/api/version")["release"])

    def user(self) -> str:
        """Return the email of the token's user."""
        with self._expecting_label_studio():
            return str(self._get("/api/current-user/whoami")["email"])

    def emails(self) -> dict[int, str]:
        """Return the email of each user by id."""
        return {user["id"]: user["email"] for user in self._get("/api/users")}

    def titles(self) -> dict[int, str]:
        """Return the title of each project by id, of the newest `PAGE` projects."""
        body = self._get("/api/projects", include="id,title", page_size=PAGE)
        with self._expecting_label_studio():
            return {project["id"]: project["title"] for project in body["results"]}

    def project(self, project_id: int) -> RemoteProject:
        """Return a project; LabelStudioError with `label_studio_status` 404 if there is none."""
        body = self._get(f"/api/projects/{project_id}")
        with self._expecting_label_studio():
            return RemoteProject(
                id=body["id"],
                title=body["title"],
                label_config=body["label_config"],
                model_version=body["model_version"] or None,
                sampling=body["sampling"],
                show_collab_predictions=body["show_collab_predictions"],
                task_count=body["task_number"] or 0,
                annotation_count=body["total_annotations_number"] or 0,
            )

    def lacks_project(self, project_id: int) -> bool:
        """Tell whether Label Studio itself says that there is no such project.

        What stands before it, and answers while it is down, may refuse in the same words: asked
        again once Label Studio was seen to answer.
        """
        self.version()
        try:
            self.project(project_id)
        except LabelStudioError as error:
            if error.label_studio_status == _NOT_FOUND:
                return True
            raise
        return False

    def update_project(self, project_id: int, **values: Any) -> None:
        """Set fields of a project."""
        self._call("PATCH", f"/api/projects/{project_id}", json=values)

    def tasks(self, project_id: int) -> Iterator[list[RemoteTask]]:
        """Yield all tasks with their data, in pages."""
        yield from self._task_pages(
            {
                "project": project_id,
                "page_size": PAGE,
                "fields": "task_only",
                "include": "id,data,is_labeled,total_annotations,created_at,updated_at",
            }
        )

    def latest_tasks(self, project_id: int, page_size: int = PAGE) -> Iterator[list[RemoteTask]]:
        """Yield all tasks with their data, those first that changed last, in pages.

        An annotation changes its task, as does a prediction that is added or removed alone.
        """
        yield from self._task_pages(
            {
                "project": project_id,
                "page_size": page_size,
                "fields": "task_only",
                "include": "id,data,is_labeled,total_annotations,created_at,updated_at",
                "query": json.dumps({"ordering": ["-tasks:updated_at"]}),
            }
        )

    def annotated_tasks(self, project_id: int) -> Iterator[list[RemoteTask]]:
        """Yield the tasks that have an annotation, with all their annotations, in pages."""
        # Not by the counter alone: an import of predictions counts and stores it in two steps, and
        # forgets an annotation that is submitted in between.
        annotated = {
            "conjunction": "or",
            "items": [
                {
                    "filter": "filter:tasks:annotators",
                    "operator": "empty",
                    "type": "List",
                    "value": False,
                },
                {
                    "filter": "filter:tasks:total_annotations",
                    "operator": "greater",
                    "type": "Number",
                    "value": 0,
                },
            ],
        }
        yield from self._task_pages(
            {
                "project": project_id,
                "page_size": ANNOTATED_PAGE,
                "fields": "all",
                "query": json.dumps({"filters": annotated}),
            }
        )

    def last_change(self, project_id: int) -> str | None:
        """Return when a task was last annotated, changed or added; None without tasks."""
        body = self._get(
            "/api/tasks",
            project=project_id,
            page_size=1,
            fields="task_only",
            include="id,updated_at",
            query=json.dumps({"ordering": ["-tasks:updated_at"]}),
        )
        with self._expecting_label_studio():
            return str(body["tasks"][0]["updated_at"]) if body["tasks"] else None

    def import_predictions(
        self, project_id: int, predictions: Sequence[Mapping[str, object]]
    ) -> None:
        """Add predictions (`task`, `result`, `score`, `model_version`) in one request."""
        self._call("POST", f"/api/projects/{project_id}/import/predictions", json=list(predictions))

    def add_prediction(self, prediction: Mapping[str, object]) -> None:
        """Add one prediction (`task`, `result`, `score`, `model_version`)."""
        self._call("POST", "/api/predictions/", json=dict(prediction))

    def prediction_counts(self, project_id: int) -> dict[str, int]:
        """Return the number of predictions by model version."""
        body = self._get(f"/api/projects/{project_id}/model-versions")
        with self._expecting_label_studio():
            return {str(version): int(count) for version, count in body.items()}

    def predictions(
        self, project_id: int, task_ids: Collection[int] = ()
    ) -> Iterator[dict[int, list[RemotePrediction]]]:
        """Yield the predictions of some or all tasks by task, oldest first, in pages."""
        query: dict[str, str | int] = {"fields": "all", "include": "id,predictions"}
        if task_ids:
            selected = {"all": False, "included": sorted(task_ids)}
            query["query"] = json.dumps({"selectedItems": selected})
        for page in self._pages(query | {"project": project_id, "page_size": PAGE}):
            with self._expecting_label_studio():
                by_task = {
                    task["id"]: sorted(
                        (_prediction(item, task["id"]) for item in task["predictions"]),
                        key=lambda prediction: prediction.id,
                    )
                    for task in page
                }
            yield by_task

    def delete_predictions_of(self, project_id: int, task_ids: Collection[int]) -> None:
        """Remove all predictions of some tasks, whoever made them."""
        self._call(
            "POST",
            "/api/dm/actions",
            params={"id": "delete_tasks_predictions", "project": project_id},
            json={
                "project": str(project_id),
                "selectedItems": {"all": False, "included": sorted(task_ids)},
            },
        )

    def delete_prediction(self, prediction_id: int) -> None:
        """Remove one prediction."""
        self._call("DELETE", f"/api/predictions/{prediction_id}/")

    def ml_backends(self, project_id: int) -> list[dict[str, Any]]:
        """Return the ML backends of a project."""
        body = self._get("/api/ml", project=project_id)
        if not isinstance(body, list):
            raise self._not_label_studio()
        return body

    def add_ml_backend(self, **values: Any) -> dict[str, Any]:
        """Connect an ML backend; Label Studio calls its `/health` and `/setup` meanwhile."""
        return dict(self._call("POST", "/api/ml", json=values))

    def update_ml_backend(self, backend_id: int, **values: Any) -> None:
        """Set fields of an ML backend."""
        self._call("PATCH", f"/api/ml/{backend_id}", json=values)

    def remove_ml_backend(self, backend_id: int) -> None:
        """Disconnect an ML backend."""
        self._call("DELETE", f"/api/ml/{backend_id}")

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        """Return the webhooks of a project."""
        return list(self._get("/api/webhooks/", project=project_id))

    def add_webhook(self, **values: Any) -> dict[str, Any]:
        """Add a webhook."""
        return dict(self._call("POST", "/api/webhooks/", json=values))

    def update_webhook(self, webhook_id: int, **values: Any) -> None:
        """Set fields of a webhook."""
        self._call("PATCH", f"/api/webhooks/{webhook_id}/", json=values)

    def remove_webhook(self, webhook_id: int) -> None:
        """Remove a webhook."""
        self._call("DELETE", f"/api/webhooks/{webhook_id}/")

    def views(self, project_id: int) -> list[dict[str, Any]]:
        """Return the Data Manager's views of a project."""
        return list(self._get("/api/dm/views", project=project_id))

    def add_view(self, project_id: int, data: Mapping[str, object]) -> dict[str, Any]:
        """Add a view to the Data Manager."""
        return dict(
            self._call("POST", "/api/dm/views", json={"project": project_id, "data": dict(data)})
        )

    def update_view(self, view_id: int, project_id: int, data: Mapping[str, object]) -> None:
        """Set what a view of the Data Manager shows."""
        self._call(
            "PATCH", f"/api/dm/views/{view_id}", json={"project": project_id, "data": dict(data)}
        )

    def remove_view(self, view_id: int) -> None:
        """Remove a view from the Data Manager."""
        self._call("DELETE", f"/api/dm/views/{view_id}")

    def _task_pages(self, query: Mapping[str, str | int]) -> Iterator[list[RemoteTask]]:
        for page in self._pages(query):
            with self._expecting_label_studio():
                tasks = [_task(item) for item in page]
            yield tasks

    def _pages(self, query: Mapping[str, str | int]) -> Iterator[list[dict[str, Any]]]:
        page, seen = 1, 0
        while True:
            try:
                body = self._get("/api/tasks", **query, page=page)
            except LabelStudioError as error:
                # Tasks that are deleted while they are listed shorten the list.
                if page > 1 and str(error).endswith(_PAST_THE_END):
                    return
                raise
            with self._expecting_label_studio():
                tasks, total = list(body["tasks"]), int(body["total"])
            if tasks:
                yield tasks
            seen += len(tasks)
            if not tasks or seen >= total:
                return
            page += 1

    @contextmanager
    def _expecting_label_studio(self) -> Iterator[None]:
        # Another server's JSON lacks what Label Studio's has.
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._not_label_studio() from None

    def _not_label_studio(self) -> LabelStudioError:
        return LabelStudioError(
            f"{self.url} does not answer like Label Studio: check LABEL_STUDIO_URL"
        )

    def _get(self, path: str, **query: str | int) -> Any:
        return self._call("GET", path, params=query)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return retrying(method)(self._call_once, method, path, arguments)

    def _unreachable(self, error: httpx.HTTPError) -> LabelStudioUnreachableError:
        return LabelStudioUnreachableError(
            f"Label Studio does not answer at {self.url} ({type(error).__name__}): "
            "check LABEL_STUDIO_URL and whether it runs"
        )

    def _call_once(self, method: str, path: str, arguments: dict[str, Any]) -> Any:
        try:
            response = self._client.request(method, self.url + path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        status = response.status_code
        if status in BUSY:
            raise LabelStudioUnreachableError(
                f"Label Studio is busy: {method} {path} answered {status}",
                label_studio_status=status,
                retry_after=retry_after(response),
            )
        if status == 403 and "reserved network" in response.text:
            raise LabelStudioError(
                "Label Studio refuses private addresses: start it with ML_BLOCK_LOCAL_IP=false "
                "SSRF_PROTECTION_ENABLED=false, or give this backend a public address",
                label_studio_status=status,
            )
        if status in (401, 403):
            raise LabelStudioError(
                f"Label Studio refuses the token for {method} {path} ({status}"
                f"{_detail(response)}): check LABEL_STUDIO_API_KEY, whether its kind of token is "
                "enabled in Label Studio (Organization > API Tokens), and its user's rights",
                label_studio_status=status,
            )
        if status == _NOT_FOUND and not _detail(response):
            # A proxy's, which Label Studio may be back behind in a moment.
            raise LabelStudioUnreachableError(
                f"{method} {path} was answered with 404, and not by Label Studio: check whether it "
                f"runs, and that {self.url} leads to it"
            )
        if not response.is_success:
            raise LabelStudioError(
                f"Label Studio answered {method} {path} with {status}{_detail(response)}",
                label_studio_status=status,
            )
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise self._not_label_studio() from None


def _task(item: Mapping[str, Any]) -> RemoteTask:
    annotations = tuple(item.get("annotations") or ())
    given = sum(not annotation.get("was_cancelled") for annotation in annotations)
    origins = {annotation.get("parent_prediction") for annotation in annotations}
    return RemoteTask(
        id=item["id"],
        data=item["data"],
        is_labeled=bool(item["is_labeled"]),
        annotation_count=max(item["total_annotations"] or 0, given),
        annotations=annotations,
        predictions=tuple(
            _prediction(each, item["id"])
            for each in item.get("predictions") or ()
            if each["id"] in origins
        ),
        created_at=str(item.get("created_at") or ""),
        updated_at=str(item.get("updated_at") or ""),
    )


def _prediction(item: Mapping[str, Any], task_id: int) -> RemotePrediction:
    return RemotePrediction(
        item["id"], task_id, item["model_version"] or "", item["result"], item["score"]
    )


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return f": {json.dumps(body)[:300]}"
    detail = body.get("validation_errors") or body.get("detail")
    return f": {detail if isinstance(detail, str) else json.dumps(detail)}"[:600] if detail else ""
