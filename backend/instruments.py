"""What a process measures of its own work, as Prometheus metrics.

API and workers have one each. What is the same whoever looks, such as the queue's length, is not
here: the API reads that from the database.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from backend.errors import ClipBackendError, ImageError, SettingsError

# Powers of two, as encoders take them.
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_BATCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_JOB_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Outcome(str, Enum):
    """How a job ended."""

    DONE = "done"
    FAILED = "failed"  # a user can mend it; it is tried again
    CRASHED = "crashed"  # a bug; it is tried again all the same


class Instruments:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._build = Gauge(
            "clip_backend_build_info",
            "1, with the release and the Python that runs it.",
            ("version", "python"),
            registry=self.registry,
        )
        self._loaded = Gauge(
            "clip_backend_encoder_loaded", "1 once CLIP can be used.", registry=self.registry
        )
        self._batches = Histogram(
            "clip_backend_encode_batch_size",
            "Pictures that CLIP was given at once.",
            buckets=_PICTURES,
            registry=self.registry,
        )
        self._encoding = Histogram(
            "clip_backend_encode_batch_seconds",
            "Time that CLIP took for a batch.",
            buckets=_BATCH_SECONDS,
            registry=self.registry,
        )
        self._encoded = Counter(
            "clip_backend_encoded_pictures", "Pictures that were encoded.", registry=self.registry
        )
        self._fetch_errors = Counter(
            "clip_backend_fetch_errors",
            "Pictures that could not be had, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._jobs = Counter(
            "clip_backend_jobs",
            "Jobs that ended, by kind and outcome.",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self._job_seconds = Histogram(
            "clip_backend_job_seconds",
            "Time that a job took, however it ended, by kind.",
            ("kind",),
            buckets=_JOB_SECONDS,
            registry=self.registry,
        )
        self._training = Histogram(
            "clip_backend_training_seconds",
            "Time to train all heads of a version, labels and pictures at hand.",
            buckets=_JOB_SECONDS,
            registry=self.registry,
        )

    def describe(self, version: str, *, is_loaded: Callable[[], bool]) -> None:
        """Tell from now on which release runs, and whether CLIP can be used."""
        self._build.labels(version, platform.python_version()).set(1)
        self._loaded.set_function(is_loaded)

    def encoded(self, pictures: int, seconds: float) -> None:
        """Note a batch that CLIP has encoded."""
        self._batches.observe(pictures)
        self._encoding.observe(seconds)
        self._encoded.inc(pictures)

    def not_fetched(self, error: ImageError) -> None:
        """Note a picture that could not be had."""
        self._fetch_errors.labels(error.fault.value).inc()

    @contextmanager
    def job(self, kind: str) -> Iterator[None]:
        """Time a job, and note how it ended: a ClipBackendError is a failure, others a crash."""
        started = time.perf_counter()
        outcome = Outcome.CRASHED
        try:
            yield
            outcome = Outcome.DONE
        except ClipBackendError:
            outcome = Outcome.FAILED
            raise
        finally:
            self._jobs.labels(kind, outcome.value).inc()
            self._job_seconds.labels(kind).observe(time.perf_counter() - started)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Time the training of one version."""
        with self._training.time():
            yield

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve the metrics over HTTP on a port of their own; return what stops that.

        Raises SettingsError where the port is taken.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise SettingsError(
                f"METRICS_PORT: {host}:{port} cannot be listened on ({error.strerror}); "
                "each worker of a machine needs a port of its own"
            ) from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
