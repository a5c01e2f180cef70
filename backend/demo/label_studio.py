"""A real Label Studio as a child process."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

from backend.demo.processes import ChildProcess, free_port
from backend.errors import SettingsError

EMAIL = "demo@example.com"

# The first start migrates an empty database: over a minute on a small machine.
_START_WITHIN = 600.0

# Label Studio reads each of its settings under these prefixes as well as without one.
_PREFIXES = ("LABEL_STUDIO_", "HEARTEX_", "DJANGO_")


class LabelStudioServer:
    """A Label Studio with all its data in one folder, on the loopback interface.

    Email, password and token are made once for a folder and kept in it, beside `data`, which are
    Label Studio's own. `environment` adds to what Label Studio is started with.
    """

    def __init__(
        self,
        executable: Path,
        folder: Path,
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not os.access(executable, os.X_OK):
            raise SettingsError(
                f"Label Studio is not at {executable}: run `make demo`, which installs it, or "
                "install it with `pip install label-studio` in a virtual environment of its own "
                "and pass its program with --label-studio"
            )
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.data = self._folder / "data"
        credentials = self._credentials()
        self.email: str = credentials["email"]
        self.password: str = credentials["password"]
        self.token: str = credentials["token"]
        port = free_port(port)
        self.url = f"http://127.0.0.1:{port}"
        self._process = ChildProcess(
            "Label Studio",
            [
                str(executable.absolute()),
                *("start", "--no-browser"),
                *("--internal-host", "127.0.0.1"),
                *("--port", str(port)),
            ],
            self._environment() | dict(environment or {}),
            self._folder / "label-studio.log",
        )

    def __enter__(self) -> LabelStudioServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and return once it answers; raises ClipBackendError where it does not."""
        self._process.start(self._answers, _START_WITHIN)

    def stop(self) -> None:
        """Stop it; its data stay."""
        self._process.stop()

    def restart(self) -> None:
        """Stop it and start it again under the same address."""
        self.stop()
        self.start()

    def check(self) -> None:
        """Raise ClipBackendError if it has ended by itself."""
        self._process.check()

    def _answers(self) -> bool:
        try:
            response = httpx.get(
                f"{self.url}/api/version",
                headers={"Authorization": f"Token {self.token}"},
                timeout=10,
            )
        except httpx.HTTPError:
            return False
        return response.is_success

    def _credentials(self) -> dict[str, str]:
        path = self._folder / "credentials.json"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(
                json.dumps(
                    {
                        "email": EMAIL,
                        "password": secrets.token_urlsafe(12),
                        "token": secrets.token_hex(20),
                    }
                )
            )
        credentials: dict[str, str] = json.loads(path.read_text())
        return credentials

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)
        }
        return inherited | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.data),
            # Not on the command line, where every user of the machine could read them.
            "LABEL_STUDIO_USERNAME": self.email,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            # Otherwise it refuses a backend and webhooks on this machine.
            "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",
            "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
            # Otherwise each import of predictions recounts all tasks of the project.
            "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short": "true",
            # It speaks to nobody else.
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_SENTRY_DSN": "",
            "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
            # Under these names other programs' settings would change it.
            "LABEL_STUDIO_HOST": "",
            "LABEL_STUDIO_DEBUG": "false",
            "LABEL_STUDIO_LOG_LEVEL": "WARNING",
        }
