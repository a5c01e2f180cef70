"""Names and times as people read them."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timezone

_LONGEST_NAME = 80

# Control signs, what turns the direction of text, halves of pairs, and ends of lines.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def shown(text: object) -> str:
    """Return a name from outside as it may stand in a line: short, and nothing unseen in it.

    A long one keeps its end: of a path that is the choice itself.
    """
    name = str(text)
    if len(name) > _LONGEST_NAME:
        front = _LONGEST_NAME // 2 - 1
        name = f"{name[:front]}…{name[front + 1 - _LONGEST_NAME :]}"
    return "".join(" " if unicodedata.category(sign) in _UNSEEN else sign for sign in name)


def as_utc(unix_time: float) -> str:
    """Return a time for `<time datetime>`; the browser shows it in its own zone."""
    return f"{datetime.fromtimestamp(unix_time, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
