"""The benchmark's curves as tables of a document, in words that claim no more than was seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from curves import DATASETS, LIBRARIES, OURS, SHOTS, load
from datasets import zero_shot
from figure import Line, Panel, draw
from study import Needed, Study

from backend.simulation.atomic import replacing
from backend.simulation.comparison import (
    Estimate,
    holm,
    log_ratios,
    mean_over_runs,
    p_value,
    paired_ratio,
)

TARGETS = (0.95, 0.90)
BASELINES = ("our random", "random + linear probe")

# The goals.
SHARE_OF_RANDOM = 0.6
LARGEST_ECE = 0.05
SHOTS_OF_ECE = 8

CHANCE = 0.05

MISSED = "**missed**"

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_report(study: Study, path: Path) -> None:
    """Put the tables between the markers of a document, and the curves' picture beside it."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{path} needs a line {BEGIN} and after it a line {END}")
    picture = path.with_name(f"{path.stem}-curves.png")
    draw([_panel(study, dataset) for dataset in study.sets], study.seeds, picture)
    shown = f"![Learning curves of every set]({picture.name})"
    text = "\n\n".join([before + BEGIN, shown, tables(study), END + after])
    with replacing(path) as file:
        file.write(text.encode())


def tables(study: Study) -> str:
    """Return all tables in Markdown."""
    seeds = "1 seed" if study.seeds == 1 else f"{study.seeds} seeds"
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    parts = [
        f"{seeds}; {versions}. “Ours” is {_plain(study.methods[0])}.",
        "## Data",
        _table(
            "set | what it is | N | D | K | largest / smallest class | zero-shot | "
            "all labels: our head | linear probe",
            [_data_row(study, dataset) for dataset in study.sets],
        ),
        "## Labels needed",
    ]
    for target in TARGETS:
        parts += [
            f"### To {100 * target:.0f} % of the accuracy of all labels",
            _table(
                f"set | ours | {' | '.join(map(_plain, BASELINES))} | best other | its labels",
                [_needed_row(study, dataset, target) for dataset in study.sets],
            ),
            _table(
                f"set | ours / random, our head | ≤ {SHARE_OF_RANDOM}? | "
                "ours / random, linear probe | ours / best other | ≤ 1?",
                [_ratio_row(study, dataset, target) for dataset in study.sets],
            ),
        ]
    parts += [
        "### Every method",
        f"Labels to {100 * TARGETS[0]:.0f} %, mean over seeds. ▲ needs more than ours, ▼ fewer, "
        f"told from chance (p < {CHANCE} after Holm's correction for the methods of a set). "
        "The last columns are median seconds of one query and of one training, mean over sets.",
        _table(
            f"method | {' | '.join(study.sets)} | query, s | training, s", list(_method_rows(study))
        ),
    ]
    if study.heads:
        parts += ["## Heads at few labels", *_heads(study)]
    parts += [
        "## Calibration and safety while labels are picked",
        _table(
            "set | strategy | lowest mean of top-1 − zero-shot, points | at labels | "
            "lowest in one run | never worse? | "
            f"ECE from {SHOTS_OF_ECE} labels a class on, %: mean | largest mean (floor) | "
            f"≤ {100 * LARGEST_ECE:.0f}?",
            list(_safety_rows(study)),
        ),
    ]
    return "\n\n".join(parts)


# Strategies


def _data_row(study: Study, dataset: str) -> Sequence[str]:
    of = load(dataset)
    sizes = np.bincount(of.labels, minlength=len(of.classes))
    summary = (DATASETS[dataset].__doc__ or "").split("\n")[0]
    accuracy, _ = zero_shot(of)
    return (
        dataset,
        summary,
        *map(str, of.embeddings.shape),
        str(len(of.classes)),
        f"{sizes.max()} / {sizes.min()}",
        "–" if of.text is None else _percent(float(accuracy)),
        *(
            _percent(float(study.of_all_labels(dataset, head).mean()))
            for head in (OURS, "linear probe")
        ),
    )


def _needed_row(study: Study, dataset: str, target: float) -> Sequence[str]:
    best = study.best_rival(dataset, target)
    names = (study.methods[0], *BASELINES)
    return (
        dataset,
        *(str(study.needed(dataset, name, target) or "–") for name in names),
        *(map(str, best) if best else ("–", "–")),
    )


