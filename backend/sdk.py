"""The same backend as a model class of label-studio-ml, 1.0.9 and 2.x.

For people who host with that SDK: `label_studio_ml.api.init_app(model_class=ClipBackend)`. It is
thin: predictions and what is asked for are those of our own API, and `clip-backend worker` trains.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend import assembly
from backend.api import messages
from backend.api.actions import ACTIONS, Actions
from backend.embedding import Embedder
from backend.errors import RequestError
from backend.prediction import Predictor
from backend.settings import Settings, parse_extra_params
from backend.store import Store


class _Process:
    """What all models of a process share: label-studio-ml makes a model for each request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._opened: tuple[Settings, Store] | None = None
        self._predictor: Predictor | None = None

    def open(self) -> tuple[Store, Actions]:
        """Return the database, opened once, and what is done with it.

        The settings are those of the first call. Raises SettingsError or DatabaseError.
        """
        with self._lock:
            if self._opened is None:
                settings = Settings.read()
                self._opened = settings, Store.open(settings.database)
            settings, store = self._opened
        return store, Actions(
            store,
            lambda: self._load(settings, store),
            settings.learning,
            settings.reconcile_every,
        )

    def _load(self, settings: Settings, store: Store) -> Predictor:
        # By the first prediction: release 1.0.9 also makes a model in a process for each webhook.
        with self._loading:
            if self._predictor is None:
                configured = None not in (settings.label_studio_url, settings.label_studio_api_key)
                client = assembly.label_studio(settings) if configured else None
                self._predictor = Predictor(
                    Embedder(
                        assembly.encoder(settings),
                        store.embeddings,
                        assembly.image_fetcher(settings, client),
                        assembly.image_limits(settings),
                    )
                )
            return self._predictor


class ClipBackend(LabelStudioMLBase):  # type: ignore[misc]  # label-studio-ml has no types
    """Predicts as `POST /predict` does, and asks a worker for what `POST /webhook` asks for."""

    # Release 1.0.9 calls `fit` for these.
    TRAIN_EVENTS = tuple(sorted(ACTIONS))

    _process = _Process()

    def setup(self) -> None:
        """Register the project and tell its model version; 2.x calls this for each request."""
        project_id = _number(self.project_id)
        if project_id is None:
            return
        _, actions = self._process.open()
        if self.label_config:
            actions.set_up(project_id, self.label_config, None)
        version = actions.model_version(project_id)
        if self.get("model_version") != version:
            self.set("model_version", version)

    def set_extra_params(self, extra_params: object) -> None:
        """Keep a project's extra params; 2.x passes on what the user has typed.

        Raises RequestError where a key is unknown or a value is wrong.
        """
        project_id = _number(self.project_id)
        if project_id is not None:
            _, actions = self._process.open()
            actions.set_up(project_id, self.label_config or "", parse_extra_params(extra_params))

    def predict(self, tasks: Sequence[Any], **_params: Any) -> list[Mapping[str, object]]:
        """Return one item a task, in their order; one that failed has `error` and no `result`.

        Raises RequestError, LabelingConfigError, TooLargeError or EncoderError.
        """
        store, actions = self._process.open()
        project_id = self._project_of(tasks)
        known = project_id is not None and store.projects.get(project_id) is not None
        if project_id is not None and not known and self.label_config:
            actions.set_up(project_id, self.label_config, None)
            known = True
        # A model of 1.0.9 has the labeling config of whichever project was set up last.
        return actions.predict(tasks, project_id, None if known else self.label_config).items

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """Ask for what an event asks for; returns at once, a worker does it.

        2.x calls `fit(event, data)`, 1.0.9 `fit((), event=event, data=data)` for a webhook and
        `fit(tasks, workdir)` for `/train`. Raises RequestError where no project is named.
        """
        if args and isinstance(args[0], str):
            event, data = args[0], args[1]
        elif "event" in kwargs:
            event, data = kwargs["event"], kwargs["data"]
        else:
            event, data = "START_TRAINING", {"tasks": list(args[0])}
        request = messages.parse(messages.WebhookRequest, {**data, "action": event})
        store, actions = self._process.open()
        project_id = request.project_id
        actions.note(
            request.action, project_id, store.projects.get(project_id), request.label_config
        )
        return {"model_version": actions.model_version(project_id)}

    def _project_of(self, tasks: Sequence[Any]) -> int | None:
        """Return whose tasks these are: 1.0.9 does not say, but Label Studio's tasks do."""
        named = _number(getattr(self, "project_id", None))
        if named is None and tasks and isinstance(tasks, list) and isinstance(tasks[0], dict):
            named = _number(tasks[0].get("project"))
        return named


def _number(project: object) -> int | None:
    """Return a project's id; label-studio-ml passes on "" or "None" where there is none."""
    try:
        return messages.project_id(project)
    except RequestError:
        return None
