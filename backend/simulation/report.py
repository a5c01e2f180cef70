"""What a simulation tells: labels needed, against random, in words that claim no more than is seen.

Everything is paired: strategies are compared within a run, and the intervals are over runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backend.simulation.atomic import replacing
from backend.simulation.comparison import (
    Estimate,
    holm,
    labels_to_reach,
    log_ratios,
    mean_over_runs,
    p_value,
    paired_ratio,
)
from backend.simulation.experiment import ALL_LABELS, BASELINE, ZERO_SHOT, Result
from backend.simulation.figures import Band, draw_increase, draw_learning_curves

TARGETS = (0.80, 0.90, 0.95)

NO_DIFFERENCE = "no difference seen"
_CHANCE = 0.05
NO_VERDICT = "cannot be told from so few labels"


@dataclass(frozen=True)
class About:
    """What a report says of its experiment beside its results."""

    command: str
    pictures: int
    classes: int


def verdict(ratio: Estimate, *, missed: bool = False, baseline_missed: bool = False) -> str:
    """Say what a ratio of labels to the baseline's means.

    Parameters
    ----------
    ratio : Estimate
    missed, baseline_missed : bool
        Whether one of the two did not reach the target in a run in which the other did, so that
        its labels there are no more than a lower bound.

    """
    if math.isnan(ratio.mean):
        return "not reached"
    if math.isnan(ratio.low):
        return "takes more runs to tell"
    more, least, most = (round(100 * (value - 1)) for value in ratio)
    if ratio.low <= 1 <= ratio.high:
        return f"{NO_DIFFERENCE} (95 % interval {-least} % fewer to {most} % more labels)"
    saves = ratio.high < 1
    if missed if saves else baseline_missed:
        return NO_VERDICT
    bound = "at least " if missed or baseline_missed else ""
    if saves:
        return f"saves {bound}{-more} % of the labels (95 % interval {-most} to {-least} %)"
    return f"needs {bound}{more} % more labels (95 % interval {least} to {most} %)"


def write_report(
    results: Sequence[Result], references: Sequence[Result], about: About, folder: Path
) -> None:
    """Write `learning_curves.png`, `increase.png` and `summary.md`.

    Parameters
    ----------
    results : sequence of Result
        Whole runs of strategies, `BASELINE` among them.
    references : sequence of Result
        Of the same runs.
    about : About
    folder : Path

    Raises
    ------
    DatasetError
        Where the folder cannot be written to.

    """
    study = _Study.of(results, references)
    runs = len(study.full)
    curves = [
        Band(name, curve.columns.to_numpy(), _over_runs(100 * curve.to_numpy()))
        for name, curve in study.curves.items()
    ]
    baseline = study.curves[BASELINE]
    increases = [
        Band(name, curve.columns.to_numpy(), _over_runs(100 * (curve - baseline).to_numpy()))
        for name, curve in study.curves.items()
        if name != BASELINE
    ]
    levels = {f"all {study.training} labels": 100 * study.full.mean()}
    if study.zero_shot is not None:
        levels["zero-shot"] = 100 * study.zero_shot.mean()
    draw_learning_curves(curves, levels, runs, folder / "learning_curves.png")
    draw_increase(increases, runs, folder / "increase.png")
    with replacing(folder / "summary.md") as file:
        file.write(_summary(study, about).encode())


@dataclass(frozen=True)
class _Study:
    """Validation accuracies: `curves` [runs x numbers of labels] by strategy, the rest [runs].

    A curve is NaN where a run has no such number: runs may split copies of pictures unevenly, and
    then exhaust their pools with different ones.
    """

    curves: dict[str, pd.DataFrame]
    full: pd.Series
    zero_shot: pd.Series | None
    training: int

    @classmethod
    def of(cls, results: Sequence[Result], references: Sequence[Result]) -> _Study:
        frame = pd.DataFrame(map(asdict, results))
        levels = pd.DataFrame(map(asdict, references)).pivot(
            index="run", columns="strategy", values="top1_val"
        )
        return cls(
            curves={
                str(name): rows.pivot(index="run", columns="n_annotations", values="top1_val")
                for name, rows in frame.groupby("strategy", sort=False)
            },
            full=levels[ALL_LABELS],
            zero_shot=levels.get(ZERO_SHOT),
            training=max(each.n_annotations for each in references),
        )

    @property
    def start(self) -> int:
        return int(self.curves[BASELINE].columns[0])

    @property
    def budget(self) -> int:
        return int(self.curves[BASELINE].columns[-1])

    def needed(self, strategy: str, share: float) -> NDArray[np.float64]:
        """Return the labels [runs] to a share of the run's full-data accuracy; NaN if too few."""
        return np.array(
            [
                labels_to_reach(known.index, known, share * self.full[run])
                for run, curve in self.curves[strategy].iterrows()
                for known in (curve.dropna(),)
            ]
        )

    def final(self, strategy: str) -> pd.Series:
        """Return the accuracies [runs] with all labels that a run asked for."""
        return self.curves[strategy].ffill(axis=1).iloc[:, -1]


