from __future__ import annotations

import hashlib
from pathlib import Path

import backend.page

STATIC = Path(backend.page.__file__).parent / "static"


def test_the_libraries_of_the_page_are_those_that_were_fetched() -> None:
    vendor = STATIC / "vendor"
    sums = dict(reversed(line.split()) for line in (vendor / "SHA256SUMS").read_text().splitlines())

    assert {path.name for path in vendor.iterdir()} == {*sums, "SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
