"""The panels of a project's page, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backend.page.class_balance import class_balance
from backend.page.prompts import prompts_form
from backend.page.searching import search_form
from backend.page.services import ProjectView


@dataclass(frozen=True)
class Panel:
    """One panel; `templates/panels/NAME.html` shows as `panel` what its function returns.

    It is looked at anew every `seconds` while the tab is seen, never where that is 0. One that is
    `lazy` is first loaded when it comes into sight; one
    that is `wide` takes the page's whole width.
    """

    name: str
    title: str
    values: Callable[[ProjectView], object]
    seconds: int = 10
    lazy: bool = False
    wide: bool = False


# One line each, so that panels that come from several sides do not touch.
# fmt: off
PANELS: tuple[Panel, ...] = (
    Panel("class_balance", "Class balance", class_balance),
    Panel("search", "Search", search_form, seconds=0, lazy=True, wide=True),
    Panel("prompts", "Prompts", prompts_form, seconds=0, lazy=True, wide=True),
)
# fmt: on

BY_NAME = {panel.name: panel for panel in PANELS}
