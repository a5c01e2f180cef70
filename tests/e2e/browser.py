"""A real Chromium, and its pictures for the documentation."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from backend import wsgi
from backend.demo.label_studio import LabelStudioServer
from backend.settings import Settings
from tests.e2e.parts import PATIENCE

# What axe calls worth mending at once.
GRAVE = {"serious", "critical"}

CHROMIUM = Path(os.environ.get("CHROMIUM") or "/usr/bin/chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser that is running."""
    if not os.access(CHROMIUM, os.X_OK):
        pytest.fail(f"no browser at {CHROMIUM}: install chromium, or name one with CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=PATIENCE * 1000
        )
        yield browser
        browser.close()


def log_in(page: Page, label_studio: LabelStudioServer) -> None:
    """Log the browser's user in to Label Studio."""
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", label_studio.email)
    page.fill("input[name=password]", label_studio.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url, wait_until="commit")


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Serve the API with the page from this process; yield its address."""
    server = make_server("127.0.0.1", 0, wsgi.create(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def save_screenshot(page: Page, file: Path, *, full_page: bool = False) -> None:
    """Take a picture of a page, small enough for a repository."""
    taken = Image.open(BytesIO(page.screenshot(full_page=full_page)))
    # A page has few colours: a palette is a third of the size and looks the same.
    small = taken.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
