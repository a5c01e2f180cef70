"""The job queue in Redis: it only says what to do next; what is wanted is in the database."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone

import orjson
import redis
from rq import Queue as RQQueue
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from backend.jobs import connection
from backend.store.requests import SKEW, Kind, Request

PERFORM = "backend.jobs.worker.perform"

_WORKERS = "clip-backend:worker:"
# A worker that has said nothing for this long is taken for dead, in seconds.
_WORKER_TTL = 15

# Between taking a job and claiming its request a worker needs a moment.
_STARTING = timedelta(seconds=5)
_SKEW = timedelta(seconds=SKEW)

_FAILURE_TTL = 7 * 24 * 3600


@dataclass(frozen=True)
class WorkerStatus:
    """A worker that is alive."""

    name: str
    device: str
    encoder: str


class JobQueue:
    """Jobs by kind, most urgent first; a request is never queued twice."""

    def __init__(self, url: str) -> None:
        self.connection = connection.connect(url)
        self.queues = {
            kind: RQQueue(kind.value, connection=self.connection, serializer=JSONSerializer)
            for kind in Kind
        }
        # When those jobs were started that seemed left behind at the last look.
        self._left_behind: dict[str, str] = {}

    def check(self) -> None:
        """Raise QueueError where Redis does not answer, or is one that RQ cannot use."""
        connection.check(self.connection)

    def enqueue(self, request: Request) -> None:
        """Queue a request that is due and that no worker holds.

        What is left of a job whose worker died, or that failed, is replaced at the second look:
        RQ removes a job a moment after its request is done, and may be asked for it again by then.
        """
        queue = self.queues[request.kind]
        job_id = request.name
        last_look = self._left_behind.pop(job_id, None)
        try:
            self._enqueue(queue, job_id, request)
        except DuplicateJobError:
            # A job that ends between two looks at it has no status either.
            with suppress(NoSuchJobError, InvalidJobOperation):
                job = Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)
                if self._is_under_way(queue, job):
                    return
                if last_look != (look := str(job.started_at)):
                    self._left_behind[job_id] = look
                    return
                job.delete()
            with suppress(DuplicateJobError):
                self._enqueue(queue, job_id, request)

    def lengths(self) -> dict[str, int]:
        """Return the number of queued jobs by kind."""
        return {kind.value: queue.count for kind, queue in self.queues.items()}

    def beat(self, worker: WorkerStatus) -> None:
        """Say that a worker is alive."""
        self.connection.set(_WORKERS + worker.name, orjson.dumps(asdict(worker)), ex=_WORKER_TTL)

    def leave(self, worker: WorkerStatus) -> None:
        """Say that a worker has stopped."""
        self.connection.delete(_WORKERS + worker.name)

    def workers(self) -> list[WorkerStatus]:
        """Return the workers that are alive; raises QueueError where Redis does not answer."""
        try:
            return self._workers()
        except redis.RedisError as error:
            raise connection.away(error) from None

    def _workers(self) -> list[WorkerStatus]:
        keys = sorted(self.connection.scan_iter(match=_WORKERS + "*"))
        return [
            WorkerStatus(**orjson.loads(value))
            for value in (self.connection.mget(keys) if keys else [])
            if value is not None
        ]

    def close(self) -> None:
        """Close the pooled connections."""
        self.connection.close()

    def _enqueue(self, queue: RQQueue, job_id: str, request: Request) -> None:
        queue.enqueue_call(
            PERFORM,
            args=(request.project_id, request.kind.value, request.part),
            job_id=job_id,
            unique=True,
            # Nothing is kept of a job that is done, so that its id is free for the next.
            result_ttl=0,
            failure_ttl=_FAILURE_TTL,
            timeout=-1,
        )

    def _is_under_way(self, queue: RQQueue, job: Job) -> bool:
        if queue.get_job_position(job) is not None:
            return True
        started = job.started_at
        if job.get_status() is not JobStatus.STARTED or started is None:
            return False
        if started.tzinfo is None:
            started = started.replace(tzinfo=timezone.utc)
        # What started further ahead than clocks may differ was written before a clock went back.
        return -_SKEW <= datetime.now(timezone.utc) - started < _STARTING
