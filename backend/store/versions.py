"""Model versions: one published set of heads for a project."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from backend.errors import NotFoundError
from backend.store import history
from backend.store.findings import FindingKind, Findings
from backend.store.schema import Database, projects, tasks, versions

if TYPE_CHECKING:
    from backend.learning.head import Head

_NAME = re.compile(r"clip-backend-\d+-[0-9a-f]{8}")

# Enough to see how a project came along and to go back; older heads serve only who pinned them.
KEPT = 100


@dataclass(frozen=True)
class ControlHead:
    """The head of one control; `values` are the choices in the order of the head's rows."""

    values: tuple[str, ...]
    head: Head


@dataclass(frozen=True)
class Version:
    """Heads by control name, and how their certainty becomes a score."""

    project_id: int
    number: int
    fingerprint: str
    encoder: str
    query_strategy: str
    score: str
    heads: Mapping[str, ControlHead]
    annotations: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    created_at: float = 0.0

    @property
    def name(self) -> str:
        """The model version as Label Studio shows it."""
        return f"clip-backend-{self.number}-{self.fingerprint[:8]}"


@dataclass(frozen=True)
class Figures:
    """What a version's report says of one control, in numbers; None where it has none.

    `accuracy` and `calibration_error` are out of fold, `pool_accuracy` is the estimate of the open
    tasks, and of `shown` predictions that people saw they kept `kept`.
    """

    project_id: int
    control: str
    labels: float | None
    accuracy: float | None
    calibration_error: float | None
    pool_accuracy: float | None
    shown: float | None
    kept: float | None


@dataclass(frozen=True)
class Published:
    """How a project stands; None where that is not known yet.

    `tasks` as Label Studio counted them when the labels were last read; of the active version its
    number, how many annotated tasks it comes from, and when it was published (Unix time).
    """

    project_id: int
    tasks: int | None
    number: int | None
    annotated_tasks: int | None
    created_at: float | None


@dataclass(frozen=True)
class Summary:
    """What is known of a stored version without its heads, which may take megabytes."""

    number: int
    name: str
    encoder: str
    query_strategy: str
    annotations: int
    report: dict[str, Any]
    created_at: float


_SUMMARY = tuple(versions.c[name] for name in Summary.__dataclass_fields__)


def is_ours(model_version: str) -> bool:
    """Tell whether a prediction's model version is one that this backend gave."""
    return _NAME.fullmatch(model_version) is not None


