from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "heavy", ["torch", "alembic", "flask", "sqlalchemy", "open_clip", "rq", "gunicorn"]
)
def test_the_command_line_starts_without_what_only_some_commands_need(heavy: str) -> None:
    code = f"import sys, backend.cli; sys.exit({heavy!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_and_errors_need_no_numerics() -> None:
    code = "import sys, backend.settings, backend.errors; sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
