"""What the page reads, as the panels get it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backend.page.links import LabelStudioLinks
from backend.store import Store
from backend.store.projects import Project
from backend.store.versions import Summary


@dataclass(frozen=True)
class PageServices:
    """The parts that all panels share.

    `public_url` is where browsers find the page, if that was said.
    """

    store: Store
    label_studio: LabelStudioLinks
    public_url: str | None = None


@dataclass(frozen=True)
class ProjectView:
    """One project as a request sees it; what is read of the database is read once."""

    services: PageServices
    project: Project

    @property
    def store(self) -> Store:
        """The database."""
        return self.services.store

    @property
    def label_studio(self) -> LabelStudioLinks:
        """Addresses in Label Studio."""
        return self.services.label_studio

    @cached_property
    def version(self) -> Summary | None:
        """The active version, without its heads."""
        return self.store.versions.active_summary(self.project.id)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the active version's report says of each control; empty without a version."""
        return {} if self.version is None else self.version.report
