"""The README says what is: its tables are held against settings, commands and endpoints."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main

from backend.cli import app
from backend.settings import LearningSettings, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def shown(default: Any) -> str:
    if default is None:
        return "–"
    if isinstance(default, Enum):
        return f"`{default.value}`"
    return f"`{int(default) if isinstance(default, float) and default.is_integer() else default}`"


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| (.+) \|$", section("Settings"), re.MULTILINE)

    assert rows == [
        (name.upper(), shown(field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]


def test_every_learning_setting_is_in_the_extra_params_example() -> None:
    (example,) = re.findall(r"```json\n(.+?)```", section("Settings"), re.DOTALL)

    keys = re.findall(r'^\s*[{]?"(\w+)":|, "(\w+)":', example, re.MULTILINE)
    assert {first or second for first, second in keys} >= LearningSettings.model_fields.keys()


def test_every_command_is_in_the_table() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    assert set(
        re.findall(r"^\| `clip-backend ([\w-]+)`", section("Commands"), re.MULTILINE)
    ) == set(commands)


def test_every_endpoint_is_in_the_table() -> None:
    documented = set(re.findall(r"`((?:GET|POST) /[\w.]*)`", section("Endpoints")))
    source = (ROOT / "backend" / "api" / "routes.py").read_text()
    built = re.findall(r'@protocol\.(get|post)\("(/[\w.]*)"\)', source)

    assert documented == {f"{method.upper()} {path}" for method, path in built}


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
