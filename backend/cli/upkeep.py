"""The commands that look after the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.app import app, read_settings


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
) -> None:
    """Write the whole database into one file, also while the backend runs."""
    from backend.upkeep import back_up

    back_up(read_settings(), file)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `clip-backend backup` has written.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the database holds.")
    ] = False,
) -> None:
    """Put a backup into the database, SQLite or PostgreSQL; the backend must be stopped."""
    from backend.upkeep import restore as restore_backup

    restore_backup(read_settings(), file, overwrite=overwrite)


@app.command("migrate-store")
def migrate_store(
    source: Annotated[
        str, typer.Option("--from", help="URL of the database to move.", show_default=False)
    ],
    target: Annotated[
        str, typer.Option("--to", help="URL of an empty database.", show_default=False)
    ],
) -> None:
    """Move the database to another one, such as SQLite to PostgreSQL; goes on where it stopped."""
    from backend.upkeep import migrate_store as move

    move(read_settings(), source, target)
