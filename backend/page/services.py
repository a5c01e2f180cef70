"""What the page reads, as the panels get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backend.embedding import Embedder
from backend.errors import LabelStudioError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.page.links import LabelStudioLinks
from backend.settings import LearningSettings
from backend.store import Store
from backend.store.projects import Project
from backend.store.versions import Summary


@dataclass(frozen=True)
class PageServices:
    """The parts that all panels share.

    `learning` is what a project without extra params gets; `embedder` raises EncoderError while
    CLIP is being loaded; `client` is None where Label Studio is not configured;
    `public_url` is where browsers find the page, if that was said.
    """

    store: Store
    label_studio: LabelStudioLinks
    learning: LearningSettings
    embedder: Callable[[], Embedder]
    client: LabelStudio | None = None
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

    @property
    def client(self) -> LabelStudio:
        """Label Studio's API; raises LabelStudioError where it is not configured."""
        if self.services.client is None:
            raise LabelStudioError(
                "Label Studio is not configured here: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
            )
        return self.services.client

    @cached_property
    def config(self) -> LabelingConfig:
        """What the labeling config asks for."""
        return parse_labeling_config(self.project.label_config)

    @cached_property
    def version(self) -> Summary | None:
        """The active version, without its heads."""
        return self.store.versions.active_summary(self.project.id)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the active version's report says of each control; empty without a version."""
        return {} if self.version is None else self.version.report
