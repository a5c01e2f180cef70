"""What the panels on labels and predictions lead to: tasks in Label Studio, pictures, the map."""

from __future__ import annotations

from collections.abc import Callable, Collection

import orjson
from flask import Blueprint, Response, redirect, request, url_for
from flask.typing import ResponseReturnValue

from backend.errors import NotFoundError, SettingsError
from backend.labelstudio.views import MOST_IN_VIEW, show_tasks
from backend.page import confusion
from backend.page.embedding_map import map_option
from backend.page.pictures import picture_of
from backend.page.services import PageServices, ProjectView
from backend.review import VIEW_TITLE, most_suspicious

_PROJECT = "/<int(min=1, max=2147483647):project_id>"
_TASK = "<int(min=0, max=2147483647):task_id>"


def add_insight(
    page: Blueprint, services: PageServices, view_of: Callable[[int], ProjectView]
) -> None:
    """Add the addresses to the page; `view_of` raises NotFoundError for an unknown project."""

    @page.get(f"{_PROJECT}/map")
    def map_points(project_id: int) -> Response:
        found = map_option(
            view_of(project_id),
            request.args.get("colour", ""),
            picture=url_for("page.picture", project_id=project_id, task_id=0),
        )
        return Response(orjson.dumps(found), mimetype="application/json")

    @page.get(f"{_PROJECT}/pictures/{_TASK}")
    def picture(project_id: int, task_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        tasks = view.store.tasks.named(project_id, [task_id])
        address = picture_of(tasks[0], view.first_control, view.label_studio) if tasks else None
        if address is None:
            raise NotFoundError(f"task {task_id} has no picture that a browser can show")
        return redirect(address)

    @page.post(f"{_PROJECT}/confused")
    def confused(project_id: int) -> ResponseReturnValue:
        pair = confusion.confused_pair(view_of(project_id), request.form.get("key", ""))
        return _in_label_studio(project_id, confusion.VIEW_TITLE, pair.tasks)

    @page.post(f"{_PROJECT}/suspected")
    def suspected(project_id: int) -> ResponseReturnValue:
        reports = view_of(project_id).latest_reports.values()
        tasks = most_suspicious([report.get("suspects") or [] for report in reports])
        if not tasks:
            raise NotFoundError("no label is suspected any more: load the page again")
        return _in_label_studio(project_id, VIEW_TITLE, tasks[:MOST_IN_VIEW])

    def _in_label_studio(
        project_id: int, title: str, tasks: Collection[int]
    ) -> ResponseReturnValue:
        if services.client is None:
            raise SettingsError(
                "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: tasks are shown in Label Studio"
            )
        shown = show_tasks(services.client, project_id, title, tasks)
        services.store.projects.remember_view(project_id, title, shown.id)
        return redirect(services.label_studio.view(project_id, shown.id) or shown.address, 303)
