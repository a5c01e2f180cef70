"""Only the page's own forms may change anything: a form of another site is refused."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Request

from backend.errors import ForbiddenError


def check_same_origin(request: Request, public_url: str | None) -> None:
    """Refuse a request that a page of another origin has made.

    Browsers say in `Sec-Fetch-Site` where a request comes from. They leave it out on plain http
    from anywhere but localhost, and say the origin alone: its host must be the one that was asked,
    or the page's public one where a proxy asks under another name.

    Raises ForbiddenError.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site == "same-origin":
        return
    if site is None:
        origin = _host(request.headers.get("Origin"))
        if origin is not None and origin in (request.host.lower(), _host(public_url)):
            return
    raise ForbiddenError(
        "only the page's own buttons may do that: open the page itself and press the button there"
    )


def _host(origin: str | None) -> str | None:
    if origin is None:
        return None
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") and parts.netloc else None
