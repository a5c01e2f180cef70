"""The quick start for data scientists, typed as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from backend.demo.pictures import CHOICES, render

PAGE = Path(__file__).parents[2] / "docs" / "quick-start-data-scientist.md"


def test_the_quick_start_for_data_scientists_works_to_the_letter(tmp_path: Path) -> None:
    for choice in CHOICES[:3]:
        (tmp_path / "pictures" / choice).mkdir(parents=True)
        for number in range(12):
            picture = render(choice, number, 96)
            picture.save(tmp_path / "pictures" / choice / f"{number}.png")
    page = PAGE.read_text(encoding="utf-8")
    # What it does without data is tested with the wheel.
    [_, with_data] = page.split("\n## With a set that is labelled already\n")
    blocks = re.findall(r"^```bash\n(.*?)^```$", with_data, re.MULTILINE | re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    for block in blocks:
        subprocess.run(
            ["bash", "-euc", block],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "CLIP_MODEL": "tiny"},
            check=True,
        )

    summary = (tmp_path / "simulation" / "summary.md").read_text(encoding="utf-8")
    assert all(strategy in summary for strategy in ("auto", "margin", "random"))
    assert (tmp_path / "simulation" / "learning_curves.png").exists()
