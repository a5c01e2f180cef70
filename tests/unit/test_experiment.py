from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import SettingsError
from backend.learning.strategies import STRATEGIES, Pool
from backend.simulation.dataset import EmbeddedDataset
from backend.simulation.experiment import (
    ALL_LABELS,
    BASELINE,
    ZERO_SHOT,
    Experiment,
    Parameters,
    Result,
)
from backend.simulation.learners import HeadLearner
from backend.simulation.report import About, write_report

PARAMETERS = Parameters(
    strategies=("margin", BASELINE),
    initial_per_class=1,
    score_per_iteration=None,
    annotate_per_iteration=5,
    validation=None,
    runs=2,
    iterations=4,
    seed=7,
)


def blobs(
    sizes: tuple[int, ...] = (40, 30, 20, 10), *, text: bool = False, seed: int = 0
) -> EmbeddedDataset:
    """Return unit vectors around a direction a class, sorted by class, not split."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 8)).astype(np.float32)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = centres[labels] + rng.normal(0, 0.7, size=(len(labels), 8)).astype(np.float32)
    return EmbeddedDataset(
        embeddings=unit(points),
        labels=labels.astype(np.int64),
        classes=tuple(f"class {number}" for number in range(len(sizes))),
        text=unit(centres) if text else None,
        logit_scale=20.0 if text else None,
        validation=None,
    )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def experiment(
    data: EmbeddedDataset | None = None,
    *,
    known: Mapping[str, Callable[[Pool], Tensor]] = STRATEGIES,
    **changes: Any,
) -> Experiment:
    data = blobs() if data is None else data
    parameters = replace(PARAMETERS, **changes)
    return Experiment(data, HeadLearner(data), parameters, known)


def figures(results: Iterable[Result]) -> list[Result]:
    """Return all that does not depend on the clock."""
    return [replace(each, seconds=0) for each in results]


def test_a_run_starts_with_the_initial_labels_and_adds_a_batch_an_iteration() -> None:
    results = list(experiment().simulate("margin", 0))

    assert [each.iteration for each in results] == [0, 1, 2, 3, 4]
    assert [each.n_annotations for each in results] == [4, 9, 14, 19, 24]
    assert {(each.run, each.strategy) for each in results} == {(0, "margin")}
    assert len(results) == experiment().length("margin", 0)


def test_the_same_seed_gives_the_same_results_and_another_seed_others() -> None:
    first, again = (figures(experiment().simulate("margin", 1)) for _ in range(2))
    other = figures(experiment(seed=8).simulate("margin", 1))

    assert first == again
    assert first != other


def test_runs_differ_in_their_draws() -> None:
    simulated = experiment()

    assert not np.array_equal(simulated.split(0).training, simulated.split(1).training)
    assert not np.array_equal(simulated.initial(0), simulated.initial(1))


def test_more_strategies_change_nothing_for_those_that_were_there() -> None:
    alone = figures(experiment(strategies=("margin",)).simulate("margin", 0))
    beside = experiment(strategies=("entropy", "margin", BASELINE))
    for name in ("entropy", BASELINE):
        list(beside.simulate(name, 0))

    assert figures(beside.simulate("margin", 0)) == alone


def test_strategies_of_a_run_start_from_the_same_labels() -> None:
    simulated = experiment()

    margin, chance = (next(iter(simulated.simulate(name, 0))) for name in ("margin", BASELINE))

    assert figures([replace(margin, strategy=BASELINE)]) == figures([chance])


def test_strategies_score_the_same_random_part_of_the_pool() -> None:
    scored: list[list[str]] = []

    def watch(pool: Pool) -> Tensor:
        scored.append(list(pool.keys))
        return torch.zeros(len(pool.keys))

    simulated = experiment(
        known={"first": watch, "second": watch},
        strategies=("first", "second"),
        score_per_iteration=20,
    )
    for name in ("first", "second"):
        list(simulated.simulate(name, 0))

    first, second = scored[:4], scored[4:]
    assert first == second
    assert [len(keys) for keys in first] == [20] * 4
    pictures = [{key.split()[-1] for key in keys} for keys in first]
    assert pictures[0] != pictures[1]


def test_a_strategy_gets_the_pool_without_labels_and_the_labelled_set() -> None:
    pools: list[Pool] = []

    def watch(pool: Pool) -> Tensor:
        pools.append(pool)
        return torch.zeros(len(pool.keys))

    simulated = experiment(known={"watch": watch}, strategies=("watch",))
    list(simulated.simulate("watch", 0))

    training = len(simulated.split(0).training)
    assert [len(pool.labelled) for pool in pools] == [4, 9, 14, 19]
    assert [len(pool.embeddings) for pool in pools] == [training - n for n in (4, 9, 14, 19)]
    for pool in pools:
        assert not (pool.embeddings @ pool.labelled.T > 0.99999).any()


def test_what_a_strategy_is_most_uncertain_of_is_asked_first() -> None:
    data = blobs((30, 30))

    def one_class_first(pool: Pool) -> Tensor:
        at = torch.tensor([int(key.split()[-1]) for key in pool.keys])
        return torch.from_numpy(data.labels)[at].float()

    results = list(
        experiment(
            data,
            known={"last class": one_class_first},
            strategies=("last class",),
            initial_per_class=0,
        ).simulate("last class", 0)
    )

    assert [each.n_classes_annotated for each in results] == [0, 1, 1, 1, 1]


class Watched:
    """A strategy that remembers what it was asked and what it answered, best first."""

    def __init__(self, name: str) -> None:
        self._strategy = STRATEGIES[name]
        self.orders: list[list[str]] = []

    def __call__(self, pool: Pool) -> Tensor:
        uncertainties = self._strategy(pool)
        ranks = uncertainties.argsort(descending=True, stable=True).tolist()
        pictures = [key.split()[-1] for key in pool.keys]
        self.orders.append([pictures[rank] for rank in ranks])
        return uncertainties


@pytest.mark.parametrize("name", ["auto", "margin"])
def test_one_annotator_who_waits_for_each_refresh_labels_what_the_strategy_asks_for(
    name: str,
) -> None:
    watched = Watched(name)

    list(
        experiment(
            known={name: watched}, strategies=(name,), annotate_per_iteration=1, iterations=6
        ).simulate(name, 0)
    )

    for before, after in pairwise(watched.orders):
        assert set(before) - set(after) == {before[0]}


def test_labels_that_come_during_a_refresh_are_those_that_the_model_before_asked_for() -> None:
    watched = Watched("margin")

    list(
        experiment(known={"margin": watched}, strategies=("margin",), refresh_delay=5).simulate(
            "margin", 0
        )
    )

    first, second, third, fourth = watched.orders
    assert set(first) - set(second) == set(first[:5])
    # The second order is not there yet, and then the third one is not.
    assert set(second) - set(third) == set(first[5:10])
    left = [picture for picture in second if picture in third]
    assert set(third) - set(fourth) == set(left[:5])


def test_what_several_annotators_have_before_them_was_asked_for_by_an_older_model() -> None:
    watched = Watched("margin")

    list(
        experiment(known={"margin": watched}, strategies=("margin",), annotators=3).simulate(
            "margin", 0
        )
    )

    first, second, third, _ = watched.orders
    assert set(first) - set(second) == set(first[:5])
    on_pages = first[5:7]
    left = [picture for picture in second if picture not in on_pages]
    assert set(second) - set(third) == {*on_pages, *left[:3]}


def test_a_queue_that_several_empty_is_simulated_the_same_each_time() -> None:
    first, again = (
        figures(experiment(annotators=4, refresh_delay=3).simulate("auto", 1)) for _ in range(2)
    )

    assert first == again


def test_who_does_not_care_gets_random_pictures_not_the_first_of_the_data() -> None:
    def indifferent(pool: Pool) -> Tensor:
        return torch.zeros(len(pool.keys))

    results = list(
        experiment(
            known={"indifferent": indifferent},
            strategies=("indifferent",),
            initial_per_class=0,
            annotate_per_iteration=20,
        ).simulate("indifferent", 0)
    )

    # The data is sorted by class, and the first one has more than 20 pictures.
    assert results[1].n_classes_annotated > 1


def test_a_run_can_start_without_a_label() -> None:
    first, second, *_ = experiment(blobs(text=True), initial_per_class=0).simulate("margin", 0)

    assert (first.n_annotations, first.n_classes_annotated) == (0, 0)
    assert math.isnan(first.top1_train)
    assert first.top1_val > 0.5
    assert second.n_annotations == 5


def test_a_class_may_have_no_label_at_first() -> None:
    data = blobs((30, 30, 1))
    data = replace(data, labels=np.where(data.labels == 2, 3, data.labels), classes=tuple("abcd"))

    results = list(experiment(data).simulate("margin", 0))

    # Class c has no picture, d a single one, which stays for training.
    assert [each.n_classes_annotated for each in results] == [3] * 5
    assert results[-1].top1_val > 0.8


def test_a_class_that_is_smaller_than_the_initial_labels_gives_all_it_has() -> None:
    simulated = experiment(blobs((40, 5)), initial_per_class=10)

    assert np.bincount(blobs((40, 5)).labels[simulated.initial(0)]).tolist() == [10, 4]


def test_a_run_ends_where_the_pool_is_exhausted() -> None:
    simulated = experiment(blobs((10, 10)), annotate_per_iteration=6, iterations=100)

    results = list(simulated.simulate("margin", 0))
    (full,) = simulated.simulate(ALL_LABELS, 0)

    assert [each.n_annotations for each in results] == [2, 8, 14, 16]
    assert simulated.length("margin", 0) == 4
    assert figures([replace(results[-1], strategy=ALL_LABELS, iteration=0)]) == figures([full])


def test_the_datas_own_split_is_kept_unless_a_share_is_asked_for() -> None:
    own = np.arange(100) % 10 == 0
    data = replace(blobs(), validation=own)

    kept, drawn = experiment(data), experiment(data, validation=0.5)

    assert all(np.array_equal(kept.split(run).validation, np.flatnonzero(own)) for run in (0, 1))
    assert len(drawn.split(0).validation) == 50


def test_a_drawn_split_is_stratified() -> None:
    data = blobs()

    split = experiment(data, validation=0.2).split(0)

    assert np.bincount(data.labels[split.validation]).tolist() == [8, 6, 4, 2]
    assert np.array_equal(np.union1d(split.training, split.validation), np.arange(100))


def test_copies_of_a_picture_stay_in_one_part() -> None:
    twice = blobs((20, 20))
    data = replace(
        twice,
        embeddings=np.concatenate([twice.embeddings, twice.embeddings]),
        labels=np.concatenate([twice.labels, twice.labels]),
    )

    split = experiment(data).split(0)

    assert not set(split.training % 40) & set(split.validation % 40)


def test_the_references_are_no_label_where_names_tell_and_all_labels() -> None:
    named, nameless = experiment(blobs(text=True)), experiment()

    assert named.references == (ZERO_SHOT, ALL_LABELS)
    assert nameless.references == (ALL_LABELS,)
    (zero_shot,), (full,) = (list(named.simulate(name, 0)) for name in named.references)
    assert (zero_shot.n_annotations, full.n_annotations) == (0, len(named.split(0).training))
    assert zero_shot.top1_val <= full.top1_val


def test_two_draws_of_chance_do_not_differ(tmp_path: Path) -> None:
    def also_random(pool: Pool) -> Tensor:
        keys = [f"another {key}" for key in pool.keys]
        return STRATEGIES["random"](replace(pool, keys=keys))

    simulated = experiment(
        known={"another": also_random, **STRATEGIES}, strategies=("another", BASELINE), runs=6
    )
    results, references = (
        [row for name in names for run in range(6) for row in simulated.simulate(name, run)]
        for names in (("another", BASELINE), simulated.references)
    )
    write_report(results, references, About("…", 100, 4), tmp_path)

    rows = [
        line
        for line in (tmp_path / "summary.md").read_text().splitlines()
        if line.startswith("| another | ") and "%" in line
    ]
    assert len(rows) == 3
    assert all("no difference seen" in row for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ("best",)}, "--strategy: 'best' is not known; known are .*margin.*random"),
        ({"validation": 1.0}, "--validation: a share above 0 and below 1"),
        ({"score_per_iteration": 4}, "--score-per-iteration: 4 pictures cannot give 5"),
        (
            {"score_per_iteration": 9, "annotators": 3, "refresh_delay": 3},
            "--score-per-iteration: 9 pictures cannot give 10",
        ),
    ],
)
def test_a_wrong_parameter_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        experiment(**changes)


def test_a_validation_part_without_a_picture_is_an_error() -> None:
    with pytest.raises(SettingsError, match="Nothing is left for validation"):
        experiment(blobs((1, 1, 1)))
