"""What comes first: which version predicts, and where the project is in Label Studio."""

from __future__ import annotations

from dataclasses import dataclass

from backend.page.services import ProjectView


@dataclass(frozen=True)
class Overview:
    """A project in a sentence; `created_at` is Unix time, None without a version."""

    version: str | None
    created_at: float | None
    annotated_tasks: int | None
    pinned: bool
    connected: bool
    label_studio: str | None


def overview(view: ProjectView) -> Overview:
    """Return what is known of a project at first sight."""
    version, project = view.version, view.project
    return Overview(
        version=version.name if version else None,
        created_at=version.created_at if version else None,
        annotated_tasks=version.annotations if version else None,
        pinned=project.pinned is not None,
        connected=project.connected,
        label_studio=view.label_studio.data_manager(project.id),
    )
