from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextvars import Context
from datetime import datetime, timedelta, timezone

import pytest
from rq import SimpleWorker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from backend.errors import QueueError
from backend.jobs.queue import JobQueue, WorkerStatus
from backend.store.requests import Kind, Request

TRAIN = Request(7, Kind.TRAIN)


@pytest.fixture
def queue(redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url)
    yield queue
    queue.close()


def queued(queue: JobQueue) -> dict[str, int]:
    return {kind: length for kind, length in queue.lengths().items() if length}


def taken(queue: JobQueue, *, ago: timedelta) -> Job:
    """Take the training job as a worker does that then says nothing more."""
    job_id = queue.connection.lpop(queue.queues[Kind.TRAIN].key)
    assert isinstance(job_id, bytes)
    job = Job.fetch(job_id.decode(), connection=queue.connection, serializer=JSONSerializer)
    job.set_status(JobStatus.STARTED)
    job.started_at = datetime.now(timezone.utc) - ago
    job.save()
    return job


def test_a_queued_request_is_one_job_of_its_kind(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}
    (job,) = queue.queues[Kind.TRAIN].jobs
    assert job.func_name == "backend.jobs.worker.perform"
    assert list(job.args) == [7, "train", 0]


def test_a_request_is_queued_once_however_often_it_is_asked_for(queue: JobQueue) -> None:
    for _ in range(5):
        queue.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}


def test_clocks_of_two_workers_queue_a_request_once(queue: JobQueue, redis_url: str) -> None:
    other = JobQueue(redis_url)

    queue.enqueue(TRAIN)
    other.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}
    other.close()


def test_projects_kinds_and_chunks_are_jobs_of_their_own(queue: JobQueue) -> None:
    for request in (TRAIN, Request(8, Kind.TRAIN), Request(7, Kind.SYNC)):
        queue.enqueue(request)
    for part in (0, 1, 2):
        queue.enqueue(Request(7, Kind.EMBED, part))

    assert queued(queue) == {"train": 2, "sync": 1, "embed": 3}


def test_the_job_that_a_worker_has_just_taken_is_not_queued_again(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)
    taken(queue, ago=timedelta(0))

    queue.enqueue(TRAIN)

    assert queued(queue) == {}


def test_a_job_whose_request_is_done_is_left_to_its_worker_to_finish(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)
    job = taken(queue, ago=timedelta(minutes=10))

    # Asked for again meanwhile, so that a clock finds it due once it is no longer claimed.
    queue.enqueue(TRAIN)

    assert job.get_status() is JobStatus.STARTED
    job.cleanup(0)
    queue.enqueue(TRAIN)
    assert queued(queue) == {"train": 1}


def test_the_job_of_a_worker_that_died_is_replaced_at_the_second_look(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)
    taken(queue, ago=timedelta(minutes=10))

    queue.enqueue(TRAIN)
    assert queued(queue) == {}
    queue.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}
    (job,) = queue.queues[Kind.TRAIN].jobs
    assert job.get_status() is JobStatus.QUEUED


@pytest.mark.parametrize(
    ("ahead", "jobs"), [(timedelta(seconds=30), {}), (timedelta(hours=1), {"train": 1})]
)
def test_a_clock_that_goes_back_does_not_keep_the_job_of_a_worker_that_died(
    queue: JobQueue, ahead: timedelta, jobs: dict[str, int]
) -> None:
    queue.enqueue(TRAIN)
    # Clocks of two machines differ by half a minute at times, and not by an hour.
    taken(queue, ago=-ahead)

    queue.enqueue(TRAIN)
    queue.enqueue(TRAIN)

    assert queued(queue) == jobs


def test_a_job_that_failed_is_replaced(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)
    # Outside a worker process a job finds no services: a bug, as far as RQ can see. A context of
    # its own, so that it does not find those of another test either.
    worker = SimpleWorker(
        [queue.queues[Kind.TRAIN]], connection=queue.connection, serializer=JSONSerializer
    )
    Context().run(worker.work, burst=True, logging_level="CRITICAL")
    assert queued(queue) == {}
    assert queue.queues[Kind.TRAIN].failed_job_registry.count == 1

    queue.enqueue(TRAIN)
    queue.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}


def test_a_redis_that_lost_everything_is_filled_again(queue: JobQueue) -> None:
    queue.enqueue(TRAIN)
    queue.connection.flushall()
    assert queued(queue) == {}

    queue.enqueue(TRAIN)

    assert queued(queue) == {"train": 1}


def test_redis_holds_json_and_no_pickles(queue: JobQueue) -> None:
    queue.enqueue(Request(7, Kind.EMBED, 3))
    queue.beat(WorkerStatus("me", "cpu", "tiny"))

    (job,) = queue.queues[Kind.EMBED].jobs
    stored = queue.connection.hgetall(job.key)
    assert isinstance(stored, dict)

    # RQ compresses what it stores; a pickle of protocol 2 or later begins with this byte.
    data = zlib.decompress(stored[b"data"])
    assert not data.startswith(b"\x80")
    assert JSONSerializer.loads(data) == [
        "backend.jobs.worker.perform",
        None,
        [7, "embed", 3],
        {},
    ]
    assert not any(value.startswith(b"\x80") for value in stored.values())


def test_a_worker_that_beats_is_listed_until_it_leaves(queue: JobQueue) -> None:
    first = WorkerStatus("first", "cpu", "tiny-0123-float32")
    second = WorkerStatus("second", "cuda", "tiny-0123-bfloat16")

    queue.beat(first)
    queue.beat(second)
    queue.beat(first)
    assert queue.workers() == [first, second]

    queue.leave(first)
    assert queue.workers() == [second]


def test_a_worker_that_stops_beating_is_forgotten_by_redis(queue: JobQueue) -> None:
    queue.beat(WorkerStatus("me", "cpu", "tiny"))

    (key,) = queue.connection.scan_iter(match="clip-backend:worker:*")

    left = queue.connection.ttl(key)
    assert isinstance(left, int)
    assert 0 < left <= 60


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis//x"])
def test_an_address_that_is_no_redis_is_a_sentence(url: str) -> None:
    with pytest.raises(QueueError, match=r"^REDIS_URL: "):
        JobQueue(url)


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@127.0.0.1:9/0", "redis://no-such-host.invalid", "unix:///no/socket"]
)
def test_a_redis_that_does_not_answer_is_a_sentence_without_the_password(url: str) -> None:
    queue = JobQueue(url)

    with pytest.raises(QueueError) as caught:
        queue.check()

    assert "REDIS_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_redis_that_answers_passes(queue: JobQueue) -> None:
    queue.check()
