#!/usr/bin/env python3
"""Let a Markdown file's links into the repository work elsewhere: FILE OWNER/NAME TAG."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)([^)]+\))")


def absolute(text: str, repository: str, tag: str) -> str:
    """Return the text with each relative link as an address on GitHub."""

    def address(link: re.Match[str]) -> str:
        image, label, path = link.groups()
        kind = "raw" if image else "blob"
        return f"{image}{label}https://github.com/{repository}/{kind}/{tag}/{path}"

    return _LINK.sub(address, text)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(absolute(file.read_text(encoding="utf-8"), *sys.argv[2:4]), encoding="utf-8")
