"""What leaves for Sentry and OpenTelemetry, where they are set up; neither is imported before."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from backend.errors import SettingsError
from backend.logs import ids_at_hand

if TYPE_CHECKING:
    from flask import Flask
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

Span = Callable[[str], AbstractContextManager[object]]

_REMOVED = "[removed]"

# Credentials and signatures of addresses in messages.
_USERINFO = re.compile(r"//[^/\s@]*@")
_QUERY = re.compile(r"\?[^\s'\"<>)]+")


def no_span(_name: str) -> AbstractContextManager[object]:
    """Trace nothing."""
    return nullcontext()


def report_to_sentry(dsn: str, *, release: str, service: str, secrets: Sequence[str]) -> None:
    """Send errors that are logged, and those that nobody catches, to Sentry.

    Requests, local variables and breadcrumbs are not sent, and each of `secrets` is removed
    wherever it stands. Raises SettingsError without the extra `sentry`, or for a wrong DSN.
    """
    try:
        import sentry_sdk
        from sentry_sdk.integrations.atexit import AtexitIntegration
        from sentry_sdk.integrations.dedupe import DedupeIntegration
        from sentry_sdk.integrations.excepthook import ExcepthookIntegration
        from sentry_sdk.integrations.logging import LoggingIntegration
        from sentry_sdk.integrations.threading import ThreadingIntegration
        from sentry_sdk.utils import BadDsn
    except ModuleNotFoundError:
        raise SettingsError(
            "SENTRY_DSN: Sentry needs `pip install 'label-studio-clip-backend[sentry]'`"
        ) from None
    # A password in an address may be quoted there, and elsewhere not.
    hidden = sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True)

    def scrub(event: Any, _hint: object) -> Any:
        if event.get("logger") == "rq.worker" and "exception" not in event:
            # That a job crashed, which was said before, and with more.
            return None
        for part in ("request", "user", "breadcrumbs", "extra", "modules"):
            event.pop(part, None)
        event["tags"] = {**event.get("tags", {}), **ids_at_hand(), "service": service}
        return _without(hidden, event)

    try:
        sentry_sdk.init(
            dsn=dsn,
            release=release,
            send_default_pii=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            # Ours answer and log every error: nothing needs to look into requests.
            default_integrations=False,
            integrations=[
                LoggingIntegration(level=None, event_level=logging.ERROR),
                ExcepthookIntegration(),
                ThreadingIntegration(),
                DedupeIntegration(),
                AtexitIntegration(callback=lambda _pending, _timeout: None),
            ],
            before_send=scrub,
        )
    except BadDsn:
        raise SettingsError(
            "SENTRY_DSN: must be a DSN such as https://key@sentry.example.com/1"
        ) from None


def trace_requests(app: Flask, service: str) -> None:
    """Make a span of each of an app's requests, where the extra `otel` is installed."""
    provider = _provider(service, "opentelemetry.instrumentation.flask")
    if provider is not None:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument_app(  # type: ignore[no-untyped-call]
            app, tracer_provider=provider
        )


def trace_jobs(service: str) -> Span:
    """Return what makes a span of a job, and does nothing where the extra `otel` is missing."""
    provider = _provider(service)
    if provider is None:
        return no_span
    from opentelemetry.trace import StatusCode

    tracer = provider.get_tracer("clip-backend")

    @contextmanager
    def span(name: str) -> Iterator[object]:
        # The message of an error may name a picture's address: only that there was one is told.
        with tracer.start_as_current_span(
            name,
            attributes={f"clip_backend.{key}": value for key, value in ids_at_hand().items()},
            record_exception=False,
            set_status_on_exception=False,
        ) as current:
            try:
                yield current
            except Exception:
                current.set_status(StatusCode.ERROR)
                raise

    return span


def _provider(service: str, *more: str) -> TracerProvider | None:
    """Start OpenTelemetry as its own variables (OTEL_…) say."""
    needed = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", *more)
    if not all(map(_is_installed, needed)):
        # No error: some platforms set those variables for whatever they run.
        log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing is traced without "
            "`pip install 'label-studio-clip-backend[otel]'`"
        )
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    told = OTELResourceDetector().detect()
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}).merge(told))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _without(secrets: Sequence[str], value: Any) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, _REMOVED)
        return _QUERY.sub(f"?{_REMOVED}", _USERINFO.sub(f"//{_REMOVED}@", value))
    if isinstance(value, dict):
        return {key: _without(secrets, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(secrets, each) for each in value]
    return value
