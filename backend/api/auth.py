"""Who may ask what.

Everything but `/` and `/health` asks for basic auth where it is set. Label Studio sends none with
a webhook: there, the secret that `connect` puts into the webhook's headers does instead. What is
sent and wrong is counted, passwords and secrets apart: a Label Studio whose webhook carries an
old secret still gets its predictions.
"""

from __future__ import annotations

import hmac
import logging
from hashlib import sha256
from typing import NoReturn

from flask import Request

from backend.api.connections import body_is_here
from backend.api.failed_logins import FailedLogins, address_of
from backend.errors import AuthenticationError
from backend.settings import Settings
from backend.store.projects import Project, Projects

log = logging.getLogger(__name__)

SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 — a header's name

OPEN_PATHS = frozenset({"/", "/health"})
WEBHOOK_PATH = "/webhook"


def check_basic_auth(settings: Settings, request: Request, passwords: FailedLogins) -> None:
    """Let in a request with the credentials that are set, where any are.

    Raises AuthenticationError, or TooManyRequestsError where too many were wrong.
    """
    if request.path in OPEN_PATHS or request.path == WEBHOOK_PATH:
        return
    if settings.basic_auth_user is not None and not _logs_in(settings, request, passwords):
        raise AuthenticationError("basic auth is needed: BASIC_AUTH_USER and BASIC_AUTH_PASS")


def check_sender(
    settings: Settings,
    request: Request,
    projects: Projects,
    passwords: FailedLogins,
    secrets: FailedLogins,
) -> None:
    """Let nobody without a secret of any project keep a thread waiting for a webhook's body.

    Which project it is of, only the body tells. Raises as `check_webhook` does.
    """
    if body_is_here(request) or not _must_prove(settings, request, passwords):
        return
    if SECRET_HEADER in request.headers:
        sent = digest(request.headers[SECRET_HEADER])
        right = _is_shared_secret(settings, sent) or projects.have_webhook_digest(sent)
        secrets.judge((address_of(request.remote_addr), None), right=right)
        if right:
            return
    _refuse(None)


def check_webhook(
    settings: Settings,
    request: Request,
    project: Project | None,
    passwords: FailedLogins,
    secrets: FailedLogins,
) -> None:
    """Let in a webhook that proves where it comes from, where it must.

    Raises AuthenticationError, or TooManyRequestsError where too many proofs were wrong.
    """
    if not _must_prove(settings, request, passwords):
        return
    if SECRET_HEADER in request.headers:
        sent = digest(request.headers[SECRET_HEADER])
        kept = (project.webhook_digest if project is not None else None) or ""
        right = (
            hmac.compare_digest(sent, kept)
            if settings.webhook_secret is None
            else _is_shared_secret(settings, sent)
        )
        # One Label Studio sends the webhooks of several projects, and some may have been forgotten.
        client = (address_of(request.remote_addr), None if project is None else project.id)
        secrets.judge(client, right=right)
        if right:
            return
    _refuse(project)


def _must_prove(settings: Settings, request: Request, passwords: FailedLogins) -> bool:
    if not settings.requires_auth:
        return False
    return settings.basic_auth_user is None or not _logs_in(settings, request, passwords)


def _is_shared_secret(settings: Settings, sent: str) -> bool:
    secret = settings.webhook_secret
    return secret is not None and hmac.compare_digest(sent, digest(secret.get_secret_value()))


def _refuse(project: Project | None) -> NoReturn:
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


def _logs_in(settings: Settings, request: Request, passwords: FailedLogins) -> bool:
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return False
    try:
        given = request.authorization
    except ValueError:  # what is no ASCII
        return False
    if given is None or given.type != "basic":
        return False
    # Both are compared, whatever the first gives: the time taken tells nothing.
    user = hmac.compare_digest(digest(given.username or ""), digest(settings.basic_auth_user))
    password = hmac.compare_digest(
        digest(given.password or ""), digest(settings.basic_auth_pass.get_secret_value())
    )
    right = user and password
    passwords.judge(address_of(request.remote_addr), right=right)
    return right
