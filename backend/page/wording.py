"""Names and times as people read them."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timezone

_LONGEST_NAME = 80

# Control signs, what turns the direction of text, halves of pairs, and ends of lines.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def shown(text: object) -> str:
    """Return a name from outside as it may stand in a line: short, and nothing unseen in it."""
    clean = "".join(
        " " if unicodedata.category(sign) in _UNSEEN else sign
        for sign in str(text)[: _LONGEST_NAME + 1]
    )
    return clean if len(clean) <= _LONGEST_NAME else f"{clean[: _LONGEST_NAME - 1]}…"


def as_utc(unix_time: float) -> str:
    """Return a time for `<time datetime>`; the browser shows it in its own zone."""
    return f"{datetime.fromtimestamp(unix_time, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
