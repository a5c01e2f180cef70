"""The map of a project's embeddings, coloured by label or by uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import NotFoundError
from backend.page.charts import LEVELS
from backend.page.services import ProjectView
from backend.page.wording import shown
from backend.store.contents import NO_CHOICE, EmbeddingMap, MapColours, map_from_bytes
from backend.store.findings import FindingKind
from backend.store.requests import Kind, Request

# Colours that colour-blind people tell apart (Okabe and Ito), and marks beside them.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A90A")
_SYMBOLS = ("circle", "rect", "triangle", "diamond", "circle", "rect", "triangle")
_GREY = "#8a8f98"
_OTHERS = "all others"

_UNCERTAINTY = "uncertainty"

_WIDTH = 2000

# A version that lives for seconds, while people annotate, is not worth a map, nor is each part of
# an import.
_RECOLOUR_AFTER = 20.0


@dataclass(frozen=True)
class Colouring:
    """One way to colour the map, and how the address of its points calls it."""

    key: str
    name: str


@dataclass(frozen=True)
class ShownMap:
    """What is known of the map, coloured by a version; `tasks` are on it, of `total`.

    `drawing` where it is not finished; `stamp` tells one drawing from the next.
    """

    tasks: int
    total: int
    version: str | None
    stamp: float
    drawing: bool
    colourings: list[Colouring]


def embedding_map(view: ProjectView) -> ShownMap:
    """Return the map as far as it is drawn; ask for one where it is missing or out of date."""
    found = view.store.findings.get(view.project.id, FindingKind.MAP)
    drawn = None if found is None else map_from_bytes(found.content)
    active = view.project.model_version
    is_current = (
        found is not None
        and drawn is not None
        and drawn.done
        and found.model_version == active
        and drawn.tasks == view.store.tasks.progress(view.project.id, None).tasks
    )
    if not is_current and active is not None and view.project.connected:
        _ask(view, delay=_RECOLOUR_AFTER if drawn is not None and drawn.done else 0.0)
    if drawn is None or found is None:
        return ShownMap(0, 0, None, 0.0, drawing=active is not None, colourings=[])
    return ShownMap(
        len(drawn.ids),
        drawn.tasks,
        found.model_version,
        found.created_at,
        drawing=not drawn.done,
        colourings=[
            *(
                Colouring(str(number), f"label: {shown(control)}")
                for number, control in enumerate(drawn.colours)
            ),
            Colouring(_UNCERTAINTY, _UNCERTAINTY),
        ],
    )


def _ask(view: ProjectView, delay: float) -> None:
    requests = view.store.requests
    # Once is enough, however many people look at the page.
    if not requests.waiting(view.project.id, (Kind.MAP,)):
        requests.add(Request(view.project.id, Kind.MAP), delay=delay)


def map_option(view: ProjectView, colour: str, *, picture: str) -> dict[str, Any]:
    """Return the map as ECharts draws it.

    Each point is an array of its place and its task; `{id}` stands for the task in the series'
    `picture` and `href`. `picture` is the address of that of task 0. Raises NotFoundError where
    there is no map, or no such colouring.
    """
    found = view.store.findings.get(view.project.id, FindingKind.MAP)
    if found is None:
        raise NotFoundError("no map is drawn yet")
    drawn = map_from_bytes(found.content)
    if colour == _UNCERTAINTY:
        series = _by_uncertainty(drawn)
    else:
        colours = dict(enumerate(drawn.colours.values()))
        if not colour.isdecimal() or int(colour) not in colours:
            raise NotFoundError("the map has no such colours")
        series = _by_label(drawn, colours[int(colour)])
    link = view.label_studio.task(view.project.id, 0)
    details = {
        "picture": f"{picture.removesuffix('0')}{{id}}",
        "href": None if link is None else f"{link.removesuffix('0')}{{id}}",
    }
    axis = {
        "type": "value",
        "show": False,
        "scale": True,
    }
    return {
        "grid": {"left": 8, "right": 8, "top": 40, "bottom": 8},
        "legend": {"top": 0, "type": "scroll"},
        "tooltip": {"trigger": "item"},
        "xAxis": axis,
        "yAxis": axis,
        "dataZoom": [{"type": "inside", "xAxisIndex": 0}, {"type": "inside", "yAxisIndex": 0}],
        "series": [each | details for each in series],
    }


def _by_label(drawn: EmbeddingMap, colours: MapColours) -> list[dict[str, Any]]:
    is_given = colours.given != NO_CHOICE
    choice = np.where(is_given, colours.given, colours.predicted)
    counts = np.bincount(choice[choice >= 0], minlength=len(colours.values))
    frequent = np.argsort(-counts, kind="stable")[: len(_COLOURS)]
    groups = [
        (shown(colours.values[place]), choice == place, _COLOURS[rank], _SYMBOLS[rank])
        for rank, place in enumerate(frequent.tolist())
        if counts[place]
    ]
    others = ~np.isin(choice, frequent)
    if others.any():
        groups.insert(0, (_OTHERS, others, _GREY, "circle"))
    series = []
    # What people gave is drawn over what is predicted.
    for given, opacity, size, words in ((False, 0.45, 4, "predicted"), (True, 1.0, 8, "labelled")):
        for name, members, shade, symbol in groups:
            rows = members & (is_given == given)
            if rows.any():
                series.append(
                    _scatter(name, drawn, rows, shade, symbol, opacity=opacity, size=size)
                    | {"tip": f"{words}: {name}"}
                )
    return series


def _by_uncertainty(drawn: EmbeddingMap) -> list[dict[str, Any]]:
    level = np.minimum((drawn.uncertainties * len(LEVELS)).astype(int), len(LEVELS) - 1)
    series = []
    for place, shade in enumerate(LEVELS):
        if (level == place).any():
            low, high = (100 * edge // len(LEVELS) for edge in (place, place + 1))
            name = f"{low} to {high} % uncertain"
            series.append(
                _scatter(name, drawn, level == place, shade, "circle", opacity=0.8, size=5)
                | {"tip": name}
            )
    return series


def _scatter(
    name: str,
    drawn: EmbeddingMap,
    rows: NDArray[np.bool_],
    shade: str,
    symbol: str,
    *,
    opacity: float,
    size: int,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "symbol": symbol,
        "symbolSize": size,
        "itemStyle": {"color": shade, "opacity": opacity},
        "large": True,
        "largeThreshold": 1000,
        "data": _points(drawn, rows),
    }


def _points(drawn: EmbeddingMap, rows: NDArray[np.bool_]) -> list[Sequence[float]]:
    low = drawn.places.min(axis=0)
    size = max(float((drawn.places.max(axis=0) - low).max()), 1e-12)
    # What a screen tells apart, in few bytes.
    places = ((drawn.places[rows] - low) / size * _WIDTH).round().astype(int).tolist()
    return [(x, y, task) for (x, y), task in zip(places, drawn.ids[rows].tolist(), strict=True)]
