"""Charts as ECharts draws them, each with a table of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.page.wording import shown

# More rows are more than anybody reads, and too many for a browser's table.
MOST_ROWS = 1_000

# From little to much: seen on light and dark, also by colour-blind people.
LEVELS = ("#9fb3c8", "#c3b091", "#dfa04e", "#d9772b", "#c4450c")

# Bars that are seen at once; the others are reached by scrolling in the chart.
_BARS_AT_ONCE = 15
_BAR_HEIGHT = 22
_MARGINS = 70


@dataclass(frozen=True)
class Chart:
    """A chart: ECharts' option, and the same for who reads.

    An item of the option's data may have `href`, where a click leads, `button`, the id of what a
    click presses, `picture`, which its tooltip shows, and `tip`, the tooltip's lines; without them
    those are its name and value. `height` is in pixels.
    """

    label: str
    option: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    height: int = 320

    @property
    def shown_rows(self) -> Sequence[Sequence[object]]:
        """The rows that the table has."""
        return self.rows[:MOST_ROWS]


def bars(label: str, of_what: str, counts: dict[str, int], unit: str) -> Chart:
    """Return horizontal bars, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    drawn = ordered[:MOST_ROWS]
    at_once = min(len(drawn), _BARS_AT_ONCE)
    option: dict[str, Any] = {
        "grid": {
            "left": 18,
            "right": 48 if len(drawn) <= at_once else 72,
            "top": 8,
            "bottom": 40,
            "containLabel": True,
        },
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}},
        "xAxis": {
            "type": "value",
            "minInterval": 1,
            "name": unit,
            "nameLocation": "middle",
            "nameGap": 26,
        },
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [shown(name) for name, _ in drawn],
            "axisLabel": {"width": 140, "overflow": "truncate"},
        },
        "series": [
            {
                "type": "bar",
                "name": unit,
                "data": [count for _, count in drawn],
                "label": {"show": True, "position": "right"},
            }
        ],
    }
    if len(drawn) > at_once:
        option["dataZoom"] = [
            {
                "type": "slider",
                "yAxisIndex": 0,
                "startValue": 0,
                "endValue": at_once - 1,
                "zoomLock": True,
                "brushSelect": False,
                "showDetail": False,
                "showDataShadow": False,
                "width": 14,
                "right": 4,
            }
        ]
    return Chart(label, option, (of_what, unit), ordered, _MARGINS + _BAR_HEIGHT * at_once)
