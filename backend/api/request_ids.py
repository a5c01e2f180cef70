"""A name for each request, in its answer and in each line that is logged meanwhile."""

from __future__ import annotations

import re
import uuid
from contextlib import ExitStack

from flask import Flask, Response, g, request

from backend.logs import at_hand

HEADER = "X-Request-ID"

# What a proxy or a client may call its request; anything else could forge a line of the log.
_SOUND = re.compile(r"[A-Za-z0-9._-]{1,64}")


def name_requests(app: Flask) -> None:
    """Give each request of an app the id that it comes with, or a new one."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get(HEADER, "")
        g.request_id = given if _SOUND.fullmatch(given) else uuid.uuid4().hex
        g.names = ExitStack()
        g.names.enter_context(at_hand(request=g.request_id))

    @app.after_request
    def tell(response: Response) -> Response:
        if "request_id" in g:
            response.headers[HEADER] = g.request_id
        return response

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        if "names" in g:
            g.pop("names").close()
