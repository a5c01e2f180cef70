"""The queue of a benchmark serves what a real Label Studio served: `benchmarks/clusters.py`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def queue_rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "learning")
    return pytest.importorskip("queue_rules")


# Eight pictures in order; the first four in one cluster, then two and two.
CLUSTERED = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("annotators", "labelled"), [(1, [1, 5, 7, 2, 6, 8]), (3, [1, 2, 3, 5, 6, 7])]
)
def test_the_cluster_that_an_annotator_has_labelled_least_comes_first(
    queue_rules: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    annotators: int,
    labelled: list[int],
) -> None:
    monkeypatch.setattr(queue_rules, "CLUSTERS", 3)
    queue = queue_rules.PoolClusters(annotators, 0, CLUSTERED)

    queue.refresh(np.arange(8))

    assert (queue.annotate(6) + 1).tolist() == labelled


def test_clusters_of_the_head_are_found_anew_at_each_refresh(
    queue_rules: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_rules, "CLUSTERS", 2)
    monkeypatch.setattr(queue_rules, "HEAD", 5)
    queue = queue_rules.HeadClusters(1, 0, CLUSTERED)

    queue.refresh(np.arange(8))
    first = queue.annotate(3)
    queue.refresh(np.array([7, 6, 5, 3, 2, 1]))
    second = queue.annotate(2)

    # Of the first five pictures, in two clusters, and of those beyond, which are in none.
    assert first.tolist() == [0, 4, 5]
    assert second.tolist() == [7, 3]
