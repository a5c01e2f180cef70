"""Learning curves of all sets side by side, for eyes that see colours differently too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backend.simulation.atomic import replacing

COLUMNS = 3

# Okabe and Ito (2008), "Color Universal Design": by place, so that a role looks the same
# everywhere.
STYLES: Sequence[Mapping[str, Any]] = (
    {"color": "#0072B2", "linewidth": 2.2},
    {"color": "#333333", "linewidth": 1.5},
    {"color": "#333333", "linewidth": 1.5, "linestyle": "--"},
    {"color": "#D55E00", "linewidth": 1.5, "marker": "o", "markersize": 3.5, "markevery": 2},
)


@dataclass(frozen=True)
class Line:
    """Accuracies in percent: mean, low and high [3, I] by labels [I]."""

    role: str
    labels: NDArray[np.float64]
    estimates: NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """A set; `target` is an accuracy in percent."""

    title: str
    note: str
    target: float
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], seeds: int, path: Path) -> None:
    """Draw a panel a set."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    # The legend needs the width of two panels.
    figure = Figure(figsize=(3.9 * max(columns, 2), 3 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line, style in zip(panel.lines, STYLES, strict=False):
            mean, low, high = line.estimates
            axes.plot(line.labels, mean, label=line.role, **style)
            axes.fill_between(line.labels, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.axhline(panel.target, color="#777777", linestyle=":", label="the target")
        axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
        note = {"ha": "right", "fontsize": 8, "color": STYLES[-1]["color"]}
        axes.text(0.98, 0.04, panel.note, transform=axes.transAxes, **note)
        axes.grid(color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        # The steep start says little and would take half the height.
        means = np.concatenate([line.estimates[0][2:] for line in panel.lines])
        axes.set_ylim(means.min() - 3, min(100, means.max() + 3))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("validation top-1 (%)")
    caption = f"mean and 95 % interval over {seeds} seeds" if seeds > 1 else "one seed"
    figure.supxlabel(f"labels; {caption}", fontsize=10)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9
    )
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=130)
