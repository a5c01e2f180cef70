from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from backend.learning.uncertainty import (
    Measure,
    entropy,
    least_certain_label,
    least_confidence,
    margin,
)

MEASURES = [margin, entropy, least_confidence]
each_measure = pytest.mark.parametrize("measure", MEASURES)

# Logits far apart saturate a softmax to exact zeros and ones; close ones give uniform rows.
logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.floats(-500, 500, width=32),
)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (margin, 1 - (0.5 - 0.3)),
        (entropy, -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(3)),
        (least_confidence, (1 - 0.5) * 3 / 2),
    ],
)
def test_a_row_computed_by_hand(measure: Measure, expected: float) -> None:
    uncertainty = measure(torch.tensor([[0.2, 0.5, 0.3]]))

    assert uncertainty.shape == (1,)
    assert uncertainty.item() == pytest.approx(expected, abs=1e-6)


@each_measure
@pytest.mark.parametrize("choices", [2, 3, 7, 1000])
def test_a_uniform_row_is_wholly_uncertain(measure: Measure, choices: int) -> None:
    assert measure(torch.full((1, choices), 1 / choices)).item() == pytest.approx(1, abs=1e-5)


@each_measure
@pytest.mark.parametrize("choices", [2, 3, 7, 1000])
def test_a_row_with_one_sure_choice_is_certain(measure: Measure, choices: int) -> None:
    assert measure(torch.eye(choices)).tolist() == [0.0] * choices


@each_measure
def test_a_single_choice_is_certain(measure: Measure) -> None:
    assert measure(torch.ones(3, 1)).tolist() == [0.0, 0.0, 0.0]


@each_measure
@pytest.mark.parametrize("choices", [0, 1, 4])
def test_no_tasks_give_no_uncertainties(measure: Measure, choices: int) -> None:
    assert measure(torch.ones(0, choices)).shape == (0,)


def test_measures_disagree_where_their_definitions_do() -> None:
    two_rivals = torch.tensor([0.5, 0.5, 0.0, 0.0])
    long_tail = torch.tensor([0.4, 0.2, 0.2, 0.2])
    rows = torch.stack([two_rivals, long_tail])

    assert margin(rows).tolist() == pytest.approx([1.0, 0.8])
    assert least_confidence(rows).tolist() == pytest.approx([2 / 3, 0.8])
    assert entropy(rows)[0] < entropy(rows)[1]


def test_entropy_equals_scipys(rng: np.random.Generator) -> None:
    probabilities = rng.dirichlet(np.full(6, 0.3), size=50)

    ours = entropy(torch.from_numpy(probabilities))

    np.testing.assert_allclose(ours.numpy(), scipy.stats.entropy(probabilities, axis=1, base=6))


@given(logits)
def test_uncertainties_stay_between_0_and_1_for_any_probabilities(values: np.ndarray) -> None:
    probabilities = torch.from_numpy(values).softmax(dim=1)

    for measure in MEASURES:
        assert_in_unit_interval(measure(probabilities), len(values))
        assert_in_unit_interval(
            least_certain_label(torch.from_numpy(values).sigmoid(), measure), len(values)
        )


@each_measure
def test_rounding_in_a_row_never_leaves_the_unit_interval(measure: Measure) -> None:
    above_one = torch.tensor([[1.0000001, 0.0], [0.5000001, 0.5000001]])

    assert_in_unit_interval(measure(above_one), 2)


@each_measure
def test_a_multiple_task_is_as_uncertain_as_its_least_certain_label(measure: Measure) -> None:
    probabilities = torch.tensor([[0.99, 0.4, 0.01], [0.9, 1.0, 0.0]])

    uncertainties = least_certain_label(probabilities, measure)

    alone = measure(torch.tensor([[0.4, 0.6], [0.9, 0.1]]))
    torch.testing.assert_close(uncertainties, alone)


@each_measure
def test_a_label_and_its_complement_are_equally_uncertain(measure: Measure) -> None:
    probabilities = torch.tensor([[0.25], [0.75]])

    first, second = least_certain_label(probabilities, measure).tolist()

    assert first == pytest.approx(second)
    assert 0 < first < 1


def test_a_multiple_task_without_labels_is_certain() -> None:
    assert least_certain_label(torch.ones(2, 0), margin).tolist() == [0.0, 0.0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_in_unit_interval(uncertainties: Tensor, count: int) -> None:
    assert uncertainties.shape == (count,)
    assert bool(((uncertainties >= 0) & (uncertainties <= 1)).all())
