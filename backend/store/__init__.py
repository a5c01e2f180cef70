"""The database: projects, tasks, embeddings, versions, and what is wanted of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from backend.store.embeddings import Embeddings
from backend.store.projects import Projects
from backend.store.requests import Kind, Request, Requests
from backend.store.schema import Database
from backend.store.tasks import Tasks
from backend.store.usage import Usage
from backend.store.versions import Versions


@dataclass(frozen=True)
class Store:
    """The tables of one database."""

    database: Database
    projects: Projects
    tasks: Tasks
    embeddings: Embeddings
    versions: Versions
    requests: Requests
    usage: Usage

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a database, and upgrade it where an older release made it."""
        database = Database(url)
        return cls(
            database,
            Projects(database),
            Tasks(database),
            Embeddings(database),
            Versions(database),
            Requests(database),
            Usage(database),
        )

    def note_webhook(self, project_id: int, wanted: Mapping[Kind, float]) -> None:
        """Keep that a webhook came, and what it asks for in how many seconds, in one transaction.

        An annotator waits for it.
        """
        with self.database.write() as connection:
            for kind, delay in wanted.items():
                self.requests.add_all([Request(project_id, kind)], delay=delay, within=connection)
            self.projects.update(project_id, within=connection, webhook_at=time.time())

    def forget(self, project_id: int) -> None:
        """Drop everything about a project but its embeddings, which others may share."""
        self.requests.forget(project_id)
        self.tasks.forget(project_id)
        self.versions.forget(project_id)
        self.projects.forget(project_id)

    def forget_leftovers(self) -> None:
        """Drop what jobs wrote of a project while it was forgotten, and tasks of disconnected ones.

        A project that is connected again mirrors its tasks anew.
        """
        known = {project.id: project.connected for project in self.projects.all()}
        for project_id in self.usage.project_ids():
            if project_id not in known:
                self.forget(project_id)
            elif not known[project_id]:
                self.tasks.forget(project_id)

    def close(self) -> None:
        """Close the database."""
        self.database.close()
