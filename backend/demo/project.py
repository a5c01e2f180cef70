"""A Label Studio project as those who work in it use it: upload, take the next task, submit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import count
from typing import Any

import httpx
from PIL import Image

from backend.errors import LabelStudioError, LabelStudioUnreachableError
from backend.labelstudio.tokens import TIMEOUT, TokenAuth

CONTROL = "choice"

# Label Studio takes at most a hundred files in one request.
UPLOAD_BATCH = 50

_PROJECTS_A_PAGE = 100

# It puts a random prefix before the name of an uploaded file.
_UPLOADED = re.compile(r"/[0-9a-f]{8}-([^/]+)$")


@dataclass(frozen=True)
class ServedTask:
    """What an annotator is given next; `resumed` if they had been given it before."""

    id: int
    picture: str
    choices: tuple[str, ...]
    model_version: str | None
    resumed: bool


@dataclass(frozen=True)
class ShownPrediction:
    """A prediction as Label Studio has it."""

    id: int
    task: int
    model_version: str
    score: float
    choices: tuple[str, ...]


class AnnotatedProject:
    """One project, in the name of one user."""

    def __init__(self, url: str, token: str, project_id: int) -> None:
        self.id = project_id
        self._client = _client(url, token)

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()

    def upload(self, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Add a task for each picture; at most UPLOAD_BATCH of them."""
        # Of several files under one field name Label Studio would keep the last.
        files = {name: (name, _jpeg(image), "image/jpeg") for name, image in pictures}
        self._call("POST", f"/api/projects/{self.id}/import", files=files)

    def next(self) -> ServedTask | None:
        """Return the task that the queue serves now; None once all are annotated."""
        response = self._client.get(f"/api/projects/{self.id}/next")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        body = _body(response)
        shown = body["predictions"][0] if body["predictions"] else None
        return ServedTask(
            id=body["id"],
            picture=picture_name(body["data"]),
            choices=_choices(shown["result"]) if shown is not None else (),
            model_version=shown["model_version"] if shown is not None else None,
            resumed="Task lock" in body["queue"],
        )

    def annotate(self, task_id: int, *choices: str, control: str = CONTROL) -> int:
        """Submit an annotation; return its id."""
        result = [
            {
                "from_name": control,
                "to_name": "image",
                "type": "choices",
                "value": {"choices": list(choices)},
            }
        ]
        body = self._call(
            "POST", f"/api/tasks/{task_id}/annotations/", json={"result": result, "lead_time": 1.0}
        )
        return int(body["id"])

    def predictions(self) -> list[ShownPrediction]:
        """Return all predictions, whoever made them."""
        return [
            ShownPrediction(
                id=item["id"],
                task=item["task"],
                model_version=item["model_version"] or "",
                score=item["score"] if item["score"] is not None else 0.0,
                choices=_choices(item["result"]),
            )
            for item in self._call("GET", "/api/predictions", params={"project": self.id})
        ]

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return _call(self._client, method, path, **arguments)


def create_project(url: str, token: str, title: str, label_config: str) -> int:
    """Add a project to Label Studio; return its id."""
    with _client(url, token) as client:
        body = _call(
            client, "POST", "/api/projects", json={"title": title, "label_config": label_config}
        )
    return int(body["id"])


def project_titles(url: str, token: str) -> dict[int, str]:
    """Return the title of each project that the token's user sees, by id."""
    titles: dict[int, str] = {}
    query = {"include": "id,title", "page_size": _PROJECTS_A_PAGE}
    with _client(url, token) as client:
        for page in count(1):
            body = _call(client, "GET", "/api/projects", params={**query, "page": page})
            titles |= {item["id"]: item["title"] for item in body["results"]}
            if body["next"] is None:
                break
    return titles


def label_config(choices: Sequence[str]) -> str:
    """Return a labeling config that asks for one of the choices of a picture."""
    options = "".join(f'<Choice value="{escape(choice)}"/>' for choice in choices)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="{CONTROL}" toName="image" choice="single" showInLine="true">'
        f"{options}</Choices></View>"
    )


def picture_name(data: Mapping[str, object]) -> str:
    """Return the name that a task's picture was uploaded under."""
    found = _UPLOADED.search(str(data.get("image", "")))
    return found.group(1) if found is not None else ""


def _client(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, auth=TokenAuth(url, token), timeout=TIMEOUT)


def _call(client: httpx.Client, method: str, path: str, **arguments: Any) -> Any:
    try:
        response = client.request(method, path, **arguments)
    except httpx.HTTPError as error:
        raise LabelStudioUnreachableError(
            f"Label Studio does not answer {method} {path} ({type(error).__name__})"
        ) from error
    return _body(response)


def _body(response: httpx.Response) -> Any:
    if not response.is_success:
        raise LabelStudioError(
            f"Label Studio answered {response.request.method} {response.request.url.path} with "
            f"{response.status_code}: {response.text[:300]}",
            label_studio_status=response.status_code,
        )
    return response.json() if response.content else None


def _jpeg(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _choices(result: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(choice for item in result for choice in item["value"].get("choices", ()))