class Versions:
    """The table of versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def active(self, project_id: int) -> Version | None:
        """Return the version that predictions are made with."""
        query = (
            sa.select(versions)
            .join(projects, projects.c.id == versions.c.project_id)
            .where(versions.c.project_id == project_id, versions.c.name == projects.c.model_version)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _from_row(row)

    def active_summary(self, project_id: int) -> Summary | None:
        """Return what is known of the version that predictions are made with."""
        query = (
            sa.select(*_SUMMARY)
            .join(projects, _is_active())
            .where(versions.c.project_id == project_id)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Summary(*row)

    def latest_summary(self, project_id: int) -> Summary | None:
        """Return what is known of the version of the last training."""
        query = (
            sa.select(*_SUMMARY)
            .where(versions.c.project_id == project_id)
            .order_by(versions.c.number.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Summary(*row)

    def latest(self, project_id: int) -> Version | None:
        """Return the version of the last training: the active one unless another is pinned."""
        query = (
            sa.select(versions)
            .where(versions.c.project_id == project_id)
            .order_by(versions.c.number.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _from_row(row)

    def get(self, project_id: int, number: int) -> Version | None:
        """Return the version of a number, where it is stored."""
        query = sa.select(versions).where(
            versions.c.project_id == project_id, versions.c.number == number
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _from_row(row)

    def summaries(self, project_id: int) -> list[Summary]:
        """Return what is known of each stored version, newest first."""
        query = (
            sa.select(*_SUMMARY)
            .where(versions.c.project_id == project_id)
            .order_by(versions.c.number.desc())
        )
        with self._database.read() as connection:
            return [Summary(*row) for row in connection.execute(query)]

    def names(self, project_id: int | None = None) -> list[str]:
        """Return the names of versions, newest first; of one project or of all."""
        query = sa.select(versions.c.name).order_by(
            versions.c.created_at.desc(), versions.c.number.desc()
        )
        if project_id is not None:
            query = query.where(versions.c.project_id == project_id)
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def amend(
        self,
        version: Version,
        additions: Mapping[str, Mapping[str, Any]],
        *,
        within: Connection | None = None,
    ) -> None:
        """Put new entries by control into a version's report; write only where they differ."""
        report = {name: {**version.report.get(name, {}), **new} for name, new in additions.items()}
        if report == version.report:
            return
        with self._database.write() if within is None else nullcontext(within) as connection:
            connection.execute(
                sa.update(versions)
                .where(
                    versions.c.project_id == version.project_id,
                    versions.c.number == version.number,
                )
                .values(report=report)
            )
            history.correct(connection, version.project_id, version.number, report)

    def published(self, limit: int) -> list[Published]:
        """Return how the connected projects stand, at most `limit` of them, by id."""
        query = (
            sa.select(
                projects.c.id,
                projects.c.watermark,
                versions.c.number,
                versions.c.annotations,
                versions.c.created_at,
            )
            .select_from(projects)
            .outerjoin(versions, _is_active())
            .where(projects.c.connected)
            .order_by(projects.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                Published(row.id, (row.watermark or [None])[0], *row[2:])
                for row in connection.execute(query)
            ]

    def figures(self, limit: int) -> list[Figures]:
        """Return what reports say of the connected projects' active versions, a row a control.

        The database takes the figures out of the reports: those list suspected labels by the
        thousand, and come with the heads. At most `limit` rows, by project.
        """
        of_control = sa.func.json_each(versions.c.report).table_valued(
            sa.column("key", sa.Text), sa.column("value", sa.JSON)
        )

        def figure(*path: str) -> sa.ColumnElement[float]:
            value: sa.ColumnElement[float] = of_control.c.value[path].as_float()
            return value

        query = (
            sa.select(
                versions.c.project_id,
                of_control.c.key,
                figure("labels"),
                figure("out_of_fold", "top1"),
                figure("out_of_fold", "calibration_error"),
                figure("pool_accuracy", "value"),
                figure("acceptance", "shown"),
                figure("acceptance", "kept"),
            )
            .select_from(projects)
            .join(versions, _is_active())
            .join(of_control, sa.true())
            .where(projects.c.connected)
            .order_by(versions.c.project_id, of_control.c.key)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Figures(*row) for row in connection.execute(query)]

    def publish(
        self,
        version: Version,
        findings: Mapping[FindingKind, bytes] = MappingProxyType({}),
        *,
        within: Connection | None = None,
    ) -> Version:
        """Store a version under the project's next number; make it active unless one is pinned.

        One transaction, or part of one at hand (`within`): no reader sees a project whose active
        version does not exist. The last `KEPT` versions are kept, and a pinned one however old it
        is; what is known of them in numbers stays in the history. `findings` are kept in place of
        the last version's. Raises NotFoundError for a project that was forgotten.
        """
        with self._database.write() if within is None else nullcontext(within) as connection:
            # The project's row is the lock under which numbers are given.
            pinned = _lock(connection, version.project_id).pinned
            newest = connection.execute(
                sa.select(sa.func.max(versions.c.number)).where(
                    versions.c.project_id == version.project_id
                )
            ).scalar()
            published = replace(version, number=(newest or 0) + 1, created_at=time.time())
            connection.execute(
                sa.insert(versions).values(
                    project_id=published.project_id,
                    number=published.number,
                    name=published.name,
                    fingerprint=published.fingerprint,
                    encoder=published.encoder,
                    query_strategy=published.query_strategy,
                    score=published.score,
                    heads=heads_to_bytes(published.heads),
                    annotations=published.annotations,
                    report=published.report,
                    created_at=published.created_at,
                )
            )
            history.enter(
                connection,
                project_id=published.project_id,
                number=published.number,
                name=published.name,
                created_at=published.created_at,
                report=published.report,
            )
            Findings(self._database).keep(
                published.project_id, published.name, findings, within=connection
            )
            if pinned is None:
                connection.execute(
                    sa.update(projects)
                    .where(projects.c.id == published.project_id)
                    .values(model_version=published.name)
                )
            connection.execute(
                sa.delete(versions).where(
                    versions.c.project_id == published.project_id,
                    versions.c.number <= published.number - KEPT,
                    versions.c.name != (pinned or published.name),
                )
            )
        return published

    def pin(self, project_id: int, name: str) -> None:
        """Make a stored version the active one, and keep it so whatever is trained.

        Raises NotFoundError where the project or the version is no longer there.
        """
        with self._database.write() as connection:
            before = _lock(connection, project_id)
            stored = connection.scalar(
                sa.select(versions.c.number).where(
                    versions.c.project_id == project_id, versions.c.name == name
                )
            )
            if stored is None:
                raise NotFoundError(f"project {project_id}: {name} is no longer stored")
            _activate(connection, before, name)
            connection.execute(
                sa.update(projects).where(projects.c.id == project_id).values(pinned=name)
            )

    def unpin(self, project_id: int, name: str) -> None:
        """Make the latest version the active one, if the one of this name is still pinned.

        Raises NotFoundError where the project is no longer there.
        """
        with self._database.write() as connection:
            before = _lock(connection, project_id)
            if before.pinned != name:
                return
            latest = connection.scalars(
                sa.select(versions.c.name)
                .where(versions.c.project_id == project_id)
                .order_by(versions.c.number.desc())
                .limit(1)
            ).one()
            _activate(connection, before, latest)
            connection.execute(
                sa.update(projects).where(projects.c.id == project_id).values(pinned=None)
            )

    def forget(self, project_id: int) -> None:
        """Drop all versions of a project."""
        with self._database.write() as connection:
            connection.execute(sa.delete(versions).where(versions.c.project_id == project_id))


def _is_active() -> sa.ColumnElement[bool]:
    return sa.and_(
        versions.c.project_id == projects.c.id, versions.c.name == projects.c.model_version
    )


@dataclass(frozen=True)
class _InUse:
    """Which version a project uses, as long as its row is locked."""

    project_id: int
    model_version: str | None
    pinned: str | None


def _lock(connection: Connection, project_id: int) -> _InUse:
    row = connection.execute(
        sa.select(projects.c.id, projects.c.model_version, projects.c.pinned)
        .where(projects.c.id == project_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"project {project_id} is no longer known here")
    return _InUse(*row)


def _activate(connection: Connection, before: _InUse, name: str) -> None:
    if before.model_version == name:
        return
    # What Label Studio still holds of it from its first time was removed in part since. Forgotten
    # here, so that the next refresh looks.
    connection.execute(
        sa.update(tasks)
        .where(tasks.c.project_id == before.project_id, tasks.c.model_version == name)
        .values(model_version=None)
    )
    connection.execute(
        sa.update(projects)
        .where(projects.c.id == before.project_id)
        .values(model_version=name, surplus={})
    )


def heads_to_bytes(heads: Mapping[str, ControlHead]) -> bytes:
    """Return heads as a safetensors file: `0.weights` and `0.bias` of the first control, and so on.

    Its metadata name the controls and their choices, as JSON.
    """
    from safetensors.torch import save

    # Control names are hostile input and stay out of tensor names.
    controls = []
    tensors = {}
    for index, (name, control) in enumerate(heads.items()):
        controls.append({"name": name, "values": control.values, "multiple": control.head.multiple})
        tensors[f"{index}.weights"] = control.head.weights.detach().cpu().contiguous()
        tensors[f"{index}.bias"] = control.head.bias.detach().cpu().contiguous()
    data: bytes = save(tensors, metadata={"controls": json.dumps(controls)})
    return data


def _from_row(row: sa.Row[Any]) -> Version:
    return Version(
        project_id=row.project_id,
        number=row.number,
        fingerprint=row.fingerprint,
        encoder=row.encoder,
        query_strategy=row.query_strategy,
        score=row.score,
        heads=heads_from_bytes(row.heads),
        annotations=row.annotations,
        report=row.report,
        created_at=row.created_at,
    )


def heads_from_bytes(data: bytes) -> dict[str, ControlHead]:
    """Return what `heads_to_bytes` was given."""
    from safetensors.torch import load

    from backend.learning.head import Head

    tensors = load(data)
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    return {
        control["name"]: ControlHead(
            values=tuple(control["values"]),
            head=Head(
                weights=tensors[f"{index}.weights"],
                bias=tensors[f"{index}.bias"],
                multiple=control["multiple"],
            ),
        )
        for index, control in enumerate(json.loads(header["__metadata__"]["controls"]))
    }
