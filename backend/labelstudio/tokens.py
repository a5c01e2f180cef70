"""The two kinds of Label Studio's tokens."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Generator

import httpx

# An import of many predictions takes Label Studio seconds, and it may be busy with others' work.
TIMEOUT = httpx.Timeout(120.0, connect=5.0)

# An access token is renewed before it runs out, so that no request meets the end of it.
_RENEW_BEFORE = 30.0


class TokenAuth(httpx.Auth):
    """Authenticates with a legacy token, or exchanges a personal access token for short ones.

    A personal access token is a JWT that only `/api/token/refresh` takes; what it returns is good
    for minutes.
    """

    def __init__(self, url: str, token: str) -> None:
        self._refresh_url = f"{url}/api/token/refresh"
        self._token = token
        self._is_personal = _expiry(token) is not None
        self._lock = threading.Lock()
        self._access = ""
        self._access_ends = 0.0

    def headers(self) -> dict[str, str]:
        """Return the header that authenticates; raises httpx.HTTPError where none can be had."""
        if not self._is_personal:
            return {"Authorization": f"Token {self._token}"}
        with self._lock:
            if time.time() > self._access_ends - _RENEW_BEFORE:
                self._renew()
            return {"Authorization": f"Bearer {self._access}"}

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the header; once more with a new access token where the old one was revoked."""
        request.headers.update(self.headers())
        response = yield request
        if response.status_code == 401 and self._is_personal:
            with self._lock:
                self._access_ends = 0.0
            request.headers.update(self.headers())
            yield request

    def _renew(self) -> None:
        response = httpx.post(self._refresh_url, json={"refresh": self._token}, timeout=TIMEOUT)
        try:
            access = str(response.json()["access"]) if response.is_success else ""
        except (ValueError, KeyError, TypeError):
            access = ""
        # A refused token is sent as an empty one: the answer then is Label Studio's own refusal.
        self._access = access or "refused"
        self._access_ends = _expiry(access) or 0.0


def _expiry(token: str) -> float | None:
    """Return when a JWT runs out (Unix time); None for what is not a JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None
