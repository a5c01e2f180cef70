"""The demo without Label Studio: drawn pictures whose labels are asked for, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from backend.clip.encoder import Encoder, load_encoder
from backend.demo.pictures import CHOICES, collection
from backend.simulation.comparison import labels_to_reach
from backend.simulation.dataset import EmbeddedDataset, LabelledImages
from backend.simulation.embedded import with_texts
from backend.simulation.experiment import BASELINE, Experiment, Parameters, Result
from backend.simulation.learners import HeadLearner

STRATEGY = "auto"

_SEED = 2024
_PICTURES_AT_ONCE = 50

# What a shell reports for a program that Ctrl-C ended.
_INTERRUPTED = 130

Curves = Mapping[str, Sequence[Sequence[Result]]]


def run_offline_demo(
    console: Console, *, pictures: int = 600, iterations: int = 10, runs: int = 2
) -> int:
    """Print how accuracy rises with the labels that `STRATEGY` asks for, and with random ones.

    Nothing is read from the network and nothing is written. Returns an exit code: 0 if accuracy
    rose above that of no label. `iterations` are batches of ten labels; `runs` differ in which
    third of the pictures is held out for the accuracy.
    """
    parameters = Parameters(
        strategies=(STRATEGY, BASELINE),
        initial_per_class=0,
        score_per_iteration=None,
        annotate_per_iteration=10,
        validation=1 / 3,
        runs=runs,
        iterations=iterations,
        seed=_SEED,
    )
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as bar:
            encoder = load_encoder("tiny", None, "cpu", "float32")
            dataset = _draw_and_encode(encoder, pictures, bar)
            experiment = Experiment(dataset, HeadLearner(dataset, encoder), parameters)
            curves = _simulate(experiment, bar)
    except KeyboardInterrupt:
        console.print("stopped")
        return _INTERRUPTED
    accuracies = {name: _mean_accuracies(of_runs) for name, of_runs in curves.items()}
    labels = [result.n_annotations for result in curves[STRATEGY][0]]
    console.print(_table(labels, accuracies))
    for sentence in _sentences(labels, accuracies):
        console.print(sentence, highlight=False, soft_wrap=True)
    return 0 if accuracies[STRATEGY][-1] > accuracies[STRATEGY][0] else 1


def _draw_and_encode(encoder: Encoder, count: int, bar: Progress) -> EmbeddedDataset:
    drawing = bar.add_task("drawing pictures", total=1)
    drawn = collection(count, _SEED)
    bar.advance(drawing)
    encoding = bar.add_task("encoding them", total=count)
    vectors = []
    for start in range(0, count, _PICTURES_AT_ONCE):
        images = [image for _, image in drawn[start : start + _PICTURES_AT_ONCE]]
        vectors.append(encoder.encode_images(images))
        bar.advance(encoding, len(images))
    labels = np.array([CHOICES.index(choice) for choice, _ in drawn])
    paths = tuple(Path(f"drawn-{number}") for number in range(count))
    return with_texts(
        LabelledImages(paths, labels, CHOICES, None), np.concatenate(vectors), encoder
    )


def _simulate(experiment: Experiment, bar: Progress) -> Curves:
    parameters = experiment.parameters
    work = [(run, name) for run in range(parameters.runs) for name in parameters.strategies]
    shown = bar.add_task("", total=sum(experiment.length(name, run) for run, name in work))
    curves: dict[str, list[list[Result]]] = {name: [] for name in parameters.strategies}
    for run, name in work:
        bar.update(shown, description=f"annotating, {name}, run {run + 1} of {parameters.runs}")
        curve = []
        for result in experiment.simulate(name, run):
            curve.append(result)
            bar.advance(shown)
        curves[name].append(curve)
    bar.update(shown, description="annotating")
    return curves


def _mean_accuracies(of_runs: Sequence[Sequence[Result]]) -> list[float]:
    accuracies = np.array([[result.top1_val for result in curve] for curve in of_runs])
    means: list[float] = accuracies.mean(axis=0).tolist()
    return means


def _table(labels: Sequence[int], accuracies: Mapping[str, Sequence[float]]) -> Table:
    table = Table("labels", *(f"right, {name}" for name in accuracies))
    for index, count in enumerate(labels):
        table.add_row(
            str(count) if count else "0 (zero-shot)",
            *(f"{of_strategy[index]:.1%}" for of_strategy in accuracies.values()),
        )
    return table


def _sentences(labels: Sequence[int], accuracies: Mapping[str, Sequence[float]]) -> list[str]:
    ours, random = accuracies[STRATEGY], accuracies[BASELINE]
    sentences = [
        f"{STRATEGY} went from {ours[0]:.1%} right to {ours[-1]:.1%} with {labels[-1]} labels, "
        f"on pictures that nobody labelled; random labels got to {random[-1]:.1%}."
    ]
    needed = labels_to_reach(labels, ours, random[-1])
    if not math.isnan(needed):
        sentences.append(
            f"What took {labels[-1]} random labels took {needed:.0f} of those that "
            f"{STRATEGY} asked for."
        )
    sentences.append(
        "On a labelled set of your own: `clip-backend dataset` and `clip-backend simulate`."
    )
    return sentences
