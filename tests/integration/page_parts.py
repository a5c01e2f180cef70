"""What the tests of the page have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from xml.sax.saxutils import quoteattr

import torch
from flask import Flask
from flask.testing import FlaskClient

from backend.embedding import Embedder
from backend.errors import EncoderError
from backend.jobs.queue import JobQueue
from backend.learning.head import Head
from backend.page.blueprint import create_blueprint
from backend.page.links import LabelStudioLinks
from backend.page.services import PageServices
from backend.settings import Settings
from backend.store import Store
from backend.store.findings import FindingKind
from backend.store.versions import ControlHead, Version

PROJECT = 7
LABEL_STUDIO = "https://labels.example.com"

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HTMX = {"HX-Request": "true"}
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}

# Names that no page may take for its own words.
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\"'><svg/onload=alert(1)>",
    "{{ 7 * 7 }}",
    "{b}: {c}%",
    "\u202egnp.exe",
    "a\u2028b\0c",
    "x" * 5000,
    "شجرة",
)


def with_page(app: Flask, store: Store, **values: Any) -> FlaskClient:
    """Return a browser's client of an app of the API with the page."""
    parts = {
        "store": store,
        "label_studio": LabelStudioLinks(LABEL_STUDIO),
        # Nobody listens there.
        "queue": lambda: JobQueue("redis://127.0.0.1:1/0"),
        "learning": Settings.read().learning,
        "embedder": _still_loading,
    }
    services = PageServices(**parts | values)
    app.register_blueprint(create_blueprint(services))
    client = app.test_client()
    client.environ_base["HTTP_ACCEPT"] = BROWSER["Accept"]
    return client


def _still_loading() -> Embedder:
    raise EncoderError("CLIP is still being loaded: try again in a moment")


def config_of(choices: Sequence[str]) -> str:
    """Return a labeling config of one control, `colour`."""
    listed = "".join(f"<Choice value={quoteattr(choice)}/>" for choice in choices)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="colour" toName="image">{listed}</Choices></View>'
    )


def publish(
    store: Store,
    report: dict[str, Any],
    *,
    labels: Sequence[str] = (),
    project_id: int = PROJECT,
    findings: Mapping[FindingKind, bytes] = MappingProxyType({}),
) -> Version:
    """Store a version of a project whose report is known, with a head of a control's choices."""
    config = config_of(labels) if labels else "<View/>"
    store.projects.set_up(project_id, label_config=config, extra_params={})
    rows = len(labels)
    head = Head(torch.zeros(rows, 4), torch.zeros(rows), multiple=False)
    version = Version(
        project_id,
        number=0,
        fingerprint="0" * 64,
        encoder="tiny",
        query_strategy="margin",
        score="confidence",
        heads={"colour": ControlHead(tuple(labels), head)} if labels else {},
        annotations=12,
        report=report,
    )
    return store.versions.publish(version, findings)
