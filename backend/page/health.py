"""Each link as `clip-backend doctor` sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.page.remembered import Remembered
from backend.page.services import ProjectView

if TYPE_CHECKING:
    from backend.doctor import Finding

_SECONDS = 30.0
_PATIENCE = 2.0


class Findings:
    """What was found of each project's links; looked at in the background."""

    def __init__(self, look: Callable[[int], Sequence[Finding]]) -> None:
        self._look = look
        self._by_project: dict[int, Remembered[Sequence[Finding]]] = {}

    def __call__(self, project_id: int) -> Sequence[Finding] | None:
        """Return what is known of a project's links; None where nobody has looked yet."""
        remembered = self._by_project.setdefault(
            project_id,
            Remembered(
                "Label Studio",
                lambda: self._look(project_id),
                seconds=_SECONDS,
                patience=_PATIENCE,
            ),
        )
        return remembered.read()


@dataclass(frozen=True)
class Health:
    """What was found; None while the first look is under way."""

    findings: Sequence[Finding] | None

    @property
    def wrong(self) -> int:
        """How many links need mending."""
        return sum(not finding.well for finding in self.findings or ())


def health(view: ProjectView) -> Health:
    """Return how each link of a project is."""
    return Health(view.services.findings(view.project.id))
