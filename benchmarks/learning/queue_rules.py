"""What makes Label Studio's queue save labels: scores that spread a batch, or `cluster`?

    python benchmarks/learning/queue_rules.py --report docs/learning.md

Label Studio serves each annotator the open task of lowest score; where predictions have a
`cluster`, first that of the clusters of which this annotator has labelled fewest. Here both rules
are simulated on known labels with several annotators at once and with the delay of a refresh.
Results are kept as they are measured, so that it goes on where it was stopped; an empty folder as
`--out` measures all of them. `--report` puts the tables into a document; without it they are
printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import DATASETS
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from backend.learning.head import Head, fit
from backend.simulation.atomic import replacing
from backend.simulation.comparison import labels_to_reach, paired_ratio
from backend.simulation.dataset import EmbeddedDataset
from backend.simulation.experiment import ALL_LABELS, BASELINE, Experiment, Parameters, Result
from backend.simulation.learners import HeadLearner, Indices, Learner, Model
from backend.simulation.queue import Queue
from backend.simulation.results import Results

SETS = ("demo", "digits-raw", "digits-clip")

# Labels between two trainings, and trainings.
BATCH = 20
BATCHES = 6
BUDGET = BATCH * BATCHES

TARGETS = (0.80, 0.90, 0.95)

# What a refresh writes first: the part of the queue that clusters could be written for.
HEAD = 200
CLUSTERS = 20

# What `backend.learning.training` calls usual.
PULL = 100.0


class PoolClusters(Queue):
    """Label Studio's rule for predictions with a cluster, of all pictures once and for all."""

    def __init__(self, annotators: int, delay: int, vectors: NDArray[np.float32]) -> None:
        super().__init__(annotators, delay)
        self._vectors = vectors
        self._cluster: dict[int, int] = {}
        self._labelled: list[Counter[int | None]] = [Counter() for _ in range(annotators)]

    def switch(self, order: Indices) -> None:
        super().switch(order)
        if not self._cluster:
            self._cluster = self._clusters_of(order)

    def choose(self, pictures: list[int], annotator: int) -> int:
        labelled = self._labelled[annotator]
        chosen = min(pictures, key=lambda picture: labelled[self._cluster.get(picture)])
        labelled[self._cluster.get(chosen)] += 1
        return chosen

    def _clusters_of(self, pictures: Indices) -> dict[int, int]:
        count = min(CLUSTERS, len(pictures))
        found = KMeans(count, n_init=1, random_state=0).fit_predict(self._vectors[pictures])
        return dict(zip(pictures.tolist(), found.tolist(), strict=True))


class HeadClusters(PoolClusters):
    """The same, of the head of the queue anew at each refresh; the other pictures have none.

    Its numbers mean other clusters than those before, and annotators are taken to have labelled
    none of them: more than Label Studio does, which counts on.
    """

    def switch(self, order: Indices) -> None:
        super().switch(order)
        self._cluster = self._clusters_of(np.array(self._open[:HEAD], np.int64))
        self._labelled = [Counter() for _ in self._labelled]


class Rule(NamedTuple):
    """Where scores come from, and what is served."""

    strategy: str
    queue: Callable[[int, int, NDArray[np.float32]], Queue]


def by_score(annotators: int, delay: int, vectors: NDArray[np.float32]) -> Queue:  # noqa: ARG001
    return Queue(annotators, delay)


OURS = "auto"
RULES = {
    "random": Rule("random", by_score),
    "margin": Rule("margin", by_score),
    "auto": Rule("auto", by_score),
    "margin + clusters of the pool": Rule("margin", PoolClusters),
    "margin + clusters of the head": Rule("margin", HeadClusters),
}


class Situation(NamedTuple):
    """How many annotate at once, and how many labels are saved during training and refresh."""

    annotators: int
    delay: int

    def __str__(self) -> str:
        people = "1 annotator" if self.annotators == 1 else f"{self.annotators} annotators"
        return f"{people}; delay {self.delay}"


# The first two are the same delay in seconds.
SITUATIONS = (Situation(1, 5), Situation(5, 20), Situation(1, 20), Situation(5, 5))


