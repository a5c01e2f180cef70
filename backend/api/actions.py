"""What Label Studio's requests do, however they come: by our own API or through label-studio-ml."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.api import messages
from backend.errors import LabelingConfigError, RequestError
from backend.labelstudio.config import parse_labeling_config
from backend.labelstudio.task_data import with_options
from backend.prediction import Predictor, fits
from backend.settings import LearningSettings
from backend.store import Store
from backend.store.projects import Project
from backend.store.requests import Kind
from backend.store.tasks import Task

log = logging.getLogger(__name__)

# What Label Studio is told until the first version is published.
UNTRAINED = "clip-backend"

_ANNOTATION_ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATION_DELETED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_UPDATED",
        "ANNOTATIONS_DELETED",
    }
)

# Webhook actions that can ask for work.
ACTIONS = _ANNOTATION_ACTIONS | {
    "START_TRAINING",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
    "PROJECT_DELETED",
}

# Label Studio tells of an import in several webhooks; a moment later one look sees all tasks.
_SYNC_DELAY = 0.5


@dataclass(frozen=True)
class Results:
    """One item a task, in the tasks' order, and the version that made them."""

    items: list[Mapping[str, object]]
    model_version: str


class Actions:
    """Predicts, and notes what is wanted; one serves all threads of a process.

    `get_predictor` may wait for CLIP to be loaded.
    """

    def __init__(
        self,
        store: Store,
        get_predictor: Callable[[], Predictor],
        learning: LearningSettings,
        reconcile_every: float,
    ) -> None:
        self._store = store
        self._get_predictor = get_predictor
        self._learning = learning
        self._reconcile_every = reconcile_every

    def set_up(
        self, project_id: int, label_config: str, extra_params: dict[str, Any] | None
    ) -> str:
        """Register a project, and ask for all of it where anything changed.

        Extra params that are None stay as they are. Returns what is predicted in a sentence;
        raises LabelingConfigError.
        """
        config = parse_labeling_config(label_config)
        # Not compared at once: Label Studio calls /setup before it has added the ML backend.
        changed = self._store.set_up(
            project_id,
            label_config=label_config,
            extra_params=extra_params,
            compare_in=self._reconcile_every,
        )
        if changed:
            log.info("set up project=%d: %s", project_id, config.sentence)
        return config.sentence

    def model_version(self, project_id: int) -> str:
        """Return the name of a project's active version, UNTRAINED where there is none."""
        project = self._store.projects.get(project_id)
        return (project.model_version if project is not None else None) or UNTRAINED

    def predict(
        self, tasks: Sequence[Any], project_id: int | None, label_config: str | None
    ) -> Results:
        """Return predictions of tasks as Label Studio sends them.

        Raises RequestError, LabelingConfigError, TooLargeError or EncoderError.
        """
        store = self._store
        project = None if project_id is None else store.projects.get(project_id)
        label_config = label_config or (project.label_config if project is not None else "")
        if not label_config:
            raise RequestError("label_config: is needed for a project that was never set up")
        config = parse_labeling_config(label_config)
        messages.check_size(tasks, config)
        items = [messages.task(item) for item in tasks]
        usable = [item for item in items if isinstance(item, Task)]
        predictor = self._get_predictor()
        version = None if project is None else store.versions.active(project.id)
        if version is None or not fits(version, config, predictor.encoder.identity):
            known = with_options(config, (item.data for item in usable))
            version = predictor.zero_shot(project_id or 0, known, self._learning_of(project))
        outcomes = iter(predictor.predict(usable, config, version))
        return Results(
            [messages.result(next(outcomes) if isinstance(item, Task) else item) for item in items],
            version.name,
        )

    def note(
        self, action: str, project_id: int, project: Project | None, label_config: str | None
    ) -> None:
        """Keep what a webhook's action asks for: a worker does it.

        `project` is what is known of it, `label_config` what the webhook says.
        """
        store = self._store
        if project is None:
            # The database was lost; the webhook still knows that the project is connected.
            store.set_up(
                project_id,
                label_config=_readable(label_config),
                compare_in=self._reconcile_every,
            )
        config_changed = project is not None and label_config not in (None, project.label_config)
        delay = self._learning_of(project).retrain_delay
        store.webhooks.note(project_id, wanted_after(action, delay, config_changed=config_changed))
        log.info("webhook project=%d action=%s", project_id, action)

    def _learning_of(self, project: Project | None) -> LearningSettings:
        return self._learning.overridden_by({} if project is None else project.extra_params)


def wanted_after(action: str, retrain_delay: float, *, config_changed: bool) -> dict[Kind, float]:
    """Return what a webhook's action asks for, and in how many seconds."""
    if action in _ANNOTATION_ACTIONS:
        return {Kind.TRAIN: retrain_delay}
    if action == "START_TRAINING":
        return {Kind.TRAIN: 0.0}
    if action == "TASKS_CREATED":
        return {Kind.SYNC: _SYNC_DELAY}
    if action == "TASKS_DELETED":
        return {Kind.SYNC: _SYNC_DELAY, Kind.TRAIN: retrain_delay}
    if action == "PROJECT_UPDATED" and config_changed:
        return {Kind.TRAIN: retrain_delay, Kind.SYNC: retrain_delay}
    if action == "PROJECT_DELETED":
        return {Kind.RECONCILE: 0.0}
    return {}


def _readable(label_config: str | None) -> str | None:
    """Return a webhook's labeling config, unless it cannot be read: it is no more than a hint."""
    try:
        parse_labeling_config(label_config or "")
    except LabelingConfigError:
        return None
    return label_config
