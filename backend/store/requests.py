"""What is wanted of a project: durable, coalesced, and done by one worker at a time.

A request is a row that survives the loss of Redis and of any process. Asking again before it is
done moves its time (up to a bound) instead of adding a second one; asking while it is being done
makes it due again. A worker claims it under a lease that a heartbeat renews, so that the request
of a worker that died becomes free by itself.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.errors import DatabaseError
from backend.store.schema import Database, projects, requests

LEASE = 20.0
LONGEST_BACKOFF = 60.0

# What is wanted of the whole database; Label Studio's projects are numbered from 1.
NO_PROJECT = 0

# Clocks of workers may differ by so much, in seconds. What lies further ahead than that allows was
# written before a clock went back, and is not waited for.
SKEW = 60.0


class Kind(str, Enum):
    """The kinds of work, most urgent first."""

    TRAIN = "train"
    REFRESH = "refresh"
    SYNC = "sync"
    RECONCILE = "reconcile"
    EMBED = "embed"
    SWEEP = "sweep"
    TIDY = "tidy"
    MAP = "map"


@dataclass(frozen=True)
class Request:
    """One piece of work on a project; `part` tells the chunks of an embed job apart."""

    project_id: int
    kind: Kind
    part: int = 0

    @property
    def name(self) -> str:
        """What the job queue and the log call it."""
        return f"{self.kind.value}-{self.project_id}-{self.part}"


@dataclass(frozen=True)
class Waiting:
    """A request that is not done, as shown to people.

    `requested` and `done` count how often it was asked for, and how many of these were done.
    """

    request: Request
    requested: int
    done: int
    due_at: float
    running: bool
    attempts: int
    error: str | None


class State(str, Enum):
    """How a request that is not done stands."""

    DUE = "due"
    SCHEDULED = "scheduled"
    RUNNING = "running"


@dataclass(frozen=True)
class Count:
    """How many requests of a kind are in a state.

    `failing` counts those that were tried in vain, `due_since` is when the first of all became due
    (Unix time).
    """

    kind: Kind
    state: State
    requests: int
    failing: int
    due_since: float


@dataclass
class Claim:
    """The right to do a request; `seen` counts what was asked for when it was claimed."""

    request: Request
    owner: str
    seen: int
    lost: threading.Event = field(default_factory=threading.Event)


class ClaimLostError(Exception):
    """Another worker has taken what this one did, which must write no more."""


class Requests:
    """The table of requests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, request: Request, *, delay: float = 0.0) -> None:
        """Ask for `request` in `delay` seconds; at most five times that after the first asking."""
        self.add_all([request], delay=delay)

    def add_all(
        self, wanted: Sequence[Request], *, delay: float = 0.0, within: Connection | None = None
    ) -> None:
        """Ask for several requests in one transaction, which may be one at hand (`within`)."""
        if not wanted:
            return
        now = time.time()
        insert = self._database.insert(requests)
        idle = requests.c.done >= requests.c.requested
        first_at = sa.case((idle, now), else_=requests.c.first_at)
        latest = first_at + 5 * delay
        upsert = insert.on_conflict_do_update(
            index_elements=["project_id", "kind", "part"],
            set_={
                "requested": requests.c.requested + 1,
                "first_at": first_at,
                "due_at": sa.case((latest < now + delay, latest), else_=now + delay),
                "attempts": 0,
                "error": None,
            },
        )
        rows = [
            {
                "project_id": request.project_id,
                "kind": request.kind.value,
                "part": request.part,
                "requested": 1,
                "done": 0,
                "first_at": now,
                "due_at": now + delay,
                "lease_until": 0.0,
                "attempts": 0,
            }
            for request in wanted
        ]
        with self._database.write() if within is None else nullcontext(within) as connection:
            connection.execute(upsert, rows)

    def due(self, limit: int = 500) -> list[Request]:
        """Return the requests whose time has come and that nobody is doing, most urgent first."""
        now = time.time()
        # A large pool waits in thousands of chunks, and is not to keep a training from being seen.
        urgency = {kind.value: place for place, kind in enumerate(Kind)}
        query = (
            sa.select(requests.c.project_id, requests.c.kind, requests.c.part)
            .where(requests.c.requested > requests.c.done, _is_due(now), ~_is_held(now))
            .order_by(sa.case(urgency, value=requests.c.kind), requests.c.due_at)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Request(row[0], Kind(row[1]), row[2]) for row in connection.execute(query)]

    def more_urgent_is_due(self, kind: Kind) -> bool:
        """Tell whether work of a more urgent kind waits for a worker."""
        now = time.time()
        kinds = list(Kind)
        query = sa.select(requests.c.kind).where(
            requests.c.kind.in_([other.value for other in kinds[: kinds.index(kind)]]),
            requests.c.requested > requests.c.done,
            requests.c.due_at <= now,
            requests.c.lease_until <= now,
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def waiting(self, project_id: int, kinds: Collection[Kind] = tuple(Kind)) -> list[Waiting]:
        """Return what is not done for a project."""
        now = time.time()
        query = sa.select(requests, _is_held(now).label("running")).where(
            requests.c.project_id == project_id,
            requests.c.kind.in_([kind.value for kind in kinds]),
            requests.c.requested > requests.c.done,
        )
        with self._database.read() as connection:
            return [
                Waiting(
                    Request(row.project_id, Kind(row.kind), row.part),
                    requested=row.requested,
                    done=row.done,
                    due_at=row.due_at,
                    running=bool(row.running),
                    attempts=row.attempts,
                    error=row.error,
                )
                for row in connection.execute(query)
            ]

    def without(self, kind: Kind) -> list[int]:
        """Return the connected projects of which nothing of a kind is wanted."""
        wanted = sa.select(requests.c.project_id).where(
            requests.c.kind == kind.value, requests.c.requested > requests.c.done
        )
        query = sa.select(projects.c.id).where(
            projects.c.connected.is_(True), projects.c.id.not_in(wanted)
        )
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def counts(self) -> list[Count]:
        """Count what is not done, by kind and state."""
        now = time.time()
        state = sa.case(
            (_is_held(now), State.RUNNING.value),
            (_is_due(now), State.DUE.value),
            else_=State.SCHEDULED.value,
        ).label("state")
        query = (
            sa.select(
                requests.c.kind,
                state,
                sa.func.count(),
                sa.func.count(sa.case((requests.c.attempts > 0, 1))),
                sa.func.min(requests.c.due_at),
            )
            .where(requests.c.requested > requests.c.done)
            .group_by(requests.c.kind, state)
        )
        with self._database.read() as connection:
            return [
                Count(Kind(kind), State(of_state), *numbers)
                for kind, of_state, *numbers in connection.execute(query)
            ]

    def free_of_the_dead(self) -> None:
        """Free what workers of this machine held that no longer run; called as one starts."""
        now = time.time()
        with self._database.write() as connection:
            held = connection.execute(
                sa.select(requests.c.owner).where(
                    requests.c.lease_until > now,
                    requests.c.owner.startswith(f"{socket.gethostname()}:", autoescape=True),
                )
            ).scalars()
            dead = [owner for owner in held if not _lives(owner)]
            connection.execute(
                sa.update(requests)
                .where(requests.c.owner.in_(dead))
                .values(owner=None, lease_until=0.0)
            )

    def forget(self, project_id: int) -> None:
        """Drop all requests of a project."""
        with self._database.write() as connection:
            connection.execute(sa.delete(requests).where(requests.c.project_id == project_id))

    @contextmanager
    def claimed(self, request: Request) -> Iterator[Claim | None]:
        """Do a request: yields None when there is nothing to do or another worker is at it.

        Left without an exception, the request is done, unless it was asked for again meanwhile.
        Left with one, it becomes due again after a pause that doubles with each failure.
        """
        claim = self._claim(request)
        if claim is None:
            yield None
            return
        finished = threading.Event()
        heart = threading.Thread(target=self._renew, args=(claim, finished), daemon=True)
        heart.start()
        try:
            yield claim
        except Exception as error:
            self._release(claim, error)
            raise
        except BaseException:
            # The worker is being stopped: somebody else should start over at once.
            self._release(claim, None, done=False)
            raise
        else:
            self._release(claim, None)
        finally:
            finished.set()
            heart.join()

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[Connection]:
        """Yield a connection in a transaction in which nobody else can take the claim.

        A worker that was frozen past its lease knows things of before. Raises ClaimLostError where
        another has taken it.
        """
        query = sa.select(requests.c.owner).where(*_is(claim.request)).with_for_update()
        with self._database.write() as connection:
            if connection.scalar(query) != claim.owner:
                claim.lost.set()
                raise ClaimLostError
            yield connection

    def check(self, claim: Claim) -> None:
        """Raise ClaimLostError where another worker has taken the claim."""
        with self.holding(claim):
            pass

    def _claim(self, request: Request) -> Claim | None:
        now = time.time()
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        update = (
            sa.update(requests)
            .where(
                *_is(request),
                requests.c.requested > requests.c.done,
                _is_due(now),
                ~_is_held(now),
            )
            .values(owner=owner, lease_until=now + LEASE)
            .returning(requests.c.requested)
        )
        with self._database.write() as connection:
            seen = connection.execute(update).scalar_one_or_none()
        return None if seen is None else Claim(request, owner, seen)

    def _renew(self, claim: Claim, finished: threading.Event) -> None:
        update = sa.update(requests).where(*_is(claim.request), requests.c.owner == claim.owner)
        renewed_at = time.monotonic()
        while not finished.wait(LEASE / 4):
            try:
                with self._database.write() as connection:
                    kept = connection.execute(update.values(lease_until=time.time() + LEASE))
            except DatabaseError:
                # The database is away for a moment; the lease stands until it runs out.
                if time.monotonic() - renewed_at < LEASE:
                    continue
                claim.lost.set()
                return
            if not kept.rowcount:
                claim.lost.set()
                return
            renewed_at = time.monotonic()

    def _release(self, claim: Claim, error: Exception | None, *, done: bool = True) -> None:
        now = time.time()
        values: dict[str, object] = {"owner": None, "lease_until": 0.0}
        if error is not None:
            attempts = requests.c.attempts + 1
            # Doubling from one second; the exponent is bounded so that it cannot overflow.
            exponent = sa.case((attempts < 7, attempts), else_=7)
            pause = sa.case(
                *((exponent == n, min(float(2**n), LONGEST_BACKOFF)) for n in range(1, 8)),
                else_=LONGEST_BACKOFF,
            )
            values |= {"attempts": attempts, "error": str(error)[:500], "due_at": now + pause}
        elif done:
            values |= {"done": claim.seen, "attempts": 0, "error": None, "first_at": now}
        update = (
            sa.update(requests)
            .where(*_is(claim.request), requests.c.owner == claim.owner)
            .values(**values)
        )
        with self._database.write() as connection:
            connection.execute(update)
            if done and error is None and claim.request.kind is Kind.EMBED:
                # One row a chunk would otherwise stay for ever.
                connection.execute(
                    sa.delete(requests).where(
                        *_is(claim.request), requests.c.requested <= requests.c.done
                    )
                )


def _lives(owner: str) -> bool:
    process = int(owner.split(":")[-2])
    # In a container each life of a worker has the same process number; this one holds nothing yet.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_due(now: float) -> sa.ColumnElement[bool]:
    return sa.or_(
        requests.c.due_at <= now,
        requests.c.first_at > now + SKEW,
        sa.and_(requests.c.attempts > 0, requests.c.due_at > now + LONGEST_BACKOFF + SKEW),
    )


def _is_held(now: float) -> sa.ColumnElement[bool]:
    lease_until = requests.c.lease_until
    return sa.and_(lease_until > now, lease_until <= now + LEASE + SKEW)


def _is(request: Request) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        requests.c.project_id == request.project_id,
        requests.c.kind == request.kind.value,
        requests.c.part == request.part,
    )
