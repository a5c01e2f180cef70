"""The documents say what is: they are held against settings, commands, endpoints and messages."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import click
import pytest
import typer.main

from backend.cli import app
from backend.settings import LearningSettings, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.glob("*.md")]

# A message with fewer letters of its own could be anything.
TELLING = 10


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def shown(default: Any) -> str:
    if default is None:
        return "–"
    if isinstance(default, Enum):
        return f"`{default.value}`"
    return f"`{int(default) if isinstance(default, float) and default.is_integer() else default}`"


def fenced(text: str, language: str) -> list[str]:
    """Return the contents of the code blocks of a language, without their indentation."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        "\n".join(line.removeprefix(indent) for line in body.splitlines())
        for indent, body in blocks
    ]


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| (.+) \|$", page("configuration"), re.MULTILINE)

    assert rows == [
        (name.upper(), shown(field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]


def test_every_learning_setting_is_in_the_extra_params_example() -> None:
    [example] = fenced(page("configuration"), "json")

    keys = re.findall(r'^\s*[{]?"(\w+)":|, "(\w+)":', example, re.MULTILINE)
    assert {first or second for first, second in keys} >= LearningSettings.model_fields.keys()


def test_every_command_is_in_the_table() -> None:
    described = re.findall(r"^\| `clip-backend ([\w-]+)`", page("commands"), re.MULTILINE)

    assert sorted(described) == sorted(commands())


def test_every_endpoint_is_in_the_table() -> None:
    table = page("endpoints").split("\n## ")[0]
    documented = set(re.findall(r"`((?:GET|POST) /[\w.]*)`", table))
    source = (ROOT / "backend" / "api" / "routes.py").read_text()
    built = re.findall(r'@protocol\.(get|post)\("(/[\w.]*)"\)', source)

    assert documented == {f"{method.upper()} {path}" for method, path in built}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_line_of_a_page_is_one_that_the_program_takes(path: Path) -> None:
    for line in command_lines(path.read_text(encoding="utf-8"), "clip-backend"):
        name, *arguments = shlex.split(line, comments=True)[1:]
        if name == "COMMAND":
            continue
        command = commands()[name]
        # A bare name tells of the command and is not to be typed.
        assert not arguments or command.make_context(name, arguments), line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_of_a_page_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()

    for line in command_lines(path.read_text(encoding="utf-8"), "make"):
        targets = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]
        assert all(f"\n{target}:" in makefile for target in targets), line


def test_every_file_that_make_runs_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"\b(?:scripts|tests|benchmarks)/[\w./-]+", makefile)

    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_make_bench_runs_every_benchmark() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    benchmarks = re.findall(r"^BENCHMARKS := (.+)$", makefile, re.MULTILINE)[0].split()
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}

    # What they have in common, and the backend that one of them starts.
    assert programs - set(benchmarks) == {"parts", "example_backend"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_links_to_exists(path: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_message_of_the_troubleshooting_is_one_that_the_backend_has() -> None:
    text = page("troubleshooting")
    quoted = [line for block in fenced(text, "text") for line in block.splitlines()]
    in_tables = re.findall(r"^\| (?:\d+ \| )?(`{1,2})(.+?)\1 \|", text, re.MULTILINE)
    quoted += [message.strip() for _, message in in_tables]

    assert len(quoted) > 60
    unknown = [message for message in quoted if not any(it.fullmatch(message) for it in worded())]
    assert unknown == []


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    return dict(cast("click.Group", group).commands)


def command_lines(text: str, program: str) -> Iterator[str]:
    """Yield what a page tells to type, in a block or in a line."""
    for block in fenced(text, "bash"):
        for line in block.splitlines():
            if line.strip().startswith(f"{program} "):
                yield line.strip()
    for line in re.findall(
        rf"`({program} [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    ):
        if "…" not in line:
            yield line


@cache
def worded() -> list[re.Pattern[str]]:
    """Return what each text in the code can look like, with anything where it is filled in."""
    patterns = []
    for file in (ROOT / "backend").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = list(_parts(node))
            if sum(map(len, parts)) >= TELLING:
                patterns.append(re.compile(".*".join(map(re.escape, parts))))
    return patterns


def _parts(node: ast.AST) -> Iterator[str]:
    """Yield the fixed parts of a text; what lies between them differs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from re.split(r"%(?:s|d|\.\df)", node.value)
    elif isinstance(node, ast.JoinedStr):
        fixed = ""
        for value in node.values:
            if isinstance(value, ast.Constant):
                fixed += str(value.value)
            else:
                yield fixed
                fixed = ""
        yield fixed
