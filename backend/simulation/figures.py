"""Learning curves as pictures, for eyes that see colours differently too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

# Not pyplot: it keeps global state and looks for a screen.
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backend.simulation.atomic import replacing
from backend.simulation.experiment import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color Universal Design"; its black is the baseline's, and its yellow is
# left out, for it cannot be seen on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_BLACK = "#333333"
_MARKERS = "osD^vP"
_DASHES = ("-", "--")


@dataclass(frozen=True)
class Band:
    """A strategy's line.

    Attributes
    ----------
    strategy : str
    n_annotations : [I]
    estimates : [3, I]
        Mean, and the ends of the interval, NaN where there is none.

    """

    strategy: str
    n_annotations: NDArray[np.int64]
    estimates: NDArray[np.float64]


def draw_learning_curves(
    bands: Sequence[Band], levels: Mapping[str, float], runs: int, path: Path
) -> None:
    """Draw accuracies in percent; `levels` are references by name, the first one dashed."""
    figure, axes = _figure("validation accuracy, top-1 (%)", runs)
    _draw(axes, bands)
    for (name, height), dashes in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(height, color=_BLACK, linestyle=dashes, linewidth=1.2, label=name)
    _look_at(axes, [*_means(bands), *levels.values()])
    # Intervals know no bounds, accuracies do.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))
    _save(figure, axes, "Learning curves", path)


def draw_increase(bands: Sequence[Band], runs: int, path: Path) -> None:
    """Draw what strategies have over the baseline, in points of accuracy."""
    figure, axes = _figure(f"accuracy above {BASELINE} (points)", runs)
    _draw(axes, bands)
    axes.axhline(0, color=_BLACK, linewidth=1.8, label=BASELINE)
    _look_at(axes, [*_means(bands), 0.0])
    _save(figure, axes, f"Gain over {BASELINE}, run by run", path)


def _figure(of_what: str, runs: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("annotations")
    axes.set_ylabel(of_what)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    caption = f"mean and 95 % interval over {runs} runs" if runs > 1 else "one run"
    axes.text(0, 1.01, caption, transform=axes.transAxes, color="#666666", fontsize=9)
    return figure, axes


def _draw(axes: Axes, bands: Sequence[Band]) -> None:
    rivals = 0
    for band in bands:
        if band.strategy == BASELINE:
            colour, marker, dashes = _BLACK, "", "-"
        else:
            cycle, place = divmod(rivals, len(_COLOURS))
            colour, marker = _COLOURS[place], _MARKERS[place]
            dashes = _DASHES[cycle % len(_DASHES)]
            rivals += 1
        mean, low, high = band.estimates
        axes.plot(
            band.n_annotations,
            mean,
            color=colour,
            linestyle=dashes,
            linewidth=1.8,
            marker=marker,
            # Some ten markers a line, wherever its points are.
            markevery=max(1, len(mean) // 10),
            markersize=5,
            label=band.strategy,
        )
        axes.fill_between(band.n_annotations, low, high, color=colour, alpha=0.13, linewidth=0)


def _means(bands: Sequence[Band]) -> list[float]:
    return [float(mean) for band in bands for mean in band.estimates[0]]


def _look_at(axes: Axes, heights: Sequence[float]) -> None:
    # The intervals of two or three runs are so wide that they would leave the lines no room.
    lowest, highest = min(heights), max(heights)
    room = highest - lowest + 1
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, lowest - room), min(high, highest + room))


def _save(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    axes.set_title(title, loc="left", fontweight="bold", pad=20)
    axes.margins(x=0.02)
    figure.legend(loc="outside right upper", frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
