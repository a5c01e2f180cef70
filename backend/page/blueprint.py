"""The addresses of the page."""

from __future__ import annotations

from flask import Blueprint, Response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from backend.api.same_origin import check_same_origin
from backend.errors import NotFoundError, RequestError, SettingsError, TooLargeError
from backend.page import answers
from backend.page.insight import add_insight
from backend.page.listing import listed_projects
from backend.page.panels import BY_NAME, OVERVIEW, PANELS
from backend.page.prompts import add_prompts
from backend.page.searching import add_search
from backend.page.services import PageServices, ProjectView
from backend.page.wording import as_utc, shown
from backend.store.requests import Kind, Request

_PREFIX = "/projects"
_PROJECT = "/<int(min=1, max=2147483647):project_id>"
_LARGEST_FORM = 64 * 1024


def create_blueprint(services: PageServices) -> Blueprint:
    """Return the page: for the app of the API, whose authentication comes before it."""
    page = Blueprint(
        "page",
        __name__,
        url_prefix=_PREFIX,
        static_folder="static",
        static_url_path="/static",
        template_folder="templates",
    )
    page.add_app_template_filter(shown)
    page.add_app_template_filter(as_utc)
    policy = answers.security_policy(services.label_studio.origin)

    @page.before_request
    def check_form() -> None:
        if request.method != "POST":
            return
        check_same_origin(request, services.public_url)
        if "Transfer-Encoding" in request.headers or (request.content_length or 0) > _LARGEST_FORM:
            raise TooLargeError(f"a form has at most {_LARGEST_FORM} bytes, and says how many")

    @page.before_app_request
    def show_people_the_page() -> ResponseReturnValue | None:
        if request.path == "/" and request.method == "GET" and answers.prefers_html(request):
            return redirect(url_for("page.projects"))
        return None

    @page.after_app_request
    def finish(response: Response) -> Response:
        if request.path != _PREFIX and not request.path.startswith(f"{_PREFIX}/"):
            return response
        if response.status_code >= 400 and response.is_json and answers.prefers_html(request):
            response.set_data(answers.error_page(request, response))
            response.mimetype = "text/html"
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        if request.endpoint != "page.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @page.get("/")
    @page.get("")
    def projects() -> str:
        return render_template("projects.html", projects=listed_projects(services))

    @page.get(_PROJECT)
    def project(project_id: int) -> str:
        view = _view(project_id)
        return render_template(
            "project.html", view=view, panels=PANELS, panel=OVERVIEW.values(view)
        )

    @page.get(f"{_PROJECT}/panels/<name>")
    def panel(project_id: int, name: str) -> str:
        view = _view(project_id)
        if name not in BY_NAME:
            raise NotFoundError("there is no such panel")
        return render_template(f"panels/{name}.html", view=view, panel=BY_NAME[name].values(view))

    @page.post(f"{_PROJECT}/train")
    def train(project_id: int) -> ResponseReturnValue:
        view = _view(project_id)
        services.store.requests.add(Request(view.project.id, Kind.TRAIN))
        return answers.done(request, project_id, "A training is asked for.")

    @page.post(f"{_PROJECT}/refresh")
    def refresh(project_id: int) -> ResponseReturnValue:
        view = _view(project_id)
        services.store.requests.add(Request(view.project.id, Kind.SYNC))
        return answers.done(
            request, project_id, "New tasks are looked for, and missing predictions pushed."
        )

    @page.post(f"{_PROJECT}/use")
    def use(project_id: int) -> ResponseReturnValue:
        # With the job queue, which an API that only answers Label Studio does not need.
        from backend import versions

        view = _view(project_id)
        try:
            name = versions.use(
                services.store, services.queue(), view.project.id, request.form.get("version", "")
            )
        except SettingsError as error:
            raise RequestError(str(error)) from error
        return answers.done(request, project_id, f"{name} is used from now on.")

    add_insight(page, _PROJECT, lambda project_id: _view(project_id))
    add_search(page, _PROJECT, lambda project_id: _view(project_id))
    add_prompts(page, _PROJECT, lambda project_id: _view(project_id))

    def _view(project_id: int) -> ProjectView:
        known = services.store.projects.get(project_id)
        if known is None:
            raise NotFoundError(
                f"project {project_id} is not known here: "
                f"run `clip-backend connect --project {project_id}`"
            )
        return ProjectView(services, known)

    return page
