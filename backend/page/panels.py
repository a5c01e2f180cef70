"""The panels of a project's page, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backend.page.acceptance import acceptance
from backend.page.annotators import agreement
from backend.page.class_balance import class_balance
from backend.page.confusion import confusions
from backend.page.embedding_map import embedding_map
from backend.page.health import health
from backend.page.jobs import jobs
from backend.page.learning_curve import learning_curve
from backend.page.overview import overview
from backend.page.prompts import prompts_form
from backend.page.searching import search_form
from backend.page.services import ProjectView
from backend.page.suspects import suspects
from backend.page.uncertain import uncertain
from backend.page.versions import versions


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
    Panel("jobs", "Jobs", jobs, seconds=3),
    Panel("learning_curve", "Learning curve", learning_curve),
    Panel("class_balance", "Class balance", class_balance),
    Panel("uncertain", "Least certain images", uncertain, wide=True),
    Panel("search", "Search", search_form, seconds=0, lazy=True, wide=True),
    Panel("confusion", "Confused choices", confusions, lazy=True),
    Panel("acceptance", "Acceptance rate", acceptance, lazy=True),
    Panel("suspects", "Suspected label errors", suspects, lazy=True, wide=True),
    Panel("map", "Map of the images", embedding_map, lazy=True, wide=True),
    Panel("prompts", "Prompts", prompts_form, seconds=0, lazy=True, wide=True),
    Panel("versions", "Versions", versions),
    Panel("agreement", "Annotator agreement", agreement),
    Panel("health", "Health", health, lazy=True),
)
# fmt: on

# What the page itself begins with.
OVERVIEW = Panel("overview", "Overview", overview, seconds=5)

BY_NAME = {panel.name: panel for panel in (OVERVIEW, *PANELS)}
