"""The Label Studio protocol: one function an endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from math import ceil

import orjson
from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from backend import __version__
from backend.api import messages, openapi
from backend.api.auth import check_basic_auth, check_webhook
from backend.api.failed_logins import FailedLogins
from backend.api.load import LARGEST_BODY, Bodies, PredictSlots
from backend.api.monitoring import Metrics
from backend.clip.background import BackgroundEncoder
from backend.errors import (
    AuthenticationError,
    ClipBackendError,
    LabelingConfigError,
    NotFoundError,
    RequestError,
    TooManyRequestsError,
)
from backend.labelstudio.config import parse_labeling_config
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.images import ImageFetcher
from backend.prediction import Predictor, fits
from backend.settings import Settings, parse_extra_params
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.tasks import Task

log = logging.getLogger(__name__)

# Label Studio waits 100 s for predictions; what takes longer is work for nothing.
ENCODER_WAIT = 90.0

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

# Label Studio tells of an import in several webhooks; a moment later one look sees all tasks.
_SYNC_DELAY = 0.5


@dataclass(frozen=True)
class ApiServices:
    """The parts that the endpoints share."""

    settings: Settings
    store: Store
    encoder: BackgroundEncoder
    images: ImageFetcher
    limits: ImageLimits
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class _Bounds:
    """What all requests of one app share, so that none takes too much of it."""

    predicting: PredictSlots
    bodies: Bodies
    passwords: FailedLogins
    secrets: FailedLogins


def create_app(services: ApiServices) -> Flask:
    """Return the WSGI app."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    settings = services.settings
    if settings.proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.proxies, x_proto=0)  # type: ignore[method-assign]
    metrics = Metrics(services.store, services.encoder)
    metrics.observe(app)
    bounds = _Bounds(
        PredictSlots(settings.predictions_at_once),
        Bodies(),
        passwords=FailedLogins(services.clock),
        secrets=FailedLogins(services.clock),
    )
    app.before_request(lambda: check_basic_auth(settings, request, bounds.passwords))
    app.teardown_request(lambda _: bounds.bodies.release())
    app.register_blueprint(_protocol(services, metrics, bounds))
    app.register_error_handler(ClipBackendError, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _fail)
    return app


