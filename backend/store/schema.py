"""The tables, and how a database is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_random

from backend.errors import DatabaseError, SettingsError

metadata = sa.MetaData()

# What the tables below are; `migrations/versions/` has how others come to it.
REVISION = "0006"

# Alembic's own table, as it makes it.
revisions = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

# The name of PostgreSQL's lock around an upgrade: "clip".
_UPGRADE_LOCK = 0x636C6970

# Seconds that SQLite waits for another's write to end; `?timeout=` in the URL says otherwise.
_SQLITE_TIMEOUT = "30"

# What a database raises that is away, locked, full, read-only, or out of connections.
_UNUSABLE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)


class AnyText(sa.TypeDecorator[str]):
    """Text from outside: what no database can hold of it is replaced.

    PostgreSQL refuses NUL, and halves of surrogate pairs, which JSON can smuggle in, have no bytes.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: object) -> str | None:
        """Return what is stored."""
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()


projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("label_config", AnyText, nullable=False),
    sa.Column("extra_params", sa.JSON, nullable=False),
    sa.Column("connected", sa.Boolean, nullable=False),
    sa.Column("model_version", sa.Text),
    # The same version where somebody chose it, so that a training does not replace it.
    sa.Column("pinned", sa.Text),
    # What `connect` changed in Label Studio, so that `disconnect` undoes exactly that.
    sa.Column("connection", sa.JSON),
    # Digest of the secret that `connect` put on the webhook; the secret itself is not kept.
    sa.Column("webhook_digest", sa.Text),
    # When a webhook last came and was let in (Unix time).
    sa.Column("webhook_at", sa.Float),
    # Label Studio's counters when the labels were last read.
    sa.Column("watermark", sa.JSON),
    # When the last of the mirrored tasks were added and changed, as Label Studio says.
    sa.Column("mirrored", sa.JSON),
    # Predictions, more than one of a task, that the last sweep left in Label Studio, by version.
    sa.Column("surplus", sa.JSON, nullable=False),
    # When the last round over its tasks began that marked all pictures in use (Unix time).
    sa.Column("marked_at", sa.Float),
    # How far the round at hand has come.
    sa.Column("marking", sa.JSON),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.JSON, nullable=False),
    # Whether Label Studio still wants annotations of it.
    sa.Column("open", sa.Boolean, nullable=False),
    # Model version of our prediction that Label Studio holds.
    sa.Column("model_version", sa.Text),
    # Until when an annotator's page may show it (Unix time).
    sa.Column("shown_until", sa.Float),
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("content", sa.String(64), index=True),
    sa.Column("error", AnyText),
    sa.Column("retry_at", sa.Float),
    # When it was last saved, or found to be in use (Unix time).
    sa.Column("used_at", sa.Float, nullable=False),
)

embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("encoder", sa.String(128), primary_key=True),
    sa.Column("content", sa.String(64), primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)