def _ratio_row(study: Study, dataset: str, target: float) -> Sequence[str]:
    own = study.needed(dataset, study.methods[0], target)
    assert own is not None
    of_random, of_probe = (study.needed(dataset, name, target) for name in BASELINES)
    best = study.best_rival(dataset, target)
    of_best = best[1] if best else None
    return (
        dataset,
        _ratio(own, of_random),
        _goal(own, of_random, SHARE_OF_RANDOM),
        _ratio(own, of_probe),
        _ratio(own, of_best),
        _goal(own, of_best, 1),
    )


def _ratio(own: Needed, other: Needed | None) -> str:
    if other is None:
        return "–"
    if not (own.reached.any() or other.reached.any()):
        return "neither got there"
    bound = {(False, False): "", (True, False): "≥ ", (False, True): "≤ ", (True, True): "? "}[
        bool((~own.reached).any()), bool((~other.reached).any())
    ]
    return bound + _with_interval(paired_ratio(own.labels, other.labels), 2)


def _goal(own: Needed, other: Needed | None, largest: float) -> str:
    """Judge a mean ratio; where ours did not get to the target in every run it is not proven."""
    if other is None:
        return "–"
    ratio = paired_ratio(own.labels, other.labels)
    return _yes(bool(own.reached.all()) and ratio.mean <= largest)


def _method_rows(study: Study) -> Iterable[Sequence[str]]:
    judged = study.methods[0]
    cells = {
        dataset: {name: study.needed(dataset, name, TARGETS[0]) for name in study.methods}
        for dataset in study.sets
    }
    marks = {dataset: _marks(judged, of_set) for dataset, of_set in cells.items()}
    for name in study.methods:
        seconds = np.array(
            [
                [np.median([p.query_seconds for p in run[1:]]) for run in runs]
                + [np.median([p.training_seconds for p in run[1:]]) for run in runs]
                for dataset in study.sets
                if (runs := study.runs("strategies", dataset, name))
            ]
        )
        halves = np.split(seconds, 2, axis=1) if seconds.size else ()
        yield (
            _plain(name),
            *(
                f"{cells[dataset][name] or '–'}{marks[dataset].get(name, '')}"
                for dataset in study.sets
            ),
            *((f"{half.mean():.2f}" for half in halves) if seconds.size else ("–", "–")),
        )


def _marks(judged: str, needed: Mapping[str, Needed | None]) -> dict[str, str]:
    own = needed[judged]
    assert own is not None
    logs = {
        name: log_ratios(other.labels, own.labels)
        for name, other in needed.items()
        if other is not None and name != judged
    }
    corrected = holm([p_value(values) for values in logs.values()])
    return {
        name: " ▲" if values.mean() > 0 else " ▼"
        for (name, values), p in zip(logs.items(), corrected, strict=True)
        if p < CHANCE
    }


# Heads


def _heads(study: Study) -> list[str]:
    shots = " | ".join(map(str, SHOTS))
    parts = []
    if OURS in study.heads and "zero-shot" in study.heads:
        parts += [
            "Top-1 of our head minus zero-shot's, in points, by random labels of each class. "
            "“Missed” is where an interval lies below 0.",
            _table(
                f"set | {shots} | never worse?",
                [
                    _gain_row(study, dataset)
                    for dataset in study.sets
                    if load(dataset).text is not None
                ],
            ),
        ]
    if OURS in study.heads:
        told = " | ".join(str(count) for count in SHOTS if count >= SHOTS_OF_ECE)
        parts += [
            "Expected calibration error of our head in %, and its floor: what true probabilities "
            "would show on as many pictures.",
            _table(
                f"set | {told} | ≤ {100 * LARGEST_ECE:.0f}?",
                [_calibration_row(study, dataset) for dataset in study.sets],
            ),
        ]
    parts.append("Each cell is top-1 in %, log loss in nats and ECE in %.")
    for dataset in study.sets:
        rows = [
            _head_row(study, dataset, head)
            for head in study.heads
            if study.runs("heads", dataset, head)
        ]
        parts.append(
            f"<details><summary>{dataset}</summary>\n\n{_table(f'head | {shots}', rows)}\n\n"
            "</details>"
        )
    return parts


def _gain_row(study: Study, dataset: str) -> Sequence[str]:
    ours, texts = (study.values("heads", dataset, name, "top1") for name in (OURS, "zero-shot"))
    gains = [mean_over_runs(column) for column in 100 * (ours - texts).T]
    return (
        dataset,
        *(_with_interval(gain, 1, "+") for gain in gains),
        _unharmed(gains),
    )


