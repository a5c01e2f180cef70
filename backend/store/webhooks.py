"""What webhooks ask for, kept before they are answered."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from backend.store.projects import Projects
from backend.store.requests import Kind, Request, Requests
from backend.store.schema import Database


@dataclass(frozen=True)
class _Note:
    project_id: int
    wanted: Mapping[Kind, float]
    kept: Future[None] = field(default_factory=Future)


class Webhooks:
    """Keeps that webhooks came and what they ask for.

    Annotators wait for it, many at a time. Those that wait for the database together are one
    transaction (group commit): however long it was held, all are answered when it is free.
    """

    def __init__(self, database: Database, projects: Projects, requests: Requests) -> None:
        self._database = database
        self._projects = projects
        self._requests = requests
        self._waiting: deque[_Note] = deque()
        self._turn = threading.Lock()

    def note(self, project_id: int, wanted: Mapping[Kind, float]) -> None:
        """Return once it is kept what a webhook asks for, each kind of work in so many seconds.

        Raises DatabaseError where the database cannot be used.
        """
        note = _Note(project_id, wanted)
        self._waiting.append(note)
        with self._turn:
            if not note.kept.done():
                self._keep([self._waiting.popleft() for _ in range(len(self._waiting))])
        note.kept.result()

    def _keep(self, notes: Sequence[_Note]) -> None:
        try:
            self._write(notes)
        except BaseException as error:  # noqa: BLE001 - raised where each is waited for
            for note in notes:
                note.kept.set_exception(error)
        else:
            for note in notes:
                note.kept.set_result(None)

    def _write(self, notes: Sequence[_Note]) -> None:
        delays: dict[int, dict[Kind, float]] = defaultdict(dict)
        for note in notes:
            soonest = delays[note.project_id]
            for kind, delay in note.wanted.items():
                soonest[kind] = min(delay, soonest.get(kind, delay))
        with self._database.write() as connection:
            for project_id, wanted in delays.items():
                for kind, delay in wanted.items():
                    self._requests.add_all(
                        [Request(project_id, kind)], delay=delay, within=connection
                    )
                self._projects.update(project_id, within=connection, webhook_at=time.time())
