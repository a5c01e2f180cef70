"""How often people keep the prediction that they are shown, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.page.charts import Chart
from backend.page.services import ProjectView
from backend.page.wording import as_utc, shown
from backend.store.history import Entry

# A point is the rate of so many predictions at least: with fewer it would jump.
_AT_LEAST = 20
_MOST_POINTS = 200
_SYMBOLS = ("circle", "diamond", "triangle", "rect", "roundRect", "pin")


@dataclass(frozen=True)
class SoFar:
    """How many predictions of a control were shown and judged, and how many were kept."""

    control: str
    shown: int
    kept: int

    @property
    def rate(self) -> float:
        """The share that was kept."""
        return self.kept / self.shown


@dataclass(frozen=True)
class Acceptance:
    """What was shown and kept so far, a row a control, and the rate over time."""

    so_far: list[SoFar]
    chart: Chart | None


@dataclass(frozen=True)
class _Stretch:
    """Of `shown` predictions that people saw until then (Unix time) since the last one."""

    until: float
    shown: int
    kept: int


def acceptance(view: ProjectView) -> Acceptance:
    """Return how often people kept what they were shown."""
    entries = view.store.history.of(view.project.id)
    if not entries:
        return Acceptance([], None)
    so_far, series, rows = [], [], []
    for number, (control, figures) in enumerate(entries[-1].figures.items()):
        if not figures.shown:
            continue
        so_far.append(SoFar(control, figures.shown, figures.kept or 0))
        stretches = _stretches(entries, control)
        series.append(_series(control, stretches, _SYMBOLS[number % len(_SYMBOLS)]))
        rows += [
            (control, as_utc(each.until), f"{each.kept / each.shown:.0%}", each.shown)
            for each in stretches[::-1]
        ]
    columns = ("control", "until", "kept", "of so many shown")
    option = {
        "grid": {"left": 8, "right": 24, "top": 40, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "type": "scroll"},
        "tooltip": {"trigger": "item"},
        "xAxis": {"type": "time"},
        "yAxis": {
            "type": "value",
            "min": 0,
            "max": 100,
            "axisLabel": {"formatter": "{value} %"},
        },
        "series": series,
    }
    chart = Chart("Acceptance rate over time", option, columns, rows, 260) if rows else None
    return Acceptance(so_far, chart)


def _stretches(entries: Sequence[Entry], control: str) -> list[_Stretch]:
    """Return what came between versions, taken together until it is enough to be a rate."""
    found: list[_Stretch] = []
    seen = kept = 0
    for entry in entries:
        figures = entry.figures.get(control)
        if figures is None or figures.shown is None or figures.kept is None:
            continue
        if figures.shown < seen:
            # It was counted anew, as after a control was removed and came back.
            seen = kept = 0
        if figures.shown - seen >= _AT_LEAST:
            found.append(_Stretch(entry.created_at, figures.shown - seen, figures.kept - kept))
            seen, kept = figures.shown, figures.kept
    step = max(1, -(-len(found) // _MOST_POINTS))
    return [_together(found[start : start + step]) for start in range(0, len(found), step)]


def _together(stretches: Sequence[_Stretch]) -> _Stretch:
    return _Stretch(
        stretches[-1].until,
        sum(each.shown for each in stretches),
        sum(each.kept for each in stretches),
    )


def _series(control: str, stretches: Sequence[_Stretch], symbol: str) -> dict[str, Any]:
    return {
        "type": "line",
        "name": shown(control),
        "symbol": symbol,
        "symbolSize": 7,
        "data": [
            {
                "value": [round(1000 * each.until), round(100 * each.kept / each.shown, 1)],
                "tip": [
                    shown(control),
                    f"{each.kept} of {each.shown} kept ({each.kept / each.shown:.0%})",
                ],
            }
            for each in stretches
        ],
    }
