"""The database: projects, tasks, embeddings, versions, and what is wanted of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from backend.store.embeddings import Embeddings
from backend.store.findings import Findings
from backend.store.history import History
from backend.store.projects import Projects
from backend.store.requests import Kind, Request, Requests
from backend.store.schema import Database
from backend.store.standings import Standings
from backend.store.tasks import Tasks
from backend.store.usage import Usage
from backend.store.versions import Versions
from backend.store.webhooks import Webhooks


@dataclass(frozen=True)
class Store:
    """The tables of one database."""

    database: Database
    projects: Projects
    tasks: Tasks
    embeddings: Embeddings
    versions: Versions
    history: History
    findings: Findings
    standings: Standings
    requests: Requests
    usage: Usage
    webhooks: Webhooks

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a database, and upgrade it where an older release made it."""
        database = Database(url)
        projects, requests = Projects(database), Requests(database)
        return cls(
            database,
            projects,
            Tasks(database),
            Embeddings(database),
            Versions(database),
            History(database),
            Findings(database),
            Standings(database),
            requests,
            Usage(database),
            Webhooks(database, projects, requests),
        )

    def set_up(
        self,
        project_id: int,
        *,
        compare_in: float,
        label_config: str | None = None,
        extra_params: dict[str, Any] | None = None,
    ) -> bool:
        """Create a project or bring it up to date, and ask for all of it where anything changed.

        In one transaction: a project of which nothing is asked would never be compared with Label
        Studio, which is done in `compare_in` seconds, and again and again from then on. Tells
        whether anything changed.
        """

        def ask(connection: Connection) -> None:
            at_once = [Request(project_id, kind) for kind in (Kind.TRAIN, Kind.SYNC)]
            self.requests.add_all(at_once, within=connection)
            compared = [Request(project_id, Kind.RECONCILE)]
            self.requests.add_all(compared, delay=compare_in, within=connection)

        return self.projects.set_up(
            project_id, label_config=label_config, extra_params=extra_params, also=ask
        )

    def forget(self, project_id: int) -> None:
        """Drop everything about a project but its embeddings, which others may share."""
        self.requests.forget(project_id)
        self.tasks.forget(project_id)
        self.findings.forget(project_id)
        # Before the versions, whose numbers begin anew.
        self.history.forget(project_id)
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
