from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import normalize

from backend.learning.estimation import (
    Estimate,
    advice,
    expected_gain,
    outlook,
    pool_accuracy,
)
from backend.learning.head import Head
from backend.learning.training import train

CHOICES = 10


def simulate(rng: np.random.Generator, *, picked: bool, sharpness: float) -> bool:
    """Draw a pool and a labelled set from it; tell whether the interval holds the truth."""
    logits = rng.normal(1.5, 2, 1000)
    correct = rng.random(1000) < 1 / (1 + np.exp(-logits))
    confidence = 1 / (1 + np.exp(-sharpness * logits))
    chances = (1 - confidence + 0.02) ** 2 if picked else np.ones(1000)
    labelled = rng.choice(1000, 60, replace=False, p=chances / chances.sum())
    pool = np.setdiff1d(np.arange(1000), labelled)
    estimate = pool_accuracy(
        torch.from_numpy(confidence[labelled]),
        torch.from_numpy(correct[labelled]),
        torch.from_numpy(confidence[pool]),
    )
    assert estimate.low <= estimate.value <= estimate.high
    return bool(estimate.low <= correct[pool].mean() <= estimate.high)


@pytest.mark.parametrize("picked", [False, True])
@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.5])
def test_the_interval_holds_the_pools_accuracy_however_labels_were_picked(
    picked: bool, sharpness: float
) -> None:
    rng = np.random.default_rng(0)

    covered = [simulate(rng, picked=picked, sharpness=sharpness) for _ in range(100)]
    assert np.mean(covered) >= 0.9


def test_the_interval_holds_the_accuracy_of_a_head_whose_labels_it_picked_itself() -> None:
    data = load_digits()
    x = normalize(torch.tensor(data.data, dtype=torch.float32), dim=1)
    y = torch.tensor(data.target, dtype=torch.int64)
    prior = Head(torch.zeros(CHOICES, 64), torch.zeros(CHOICES), multiple=False)

    covered = []
    for seed in range(8):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
        labelled, pool = order[:20], order[20:]
        for _ in range(4):
            trained = train(x[labelled], y[labelled], prior, pool=x)
            probabilities = trained.head.probabilities(x[pool])
            accuracy, _ = outlook(trained, y[labelled], probabilities, 50)
            truth = (probabilities.argmax(dim=1) == y[pool]).float().mean()
            covered.append(accuracy.low <= truth <= accuracy.high)
            top = probabilities.topk(2, dim=1).values
            asked = (top[:, 0] - top[:, 1]).argsort()
            labelled = torch.cat([labelled, pool[asked[:25]]])
            pool = pool[asked[25:]]

    assert np.mean(covered) >= 0.85


def test_more_labels_narrow_the_interval() -> None:
    few, many = (
        pool_accuracy(torch.full((n,), 0.8), torch.arange(n) % 5 > 0, torch.full((1000,), 0.8))
        for n in (20, 500)
    )

    assert many.high - many.low < few.high - few.low


def test_without_a_label_confidence_is_taken_at_its_word_within_a_wide_interval() -> None:
    none = torch.empty(0)

    estimate = pool_accuracy(none, none, torch.full((1000,), 0.7))
    assert estimate.low < 0.6 < 0.8 < estimate.high


def test_certainty_of_exactly_0_or_1_is_finite() -> None:
    estimate = pool_accuracy(
        torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 1.0])
    )

    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def right(share: float, count: int = 400) -> torch.Tensor:
    return torch.arange(count) < share * count


def test_a_model_that_gained_nothing_from_twice_the_labels_will_hardly_gain() -> None:
    gain = expected_gain(Estimate(0.95, 0.93, 0.97), right(0.95), right(0.95), labels=400, more=50)

    assert 0 <= gain.low <= gain.value <= gain.high < 0.01
    assert advice(gain, 50).startswith("labelling more will hardly help")


def test_a_model_whose_errors_halve_with_twice_the_labels_gains_as_much() -> None:
    gain = expected_gain(Estimate(0.8, 0.78, 0.82), right(0.8), right(0.6), labels=400, more=400)

    assert gain.low < 0.1 < gain.high
    assert gain.value == pytest.approx(0.1, abs=0.02)
    assert advice(gain, 50).startswith("the next 50 labels bring about")


def test_from_a_handful_of_labels_anything_may_come() -> None:
    gain = expected_gain(
        Estimate(0.7, 0.4, 0.9), right(0.6, 10), right(0.5, 10), labels=10, more=50
    )

    assert gain.low < 0.1
    assert gain.high > 0.25


def test_independent_choices_count_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(200, 8, generator=generator), dim=1)
    targets = (x[:, :2] > 0).float()
    prior = Head(torch.zeros(2, 8), torch.zeros(2), multiple=True)

    trained = train(x[:100], targets[:100], prior)
    probabilities = trained.head.probabilities(x[100:])
    accuracy, gain = outlook(trained, targets[:100], probabilities, 50)
    truth = ((probabilities >= 0.5) == (targets[100:] >= 0.5)).float().mean()
    assert accuracy.low - 0.05 <= truth <= accuracy.high + 0.05
    assert gain.low >= 0


def test_nothing_can_be_told_without_out_of_fold_probabilities() -> None:
    prior = Head(torch.zeros(2, 4), torch.zeros(2), multiple=False)

    with pytest.raises(ValueError, match="fewer than two labels"):
        outlook(
            train(torch.ones(1, 4), torch.tensor([0]), prior),
            torch.tensor([0]),
            torch.ones(1, 2),
            50,
        )
