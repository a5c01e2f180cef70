"""How the page answers: its headers, its errors, and what a button says."""

from __future__ import annotations

import json

from flask import Request, Response, redirect, render_template, url_for
from flask.typing import ResponseReturnValue

REFRESH = "refresh-panels"

# Browsers send some 150 characters.
_LONGEST_ACCEPT = 1000


def is_for_htmx(request: Request) -> bool:
    """Tell whether a part of the page is asked for, by the page itself."""
    return request.headers.get("HX-Request") == "true"


def prefers_html(request: Request) -> bool:
    """Tell a browser from a machine, by what it accepts first."""
    if is_for_htmx(request):
        return True
    formats = ("application/json", "text/html")
    # To take it apart takes time that grows with the square of its length.
    is_short = len(request.headers.get("Accept", "")) <= _LONGEST_ACCEPT
    return is_short and request.accept_mimetypes.best_match(formats) == formats[1]


def security_policy(label_studio_origin: str | None) -> str:
    """Return the content security policy: nothing but what the page brings, and pictures."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "font-src 'self'",
            # They are wherever a task says; Label Studio shows them to annotators from there.
            "img-src 'self' data: http: https:",
            # Some buttons end in Label Studio.
            " ".join(filter(None, ("form-action 'self'", label_studio_origin))),
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


def error_page(request: Request, response: Response) -> str:
    """Return an error of the API as people read it."""
    body = response.get_json(silent=True)
    sentence = body.get("error", "") if isinstance(body, dict) else ""
    template = "error_part.html" if is_for_htmx(request) else "error.html"
    return render_template(template, status=response.status_code, sentence=sentence)


def done(request: Request, project_id: int, sentence: str) -> ResponseReturnValue:
    """Answer a button: say what was done, and have the panels looked at anew."""
    if not is_for_htmx(request):
        return redirect(url_for("page.project", project_id=project_id), 303)
    headers = {"HX-Trigger": json.dumps({REFRESH: None})}
    return render_template("said.html", sentence=sentence), 200, headers