def _calibration_row(study: Study, dataset: str) -> Sequence[str]:
    told = [count >= SHOTS_OF_ECE for count in SHOTS]
    errors, floors = (
        study.values("heads", dataset, OURS, what).mean(axis=0)[told]
        for what in ("ece", "ece_floor")
    )
    return (
        dataset,
        *(
            f"{_percent(error)} (floor {_percent(floor)})"
            for error, floor in zip(errors, floors, strict=True)
        ),
        _yes(bool((errors <= LARGEST_ECE).all())),
    )


def _head_row(study: Study, dataset: str, head: str) -> Sequence[str]:
    figures = [
        study.values("heads", dataset, head, what).mean(axis=0)
        for what in ("top1", "log_loss", "ece")
    ]
    return (
        head,
        *(
            f"{_percent(top1)} · {loss:.2f} · {_percent(ece)}"
            for top1, loss, ece in zip(*figures, strict=True)
        ),
    )


# Safety


def _safety_rows(study: Study) -> Iterable[Sequence[str]]:
    for dataset in study.sets:
        for name in study.methods:
            if name.startswith("our "):
                yield (
                    dataset,
                    _plain(name),
                    *_loss(study, dataset, name),
                    *_calibration(study, dataset, name),
                )


def _loss(study: Study, dataset: str, name: str) -> Sequence[str]:
    if load(dataset).text is None:
        return ("–",) * 4
    accuracies = study.values("strategies", dataset, name, "top1")
    labels = study.values("strategies", dataset, name, "labels")
    # Without a label ours is zero-shot.
    gains = 100 * (accuracies[:, 1:] - accuracies[:, :1])
    by_step = [mean_over_runs(column) for column in gains.T]
    worst = int(np.argmin([gain.mean for gain in by_step]))
    return (
        _with_interval(by_step[worst], 1, "+"),
        f"{labels[0, worst + 1]:.0f}",
        f"{gains.min():+.1f}",
        _unharmed(by_step),
    )


def _calibration(study: Study, dataset: str, name: str) -> Sequence[str]:
    labels = study.values("strategies", dataset, name, "labels")[0]
    told = labels >= SHOTS_OF_ECE * len(load(dataset).classes)
    if not told.any():
        return ("–",) * 3
    errors, floors = (
        study.values("strategies", dataset, name, what).mean(axis=0)[told]
        for what in ("ece", "ece_floor")
    )
    worst = errors.argmax()
    return (
        _percent(errors.mean()),
        f"{_percent(errors[worst])} (floor {_percent(floors[worst])})",
        _yes(bool(errors[worst] <= LARGEST_ECE)),
    )


# The picture


def _panel(study: Study, dataset: str) -> Panel:
    best = study.best_rival(dataset, TARGETS[0])
    rival = [("the best other", best[0])] if best else []
    lines = [
        ("ours", study.methods[0]),
        *((_plain(name), name) for name in BASELINES if name in study.methods),
        *rival,
    ]
    return Panel(
        title=dataset,
        note=f"best other: {best[0]}" if best else "",
        target=100 * TARGETS[0] * float(study.of_all_labels(dataset, OURS).mean()),
        lines=[
            Line(
                role,
                study.values("strategies", dataset, name, "labels")[0],
                np.array(
                    [
                        mean_over_runs(column)
                        for column in 100 * study.values("strategies", dataset, name, "top1").T
                    ]
                ).T,
            )
            for role, name in lines
        ],
    )


# Words and numbers


def _plain(method: str) -> str:
    """Name a method in a table, where those of ours have to say so last."""
    if method.startswith("our "):
        return f"{method.removeprefix('our ')}, our head"
    return method.replace(" + ", ", ")


def _yes(met: bool) -> str:
    return "yes" if met else MISSED


def _unharmed(gains: Sequence[Estimate]) -> str:
    """Judge gains that may be 0; one seed has no interval to judge by."""
    if any(math.isnan(gain.high) for gain in gains):
        return "–"
    return MISSED if any(gain.high < 0 for gain in gains) else "no loss seen"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(estimate: Estimate, digits: int, sign: str = "") -> str:
    mean = f"{estimate.mean:{sign}.{digits}f}"
    if math.isnan(estimate.low):
        return mean
    return f"{mean} ({estimate.low:{sign}.{digits}f} to {estimate.high:{sign}.{digits}f})"


def _table(header: str, rows: Sequence[Sequence[str]]) -> str:
    rule = " | ".join("---" for _ in header.split(" | "))
    lines = [header, rule, *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)