def _summary(study: _Study, about: About) -> str:
    runs = len(study.full)
    exhausted = ", which is all there are" if study.budget == study.training else ""
    parts = [
        "# Simulation",
        f"```bash\n{about.command}\n```",
        f"{about.pictures} pictures of {about.classes} classes, {study.training} of them to learn "
        f"from and {about.pictures - study.training} to validate with. {_plural(runs, 'run')} of "
        f"each strategy, from {_plural(study.start, 'label')} to {study.budget}{exhausted}.",
        _table(("top-1 in validation, %", "mean", "95 % interval"), _level_rows(study)),
        "## Labels needed",
        "To reach a share of the accuracy that all labels give: the median over runs.",
        _table(
            ("strategy", *(f"{100 * target:.0f} %" for target in TARGETS)),
            [
                (name, *(_needed(study, name, target) for target in TARGETS))
                for name in study.curves
            ],
        ),
    ]
    rivals = [name for name in study.curves if name != BASELINE]
    if rivals:
        parts += [
            f"## Against {BASELINE}",
            _table(
                ("strategy", "target", f"labels / {BASELINE}'s", "verdict", "p"),
                [row for target in TARGETS for row in _ratio_rows(study, rivals, target)],
            ),
            f"With {_plural(study.budget, 'label')}:",
            _table(
                ("strategy", "top-1, %", f"points above {BASELINE}", "verdict", "p"),
                _final_rows(study, rivals),
            ),
        ]
    parts += ["## How to read this", _notes(runs, len(rivals))]
    return "\n\n".join(parts) + "\n"


def _level_rows(study: _Study) -> list[Sequence[str]]:
    levels = [("zero-shot", study.zero_shot)] if study.zero_shot is not None else []
    levels.append((f"all {study.training} labels", study.full))
    return [
        (name, f"{100 * estimate.mean:.1f}", _interval(estimate, 100))
        for name, level in levels
        for estimate in (mean_over_runs(level),)
    ]


def _needed(study: _Study, strategy: str, target: float) -> str:
    labels = study.needed(strategy, target)
    reached = len(labels) - int(np.isnan(labels).sum())
    if reached == 0:
        return "not reached"
    # A run that never got there needed more than any that did.
    median = np.median(np.nan_to_num(labels, nan=np.inf))
    text = f"over {study.budget}" if math.isinf(median) else str(math.ceil(median))
    if reached < len(labels):
        text += f" (reached in {reached} of {len(labels)} runs)"
    return text


