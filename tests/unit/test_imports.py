from __future__ import annotations

import os
import re
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' OpenMP prints otherwise")
@pytest.mark.parametrize(("wanted", "found"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_that_wait_sleep_unless_somebody_wants_it_otherwise(
    wanted: str | None, found: str
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"
    } | {"OMP_DISPLAY_ENV": "true"}
    if wanted is not None:
        environment["OMP_WAIT_POLICY"] = wanted

    done = subprocess.run(
        [sys.executable, "-c", "import backend.learning.training, sklearn.linear_model"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    # Once by each of the libraries that bring an OpenMP.
    assert set(re.findall(r"OMP_WAIT_POLICY = '(\w+)'", done.stderr)) == {found}