encoders = sa.Table(
    "encoders",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    # When it was last found to be in use (Unix time).
    sa.Column("used_at", sa.Float, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("encoder", sa.String(128), nullable=False),
    sa.Column("query_strategy", sa.Text, nullable=False),
    sa.Column("score", sa.Text, nullable=False),
    sa.Column("heads", sa.LargeBinary, nullable=False),
    sa.Column("annotations", sa.Integer, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# What was known of each published version, in numbers. Versions go, this stays.
history = sa.Table(
    "history",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    # By control.
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# What was found out for people to look at: of each kind the last, and the version that it is of.
findings = sa.Table(
    "findings",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("project_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("part", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("requested", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("first_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float, nullable=False, index=True),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", AnyText),
)


class Database:
    """The one owner of the connection pool; SQLite or PostgreSQL.

    Opening it makes its tables, or upgrades them to this release's. Raises SettingsError for a URL
    that cannot be used, DatabaseError where the server is away or the database is of a newer
    release.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.engine = _open(url)
        # The other's takes longer to import than this database to open.
        self.insert: Any = import_module(f"sqlalchemy.dialects.{self.engine.dialect.name}").insert
        # SQLite lets one write at a time, and the others ask again after pauses that grow: threads
        # that queue for it here come to their turn sooner.
        self._turn: AbstractContextManager[object] = (
            nullcontext() if self.engine.dialect.name == "postgresql" else threading.Lock()
        )
        try:
            if self._revision() != REVISION:
                self._upgrade()
        except BaseException:
            self.close()
            raise

    def among(self, column: sa.Column[Any], values: Sequence[Any]) -> sa.ColumnElement[bool]:
        """Return the condition that a column has one of many values.

        To PostgreSQL they are one parameter: it takes a thousand in a fifth of the time.
        """
        if self.engine.dialect.name == "postgresql":
            return column == sa.any_(sa.literal(list(values), sa.ARRAY(column.type)))
        return column.in_(values)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that only reads.

        Raises DatabaseError where the database cannot be used.
        """
        with _in_a_sentence(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that is committed at the end.

        Raises DatabaseError where the database cannot be used.
        """
        with (
            _in_a_sentence(),
            self._turn,
            self.engine.connect().execution_options(write=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Yield a connection that sees the database as it is at the first look, until the end.

        Raises DatabaseError where the database cannot be used.
        """
        with _in_a_sentence(), self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite's transactions are of this kind anyway.
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def _revision(self) -> str | None:
        with self.read() as connection:
            if not sa.inspect(connection).has_table(revisions.name):
                return None
            revision: str | None = connection.scalar(sa.select(revisions.c.version_num))
            return revision

    def _upgrade(self) -> None:
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                # Processes that start together must not upgrade twice. A hexadecimal literal in
                # SQL itself needs PostgreSQL 16.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            tables = sa.inspect(connection).get_table_names()
            if {revisions.name, *metadata.tables}.isdisjoint(tables):
                # Without alembic, which takes a tenth of a second to import.
                metadata.create_all(connection)
                revisions.create(connection)
                connection.execute(sa.insert(revisions).values(version_num=REVISION))
                return
            from backend.store.upgrade import upgrade

            upgrade(connection)


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except _UNUSABLE as error:
        raise DatabaseError(
            f"The database cannot be used ({_first_line(error)}): check DATABASE_URL or DATA_DIR"
        ) from error


def without_secrets(url: sa.URL) -> str:
    """Return a database's URL to be shown: passwords stand as ***, in its query too."""
    secret = {key: "***" for key in url.query if "password" in key.lower()}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


def _open(address: str | sa.URL) -> Engine:
    try:
        url = make_url(address)
    except sa.exc.ArgumentError:
        raise SettingsError(
            "DATABASE_URL: must be a URL such as postgresql+psycopg://user:password@host/name"
        ) from None
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            try:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(
                    f"The database's folder cannot be made ({error.strerror}): "
                    "check DATABASE_URL or DATA_DIR"
                ) from None
        engine = sa.create_engine(
            url.set(query={"timeout": _SQLITE_TIMEOUT, **url.query}), hide_parameters=True
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        if url.database and url.database != ":memory:":
            _watch_file(engine, Path(url.database))
        return engine
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(
                url.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                # Errors end in logs, and values in signed addresses and webhooks' secrets.
                hide_parameters=True,
                connect_args={"cursor_factory": _binary_cursor()},
            )
        except ModuleNotFoundError:
            raise SettingsError(
                "DATABASE_URL: PostgreSQL needs `pip install 'label-studio-clip-backend[postgres]'`"
            ) from None
    raise SettingsError("DATABASE_URL: only sqlite and postgresql are supported")


def _binary_cursor() -> type[Any]:
    import psycopg

    class BinaryCursor(psycopg.Cursor[Any]):
        """Gets values as they are: as text, vectors take several times as long."""

        def __init__(self, connection: Any, **arguments: Any) -> None:
            super().__init__(connection, **arguments)
            self.format = psycopg.pq.Format.BINARY

    return BinaryCursor


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transactions start too late to take the write lock in time.
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


@retry(
    retry=retry_if_exception_message(match="database is locked"),
    wait=wait_random(0.001, 0.01),
    stop=stop_after_delay(float(_SQLITE_TIMEOUT)),
    reraise=True,
)
def _write_ahead(cursor: Any) -> None:
    # The one statement that does not wait for the lock by itself: where another process opens the
    # new database at the same moment, it fails at once.
    cursor.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that starts reading and then writes fails at once when another has written
    # meanwhile; one that takes the write lock first waits for its turn.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _watch_file(engine: Engine, file: Path) -> None:
    # SQLite goes on writing to a file that was removed, and what it writes is lost.
    def remember(_connection: object, record: Any) -> None:
        record.info["inode"] = file.stat().st_ino

    def compare(_connection: object, record: Any, _proxy: object) -> None:
        if not file.exists() or file.stat().st_ino != record.info["inode"]:
            raise DatabaseError(
                f"The database's file {file} was removed or replaced while it was in use: "
                "put it back, or start the backend anew"
            )

    event.listen(engine, "connect", remember)
    event.listen(engine, "checkout", compare)


def _first_line(error: Exception) -> str:
    said = str(getattr(error, "orig", error)).strip()
    return said.splitlines()[0] if said else type(error).__name__
