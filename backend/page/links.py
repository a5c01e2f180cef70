"""Where a browser finds things in Label Studio; nothing but http and https is ever linked to."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

# What Label Studio reads for a browser, if the browser's user may see the task.
_CLOUD_SCHEMES = frozenset({"s3", "gs", "azure-blob"})


@dataclass(frozen=True)
class LabelStudioLinks:
    """Addresses in Label Studio as a browser sees it; None where that is not configured."""

    url: str | None

    @property
    def origin(self) -> str | None:
        """Scheme, host and port, as a content security policy names them."""
        if self.url is None:
            return None
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def data_manager(self, project_id: int) -> str | None:
        """Return the address of a project's tasks."""
        return self._under(f"/projects/{project_id}/data")

    def view(self, project_id: int, view_id: int) -> str | None:
        """Return the address of a view of a project's tasks."""
        return self._under(f"/projects/{project_id}/data?tab={view_id}")

    def task(self, project_id: int, task_id: int) -> str | None:
        """Return the address of one task, opened for annotation."""
        return self._under(f"/projects/{project_id}/data?task={task_id}")

    def picture(self, task_id: int, source: str) -> str | None:
        """Return where a browser gets a task's picture, by the rights of its own user.

        None for what is no picture's address on the web or in Label Studio.
        """
        if source.startswith("/") and not source.startswith("//"):
            return self._under(quote(source, safe="/?&=%+:,;~@!$'()*"))
        try:
            parts = urlsplit(source)
        except ValueError:
            return None
        if parts.scheme.lower() in _CLOUD_SCHEMES:
            uri = base64.urlsafe_b64encode(source.encode(errors="replace")).decode()
            return self._under(f"/tasks/{task_id}/resolve/?fileuri={uri}")
        if parts.scheme.lower() in ("http", "https") and parts.hostname:
            return source
        return None

    def _under(self, path: str) -> str | None:
        return None if self.url is None else f"{self.url}{path}"