def _ratio_rows(study: _Study, rivals: Sequence[str], target: float) -> list[Sequence[str]]:
    ratios, verdicts, p_values = [], [], []
    for name in rivals:
        own, others = study.needed(name, target), study.needed(BASELINE, target)
        missed = np.isnan(own) & ~np.isnan(others)
        baseline_missed = np.isnan(others) & ~np.isnan(own)
        own[missed] = others[baseline_missed] = study.budget
        ratio = paired_ratio(own, others)
        words = verdict(
            ratio, missed=bool(missed.any()), baseline_missed=bool(baseline_missed.any())
        )
        if (own == study.start).all() and (others == study.start).all():
            words = "reached by the first labels"
        ratios.append(_with_interval(ratio, 2))
        verdicts.append(words)
        p_values.append(math.nan if words == NO_VERDICT else p_value(log_ratios(own, others)))
    return [
        (name, f"{100 * target:.0f} %", *cells)
        for name, *cells in zip(rivals, ratios, *_corrected(verdicts, p_values), strict=True)
    ]


def _final_rows(study: _Study, rivals: Sequence[str]) -> list[Sequence[str]]:
    baseline = study.final(BASELINE)
    differences = [100 * (study.final(name) - baseline) for name in rivals]
    estimates = [mean_over_runs(difference) for difference in differences]
    corrected = _corrected(
        [_higher(estimate) for estimate in estimates],
        [p_value(difference) for difference in differences],
    )
    cells = zip(rivals, estimates, *corrected, strict=True)
    return [
        *(
            (name, f"{100 * study.final(name).mean():.1f}", _with_interval(estimate, 1), *others)
            for name, estimate, *others in cells
        ),
        (BASELINE, f"{100 * baseline.mean():.1f}", "", "", ""),
    ]


def _corrected(verdicts: Sequence[str], p_values: Sequence[float]) -> tuple[list[str], list[str]]:
    """Return verdicts that are modest where they are several, and what p then is."""
    adjusted = holm(p_values)
    return [
        f"{words}, as one of {len(verdicts)} may by chance" if p < _CHANCE <= corrected else words
        for words, p, corrected in zip(verdicts, p_values, adjusted, strict=True)
    ], [_shown_p(p) for p in adjusted]


def _higher(difference: Estimate) -> str:
    if math.isnan(difference.low):
        return "takes more runs to tell"
    if difference.low > 0:
        return "more accurate"
    return "less accurate" if difference.high < 0 else NO_DIFFERENCE


def _notes(runs: int, rivals: int) -> str:
    notes = [
        "Labels are counted where a run's learning curve first is at the target, on straight "
        "lines between its points.",
        "Strategies of a run share split, first labels and seeds. Intervals are 95 % t-intervals "
        "of the differences within runs (of their logarithms, for ratios): they tell what "
        "another draw of labels would do, not what other pictures would.",
        "In a run where only one of two strategies got to the target, the other counts as if it "
        "had with its last label. 'At least' marks a difference that is larger for that; where it "
        "could be smaller or none, there is no verdict. Runs where neither got there are left out.",
    ]
    if runs == 1:
        notes.append("One run has no interval: for a verdict, simulate with --runs 5 or more.")
    if rivals > 1:
        notes.append(
            f"{rivals} strategies were compared, and each interval stands for itself. The p values "
            "are corrected for their number (Holm, 1979), and a verdict says where that matters."
        )
    return "\n".join(f"- {note}" for note in notes)


def _over_runs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean, low and high [3, I] of values [R, I]."""
    return np.array([mean_over_runs(column) for column in values.T]).T


def _interval(estimate: Estimate, factor: float = 1, digits: int = 1) -> str:
    if math.isnan(estimate.low):
        return "–"
    return f"{factor * estimate.low:.{digits}f} to {factor * estimate.high:.{digits}f}"


def _with_interval(estimate: Estimate, digits: int) -> str:
    if math.isnan(estimate.mean):
        return "–"
    mean = f"{estimate.mean:.{digits}f}"
    if math.isnan(estimate.low):
        return mean
    return f"{mean} ({_interval(estimate, digits=digits)})"


def _shown_p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
