"""The stored versions, and which of them is used."""

from __future__ import annotations

from dataclasses import dataclass

from backend.page.services import ProjectView
from backend.store.standings import Standing

MOST = 20


@dataclass(frozen=True)
class ListedVersions:
    """The newest versions; `pinned` is the one that is used whatever is trained."""

    versions: list[Standing]
    active: str | None
    pinned: str | None

    @property
    def latest(self) -> str | None:
        """The version of the last training."""
        return self.versions[0].name if self.versions else None

    @property
    def are_all(self) -> bool:
        """Whether there are no older ones than those."""
        return len(self.versions) < MOST


def versions(view: ProjectView) -> ListedVersions:
    """Return a project's newest versions."""
    project = view.project
    return ListedVersions(
        view.store.standings.newest(project.id, MOST), project.model_version, project.pinned
    )
