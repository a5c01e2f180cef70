"""Settings to the parts that the API and the worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend import __version__
from backend.addresses import AllowedHosts
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.decoding import ImageLimits
from backend.labelstudio.images import ImageFetcher
from backend.telemetry import report_to_sentry

if TYPE_CHECKING:
    from backend.clip.encoder import Encoder
    from backend.settings import Settings

_ATTEMPTS = 3


def report_errors(settings: Settings, service: str) -> None:
    """Have errors sent to Sentry, where it is set up; raises SettingsError where it cannot be."""
    if settings.sentry_dsn is not None:
        report_to_sentry(
            settings.sentry_dsn.get_secret_value(),
            release=f"clip-backend@{__version__}",
            service=service,
            secrets=settings.secrets,
        )


def label_studio(settings: Settings) -> LabelStudio:
    """Return the client of Label Studio; raises SettingsError where it is not configured."""
    return LabelStudio(*settings.label_studio())


def image_limits(settings: Settings) -> ImageLimits:
    """Return what one picture may cost."""
    return ImageLimits(
        max_bytes=settings.image_max_bytes,
        max_pixels=settings.image_max_pixels,
        timeout=settings.image_timeout,
        attempts=_ATTEMPTS,
    )


def image_fetcher(settings: Settings, client: LabelStudio | None) -> ImageFetcher:
    """Return what fetches pictures; without a client those on Label Studio cannot be had."""
    return ImageFetcher(
        label_studio_url=settings.label_studio_url,
        authorization=None if client is None else client.authorization,
        allowed=AllowedHosts.parse(settings.image_hosts),
        limits=image_limits(settings),
        connections=settings.image_connections,
    )


def encoder(settings: Settings) -> Encoder:
    """Load CLIP; takes seconds. Raises EncoderError or SettingsError."""
    from backend.clip.encoder import load_encoder

    return load_encoder(
        settings.clip_model, settings.clip_pretrained, settings.device, settings.precision
    )
