"""The stored versions, and which of them is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backend.page.services import ProjectView
from backend.store.versions import Summary

# The newest ones; what a report says of labels makes older ones costly to list.
MOST = 20


@dataclass(frozen=True)
class ControlStanding:
    """What a version knows of one control; `accuracy` is out of fold."""

    control: str
    labels: int | None
    accuracy: float | None


@dataclass(frozen=True)
class ListedVersion:
    """One stored version; `created_at` is Unix time."""

    name: str
    created_at: float
    in_use: bool
    controls: list[ControlStanding]


@dataclass(frozen=True)
class ListedVersions:
    """The newest versions; `pinned` is the one that is used whatever is trained."""

    versions: list[ListedVersion]
    pinned: str | None
    latest: str | None

    @property
    def are_all(self) -> bool:
        """Whether there are no older ones than those."""
        return len(self.versions) < MOST


def versions(view: ProjectView) -> ListedVersions:
    """Return a project's newest versions."""
    project = view.project
    summaries = view.store.versions.summaries(project.id, limit=MOST)
    return ListedVersions(
        [_listed(each, project.model_version) for each in summaries],
        pinned=project.pinned,
        latest=summaries[0].name if summaries else None,
    )


def _listed(summary: Summary, active: str | None) -> ListedVersion:
    controls = [_standing(control, report) for control, report in summary.report.items()]
    return ListedVersion(summary.name, summary.created_at, summary.name == active, controls)


def _standing(control: str, report: dict[str, Any]) -> ControlStanding:
    out_of_fold = report.get("out_of_fold") or {}
    return ControlStanding(control, report.get("labels"), out_of_fold.get("top1"))
