"""The commands of `clip-backend`."""

from __future__ import annotations

import sys

import typer

# In the order of --help.
from backend.cli import running, projects, versions, upkeep, study  # noqa: F401 # isort: skip
from backend.cli.app import app
from backend.errors import NOT_CONFIGURED, ClipBackendError, EncoderError, SettingsError


def main() -> None:
    """Run a command; an error that a user can mend is one line."""
    try:
        app()
    except (SettingsError, EncoderError) as error:
        _fail(error, NOT_CONFIGURED)
    except ClipBackendError as error:
        _fail(error, 1)


def _fail(error: ClipBackendError, code: int) -> None:
    typer.secho(f"Error: {error}", err=True, fg=typer.colors.RED)
    sys.exit(code)
