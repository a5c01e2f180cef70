"""Accuracy against labels, and where the next labels lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.page.charts import Chart
from backend.page.services import ProjectView
from backend.store.history import Entry, Figures

# How far the curve is followed.
MORE = 50

# More points than a screen has columns for.
_MOST_POINTS = 200

_ESTIMATE = "open tasks (estimate)"
_OUT_OF_FOLD = "labelled tasks (out of fold)"
_AHEAD = "where it leads"
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


@dataclass(frozen=True)
class ControlCurve:
    """One control's curve; `outlook` is a sentence, `advice` the report's own, None without one."""

    control: str
    versions: int
    outlook: str
    advice: str | None
    chart: Chart


@dataclass(frozen=True)
class _Point:
    """What was known after so many labels."""

    labels: int
    version: str
    figures: Figures


def learning_curve(view: ProjectView) -> list[ControlCurve]:
    """Return the curve of each control of the last version that has figures, by control."""
    entries = view.store.history.of(view.project.id)
    if not entries:
        return []
    curves = []
    for control in entries[-1].figures:
        points = _points(entries, control)
        if points:
            advice = view.latest_reports.get(control, {}).get("advice")
            curves.append(_curve(control, points, advice))
    return curves


def _points(entries: Sequence[Entry], control: str) -> list[_Point]:
    """Return a point for each number of labels: the last version with as many."""
    by_labels: dict[int, _Point] = {}
    for entry in entries:
        figures = entry.figures.get(control)
        if figures is None or not figures.labels:
            continue
        if figures.accuracy is not None or figures.pool_accuracy is not None:
            by_labels[figures.labels] = _Point(figures.labels, entry.name, figures)
    return [by_labels[labels] for labels in sorted(by_labels)]


def _curve(control: str, points: list[_Point], advice: str | None) -> ControlCurve:
    from backend.learning.extrapolation import Measured, extrapolate

    measured = [
        Measured(point.labels, *point.figures.pool_accuracy)
        for point in points
        if point.figures.pool_accuracy is not None
    ]
    outlook = extrapolate(measured, MORE)
    if outlook.expected is None:
        sentence = f"Where the next {MORE} labels lead cannot be told yet: {outlook.reason}."
    else:
        last = outlook.expected[-1]
        sentence = (
            f"The next {MORE} labels lead to about {last.value:.0%} "
            f"({last.low:.0%} to {last.high:.0%}), if the curve goes on as it did."
        )
    drawn = _thinned(points)
    rows = [_row(point) for point in drawn[::-1]]
    chart = Chart(
        f"Accuracy of {control} by number of labels",
        _option(drawn, outlook.expected or ()),
        ("labels", "open tasks, estimate", "from", "to", "out of fold", "version"),
        rows,
    )
    return ControlCurve(control, len(points), sentence, advice, chart)


def _thinned(points: list[_Point]) -> list[_Point]:
    step = -(-len(points) // _MOST_POINTS)
    # Counted from the end: the last one is always there.
    return points[::-1][::step][::-1]


def _row(point: _Point) -> tuple[object, ...]:
    pool = point.figures.pool_accuracy
    estimate = tuple(map(_percent, pool)) if pool is not None else ("–",) * 3
    accuracy = point.figures.accuracy
    return (
        point.labels,
        *estimate,
        _percent(accuracy) if accuracy is not None else "–",
        point.version,
    )


def _option(points: Sequence[_Point], expected: Sequence[Any]) -> dict[str, Any]:
    estimates = [
        (point.labels, *point.figures.pool_accuracy, point.version)
        for point in points
        if point.figures.pool_accuracy is not None
    ]
    ahead = [(each.labels, each.value, each.low, each.high, "extrapolated") for each in expected]
    out_of_fold = {
        "type": "line",
        "name": _OUT_OF_FOLD,
        "symbolSize": 5,
        "symbol": "diamond",
        "lineStyle": {"type": "dotted", "color": _ORANGE},
        "itemStyle": {"color": _ORANGE},
        "data": [
            {
                "value": [point.labels, _per_cent(point.figures.accuracy)],
                "tip": [
                    point.version,
                    f"{point.labels} labels",
                    f"out of fold {_percent(point.figures.accuracy)}",
                ],
            }
            for point in points
            if point.figures.accuracy is not None
        ],
    }
    names = [_ESTIMATE, _OUT_OF_FOLD, *([_AHEAD] if ahead else [])]
    return {
        "grid": {"left": 8, "right": 24, "top": 56, "bottom": 32, "containLabel": True},
        "legend": {"data": names, "top": 0},
        "tooltip": {"trigger": "item"},
        "xAxis": {
            "type": "value",
            "name": "labels",
            "nameLocation": "middle",
            "nameGap": 28,
            "scale": True,
            "minInterval": 1,
        },
        "yAxis": {
            "type": "value",
            "min": _floor(points),
            "max": 100,
            "axisLabel": {"formatter": "{value} %"},
        },
        "series": [
            *_with_band(_ESTIMATE, estimates, _BLUE, "solid"),
            out_of_fold,
            *(_with_band(_AHEAD, ahead, _GREEN, "dashed") if ahead else []),
        ],
    }


def _floor(points: Sequence[_Point]) -> int:
    """Return the axis' least percentage: a multiple of twenty below all that is drawn."""
    lows = [point.figures.pool_accuracy[1] for point in points if point.figures.pool_accuracy]
    lows += [point.figures.accuracy for point in points if point.figures.accuracy is not None]
    return int(5 * min(lows)) * 20


def _with_band(
    name: str, points: Sequence[tuple[int, float, float, float, str]], colour: str, line: str
) -> list[dict[str, Any]]:
    """Return a line and the band of its interval: two stacked lines, unseen, the upper filled."""
    unseen = {
        "type": "line",
        "stack": f"{name}, interval",
        "stackStrategy": "all",
        "symbol": "none",
        "lineStyle": {"opacity": 0},
        "silent": True,
        "tooltip": {"show": False},
    }
    return [
        unseen
        | {
            "name": f"{name}, from",
            "data": [[labels, _per_cent(low)] for labels, _, low, _, _ in points],
        },
        unseen
        | {
            "name": f"{name}, to",
            "areaStyle": {"color": colour, "opacity": 0.18, "decal": {"symbol": "none"}},
            "data": [
                [labels, round(_per_cent(high) - _per_cent(low), 2)]
                for labels, _, low, high, _ in points
            ],
        },
        {
            "type": "line",
            "name": name,
            "symbolSize": 6,
            "lineStyle": {"color": colour, "type": line},
            "itemStyle": {"color": colour},
            "data": [
                {
                    "value": [labels, _per_cent(value)],
                    "tip": [
                        version,
                        f"{labels} labels",
                        f"{_percent(value)} ({_percent(low)} to {_percent(high)})",
                    ],
                }
                for labels, value, low, high, version in points
            ],
        },
    ]


def _per_cent(share: float | None) -> float:
    return round(100 * (share or 0.0), 2)


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0.0):.1f} %"
