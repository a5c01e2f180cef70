"""The worker process: RQ's loop, in this process so that CLIP stays loaded, and a clock.

The clock turns requests that are due into jobs. Every worker has one: a request is queued once
however many there are, and any one of them is enough.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from backend.errors import ClipBackendError, DatabaseError
from backend.jobs.embed import embed, sync
from backend.jobs.mapping import draw_map
from backend.jobs.queue import JobQueue, WorkerStatus
from backend.jobs.reconcile import reconcile
from backend.jobs.refresh import refresh
from backend.jobs.services import Services, current_services
from backend.jobs.sweep import sweep
from backend.jobs.tidy import tidy
from backend.jobs.train import train
from backend.logs import at_hand
from backend.store.requests import NO_PROJECT, Claim, Kind, Request

log = logging.getLogger(__name__)

TICK = 0.2
HEARTBEAT = 5.0

HANDLERS: dict[Kind, Callable[[Services, Claim], None]] = {
    Kind.TRAIN: train,
    Kind.REFRESH: refresh,
    Kind.SYNC: sync,
    Kind.RECONCILE: reconcile,
    Kind.EMBED: embed,
    Kind.SWEEP: sweep,
    Kind.TIDY: tidy,
    Kind.MAP: draw_map,
}


def perform(project_id: int, kind: str, part: int) -> None:
    """Do a request; what RQ calls.

    A failure that a user can mend is kept with the request, which is tried again after a pause.
    Any other is a bug: RQ records it, and the request is tried again all the same.
    """
    request = Request(project_id, Kind(kind), part)
    with at_hand(job=request.name):
        _perform(current_services.get(), request)


def _perform(services: Services, request: Request) -> None:
    started = time.monotonic()
    try:
        with services.store.requests.claimed(request) as claim:
            if claim is None:
                return
            kind = request.kind.value
            with services.instruments.job(kind), services.span(f"job {kind}"):
                HANDLERS[request.kind](services, claim)
    except ClipBackendError as error:
        log.warning(
            "job failed kind=%s project=%d part=%d: %s",
            request.kind.value,
            request.project_id,
            request.part,
            error,
        )
    except Exception:
        # RQ tells of it too, but no longer knows what was at hand.
        log.exception("job crashed kind=%s project=%d", request.kind.value, request.project_id)
        raise
    else:
        log.debug(
            "job done kind=%s project=%d part=%d seconds=%.2f",
            request.kind.value,
            request.project_id,
            request.part,
            time.monotonic() - started,
        )


class _Worker(SimpleWorker):
    """RQ's worker, which tells the job at hand when it is asked to stop."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        current_services.get().stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


def work(services: Services, queue: JobQueue) -> None:
    """Do jobs until a signal says to stop; finishes the one at hand."""
    services.store.requests.free_of_the_dead()
    for project in services.store.projects.all():
        if project.connected:
            services.store.requests.add(Request(project.id, Kind.RECONCILE))
    if not services.store.requests.waiting(NO_PROJECT):
        services.store.requests.add(Request(NO_PROJECT, Kind.TIDY))
    current_services.set(services)
    worker = _Worker(
        [queue.queues[kind] for kind in Kind],
        connection=queue.connection,
        serializer=JSONSerializer,
    )
    status = WorkerStatus(
        name=worker.name,
        device=str(services.predictor.encoder.device),
        encoder=services.predictor.encoder.identity,
    )
    stopped = threading.Event()
    clock = threading.Thread(
        target=_run_clock, args=(services, queue, status, stopped), name="clock", daemon=True
    )
    clock.start()
    try:
        worker.work(logging_level="WARNING")
    finally:
        stopped.set()
        clock.join()
        queue.leave(status)


def _run_clock(
    services: Services, queue: JobQueue, status: WorkerStatus, stopped: threading.Event
) -> None:
    beaten_at = float("-inf")
    away = False
    while not stopped.wait(TICK):
        try:
            if time.monotonic() - beaten_at > HEARTBEAT:
                queue.beat(status)
                beaten_at = time.monotonic()
            for request in services.store.requests.due():
                queue.enqueue(request)
        except (redis.RedisError, DatabaseError) as error:
            if not away:
                log.warning("clock waits for Redis or the database (%s)", type(error).__name__)
            away = True
        except Exception:
            # Without a clock nothing is ever done again: better a new worker.
            log.exception("the clock broke, the worker stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        else:
            if away:
                log.info("clock goes on")
            away = False
