"""Brings a database of another release to the schema of this one.

Imported only where there is something to do: alembic takes a tenth of a second to import.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from backend.errors import DatabaseError
from backend.store.schema import REVISION, revisions

log = logging.getLogger(__name__)

# Version 0.1.0 made these tables and kept no revision.
_FIRST = "0001"
_FIRST_TABLES = {"projects", "tasks", "images", "embeddings", "versions", "requests"}

# Alembic's `op` and `context` are one for the whole process.
_alembic = threading.Lock()


def upgrade(connection: Connection) -> None:
    """Upgrade to the newest revision, within the connection's transaction.

    Raises DatabaseError for a database of a newer release, or with tables that are not ours.
    """
    tables = set(sa.inspect(connection).get_table_names())
    before = None
    if revisions.name in tables:
        before = connection.scalar(sa.select(revisions.c.version_num))
    if before == REVISION:
        # Another process was faster.
        return
    if before is not None and not is_known(before):
        raise DatabaseError(
            f"The database is of a newer release (schema {before}, this one knows {REVISION}): "
            "install the newer release, or restore a backup of this one"
        )
    config = _config()
    config.attributes["connection"] = connection
    with _alembic:
        if before is None:
            if not tables >= _FIRST_TABLES:
                raise DatabaseError(
                    "The database has tables of somebody else's: give clip-backend a database of "
                    "its own in DATABASE_URL"
                )
            command.stamp(config, _FIRST)
            before = _FIRST
        command.upgrade(config, "head")
    log.info("upgraded the database from schema %s to %s", before, REVISION)


def is_known(revision: str) -> bool:
    """Tell whether this release knows a revision."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return revision in {script.revision for script in scripts}


def _config() -> Config:
    config = Config()
    folder = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
