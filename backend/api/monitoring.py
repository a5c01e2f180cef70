"""Prometheus metrics: of this process, and of what the database and Redis know of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.api.probe import Probe
from backend.instruments import Instruments
from backend.store import Store
from backend.store.requests import Count, Kind, State
from backend.store.versions import Figures, Published

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)

# A scrape shows no more projects, and no more controls of all together.
MOST_PROJECTS = 1_000
MOST_CONTROLS = 2_000
_LONGEST_NAME = 100


class Metrics:
    """The metrics of one app."""

    def __init__(
        self,
        store: Store,
        instruments: Instruments,
        workers: Callable[[], int] | None,
    ) -> None:
        """Take `workers` as what counts those that are alive, or None where nobody can tell."""
        self._registry = instruments.registry
        self._registry.register(_SharedCollector(store, workers))
        self._requests = Counter(
            "clip_backend_requests",
            "Requests by endpoint and status.",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "clip_backend_request_seconds",
            "Time to answer, by endpoint and class of status, such as 2xx.",
            ("endpoint", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.predictions = Counter(
            "clip_backend_predictions",
            "Tasks of /predict by outcome.",
            ("outcome",),
            registry=self._registry,
        )

    def observe(self, app: Flask) -> None:
        """Count and time the app's requests."""

        @app.before_request
        def start() -> None:
            g.started = time.perf_counter()

        @app.after_request
        def finish(response: Response) -> Response:
            # A path that does not exist is one label, whatever a scanner asks for.
            endpoint = request.url_rule.rule if request.url_rule is not None else "none"
            self._requests.labels(endpoint, response.status_code).inc()
            if "started" in g:
                self._seconds.labels(endpoint, f"{response.status_code // 100}xx").observe(
                    time.perf_counter() - g.started
                )
            return response

    def render(self) -> Response:
        """Return the metrics as Prometheus scrapes them."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)


class _SharedCollector(Collector):
    """Gauges that are read when they are scraped, and are the same from every API process."""

    def __init__(self, store: Store, workers: Callable[[], int] | None) -> None:
        def read() -> tuple[list[Count], list[Published], list[Figures]]:
            return (
                store.requests.counts(),
                store.versions.published(MOST_PROJECTS),
                store.versions.figures(MOST_CONTROLS),
            )

        self._database = Probe("the database", read)
        self._redis = None if workers is None else Probe("Redis", workers)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not read the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; where the database or Redis is away, only that it is."""
        started = time.perf_counter()
        found = self._database.read()
        yield _gauge("clip_backend_database_up", "1 where the database answers.", found is not None)
        if found is not None:
            counts, published, figures = found
            yield from _queue(counts)
            yield from _projects(published)
            yield from _controls(figures)
        if self._redis is not None:
            workers = self._redis.read()
            yield _gauge("clip_backend_redis_up", "1 where Redis answers.", workers is not None)
            if workers is not None:
                yield _gauge("clip_backend_workers", "Workers that are alive.", workers)
        yield _gauge(
            "clip_backend_collect_seconds",
            "Time that it took to read the database and Redis for this scrape.",
            time.perf_counter() - started,
        )


def _queue(counts: list[Count]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "clip_backend_waiting",
        "Requests for work that are not done, by kind and state: due, scheduled or running.",
        labels=("kind", "state"),
    )
    oldest = GaugeMetricFamily(
        "clip_backend_oldest_due_seconds",
        "How long the oldest request that is due has waited for a worker, by kind.",
        labels=("kind",),
    )
    failing = GaugeMetricFamily(
        "clip_backend_failing",
        "Requests that were tried in vain and are tried again, by kind.",
        labels=("kind",),
    )
    now = time.time()
    by_kind = {(count.kind, count.state): count for count in counts}
    for kind in Kind:
        of_kind = {state: by_kind.get((kind, state)) for state in State}
        for state, count in of_kind.items():
            waiting.add_metric((kind.value, state.value), count.requests if count else 0)
        due = of_kind[State.DUE]
        oldest.add_metric((kind.value,), max(0.0, now - due.due_since) if due else 0.0)
        failing.add_metric((kind.value,), sum(each.failing for each in of_kind.values() if each))
    yield waiting
    yield oldest
    yield failing


def _projects(published: list[Published]) -> Iterator[Metric]:
    yield _gauge("clip_backend_projects", "Projects that are connected.", len(published))
    families = {
        "tasks": GaugeMetricFamily(
            "clip_backend_tasks",
            "Tasks of a project when its labels were last read.",
            labels=("project",),
        ),
        "number": GaugeMetricFamily(
            "clip_backend_model_version",
            "Number of a project's active model version.",
            labels=("project",),
        ),
        "annotated_tasks": GaugeMetricFamily(
            "clip_backend_annotated_tasks",
            "Annotated tasks that the active model version has learnt from.",
            labels=("project",),
        ),
        "created_at": GaugeMetricFamily(
            "clip_backend_model_version_created_timestamp_seconds",
            "When the active model version was published (Unix time).",
            labels=("project",),
        ),
    }
    for project in published:
        for name, family in families.items():
            value = getattr(project, name)
            if value is not None:
                family.add_metric((str(project.project_id),), value)
    yield from families.values()


def _controls(figures: list[Figures]) -> Iterator[Metric]:
    families = {
        name: GaugeMetricFamily(f"clip_backend_{metric}", text, labels=("project", "control"))
        for name, metric, text in (
            ("labels", "labels", "Labels of a control that its head was trained on."),
            ("accuracy", "accuracy_ratio", "Out-of-fold top-1 accuracy on the labels, 0 to 1."),
            (
                "pool_accuracy",
                "pool_accuracy_ratio",
                "Estimated accuracy on the open tasks, 0 to 1.",
            ),
            (
                "calibration_error",
                "calibration_error_ratio",
                "Out-of-fold expected calibration error, 0 to 1.",
            ),
            ("shown", "shown_predictions", "Annotations that were made from our prediction."),
            ("kept", "kept_predictions", "Those of them that say the same as the prediction."),
            (
                "acceptance",
                "acceptance_ratio",
                "Share of the predictions shown that annotators kept, 0 to 1.",
            ),
        )
    }
    # Names are cut: two that are then the same are one series.
    by_label = {(str(each.project_id), each.control[:_LONGEST_NAME]): each for each in figures}
    for label, each in by_label.items():
        acceptance = each.kept / each.shown if each.shown and each.kept is not None else None
        for name, family in families.items():
            value = acceptance if name == "acceptance" else getattr(each, name)
            if value is not None:
                family.add_metric(label, value)
    yield from families.values()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
