"""Logs are events: one line each, ids not bodies, no secrets."""

from __future__ import annotations

import logging
import sys
import warnings


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
    # Pillow's are about what a picture's file says, thousands for one file: anybody could fill the
    # log with them, and the memory too, where Python keeps which it has shown.
    warnings.filterwarnings("ignore", module=r"PIL\.")
