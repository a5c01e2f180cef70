"""What Label Studio sends, parsed once at the edge, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from backend.errors import RequestError, TaskError, TooLargeError
from backend.labelstudio.config import LabelingConfig
from backend.prediction import Prediction
from backend.store.tasks import Task

# The largest id that the database's integers hold.
_LARGEST_ID = 2**31 - 1

# Label Studio waits 100 s, in which not even stored pictures give more predictions than this.
_MOST_PREDICTIONS = 100_000

# Looked at by `project_id`, which says what is wrong in a sentence.
ProjectId = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "A project's id; Label Studio appends the time of its creation",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": _LARGEST_ID},
                {"type": "string", "pattern": r"^0{0,9}[1-9][0-9]{0,8}(\.|$)"},
            ],
        }
    ),
]

Model = TypeVar("Model", bound=BaseModel)


class SetupRequest(BaseModel):
    """`POST /setup`; the access token that comes with it is neither used nor kept."""

    model_config = ConfigDict(extra="ignore")

    project: ProjectId
    labeling_config: str = Field("", alias="schema", description="The labeling config, as XML")
    extra_params: dict[str, Any] | str | None = None


class PredictRequest(BaseModel):
    """`POST /predict`; tasks are parsed one by one, so that a bad one costs itself alone."""

    model_config = ConfigDict(extra="ignore")

    tasks: list[Any] = Field(max_length=_MOST_PREDICTIONS)
    project: ProjectId | None = None
    label_config: str | None = None


class WebhookRequest(BaseModel):
    """`POST /webhook`; only what happened and where, the truth is read from Label Studio."""

    model_config = ConfigDict(extra="ignore")

    action: str = Field(max_length=100)
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

    project: ProjectId


class DuplicateRequest(BaseModel):
    """`POST /duplicate_model`."""

    model_config = ConfigDict(extra="ignore")

    project_src: ProjectId
    project_dst: ProjectId


class ValidateRequest(BaseModel):
    """`POST /validate`."""

    model_config = ConfigDict(extra="ignore")

    config: str


class JobStatusRequest(BaseModel):
    """`POST /job_status`."""

    model_config = ConfigDict(extra="ignore")

    job: str = Field(description="What `/train` has answered, or a project's id")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Answer):
    """Any answer that is an error."""

    error: str = Field(description="What is wrong and what to do")


class HealthAnswer(_Answer):
    """`GET /health`."""

    status: Literal["UP"]
    model_class: str
    version: str
    encoder: Literal["ready", "loading"]


class SetupAnswer(_Answer):
    """`POST /setup`."""

    model_version: str
    message: str = Field(description="What is predicted, or why nothing is and what to do")


class Chosen(_Answer):
    """The value of a `<Choices>`, as Label Studio stores it."""

    choices: list[str] = Field(min_length=1)


class ChosenPaths(_Answer):
    """The value of a `<Taxonomy>`: paths from the top of the tree."""

    taxonomy: list[list[str]] = Field(min_length=1)


class Levels(_Answer):
    """How likely each step of a path is: the sum of all choices that share it."""

    levels: list[float]


class ShownTexts(_Answer):
    """The value of a `<TextArea>`."""

    text: list[str]


class ChoicesResult(_Answer):
    """What is predicted of a `<Choices>`."""

    from_name: str
    to_name: str
    type: Literal["choices"]
    value: Chosen
    score: float = Field(ge=0, le=1)


class TaxonomyResult(_Answer):
    """What is predicted of a `<Taxonomy>`."""

    from_name: str
    to_name: str
    type: Literal["taxonomy"]
    value: ChosenPaths
    score: float = Field(ge=0, le=1)
    meta: Levels | None = None


class ShortlistResult(_Answer):
    """The likeliest choices of a control, for people to read."""

    from_name: str
    to_name: str
    type: Literal["textarea"]
    value: ShownTexts


class PredictedTask(_Answer):
    """One task's prediction."""

    result: list[ChoicesResult | TaxonomyResult | ShortlistResult]
    score: float = Field(ge=0, le=1)
    model_version: str


class PredictAnswer(_Answer):
    """`POST /predict`: an item for each task, in their order."""

    results: list[PredictedTask | Problem]
    model_version: str


class StatusAnswer(_Answer):
    """What was done."""

    status: str


class ValidateAnswer(_Answer):
    """`POST /validate`."""

    status: Literal["ok"]
    message: str


class JobAnswer(_Answer):
    """`POST /train`."""

    job: str = Field(description="For `/job_status`")


class JobStatusAnswer(_Answer):
    """`POST /job_status`."""

    job_status: Literal["queued", "started", "finished"]
    error: str | None = Field(description="Why the last attempt failed")


class VersionsAnswer(_Answer):
    """`GET /versions`."""

    versions: list[str]


class Description(BaseModel):
    """`GET /openapi.json`."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]


class ReportAnswer(_Answer):
    """`GET /report`."""

    project: int
    model_version: str | None
    pinned: bool = Field(description="Whether trainings leave this version in use")
    controls: dict[str, Any] = Field(description="What is known of each control's head")


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


def check_size(tasks: Sequence[object], config: LabelingConfig) -> None:
    """Raise TooLargeError for more predictions than one answer can have."""
    if len(tasks) * len(config.controls) > _MOST_PREDICTIONS:
        raise TooLargeError(
            f"tasks: {len(tasks)} tasks of {len(config.controls)} controls are more than "
            f"{_MOST_PREDICTIONS} predictions; send fewer tasks at a time"
        )


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
