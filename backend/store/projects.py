"""The projects that this backend serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.store.schema import Database, projects, tasks
from backend.store.tasks import OUTDATED


@dataclass(frozen=True)
class Project:
    """What is known of one of Label Studio's projects.

    `model_version` is the active version, `pinned` the same one where trainings are not to replace
    it; `connection` what `connect` changed in Label Studio;
    `watermark` Label Studio's counters when the labels were last read; `mirrored` which tasks had
    changed `latest` when all were mirrored, and the `count` of mirrorings before; `surplus` how
    many predictions more than one of a task the last sweep left, by version; `marked_at` when the
    last round began that marked all its pictures in use, `marking` how far the one at hand has
    come.
    """

    id: int
    label_config: str
    extra_params: dict[str, Any] = field(default_factory=dict)
    connected: bool = True
    model_version: str | None = None
    pinned: str | None = None
    connection: dict[str, Any] | None = None
    webhook_digest: str | None = None
    webhook_at: float | None = None
    watermark: list[Any] | None = None
    mirrored: dict[str, Any] | None = None
    surplus: dict[str, int] = field(default_factory=dict)
    marked_at: float | None = None
    marking: dict[str, Any] | None = None


class Projects:
    """The table of projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project_id: int) -> Project | None:
        """Return a project, or None where it was never set up."""
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(projects).where(projects.c.id == project_id)
            ).one_or_none()
        return None if row is None else Project(**row._mapping)

    def all(self) -> list[Project]:
        """Return every project, by id."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(projects).order_by(projects.c.id))
            return [Project(**row._mapping) for row in rows]

    def have_webhook_digest(self, digest: str) -> bool:
        """Tell whether a webhook's secret with this digest is kept for any project."""
        with self._database.read() as connection:
            return bool(
                connection.scalar(sa.select(sa.exists().where(projects.c.webhook_digest == digest)))
            )

    def set_up(
        self,
        project_id: int,
        *,
        label_config: str | None = None,
        extra_params: dict[str, Any] | None = None,
        also: Callable[[Connection], None] = lambda _connection: None,
    ) -> bool:
        """Create a project or bring it up to date; tells whether anything changed.

        What is None stays as it is. `also` is done in the transaction of a change.
        """
        before = self.get(project_id)
        if before is None:
            row = {
                "id": project_id,
                "label_config": label_config or "",
                "extra_params": extra_params or {},
                "connected": True,
                "surplus": {},
            }
            with self._database.write() as connection:
                connection.execute(self._database.insert(projects).on_conflict_do_nothing(), [row])
                also(connection)
            return True
        changes: dict[str, Any] = {}
        if not before.connected:
            changes["connected"] = True
        if label_config is not None and label_config != before.label_config:
            changes["label_config"] = label_config
        if extra_params is not None and extra_params != before.extra_params:
            changes["extra_params"] = extra_params
        if changes:
            with self._database.write() as connection:
                self.update(project_id, within=connection, **changes)
                also(connection)
        return bool(changes)

    def update(self, project_id: int, *, within: Connection | None = None, **values: Any) -> None:
        """Set columns of a project, in a transaction of its own or one at hand (`within`).

        Of a pinned version, which stays, another labeling config outdates the predictions: they may
        be of other pictures, or for another tag.
        """
        with self._database.write() if within is None else nullcontext(within) as connection:
            if "label_config" in values:
                outdates = sa.exists().where(
                    projects.c.id == project_id,
                    projects.c.pinned.is_not(None),
                    projects.c.label_config != values["label_config"],
                )
                connection.execute(
                    sa.update(tasks)
                    .where(
                        tasks.c.project_id == project_id,
                        tasks.c.model_version.is_not(None),
                        outdates,
                    )
                    .values(model_version=OUTDATED)
                )
            connection.execute(
                sa.update(projects).where(projects.c.id == project_id).values(**values)
            )

    def note_surplus(self, project_id: int, active: str, surplus: Mapping[str, int]) -> None:
        """Keep what a sweep left, unless another version has become the active one meanwhile."""
        with self._database.write() as connection:
            connection.execute(
                sa.update(projects)
                .where(projects.c.id == project_id, projects.c.model_version == active)
                .values(surplus=dict(surplus))
            )

    def remember_view(self, project_id: int, title: str, view_id: int) -> None:
        """Keep that a view of the Data Manager is ours, so that `disconnect` removes it.

        Only what `connect` has connected can be disconnected: of other projects nothing is kept.
        """
        with self._database.write() as connection:
            kept = connection.scalar(
                sa.select(projects.c.connection).where(projects.c.id == project_id)
            )
            if kept:
                views = kept.get("views", {}) | {title: view_id}
                self.update(project_id, within=connection, connection=kept | {"views": views})

    def forget(self, project_id: int) -> None:
        """Drop a project that Label Studio no longer has."""
        with self._database.write() as connection:
            connection.execute(sa.delete(projects).where(projects.c.id == project_id))
