"""Databases of other releases, opened by this one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from backend.errors import DatabaseError
from backend.store import Store
from backend.store.schema import REVISION, images, metadata
from backend.store.tasks import StoredTask

MIGRATIONS = Path(__file__).parents[2] / "backend" / "store" / "migrations"

# What version 0.1.0's `metadata.create_all` sent to a database, but for the types that PostgreSQL
# calls otherwise.
FIRST_RELEASE = """
CREATE TABLE projects (id INTEGER NOT NULL, label_config TEXT NOT NULL, extra_params JSON NOT NULL,
  connected BOOLEAN NOT NULL, model_version TEXT, connection JSON, webhook_digest TEXT,
  webhook_at FLOAT, watermark JSON, surplus JSON NOT NULL, PRIMARY KEY (id));
CREATE TABLE tasks (project_id INTEGER NOT NULL, id INTEGER NOT NULL, data JSON NOT NULL,
  open BOOLEAN NOT NULL, model_version TEXT, shown_until FLOAT, PRIMARY KEY (project_id, id));
CREATE TABLE images (source VARCHAR(64) NOT NULL, content VARCHAR(64), error TEXT, retry_at FLOAT,
  PRIMARY KEY (source));
CREATE TABLE embeddings (encoder VARCHAR(128) NOT NULL, content VARCHAR(64) NOT NULL,
  vector BLOB NOT NULL, PRIMARY KEY (encoder, content));
CREATE TABLE versions (project_id INTEGER NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL,
  fingerprint VARCHAR(64) NOT NULL, encoder VARCHAR(128) NOT NULL, query_strategy TEXT NOT NULL,
  score TEXT NOT NULL, heads BLOB NOT NULL, annotations INTEGER NOT NULL, report JSON NOT NULL,
  created_at FLOAT NOT NULL, PRIMARY KEY (project_id, number));
CREATE TABLE requests (project_id INTEGER NOT NULL, kind VARCHAR(16) NOT NULL, part BIGINT NOT NULL,
  requested INTEGER NOT NULL, done INTEGER NOT NULL, first_at FLOAT NOT NULL,
  due_at FLOAT NOT NULL, owner TEXT, lease_until FLOAT NOT NULL, attempts INTEGER NOT NULL,
  error TEXT, PRIMARY KEY (project_id, kind, part));
CREATE INDEX ix_requests_due_at ON requests (due_at);
INSERT INTO projects VALUES (7, '<View/>', '{}', true, NULL, NULL, NULL, 1.5, '[1]', '{}');
INSERT INTO tasks VALUES (7, 1, '{"image": "http://a"}', true, 'clip-backend-1-01234567', NULL);
"""

OPEN = "import sys; from backend.store import Store; Store.open(sys.argv[1]).close()"


def run(url: str, statements: str) -> None:
    """Have a database made without this release's code."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in filter(str.strip, statements.split(";")):
            if engine.dialect.name == "postgresql":
                statement = re.sub(r"\bBLOB\b", "BYTEA", statement)
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_this_release_s_revision_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


@pytest.mark.parametrize("before", ["", FIRST_RELEASE], ids=["empty", "0.1.0"])
def test_an_upgraded_database_has_the_tables_that_the_code_knows(
    database_url: str, before: str
) -> None:
    run(database_url, before)

    Store.open(database_url).close()

    # Not the store's own connection, whose cursors get vectors fast and cannot be inspected.
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_database_of_the_first_release_keeps_its_rows(database_url: str) -> None:
    run(database_url, FIRST_RELEASE)
    engine = sa.create_engine(database_url)
    sources = sa.table("images", sa.column("source"), sa.column("content"))
    vectors = sa.table(
        "embeddings", sa.column("encoder"), sa.column("content"), sa.column("vector")
    )
    with engine.begin() as connection:
        # The digest of http://a, as that release computed it.
        source = "54df484bb282e7e472b74675fab8f1b61a6c46a2988252b6d2bf35d9afa8f5c0"
        connection.execute(sa.insert(sources).values(source=source, content="c"))
        vector = np.array([1, 0], "<f2").tobytes()
        connection.execute(sa.insert(vectors).values(encoder="e", content="c", vector=vector))
    engine.dispose()

    opened_at = time.time()

    store = Store.open(database_url)

    project = store.projects.get(7)
    assert project is not None
    assert (project.webhook_at, project.watermark, project.marked_at) == (1.5, [1], None)
    assert project.pinned is None
    assert [*store.tasks.all(7)] == [
        [StoredTask(1, {"image": "http://a"}, True, "clip-backend-1-01234567")]
    ]
    assert store.embeddings.find("e", ["http://a"])["http://a"].tolist() == [1, 0]  # type: ignore[union-attr]
    with store.database.read() as connection:
        (used_at,) = connection.scalars(sa.select(images.c.used_at))
    assert opened_at <= used_at <= time.time()
    store.close()


@pytest.mark.parametrize("before", ["", FIRST_RELEASE], ids=["empty", "0.1.0"])
def test_processes_that_open_a_database_at_once_upgrade_it_once(
    database_url: str, before: str
) -> None:
    run(database_url, before)
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, database_url], stderr=subprocess.PIPE)
        for _ in range(3)
    ]

    errors = [process.communicate()[1] for process in processes]

    assert errors == [b"", b"", b""]
    store = Store.open(database_url)
    with store.database.read() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == (REVISION,)
    store.close()


def test_an_upgrade_that_fails_changes_nothing(
    database_url: str,
) -> None:
    run(database_url, FIRST_RELEASE + "CREATE TABLE encoders (name TEXT)")

    with pytest.raises((sa.exc.OperationalError, sa.exc.ProgrammingError, DatabaseError)):
        Store.open(database_url)

    engine = sa.create_engine(database_url)
    inspector = sa.inspect(engine)
    assert "alembic_version" not in inspector.get_table_names()
    assert "used_at" not in {column["name"] for column in inspector.get_columns("images")}
    engine.dispose()


def test_tables_of_other_names_are_no_hindrance(database_url: str) -> None:
    run(database_url, "CREATE TABLE customers (name TEXT)")

    Store.open(database_url).close()
    Store.open(database_url).close()

    engine = sa.create_engine(database_url)
    assert {"customers", "projects", "alembic_version"} <= {*sa.inspect(engine).get_table_names()}
    engine.dispose()


def test_a_database_of_a_newer_release_is_refused_in_a_sentence(database_url: str) -> None:
    Store.open(database_url).close()
    run(database_url, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(DatabaseError, match=r"newer release .*9999.* install the newer release"):
        Store.open(database_url)


@pytest.mark.parametrize("table", ["projects", "history"])
def test_tables_of_somebody_else_s_are_left_alone(database_url: str, table: str) -> None:
    run(database_url, f"CREATE TABLE {table} (name TEXT)")

    with pytest.raises(DatabaseError, match="a database of its own"):
        Store.open(database_url)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_database_that_is_not_behind_is_opened_without_alembic(
    database_url: str, *, is_new: bool
) -> None:
    if not is_new:
        Store.open(database_url).close()

    code = f"{OPEN}; sys.exit('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, database_url], check=False)

    assert done.returncode == 0
