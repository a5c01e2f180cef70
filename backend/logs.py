"""Logs are events: one line each, ids not bodies, no secrets."""

from __future__ import annotations

import logging
import sys
import warnings

_LONGEST_LINE = 4000


class _OneLine(logging.Formatter):
    """Keeps what strangers have sent from looking like an event of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — logging's name
        line = super().formatMessage(record)
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_LONGEST_LINE])
        return shown if len(line) <= _LONGEST_LINE else f"{shown} …"


def configure_logging(level: str) -> None:
    """Send this process's events to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    # open_clip writes its download troubles to the root logger; ours say them in one line.
    handler.addFilter(lambda record: record.name != "root")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("backend").setLevel(level)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    # Pillow's are about what a picture's file says, thousands for one file: anybody could fill the
    # log with them, and the memory too, where Python keeps which it has shown.
    warnings.filterwarnings("ignore", module=r"PIL\.")
