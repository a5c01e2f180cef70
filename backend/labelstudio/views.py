"""Views of the Data Manager that list chosen tasks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from backend.labelstudio.client import LabelStudio

# On SQLite a page of such a view takes Label Studio 0.3 s for 200 of 20,000 tasks, 1 s for 1,000.
MOST_IN_VIEW = 200


@dataclass(frozen=True)
class View:
    """A view of the Data Manager, and where people open it."""

    id: int
    address: str


def show_tasks(client: LabelStudio, project_id: int, title: str, task_ids: Collection[int]) -> View:
    """Have the view of that title list these tasks; there is one afterwards.

    Its columns stay as people arranged them. At most `MOST_IN_VIEW` tasks are a quick page.
    """
    found = _titled(client, project_id, title)
    if found is None:
        data = {"title": title, "type": "list", "target": "tasks"}
        view_id = int(client.add_view(project_id, data | _only(data, task_ids))["id"])
    else:
        view_id = int(found["id"])
        # The selection is not the view's own.
        kept = {name: value for name, value in found["data"].items() if name != "selectedItems"}
        client.update_view(view_id, project_id, kept | _only(kept, task_ids))
    return View(view_id, f"{client.url}/projects/{project_id}/data?tab={view_id}")


def remove_view(client: LabelStudio, project_id: int, title: str) -> bool:
    """Remove the view of that title; tell whether there was one."""
    found = _titled(client, project_id, title)
    if found is not None:
        client.remove_view(found["id"])
    return found is not None


def _titled(client: LabelStudio, project_id: int, title: str) -> dict[str, Any] | None:
    return next(
        (
            view
            for view in client.views(project_id)
            if (view.get("data") or {}).get("title") == title
        ),
        None,
    )


def _only(data: dict[str, Any], task_ids: Collection[int]) -> dict[str, Any]:
    # The API has an operator "in_list", with which the Data Manager's page does not load, and a
    # filter for each task, any of which may match, leaves nobody able to narrow the view down.
    # A column that is displayed as text has the operator "regex", which the page knows.
    wanted = {
        "filter": "filter:tasks:id",
        "operator": "regex",
        "type": "String",
        "value": f"^({'|'.join(map(str, sorted(task_ids)))})$",
    }
    displayed = dict(data.get("columnsDisplayType") or {})
    return {
        "filters": {"conjunction": "and", "items": [wanted]},
        "columnsDisplayType": displayed | {"tasks:id": "String"},
    }
