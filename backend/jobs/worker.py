"""The worker process: RQ's loop, in this process so that CLIP stays loaded, and a clock.

The clock turns requests that are due into jobs. Every worker has one: a request is queued once
however many there are, and any one of them is enough.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import redis
from rq import SimpleWorker
from rq.exceptions import DequeueTimeout
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
from backend.store.requests import NO_PROJECT, Claim, ClaimLostError, Kind, Request

log = logging.getLogger(__name__)

TICK = 0.2
HEARTBEAT = 5.0

# Seconds in which a worker without a job notices that it is to stop.
_WAIT = 1
# Seconds between two attempts to reach a Redis that is away.
_PAUSE = 1.0
_STOP_WITHIN = 5.0

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
                try:
                    HANDLERS[request.kind](services, claim)
                except ClaimLostError:
                    log.info("another worker has taken over job=%s", request.name)
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
    """RQ's bookkeeping of a worker and of its jobs, around a loop of our own.

    RQ's loop waits for a lost Redis by itself, for a minute at a time, ends where the loss meets it
    elsewhere, and is stopped by an exception wherever it is.
    """

    # So long may Redis be silent, in seconds, where a job is waited for.
    connection_timeout = _WAIT + 4

    def subscribe(self) -> None:
        """Listen to no commands: nothing sends any, and RQ's thread outlives a lost Redis."""

    def do_jobs(self, stopping: threading.Event) -> None:
        """Do jobs until the event is set. Raises redis.RedisError where Redis is lost."""
        while not stopping.is_set():
            self.heartbeat()
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
            try:
                found = self.queue_class.dequeue_any(
                    self.queues,
                    _WAIT,
                    self.connection,
                    serializer=JSONSerializer,
                    death_penalty_class=self.death_penalty_class,
                )
            except DequeueTimeout:
                continue
            if found is not None:
                self.execute_job(*found)


def work(services: Services, queue: JobQueue) -> None:
    """Do jobs until a signal says to stop; finishes the one at hand.

    A Redis that is away is waited for, with CLIP loaded.
    """
    services.store.requests.free_of_the_dead()
    for project in services.store.projects.all():
        if project.connected:
            services.store.requests.add(Request(project.id, Kind.RECONCILE))
    if not services.store.requests.waiting(NO_PROJECT):
        services.store.requests.add(Request(NO_PROJECT, Kind.TIDY))
    current_services.set(services)
    status = WorkerStatus(
        name=uuid.uuid4().hex,
        device=str(services.predictor.encoder.device),
        encoder=services.predictor.encoder.identity,
    )
    stopped = threading.Event()
    clock = threading.Thread(
        target=_run_clock, args=(services, queue, status, stopped), name="clock", daemon=True
    )
    with _stopped_by_a_signal(services.stopping):
        clock.start()
        try:
            is_redis_there = _work(queue, services.stopping)
        finally:
            stopped.set()
            # A Redis that hangs may hold it up, but not the stop.
            clock.join(_STOP_WITHIN)
        if is_redis_there:
            with suppress(redis.RedisError):
                queue.leave(status)


@contextmanager
def _stopped_by_a_signal(stopping: threading.Event) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()
        # Who asks twice does not want to wait for the job at hand.
        for number in before:
            signal.signal(number, signal.SIG_DFL)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(queue: JobQueue, stopping: threading.Event) -> bool:
    """Do jobs until the event is set; return whether Redis was there in the end."""
    away = False
    while not stopping.is_set():
        try:
            worker = _Worker(
                [queue.queues[kind] for kind in Kind],
                connection=queue.connection,
                serializer=JSONSerializer,
            )
            worker.bootstrap("WARNING")
            if away:
                log.info("worker goes on")
            away = False
            worker.do_jobs(stopping)
            worker.register_death()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            if not away:
                log.warning("worker waits for Redis (%s: %s)", type(error).__name__, error)
            away = True
            stopping.wait(_PAUSE)
    return not away


def _run_clock(
    services: Services, queue: JobQueue, status: WorkerStatus, stopped: threading.Event
) -> None:
    beaten_at = float("-inf")
    away = False
    while not stopped.wait(TICK):
        try:
            if time.monotonic() - beaten_at > HEARTBEAT:
                queue.beat(status)
                _ask_for_comparisons(services)
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
            services.stopping.set()
            return
        else:
            if away:
                log.info("clock goes on")
            away = False


def _ask_for_comparisons(services: Services) -> None:
    """Ask to compare the connected projects for which that is not asked.

    Each comparison asks for the next one; this begins anew what was cut off.
    """
    requests = services.store.requests
    for project_id in requests.without(Kind.RECONCILE):
        requests.add(Request(project_id, Kind.RECONCILE), delay=services.reconcile_every)