@dataclass(frozen=True)
class Curve:
    """What is measured: a rule in a situation, or `ALL_LABELS`."""

    rule: str
    situation: Situation | None = None

    @property
    def name(self) -> str:
        # Chance is the same for any number of annotators and any delay.
        return self.rule if self.situation is None else f"{self.rule}; {self.situation}"


CURVES = (
    Curve(ALL_LABELS),
    Curve(BASELINE),
    *(Curve(rule, situation) for situation in SITUATIONS for rule in RULES if rule != BASELINE),
)


class Memory:
    """A learner that learns from the same labels once: situations share their first batches."""

    def __init__(self, learner: HeadLearner) -> None:
        self._learner = learner
        self._models: dict[bytes, Model] = {}
        self.knows_names = learner.knows_names

    def learn(self, images: Indices, pool: Indices) -> Model:
        key = images.tobytes() + pool.tobytes()
        if key not in self._models:
            self._models[key] = self._learner.learn(images, pool)
        return self._models[key]


class QuickLearner(HeadLearner):
    """Learns a head like ours of one strength, without the cross-validation that takes the time.

    Texts that are wrong more often than right are left out, which ours finds out by itself.
    """

    def __init__(self, dataset: EmbeddedDataset) -> None:
        if dataset.text is not None:
            guesses = (dataset.embeddings @ dataset.text.T).argmax(axis=1)
            if (guesses == dataset.labels).mean() < 0.5:
                dataset = replace(dataset, text=None)
        super().__init__(dataset)
        self._embeddings = torch.from_numpy(dataset.embeddings)
        self._targets = torch.from_numpy(dataset.labels)
        self._zero_shot = super().learn(np.empty(0, np.int64), np.empty(0, np.int64)).head

    def learn(self, images: Indices, pool: Indices) -> Model:  # noqa: ARG002
        head = fit(
            self._embeddings[images], self._targets[images], self._zero_shot, pull=PULL, trust=1.0
        )
        return QuickModel(head, None, self._embeddings)


@dataclass(frozen=True)
class QuickModel:
    """See `backend.simulation.learners.Model`."""

    head: Head
    encoder: None
    vectors: torch.Tensor

    def embeddings(self, images: Indices) -> torch.Tensor:
        return self.vectors[images]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=tuple(DATASETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="without our cross-validation")
    parser.add_argument("--out", type=Path, help="default: results/queue, or queue-quick beside it")
    parser.add_argument(
        "--situations",
        type=int,
        default=len(SITUATIONS),
        metavar="N",
        help=f"the first N of: {', '.join(map(str, SITUATIONS))}",
    )
    parser.add_argument("--report", type=Path, help="a document with the markers of the tables")
    options = parser.parse_args()
    situations = SITUATIONS[: options.situations]
    name = "queue-quick" if options.quick else "queue"
    out = options.out or Path(__file__).parent / "results" / name
    # Before the processes import what counts its threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as executor:
        # Situation by situation and seed by seed, so that what is there after a stop is even.
        tasks = list(product((None, *situations), range(options.seeds), options.sets))
        work = partial(measure, quick=options.quick, out=out)
        for done, _ in enumerate(executor.map(work, tasks), start=1):
            print(f"{done} of {len(tasks)}", file=sys.stderr)
    rows = {
        of: [row for seed in range(options.seeds) for row in kept(of, seed, out).rows()]
        for of in options.sets
    }
    tables = report(rows, situations)
    if options.report is None:
        print(tables)
    else:
        write(tables, name, options.report)


def measure(task: tuple[Situation | None, int, str], *, quick: bool, out: Path) -> None:
    """Measure what is missing of a seed of a set in a situation."""
    situation, seed, name = task
    results = kept(name, seed, out)
    of = DATASETS[name]()
    dataset = EmbeddedDataset(
        of.embeddings, of.labels, of.classes, of.text, of.logit_scale, validation=None
    )
    learner = Memory(QuickLearner(dataset) if quick else HeadLearner(dataset))
    for curve in CURVES:
        if curve.situation != situation:
            continue
        experiment = experiment_of(curve, dataset, learner)
        strategy = RULES[curve.rule].strategy if curve.rule in RULES else curve.rule
        if len(results.of(curve.name, seed)) < experiment.length(strategy, seed):
            for row in experiment.simulate(strategy, seed):
                results.add(replace(row, strategy=curve.name))


