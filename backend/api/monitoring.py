"""Prometheus metrics of the API process and of the work in the database."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, g, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.clip.background import BackgroundEncoder
from backend.store import Store

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self, store: Store, encoder: BackgroundEncoder) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_StoreCollector(store, encoder))
        self._requests = Counter(
            "clip_backend_requests",
            "Requests by endpoint and status.",
            ("endpoint", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "clip_backend_request_seconds",
            "Time to answer, by endpoint.",
            ("endpoint",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.predictions = Counter(
            "clip_backend_predictions",
            "Tasks of /predict by outcome.",
            ("outcome",),
            registry=self.registry,
        )

    def observe(self, app: Flask) -> None:
        """Count and time the app's requests."""

        @app.before_request
        def start() -> None:
            g.started = time.perf_counter()

        @app.after_request
        def finish(response: Response) -> Response:
            # A path that does not exist is one label, whatever a scanner asks for.
            endpoint = request.endpoint or "none"
            self._requests.labels(endpoint, response.status_code).inc()
            if "started" in g:
                self._seconds.labels(endpoint).observe(time.perf_counter() - g.started)
            return response

    def render(self) -> Response:
        """Return the metrics as Prometheus scrapes them."""
        return Response(generate_latest(self.registry), content_type=CONTENT_TYPE_LATEST)


class _StoreCollector(Collector):
    """Gauges that are read from the database when they are scraped."""

    def __init__(self, store: Store, encoder: BackgroundEncoder) -> None:
        self._store = store
        self._encoder = encoder

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not read the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        loaded = GaugeMetricFamily("clip_backend_encoder_loaded", "1 once CLIP can be used.")
        loaded.add_metric((), float(self._encoder.loaded))
        yield loaded
        embeddings = GaugeMetricFamily("clip_backend_embeddings", "Stored embeddings.")
        embeddings.add_metric((), self._store.embeddings.count())
        yield embeddings
        tasks = GaugeMetricFamily(
            "clip_backend_tasks", "Tasks by project and state.", labels=("project", "state")
        )
        waiting = GaugeMetricFamily(
            "clip_backend_waiting",
            "Work that is not done, by project and kind.",
            labels=("project", "kind"),
        )
        for project in self._store.projects.all():
            progress = self._store.tasks.progress(project.id, project.model_version)
            for state in ("tasks", "open", "predicted"):
                tasks.add_metric((str(project.id), state), getattr(progress, state))
            counts: dict[str, int] = {}
            for item in self._store.requests.waiting(project.id):
                kind = item.request.kind.value
                counts[kind] = counts.get(kind, 0) + 1
            for kind, count in counts.items():
                waiting.add_metric((str(project.id), kind), count)
        yield tasks
        yield waiting
