"""The wheel: what is in it, and that it runs outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import backend

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # Built from a copy: setuptools leaves a build folder in what it builds.
    source = tmp_path_factory.mktemp("source")
    tracked = ("pyproject.toml", "README.md", "LICENSE", "backend")
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in tracked), str(source)], check=True)
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True)
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_has_all_that_is_not_python_as_well_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {
        "backend/py.typed",
        "backend/clip/tiny/tiny.safetensors",
        "backend/clip/tiny/tiny.json",
        "backend/page/static/page.js",
        "backend/page/static/vendor/echarts.LICENSE",
        "backend/page/static/vendor/echarts.min.js",
        "backend/page/templates/panels/jobs.html",
        "backend/page/templates/project.html",
        "backend/store/migrations/env.py",
        "backend/store/migrations/script.py.mako",
        "backend/store/migrations/versions/r0001_first_release.py",
    } <= set(names)
    info = f"label_studio_clip_backend-{backend.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"backend", info}
    # Every module of the repository is in it.
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "backend").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_the_version_has_one_place(wheel: Path) -> None:
    [metadata] = [
        zipfile.ZipFile(wheel).read(name).decode()
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith("/METADATA")
    ]

    assert message_from_string(metadata)["Version"] == backend.__version__
    assert backend.__version__ not in (ROOT / "pyproject.toml").read_text().split("dependencies")[0]


def test_the_demo_without_label_studio_runs_from_the_wheel_outside_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=tmp_path, check=True
    )
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    # Dependencies are those of this environment, without its editable install of the repository.
    [packages] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    where = subprocess.run(
        [str(python), "-c", "import backend; print(backend.__file__)"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "clip-backend"), "demo", "--no-label-studio"],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )

    assert Path(where.stdout.strip()).is_relative_to(packages)
    assert done.returncode == 0, done.stderr
    assert "0 (zero-shot)" in done.stdout
    assert "auto went from" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["venv"]
