"""The projects that there are."""

from __future__ import annotations

from dataclasses import dataclass

from backend.page.services import PageServices

# As many as one page shows.
_MOST = 1_000


@dataclass(frozen=True)
class ListedProject:
    """One project; None where nothing is known yet. `published_at` is Unix time."""

    id: int
    title: str
    connected: bool
    version: str | None
    tasks: int | None
    annotated_tasks: int | None
    published_at: float | None


def listed_projects(services: PageServices) -> list[ListedProject]:
    """Return the projects by id."""
    store, titles = services.store, services.titles() or {}
    published = {each.project_id: each for each in store.versions.published(_MOST)}
    listed = []
    for project in store.projects.all()[:_MOST]:
        stands = published.get(project.id)
        listed.append(
            ListedProject(
                id=project.id,
                title=titles.get(project.id, f"Project {project.id}"),
                connected=project.connected,
                version=project.model_version,
                tasks=stands.tasks if stands else None,
                annotated_tasks=stands.annotated_tasks if stands else None,
                published_at=stands.created_at if stands else None,
            )
        )
    return listed
