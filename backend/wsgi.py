"""What gunicorn loads, with `--worker-class backend.api.connections.Worker`: `create()`."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.labelstudio.client import LabelStudio
from backend.logs import configure_logging
from backend.page.blueprint import create_blueprint
from backend.page.health import Findings
from backend.page.links import LabelStudioLinks
from backend.page.remembered import Remembered
from backend.page.services import PageServices
from backend.settings import Settings
from backend.store import Store
from backend.telemetry import trace_requests

if TYPE_CHECKING:
    from backend.clip.encoder import Encoder
    from backend.doctor import Finding
    from backend.jobs.queue import JobQueue

_SERVICE = "clip-backend-api"

# Seconds that names from Label Studio are kept, and that a panel waits for them.
_SAID_FOR = 300.0
_WAIT_FOR_NAMES = 2.0

# Seconds that somebody who presses a button on the page waits for CLIP to be loaded.
_WAIT_FOR_CLIP = 1.0


def create(settings: Settings | None = None) -> Flask:
    """Return the WSGI app; CLIP is loaded in the background meanwhile.

    Raises SettingsError or DatabaseError for what is missing at start.
    """
    settings = settings or Settings.read()
    configure_logging(settings.log_level, settings.log_format)
    assembly.report_errors(settings, _SERVICE)
    configured = None not in (settings.label_studio_url, settings.label_studio_api_key)
    client = assembly.label_studio(settings) if configured else None
    encoder = BackgroundEncoder(lambda: _load_encoder(settings))
    store = Store.open(settings.database)
    queue = _job_queue(settings.redis)
    services = ApiServices(
        settings=settings,
        store=store,
        encoder=encoder,
        images=assembly.image_fetcher(settings, client),
        limits=assembly.image_limits(settings),
        workers=lambda: len(queue().workers()),
    )
    app = create_app(services)
    app.register_blueprint(create_blueprint(_page_services(services, client, queue)))
    if settings.otel_exporter_otlp_endpoint is not None:
        trace_requests(app, _SERVICE)
    encoder.start()
    return app


def _page_services(
    api: ApiServices, client: LabelStudio | None, queue: Callable[[], JobQueue]
) -> PageServices:
    settings = api.settings

    services = PageServices(
        store=api.store,
        label_studio=LabelStudioLinks(
            settings.label_studio_public_url or settings.label_studio_url
        ),
        queue=queue,
        learning=settings.learning,
        embedder=cache(lambda: api.embedder(_WAIT_FOR_CLIP)),
        findings=Findings(lambda project_id: _look_at_links(settings, project_id)),
        public_url=settings.public_url,
        client=client,
    )
    if client is None:
        return services
    return replace(
        services,
        emails=_remember(client.emails, patience=_WAIT_FOR_NAMES),
        titles=_remember(client.titles, patience=0.0),
    )


def _look_at_links(settings: Settings, project_id: int) -> list[Finding]:
    from backend.doctor import findings

    return list(findings(settings, [project_id], sends_webhook=False))


def _job_queue(redis: str) -> Callable[[], JobQueue]:
    @cache
    def queue() -> JobQueue:
        # An API that nobody scrapes or looks at needs no Redis.
        from backend.jobs.queue import JobQueue

        return JobQueue(redis)

    return queue


def _remember(
    look: Callable[[], dict[int, str]], *, patience: float
) -> Callable[[], dict[int, str] | None]:
    return Remembered("Label Studio", look, seconds=_SAID_FOR, patience=patience).read


def _load_encoder(settings: Settings) -> Encoder:
    encoder = assembly.encoder(settings)
    # What is loaded stays. To look through all of it for garbage, now and then, would keep every
    # request waiting for a quarter of a second.
    gc.collect()
    gc.freeze()
    return encoder


_SWITCH_INTERVAL = 0.0005


# Connections that are held open, and files that are left for all else: a connection too many must
# not be what keeps the database from being opened.
_CONNECTIONS = 1000
_FILES = 200


def _most_connections(threads: int) -> int:
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if may_open == resource.RLIM_INFINITY:
        return _CONNECTIONS
    return max(threads + 1, min(_CONNECTIONS, may_open - _FILES))


class _Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn has no types
    """Leaves gunicorn's events to our own log."""

    def setup(self, cfg: Any) -> None:
        """Set what gunicorn sets, and let the root's handler write."""
        super().setup(cfg)
        self.error_log.propagate = True


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn with one process, so that CLIP is loaded once, and threads that share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options."""
        options: dict[str, Any] = {
            "bind": f"{self._settings.host}:{self._settings.port}",
            "worker_class": "backend.api.connections.Worker",
            "workers": 1,
            "threads": self._settings.threads,
            "worker_connections": _most_connections(self._settings.threads),
            # Loading CLIP holds the interpreter for seconds at a time on a busy machine.
            "timeout": 120,
            "graceful_timeout": 25,
            # Longer than proxies and clients keep an idle connection: who closes first may cut off
            # a request that is on its way.
            "keepalive": 75,
            "loglevel": "warning",
            "control_socket_disable": True,
            # By default anybody on this machine could say under which path it is served.
            "forwarder_headers": "",
            "logger_class": _Logger,
            "errorlog": None,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the app, in the process that answers."""
        # A webhook takes the interpreter a dozen times, and each time would wait 5 ms for every
        # thread that prepares pictures.
        sys.setswitchinterval(_SWITCH_INTERVAL)
        return create(self._settings)
