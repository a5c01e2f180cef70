"""A real Chromium, and its pictures for the documentation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.parts import PATIENCE

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


def save_screenshot(page: Page, file: Path, *, full_page: bool = False) -> None:
    """Take a picture of a page, small enough for a repository."""
    taken = Image.open(BytesIO(page.screenshot(full_page=full_page)))
    # A page has few colours: a palette is a third of the size and looks the same.
    small = taken.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
