"""Other sites may have a browser change nothing, whatever passwords it has kept."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Request

from backend.errors import ForbiddenError

_OTHER = "only the page's own buttons may do that: open the page itself and press the button there"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def check_same_origin(request: Request, public_url: str | None) -> None:
    """Refuse a form that is not of the page itself. Raises ForbiddenError."""
    if not _is_own(request, public_url):
        raise ForbiddenError(_OTHER)


def check_no_other_origin(request: Request, public_url: str | None) -> None:
    """Refuse what a page of another origin has a browser do; programs name no origin.

    Raises ForbiddenError.
    """
    if request.method not in _READING and _is_own(request, public_url) is False:
        raise ForbiddenError(_OTHER)


def _is_own(request: Request, public_url: str | None) -> bool | None:
    """Tell whether a page of our own makes a request; None where no page is said to.

    Browsers say in `Sec-Fetch-Site` where a request comes from. They leave it out on plain http
    from anywhere but localhost, and say the origin alone: its host must be the one that was asked,
    or the page's public one where a proxy asks under another name.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return None if site == "none" else site == "same-origin"
    said = request.headers.get("Origin")
    if said is None:
        return None
    return _host(said) in (request.host.lower(), _host(public_url) or request.host.lower())


def _host(origin: str | None) -> str | None:
    if origin is None:
        return None
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") and parts.netloc else None
