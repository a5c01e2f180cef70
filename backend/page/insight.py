"""What the panels on labels and predictions lead to: tasks in Label Studio, pictures, the map."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from flask import Blueprint, Response, redirect, request, url_for
from flask.typing import ResponseReturnValue

from backend.errors import NotFoundError
from backend.labelstudio.views import MOST_IN_VIEW
from backend.page import confusion
from backend.page.embedding_map import map_option
from backend.page.pictures import picture_of
from backend.page.services import ProjectView
from backend.review import VIEW_TITLE, most_suspicious

_TASK = "<int(min=0, max=2147483647):task_id>"


def add_insight(page: Blueprint, project: str, view_of: Callable[[int], ProjectView]) -> None:
    """Add the addresses to the page; `project` is where a project's begin."""

    @page.get(f"{project}/map")
    def map_points(project_id: int) -> Response:
        found = map_option(
            view_of(project_id),
            request.args.get("colour", ""),
            picture=url_for("page.picture", project_id=project_id, task_id=0),
        )
        return Response(orjson.dumps(found), mimetype="application/json")

    @page.get(f"{project}/pictures/{_TASK}")
    def picture(project_id: int, task_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        tasks = view.store.tasks.named(project_id, [task_id])
        address = picture_of(tasks[0], view.first_control, view.label_studio) if tasks else None
        if address is None:
            raise NotFoundError(f"task {task_id} has no picture that a browser can show")
        return redirect(address)

    @page.post(f"{project}/confused")
    def confused(project_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        pair = confusion.confused_pair(view, request.form.get("key", ""))
        return redirect(view.show_in_label_studio(confusion.VIEW_TITLE, pair.tasks), 303)

    @page.post(f"{project}/suspected")
    def suspected(project_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        reports = view.latest_reports.values()
        tasks = most_suspicious([report.get("suspects") or [] for report in reports])
        if not tasks:
            raise NotFoundError("no label is suspected any more: load the page again")
        return redirect(view.show_in_label_studio(VIEW_TITLE, tasks[:MOST_IN_VIEW]), 303)
