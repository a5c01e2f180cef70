"""What gunicorn loads: `gunicorn --worker-class gthread 'backend.wsgi:create()'`."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from backend import assembly
from backend.api.routes import ApiServices, create_app
from backend.clip.background import BackgroundEncoder
from backend.logs import configure_logging
from backend.settings import Settings
from backend.store import Store

if TYPE_CHECKING:
    from backend.clip.encoder import Encoder


def create(settings: Settings | None = None) -> Flask:
    """Return the WSGI app; CLIP is loaded in the background meanwhile.

    Raises SettingsError or DatabaseError for what is missing at start.
    """
    settings = settings or Settings.read()
    configure_logging(settings.log_level)
    configured = None not in (settings.label_studio_url, settings.label_studio_api_key)
    client = assembly.label_studio(settings) if configured else None
    encoder = BackgroundEncoder(lambda: _load_encoder(settings))
    app = create_app(
        ApiServices(
            settings=settings,
            store=Store.open(settings.database),
            encoder=encoder,
            images=assembly.image_fetcher(settings, client),
            limits=assembly.image_limits(settings),
        )
    )
    encoder.start()
    return app


def _load_encoder(settings: Settings) -> Encoder:
    encoder = assembly.encoder(settings)
    # What is loaded stays. To look through all of it for garbage, now and then, would keep every
    # request waiting for a quarter of a second.
    gc.collect()
    gc.freeze()
    return encoder


_SWITCH_INTERVAL = 0.0005


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn with one process, so that CLIP is loaded once, and threads that share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options."""
        options: dict[str, Any] = {
            "bind": f"{self._settings.host}:{self._settings.port}",
            "worker_class": "gthread",
            "workers": 1,
            "threads": self._settings.threads,
            # Loading CLIP holds the interpreter for seconds at a time on a busy machine.
            "timeout": 120,
            "graceful_timeout": 25,
            # Longer than proxies and clients keep an idle connection: who closes first may cut off
            # a request that is on its way.
            "keepalive": 75,
            "loglevel": "warning",
            "control_socket_disable": True,
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
