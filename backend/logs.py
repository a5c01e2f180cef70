"""Logs are events: one line each, ids not bodies, no secrets."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Send this process's events to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    # open_clip writes its download troubles to the root logger; ours say them in one line.
    handler.addFilter(lambda record: record.name != "root")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("backend").setLevel(level)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
