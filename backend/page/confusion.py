"""Which choices are taken for which others, and their tasks in Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from backend.errors import NotFoundError
from backend.page.charts import LEVELS, Chart
from backend.page.services import ProjectView
from backend.page.wording import shown
from backend.store.contents import confusions_from_bytes
from backend.store.findings import FindingKind

if TYPE_CHECKING:
    from backend.learning.confusion import Confusion

VIEW_TITLE = "Confused choices"

# Choices of the heat map: more have no legible names.
_MOST_CHOICES = 20
# Cells that are listed with a button each.
_MOST_LISTED = 30
_CELL, _MARGINS = 26, 206

_NOTHING = "(none)"


@dataclass(frozen=True)
class ConfusedPair:
    """What people gave, what was predicted instead, and how often of how many given."""

    key: str
    given: str
    predicted: str
    count: int
    of_given: int | None
    tasks: list[int]


@dataclass(frozen=True)
class ControlConfusion:
    """One control's confusions, the most frequent first; `wrong` counts all there are."""

    control: str
    labels: int
    wrong: int
    pairs: list[ConfusedPair]
    chart: Chart | None


def confusions(view: ProjectView) -> list[ControlConfusion]:
    """Return what the heads of the last training confuse, out of fold, by control."""
    return [
        _confusion(number, control, confusion)
        for number, (control, confusion) in enumerate(_found(view).items())
    ]


def confused_pair(view: ProjectView, key: str) -> ConfusedPair:
    """Return the pair of a key. Raises NotFoundError where a training has ended it meanwhile."""
    for control, confusion in _found(view).items():
        for pair in _pairs(control, confusion):
            if pair.key == key:
                return pair
    raise NotFoundError("these choices are not confused any more: load the page again")


def _found(view: ProjectView) -> dict[str, Confusion]:
    found = view.store.findings.get(view.project.id, FindingKind.CONFUSION)
    return {} if found is None else confusions_from_bytes(found.content)


def _confusion(number: int, control: str, confusion: Confusion) -> ControlConfusion:
    pairs = [*_pairs(control, confusion)]
    return ControlConfusion(
        control,
        confusion["labels"],
        confusion["wrong"],
        pairs[:_MOST_LISTED],
        _heat_map(number, control, pairs, confusion) if pairs else None,
    )


def _pairs(control: str, confusion: Confusion) -> Iterator[ConfusedPair]:
    choices = confusion["choices"]
    for cell in confusion["cells"]:
        given = choices[cell["given"]] if cell["given"] >= 0 else None
        predicted = choices[cell["predicted"]]["value"] if cell["predicted"] >= 0 else _NOTHING
        named = [control, given["value"] if given else None, predicted]
        yield ConfusedPair(
            # Names can be of any length, and places move with each training.
            key=sha256(json.dumps(named).encode()).hexdigest()[:20],
            given=given["value"] if given else _NOTHING,
            predicted=predicted,
            count=cell["count"],
            of_given=given["given"] if given else None,
            tasks=cell["tasks"],
        )


def _heat_map(number: int, control: str, pairs: list[ConfusedPair], confusion: Confusion) -> Chart:
    names: list[str] = []
    for pair in pairs:
        new = [name for name in dict.fromkeys((pair.given, pair.predicted)) if name not in names]
        if len(names) + len(new) <= _MOST_CHOICES:
            names += new
    order = {choice["value"]: place for place, choice in enumerate(confusion["choices"])}
    names.sort(key=lambda name: order.get(name, len(order)))
    place = {name: index for index, name in enumerate(names)}
    listed = {pair.key for pair in pairs[:_MOST_LISTED]}
    cells = [
        {
            "value": [place[pair.predicted], place[pair.given], pair.count],
            "tip": [
                f"given: {shown(pair.given)}",
                f"predicted: {shown(pair.predicted)}",
                f"{pair.count} tasks" + (f" of {pair.of_given}" if pair.of_given else ""),
            ],
        }
        # A click presses the button of the list.
        | ({"button": f"confused-{pair.key}"} if pair.key in listed else {})
        for pair in pairs
        if pair.given in place and pair.predicted in place
    ]
    axis: dict[str, Any] = {
        "type": "category",
        "data": [shown(name) for name in names],
        "splitLine": {"show": True},
    }
    option = {
        "grid": {"left": 18, "right": 16, "top": 32, "bottom": 90, "containLabel": True},
        "tooltip": {"trigger": "item"},
        "xAxis": axis
        | {
            "name": "predicted",
            "nameLocation": "middle",
            "nameGap": 8,
            "nameTextStyle": {"verticalAlign": "top", "padding": [56, 0, 0, 0]},
            "axisLabel": {"rotate": 40, "width": 90, "overflow": "truncate", "interval": 0},
        },
        "yAxis": axis
        | {
            "name": "given",
            "inverse": True,
            "nameLocation": "start",
            "axisLabel": {"width": 110, "overflow": "truncate", "interval": 0},
        },
        "visualMap": {
            "min": 1,
            "max": max(2, *(pair.count for pair in pairs)),
            "calculable": True,
            "orient": "horizontal",
            "left": "center",
            "bottom": 0,
            "inRange": {"color": list(LEVELS)},
        },
        "series": [
            {
                "type": "heatmap",
                "name": f"confusions-{number}",
                "data": cells,
            }
        ],
    }
    rows = [(pair.given, pair.predicted, pair.count, pair.of_given or "–") for pair in pairs]
    return Chart(
        f"Choices of {control} that are confused",
        option,
        ("given", "predicted", "tasks", "of so many given"),
        rows,
        _MARGINS + _CELL * len(names),
    )