def _protocol(services: ApiServices, metrics: Metrics, bounds: _Bounds) -> Blueprint:
    protocol = Blueprint("protocol", __name__)
    store = services.store

    def parsed(model: type[messages.Model]) -> messages.Model:
        return messages.parse(model, bounds.bodies.json(request))

    @cache
    def get_predictor() -> Predictor:
        return Predictor(
            services.encoder.wait(ENCODER_WAIT), store.embeddings, services.images, services.limits
        )

    @protocol.get("/")
    @protocol.get("/health")
    def health() -> Response:
        return _answer(
            {
                "status": "UP",
                "model_class": "ClipBackend",
                "version": __version__,
                "encoder": "ready" if services.encoder.loaded else "loading",
            }
        )

    @protocol.post("/setup")
    def setup() -> Response:
        body = parsed(messages.SetupRequest)
        project_id = messages.project_id(body.project)
        config = parse_labeling_config(body.labeling_config)
        changed = store.projects.set_up(
            project_id,
            label_config=body.labeling_config,
            extra_params=parse_extra_params(body.extra_params),
        )
        if changed:
            log.info("set up project=%d: %s", project_id, config.sentence)
            store.requests.add_all(
                [Request(project_id, Kind.TRAIN), Request(project_id, Kind.SYNC)]
            )
            # Not at once: Label Studio calls /setup before it has added the ML backend.
            store.requests.add(
                Request(project_id, Kind.RECONCILE), delay=services.settings.reconcile_every
            )
        project = store.projects.get(project_id)
        version = project.model_version if project is not None else None
        return _answer({"model_version": version or UNTRAINED, "message": config.sentence})

    @protocol.post("/predict")
    def predict() -> Response:
        # Before its body is read, which may take long and much.
        with bounds.predicting.take():
            return _predictions(parsed(messages.PredictRequest))

    def _predictions(body: messages.PredictRequest) -> Response:
        project_id = None if body.project is None else messages.project_id(body.project)
        project = None if project_id is None else store.projects.get(project_id)
        label_config = body.label_config or (project.label_config if project is not None else "")
        if not label_config:
            raise RequestError("label_config: is needed for a project that was never set up")
        config = parse_labeling_config(label_config)
        messages.check_size(body.tasks, config)
        items = [messages.task(item) for item in body.tasks]
        tasks = [item for item in items if isinstance(item, Task)]
        predictor = get_predictor()
        version = None if project is None else store.versions.active(project.id)
        if version is None or not fits(version, config, predictor.encoder.identity):
            learning = services.settings.learning.overridden_by(
                {} if project is None else project.extra_params
            )
            version = predictor.zero_shot(project_id or 0, config, learning)
        outcomes = iter(predictor.predict(tasks, config, version))
        results = [
            messages.result(next(outcomes) if isinstance(item, Task) else item) for item in items
        ]
        failed = sum("error" in item for item in results)
        metrics.predictions.labels("error").inc(failed)
        metrics.predictions.labels("ok").inc(len(results) - failed)
        return _answer({"results": results, "model_version": version.name})

    @protocol.post("/webhook")
    def webhook() -> Response:
        body = parsed(messages.WebhookRequest)
        project_id = body.project_id
        project = store.projects.get(project_id)
        check_webhook(services.settings, request, project, bounds.passwords, bounds.secrets)
        if project is None:
            # The database was lost; the webhook still knows that the project is connected.
            store.projects.set_up(project_id, label_config=_readable(body.label_config))
            store.requests.add_all([Request(project_id, kind) for kind in (Kind.TRAIN, Kind.SYNC)])
        elif not project.connected:
            return _answer({"status": "ignored: the project is not connected"})
        learning = services.settings.learning.overridden_by(
            {} if project is None else project.extra_params
        )
        config_changed = project is not None and body.label_config not in (
            None,
            project.label_config,
        )
        wanted = wanted_after(body.action, learning.retrain_delay, config_changed=config_changed)
        store.note_webhook(project_id, wanted)
        log.info("webhook project=%d action=%s", project_id, body.action)
        return _answer({"status": "ok"}, HTTPStatus.CREATED)

    @protocol.post("/train")
    def train() -> Response:
        body = parsed(messages.ProjectRequest)
        project_id = _known(messages.project_id(body.project))
        store.requests.add(Request(project_id, Kind.TRAIN))
        return _answer({"job": f"train-{project_id}"}, HTTPStatus.CREATED)

    @protocol.post("/job_status")
    def job_status() -> Response:
        job = parsed(messages.JobStatusRequest).job
        project_id = _known(messages.project_id(job.removeprefix("train-")))
        waiting = store.requests.waiting(project_id, (Kind.TRAIN,))
        status = "finished"
        if waiting:
            status = "started" if waiting[0].running else "queued"
        error = waiting[0].error if waiting else None
        return _answer({"job_status": status, "error": error})

    @protocol.post("/validate")
    def validate() -> Response:
        body = parsed(messages.ValidateRequest)
        return _answer({"status": "ok", "message": parse_labeling_config(body.config).sentence})

    @protocol.post("/delete")
    def delete() -> Response:
        body = parsed(messages.ProjectRequest)
        store.projects.update(_known(messages.project_id(body.project)), connected=False)
        return _answer({"status": "ok"})

    @protocol.post("/duplicate_model")
    def duplicate_model() -> Response:
        body = parsed(messages.DuplicateRequest)
        source = store.projects.get(_known(messages.project_id(body.project_src)))
        target_id = messages.project_id(body.project_dst)
        if source is not None:
            store.projects.set_up(
                target_id, label_config=source.label_config, extra_params=source.extra_params
            )
        store.requests.add_all([Request(target_id, kind) for kind in (Kind.TRAIN, Kind.SYNC)])
        return _answer({"status": "ok"})

    @protocol.get("/versions")
    def versions() -> Response:
        return _answer({"versions": store.versions.names()})

    @protocol.get("/report")
    def report() -> Response:
        project_id = _known(messages.project_id(request.args.get("project")))
        version = store.versions.active(project_id)
        project = store.projects.get(project_id)
        return _answer(
            {
                "project": project_id,
                "model_version": version.name if version is not None else None,
                "pinned": project is not None and project.pinned is not None,
                "controls": version.report if version is not None else {},
            }
        )

    @protocol.get("/metrics")
    def render_metrics() -> Response:
        return metrics.render()

    @protocol.get("/openapi.json")
    def describe() -> Response:
        return _answer(openapi.describe())

    def _known(project_id: int) -> int:
        if store.projects.get(project_id) is None:
            raise NotFoundError(
                f"project {project_id} is not known here: "
                f"run `clip-backend connect --project {project_id}`"
            )
        return project_id

    return protocol


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


def _answer(body: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(body), status=status, mimetype="application/json")


def _refuse(error: ClipBackendError) -> Response:
    # Label Studio shows its users the status line and never the body.
    message = str(error)[:300].encode("ascii", "replace").decode()
    reason = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    response = Response(
        orjson.dumps({"error": str(error)}),
        status=f"{error.status} {reason}",
        mimetype="application/json",
    )
    if isinstance(error, AuthenticationError):
        response.headers["WWW-Authenticate"] = 'Basic realm="clip-backend"'
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = str(ceil(error.retry_after))
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s %s failed: %s", request.method, request.path, error)
    return response


def _refuse_http(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    message = {
        HTTPStatus.NOT_FOUND: "there is no such endpoint",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.path} does not take {request.method}",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"the body is larger than {LARGEST_BODY} bytes",
    }.get(status, status.phrase)
    response = _answer({"error": message}, status)
    response.headers.extend(
        (name, value) for name, value in error.get_headers() if name in ("Allow", "Location")
    )
    return response


def _fail(error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return _answer(
        {"error": "internal error: see the log of the backend"}, HTTPStatus.INTERNAL_SERVER_ERROR
    )
