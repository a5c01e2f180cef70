"""Logs are events: one line each, ids not bodies, no secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from types import MappingProxyType

_LONGEST_LINE = 4000
_LONGEST_TRACEBACK = 40_000

# A placeholder of a message, and the key that stands before it.
_PLACEHOLDER = re.compile(r"(?:\b(\w+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?([a-zA-Z]))")

# Which request or job is at hand.
_ids: ContextVar[Mapping[str, str]] = ContextVar("log_ids", default=MappingProxyType({}))


@contextmanager
def at_hand(**ids: str) -> Iterator[None]:
    """Put ids into every line that is logged meanwhile, in this thread."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def ids_at_hand() -> Mapping[str, str]:
    """Return the ids of the request or job at hand."""
    return _ids.get()


def configure_logging(level: str, style: str = "text") -> None:
    """Send this process's events to standard error, as lines of `text` or of `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    # open_clip writes its download troubles to the root logger; ours say them in one line.
    handler.addFilter(lambda record: record.name != "root")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("backend").setLevel(level)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    # Pillow's are about what a picture's file says, thousands for one file: anybody could fill the
    # log with them, and the memory too, where Python keeps which it has shown.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def formatter(style: str) -> logging.Formatter:
    """Return what makes lines of `text` or of `json`."""
    return _Json() if style == "json" else _Text()


class _Text(logging.Formatter):
    """Keeps what strangers have sent from looking like an event of its own."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s: %(ids)s%(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — logging's name
        # Before the message, which may hold what strangers have sent.
        record.ids = "".join(f"{name}={value} " for name, value in _ids.get().items())
        line = super().formatMessage(record)
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_LONGEST_LINE])
        return shown if len(line) <= _LONGEST_LINE else f"{shown} …"


class _Json(logging.Formatter):
    """One object a line, in ASCII, so that no text can end it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what the message says as `key=value` is a field of its own too."""
        message = record.getMessage()
        event: dict[str, object] = {
            **_fields(record),
            **_ids.get(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": message[:_LONGEST_LINE] + (" …" if len(message) > _LONGEST_LINE else ""),
        }
        if record.exc_info and record.exc_info[0] is not None:
            told = "".join(traceback.format_exception(*record.exc_info))
            event["exception"] = told[-_LONGEST_TRACEBACK:]
        return json.dumps(event)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the values that the message's template names, such as `project=%d`.

    By the template, not by the message: a value may hold what looks like another key.
    """
    if not isinstance(record.args, tuple):
        return {}
    found = [match for match in _PLACEHOLDER.finditer(str(record.msg)) if match[2]]
    return {
        match[1]: value if _is_number(value) else str(value)[:_LONGEST_LINE]
        for match, value in zip(found, record.args, strict=False)
        if match[1]
    }


def _is_number(value: object) -> bool:
    # JSON knows no infinity.
    return isinstance(value, int) or (isinstance(value, float) and isfinite(value))
