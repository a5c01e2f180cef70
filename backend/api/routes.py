"""The Label Studio protocol: one function an endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from math import ceil

import orjson
from flask import Blueprint, Flask, Response, request
from joblib import cpu_count
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from backend import __version__
from backend.api import messages, openapi
from backend.api.actions import Actions
from backend.api.auth import check_basic_auth, check_sender, check_webhook
from backend.api.failed_logins import FailedLogins
from backend.api.load import LARGEST_BODY, Bodies, PredictSlots
from backend.api.monitoring import Metrics
from backend.api.request_ids import name_requests
from backend.api.same_origin import check_no_other_origin
from backend.clip.background import BackgroundEncoder
from backend.embedding import Embedder
from backend.errors import (
    AuthenticationError,
    ClipBackendError,
    NotFoundError,
    TooManyRequestsError,
)
from backend.instruments import Instruments
from backend.labelstudio.config import parse_labeling_config
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.images import ImageFetcher
from backend.prediction import Predictor
from backend.settings import Settings, parse_extra_params
from backend.store import Store
from backend.store.requests import Kind, Request

log = logging.getLogger(__name__)

# Label Studio waits 100 s for predictions; what takes longer is work for nothing.
ENCODER_WAIT = 90.0


@dataclass(frozen=True)
class ApiServices:
    """The parts that the endpoints share; `workers` counts those that are alive."""

    settings: Settings
    store: Store
    encoder: BackgroundEncoder
    images: ImageFetcher
    limits: ImageLimits
    clock: Callable[[], float] = time.monotonic
    instruments: Instruments = field(default_factory=Instruments)
    workers: Callable[[], int] | None = None

    def embedder(self, patience: float) -> Embedder:
        """Return what embeds pictures; waits so many seconds for CLIP. Raises EncoderError."""
        encoder = self.encoder.wait(patience)
        return Embedder(encoder, self.store.embeddings, self.images, self.limits, self.instruments)


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
    services.instruments.describe(__version__, is_loaded=lambda: services.encoder.loaded)
    metrics = Metrics(services.store, services.instruments, services.workers)
    metrics.observe(app)
    name_requests(app)
    bounds = _Bounds(
        PredictSlots(settings.predictions_at_once, at_work=max(1, cpu_count() // 2)),
        Bodies(),
        passwords=FailedLogins(services.clock),
        secrets=FailedLogins(services.clock),
    )
    app.before_request(lambda: check_no_other_origin(request, settings.public_url))
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
        return Predictor(services.embedder(ENCODER_WAIT))

    actions = Actions(
        store, get_predictor, services.settings.learning, services.settings.reconcile_every
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
        sentence = actions.set_up(
            project_id, body.labeling_config, parse_extra_params(body.extra_params)
        )
        return _answer({"model_version": actions.model_version(project_id), "message": sentence})

    @protocol.post("/predict")
    def predict() -> Response:
        # Before its body is read, which may take long and much.
        with bounds.predicting.take():
            return _predictions(parsed(messages.PredictRequest))

    def _predictions(body: messages.PredictRequest) -> Response:
        project_id = None if body.project is None else messages.project_id(body.project)
        results = actions.predict(body.tasks, project_id, body.label_config)
        failed = sum("error" in item for item in results.items)
        metrics.predictions.labels("error").inc(failed)
        metrics.predictions.labels("ok").inc(len(results.items) - failed)
        return _answer({"results": results.items, "model_version": results.model_version})

    @protocol.post("/webhook")
    def webhook() -> Response:
        logins = bounds.passwords, bounds.secrets
        check_sender(services.settings, request, store.projects, *logins)
        body = parsed(messages.WebhookRequest)
        project_id = body.project_id
        project = store.projects.get(project_id)
        check_webhook(services.settings, request, project, *logins)
        if project is not None and not project.connected:
            return _answer({"status": "ignored: the project is not connected"})
        actions.note(body.action, project_id, project, body.label_config)
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
            store.set_up(
                target_id,
                label_config=source.label_config,
                extra_params=source.extra_params,
                compare_in=services.settings.reconcile_every,
            )
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
