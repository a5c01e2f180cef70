"""What the page reads, as the panels get it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backend.errors import LabelingConfigError, LabelStudioError
from backend.labelstudio.config import Control, LabelingConfig, parse_labeling_config
from backend.labelstudio.views import show_tasks
from backend.page.links import LabelStudioLinks
from backend.settings import LearningSettings
from backend.store import Store
from backend.store.projects import Project
from backend.store.versions import Summary

if TYPE_CHECKING:
    from backend.doctor import Finding
    from backend.embedding import Embedder
    from backend.jobs.queue import JobQueue
    from backend.labelstudio.client import LabelStudio


@dataclass(frozen=True)
class PageServices:
    """The parts that all panels share.

    `learning` is what a project without extra params gets; `embedder` raises EncoderError while
    CLIP is being loaded; `public_url` is where browsers find the page, if that was said; `client`
    talks to Label Studio, None where it is not configured. `findings`, `emails` and `titles` are
    what other servers said lately, and None where they have not said anything yet: a project's
    links, the annotators' emails, the projects' titles.
    """

    store: Store
    label_studio: LabelStudioLinks
    queue: Callable[[], JobQueue]
    learning: LearningSettings
    embedder: Callable[[], Embedder]
    findings: Callable[[int], Sequence[Finding] | None] = lambda _: None
    emails: Callable[[], Mapping[int, str] | None] = lambda: None
    titles: Callable[[], Mapping[int, str] | None] = lambda: None
    public_url: str | None = None
    client: LabelStudio | None = None


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

    def show_in_label_studio(self, title: str, task_ids: Collection[int]) -> str:
        """Have a view of the Data Manager list these tasks; return where people open it.

        Raises LabelStudioError.
        """
        view = show_tasks(self.client, self.project.id, title, task_ids)
        self.store.projects.remember_view(self.project.id, title, view.id)
        return self.label_studio.view(self.project.id, view.id) or view.address

    @property
    def config(self) -> LabelingConfig:
        """What the labeling config asks for; raises LabelingConfigError."""
        return parse_labeling_config(self.project.label_config)

    @property
    def title(self) -> str:
        """What Label Studio calls the project, as far as that is known."""
        known = self.services.titles() or {}
        return known.get(self.project.id, f"Project {self.project.id}")

    @cached_property
    def version(self) -> Summary | None:
        """The active version, without its heads."""
        return self.store.versions.active_summary(self.project.id)

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """The controls that are predicted; none where the labeling config cannot be read."""
        try:
            return self.config.controls
        except LabelingConfigError:
            return ()

    @property
    def first_control(self) -> Control | None:
        """The control whose picture stands for a task."""
        return self.controls[0] if self.controls else None

    @cached_property
    def latest(self) -> Summary | None:
        """The version of the last training, which is the active one unless another is pinned."""
        if self.project.pinned is None:
            return self.version
        return self.store.versions.latest_summary(self.project.id)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the active version's report says of each control; empty without a version."""
        return {} if self.version is None else self.version.report

    @property
    def latest_reports(self) -> dict[str, dict[str, Any]]:
        """What the last training's report says of each control: of the labels and their people."""
        return {} if self.latest is None else self.latest.report
