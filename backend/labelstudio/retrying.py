"""Which requests to Label Studio are made again, and when."""

from __future__ import annotations

import httpx
import tenacity

from backend.errors import LabelStudioUnreachableError

# A refused request that another try cannot mend is not retried.
BUSY = frozenset({429, 502, 503, 504})

# Label Studio may ask for a pause, which a job does not wait out for longer, in seconds.
LONGEST_PAUSE = 30.0

_IDEMPOTENT = frozenset({"GET", "PATCH", "PUT", "DELETE"})
_TOO_MANY_REQUESTS = 429
_ATTEMPTS = 4

_backoff = tenacity.wait_random_exponential(multiplier=0.25, max=5)


def retrying(method: str) -> tenacity.Retrying:
    """Return what calls a function until it is answered, where a second request does no harm."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _is_harmless_again(method, error)),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=_pause,
        reraise=True,
    )


def retry_after(response: httpx.Response) -> float:
    """Return the seconds after which to ask again (RFC 9110, 10.2.3); 0 where it does not say."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _is_harmless_again(method: str, error: BaseException) -> bool:
    # What was surely not done, or does the same when it is done twice.
    return isinstance(error, LabelStudioUnreachableError) and (
        method in _IDEMPOTENT
        or isinstance(error.__cause__, httpx.ConnectError)
        or error.label_studio_status == _TOO_MANY_REQUESTS
    )


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, LabelStudioUnreachableError) else 0.0
    return max(_backoff(state), min(asked, LONGEST_PAUSE))
