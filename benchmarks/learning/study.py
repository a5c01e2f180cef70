"""The curves of a benchmark, and how many labels they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from curves import OURS, Point, Task
from numpy.typing import NDArray

from backend.simulation.comparison import labels_to_reach


class Needed(NamedTuple):
    """Labels to a target [R]; a run that never got there has all that it asked for."""

    labels: NDArray[np.float64]
    reached: NDArray[np.bool_]

    def __str__(self) -> str:
        mean = f"{self.labels.mean():.0f}"
        if self.reached.all():
            return mean
        return f"≥ {mean} ({self.reached.sum()} of {len(self.reached)})"

    @property
    def typical(self) -> float:
        """The geometric mean, which ratios are ratios of."""
        return float(np.exp(np.log(np.maximum(self.labels, 1)).mean()))


@dataclass(frozen=True)
class Study:
    """Curves of every set, method, head and seed that they apply to; the first method is judged."""

    sets: Sequence[str]
    methods: Sequence[str]
    heads: Sequence[str]
    seeds: int
    curves: Mapping[Task, Sequence[Point]]

    @cached_property
    def rivals(self) -> list[str]:
        return [name for name in self.methods if not name.startswith("our ")]

    def runs(self, kind: str, dataset: str, name: str) -> list[Sequence[Point]]:
        """Return a curve for each seed; none where the set lacks what the method needs."""
        tasks = (Task(kind, dataset, name, seed) for seed in range(self.seeds))
        return [self.curves[task] for task in tasks if task in self.curves]

    def values(self, kind: str, dataset: str, name: str, what: str) -> NDArray[np.float64]:
        """Return a figure of `Point` of each seed's curve [R, I]."""
        runs = self.runs(kind, dataset, name)
        # Copies of pictures can make a seed's pool, and its last batch, a little smaller.
        shortest = min(map(len, runs))
        return np.array([[getattr(point, what) for point in run[:shortest]] for run in runs])

    def of_all_labels(self, dataset: str, head: str) -> NDArray[np.float64]:
        """Return the accuracies [R] from the whole training part."""
        return self.values("all labels", dataset, head, "top1")[:, 0]

    def needed(self, dataset: str, method: str, share: float) -> Needed | None:
        """Return the labels to a share of what our head reaches with all labels."""
        runs = self.runs("strategies", dataset, method)
        if not runs:
            return None
        targets = share * self.of_all_labels(dataset, OURS)
        labels = np.array(
            [
                labels_to_reach([p.labels for p in run], [p.top1 for p in run], target)
                for run, target in zip(runs, targets, strict=True)
            ]
        )
        reached = ~np.isnan(labels)
        return Needed(np.where(reached, labels, [run[-1].labels for run in runs]), reached)

    def best_rival(self, dataset: str, share: float) -> tuple[str, Needed] | None:
        """Return whoever of the others needs fewest labels, whatever it is on other sets."""
        known = [
            (name, needed)
            for name in self.rivals
            if (needed := self.needed(dataset, name, share)) is not None
        ]
        return min(known, key=lambda rival: rival[1].typical, default=None)