def experiment_of(curve: Curve, dataset: EmbeddedDataset, learner: Learner) -> Experiment:
    rule = RULES.get(curve.rule, RULES[BASELINE])
    situation = curve.situation or Situation(annotators=1, delay=0)
    parameters = Parameters(
        strategies=(rule.strategy,),
        initial_per_class=0,
        score_per_iteration=None,
        annotate_per_iteration=BATCH,
        validation=None,
        runs=1,
        iterations=BATCHES,
        seed=0,
        annotators=situation.annotators,
        refresh_delay=situation.delay,
    )
    return Experiment(
        dataset,
        learner,
        parameters,
        new_queue=lambda annotators, delay: rule.queue(annotators, delay, dataset.embeddings),
    )


def kept(name: str, seed: int, out: Path) -> Results:
    return Results(out / name / f"{seed}.csv", [curve.name for curve in CURVES])


def needed(rows: Sequence[Result], curve: Curve, share: float) -> NDArray[np.float64]:
    """Return a curve's labels [R] to a share of the run's accuracy with all; NaN if too few."""
    accuracies = {row.run: row.top1_val for row in rows if row.strategy == ALL_LABELS}
    runs = {
        run: [row for row in rows if (row.strategy, row.run) == (curve.name, run)]
        for run in sorted(accuracies)
    }
    return np.array(
        [
            labels_to_reach(
                [row.n_annotations for row in own],
                [row.top1_val for row in own],
                share * accuracies[run],
            )
            for run, own in runs.items()
        ]
    )


def spread(labels: NDArray[np.float64]) -> str:
    """Say how many labels runs need, where those that never got there have all they asked for."""
    reached = ~np.isnan(labels)
    counted = np.where(reached, labels, BUDGET)
    text = f"{counted.mean():.0f} ± {counted.std(ddof=1):.0f}"
    return text if reached.all() else f"≥ {text} ({reached.sum()} of {len(labels)})"


def ratio(own: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    """Say what share of the others' labels is needed, of the runs in which that can be told."""
    # Where neither got there, or both were there from the beginning, there is nothing to compare.
    told = ~(np.isnan(own) & np.isnan(others)) & ~((own == 0) & (others == 0))
    if told.sum() < 2:
        return "–"
    found = paired_ratio(*(np.where(np.isnan(each), BUDGET, each)[told] for each in (own, others)))
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f}; {told.sum()} of {len(told)})"


def report(rows: Mapping[str, Sequence[Result]], situations: Sequence[Situation]) -> str:
    """Return the tables in Markdown."""
    curves = [curve for curve in CURVES if curve.rule == BASELINE or curve.situation in situations]
    labels = {
        (name, curve, share): needed(of_set, curve, share)
        for name, of_set in rows.items()
        for curve in curves
        for share in TARGETS
    }

    def against(rule: str, situation: Situation, share: float) -> str:
        other = Curve(rule) if rule == BASELINE else Curve(rule, situation)
        return ratio(
            *(
                np.concatenate([labels[name, each, share] for name in rows])
                for each in (Curve(OURS, situation), other)
            )
        )

    others = [rule for rule in RULES if rule != OURS]
    ratios = [
        [
            f"{100 * share:.0f} %",
            str(situation),
            *(against(rule, situation, share) for rule in others),
        ]
        for share in TARGETS
        for situation in situations
    ]
    of_sets = [
        [
            name,
            curve.rule,
            str(curve.situation or "any"),
            *(spread(labels[name, curve, share]) for share in TARGETS),
        ]
        for name in rows
        for curve in curves
    ]
    targets = [f"{100 * share:.0f} %" for share in TARGETS]
    return "\n\n".join(
        [
            _table(["target", "situation", *(f"{OURS} / {rule}" for rule in others)], ratios),
            "<details><summary>Labels needed on each set</summary>",
            _table(["set", "rule", "situation", *targets], of_sets),
            "</details>",
        ]
    )


def write(tables: str, name: str, path: Path) -> None:
    """Put the tables between the markers of a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"{path} needs a line {begin} and after it a line {end}")
    with replacing(path) as file:
        file.write("\n\n".join([before + begin, tables, end + after]).encode())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
