"""Who may ask what.

Everything but `/` and `/health` asks for basic auth where it is set. Label Studio sends none with
a webhook: there, the secret that `connect` puts into the webhook's headers does instead.
"""

from __future__ import annotations

import hmac
import logging
from hashlib import sha256

from flask import Request

from backend.errors import AuthenticationError
from backend.settings import Settings
from backend.store.projects import Project

log = logging.getLogger(__name__)

SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 — a header's name

OPEN_PATHS = frozenset({"/", "/health"})
WEBHOOK_PATH = "/webhook"


def check_basic_auth(settings: Settings, request: Request) -> None:
    """Raise AuthenticationError for a request without the credentials that are set."""
    if request.path in OPEN_PATHS or request.path == WEBHOOK_PATH:
        return
    if settings.basic_auth_user is not None and not _has_basic_auth(settings, request):
        raise AuthenticationError("basic auth is needed: BASIC_AUTH_USER and BASIC_AUTH_PASS")


def check_webhook(settings: Settings, request: Request, project: Project | None) -> None:
    """Raise AuthenticationError for a webhook that does not prove where it comes from."""
    if not settings.requires_auth:
        return
    if settings.basic_auth_user is not None and _has_basic_auth(settings, request):
        return
    sent = digest(request.headers.get(SECRET_HEADER, ""))
    if settings.webhook_secret is not None:
        expected = digest(settings.webhook_secret.get_secret_value())
    else:
        expected = (project.webhook_digest if project is not None else None) or ""
    if hmac.compare_digest(sent, expected):
        return
    where = project.id if project is not None else "ID"
    log.warning(
        "webhook refused project=%s: it carries no valid %s header; "
        "put it there with `clip-backend connect --project %s`",
        where,
        SECRET_HEADER,
        where,
    )
    raise AuthenticationError(
        f"the webhook carries no valid {SECRET_HEADER} header: "
        f"run `clip-backend connect --project {where}`"
    )


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _has_basic_auth(settings: Settings, request: Request) -> bool:
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return False
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    # Both are compared, whatever the first gives: the time taken tells nothing.
    user = hmac.compare_digest(digest(given.username or ""), digest(settings.basic_auth_user))
    password = hmac.compare_digest(
        digest(given.password or ""), digest(settings.basic_auth_pass.get_secret_value())
    )
    return user and password
