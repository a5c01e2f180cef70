"""What Label Studio sends, parsed once at the edge, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import RequestError, TaskError
from backend.prediction import Prediction
from backend.store.tasks import Task

# The largest id that the database's integers hold.
_LARGEST_ID = 2**31 - 1

Model = TypeVar("Model", bound=BaseModel)


class SetupRequest(BaseModel):
    """`POST /setup`; the access token that comes with it is neither used nor kept."""

    model_config = ConfigDict(extra="ignore")

    project: Any = None
    labeling_config: str = Field("", alias="schema")
    extra_params: dict[str, Any] | str | None = None


class PredictRequest(BaseModel):
    """`POST /predict`; tasks are parsed one by one, so that a bad one costs itself alone."""

    model_config = ConfigDict(extra="ignore")

    tasks: list[Any]
    project: Any = None
    label_config: str | None = None


class WebhookRequest(BaseModel):
    """`POST /webhook`; only what happened and where, the truth is read from Label Studio."""

    model_config = ConfigDict(extra="ignore")

    action: str
    project: Any = None
    task: Any = None
    annotation: Any = None
    annotations: Any = None
    tasks: Any = None

    @property
    def project_id(self) -> int:
        """The project that the event is about."""
        for about in (self.project, self.task, self.annotation, self.annotations, self.tasks):
            item = about[0] if isinstance(about, list) and about else about
            if about is self.project:
                found = item.get("id") if isinstance(item, dict) else item
            else:
                found = item.get("project") if isinstance(item, dict) else None
            if found is not None:
                return project_id(found)
        raise RequestError("the event names no project")

    @property
    def label_config(self) -> str | None:
        """The project's labeling config, where the event carries it."""
        if isinstance(self.project, dict) and isinstance(
            config := self.project.get("label_config"), str
        ):
            return config
        return None


class ProjectRequest(BaseModel):
    """`POST /train` and `/delete`."""

    model_config = ConfigDict(extra="ignore")

    project: Any = None


class DuplicateRequest(BaseModel):
    """`POST /duplicate_model`."""

    model_config = ConfigDict(extra="ignore")

    project_src: Any
    project_dst: Any


class ValidateRequest(BaseModel):
    """`POST /validate`."""

    model_config = ConfigDict(extra="ignore")

    config: str


class JobStatusRequest(BaseModel):
    """`POST /job_status`."""

    model_config = ConfigDict(extra="ignore")

    job: str


def parse(model: type[Model], body: object) -> Model:
    """Return `body` as a message; raises RequestError that says what is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "body"
        raise RequestError(f"{where}: {problem['msg']}") from None


def project_id(value: object) -> int:
    """Return a project's id from Label Studio's `"7.1718000000"`, `7` or `"7"`."""
    text = value.split(".")[0] if isinstance(value, str) else value
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 10:
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 0 < text <= _LARGEST_ID:
        raise RequestError("project: must be a project's id, such as 7")
    return text


def task(value: object) -> Task | TaskError:
    """Return one of the tasks of a request, or why it is none."""
    if not isinstance(value, dict) or not isinstance(data := value.get("data"), dict):
        return TaskError("a task must be an object with `data`")
    task_id = value.get("id")
    usable = isinstance(task_id, int) and not isinstance(task_id, bool)
    return Task(task_id if usable else None, data)


def result(outcome: Prediction | TaskError) -> Mapping[str, object]:
    """Return one item of `/predict`'s answer.

    Label Studio skips an item without a `result` and keeps the others.
    """
    if isinstance(outcome, TaskError):
        return {"error": str(outcome)}
    return {
        "result": outcome.result,
        "score": outcome.score,
        "model_version": outcome.model_version,
    }
