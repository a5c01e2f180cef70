"""What every command shares: the front, the settings, the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backend.errors import SettingsError

if TYPE_CHECKING:
    from backend.settings import Settings
    from backend.store import Store

app = typer.Typer(
    name="clip-backend",
    help="Pre-annotates Label Studio's images with CLIP and learns from every annotation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProjectOption = Annotated[int, typer.Option("--project", min=1, help="Label Studio's project id.")]


@app.callback()
def _describe() -> None:
    """Give every command the same front."""


def read_settings(**overrides: object) -> Settings:
    """Read the environment and start logging; raises SettingsError for a wrong value."""
    from backend.logs import configure_logging
    from backend.settings import Settings

    settings = Settings.read(**overrides)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def open_store(settings: Settings) -> Store:
    """Open the database; raises DatabaseError where it cannot be used."""
    from backend.store import Store

    return Store.open(settings.database)


def open_store_of_connected(settings: Settings, project: int) -> Store:
    """Open the database; raises SettingsError for a project that is not connected."""
    store = open_store(settings)
    known = store.projects.get(project)
    if known is None or not known.connected:
        raise SettingsError(
            f"Project {project} is not connected: run `clip-backend connect --project {project}`"
        )
    return store
