from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.learning.label_errors import MOST, suggested_classes, suspected_labels, suspects


def rows(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities)


def classes(*labels: int) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


# Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.9 + 0.7 + 0.4) / 3 = 2/3.
TWO_CLASSES = rows((0.9, 0.1), (0.8, 0.2), (0.1, 0.9), (0.1, 0.9), (0.3, 0.7), (0.6, 0.4))
TWO_CLASSES_GIVEN = classes(0, 0, 0, 1, 1, 1)


def test_a_label_is_suspected_where_another_class_reaches_its_own_mean_confidence() -> None:
    suggested = suggested_classes(TWO_CLASSES, TWO_CLASSES_GIVEN)

    assert suggested.tolist() == [0, 0, 1, 1, 1, 0]


def test_the_most_suspicious_label_comes_first() -> None:
    # Margins: 0.1 − 0.9 = −0.8 of the third, 0.4 − 0.6 = −0.2 of the last.
    assert suspects(TWO_CLASSES, TWO_CLASSES_GIVEN).tolist() == [2, 5]


def test_a_class_that_is_more_probable_but_not_confidently_is_no_suspicion() -> None:
    # The last one is rather a 1, but 0.6 is less than 1 usually has.
    probabilities = rows((0.9, 0.1), (0.1, 0.9), (0.1, 0.9), (0.4, 0.6))

    assert suspects(probabilities, classes(0, 1, 1, 0)).tolist() == []


def test_a_label_that_is_still_the_most_probable_one_is_not_suspected() -> None:
    # Class 2 reaches its low threshold on the first, which does not reach its own high one.
    probabilities = rows((0.6, 0.0, 0.4), (0.9, 0.1, 0.0), (0.4, 0.3, 0.3))

    assert suspects(probabilities, classes(0, 0, 2)).tolist() == []


def test_of_several_classes_that_are_reached_the_most_probable_is_suggested() -> None:
    probabilities = rows((0.0, 0.3, 0.7), (0.5, 0.5, 0.0), (0.4, 0.3, 0.3), (0.2, 0.1, 0.7))

    assert suggested_classes(probabilities, classes(0, 0, 1, 2)).tolist()[0] == 2


def test_a_class_without_a_label_is_never_suggested() -> None:
    probabilities = rows((0.1, 0.0, 0.9), (0.1, 0.0, 0.9), (0.0, 0.1, 0.9))

    assert suggested_classes(probabilities, classes(0, 0, 1)).tolist() == [0, 0, 1]


def test_nothing_is_suspected_where_all_are_as_sure_of_one_class() -> None:
    assert suspects(rows(*[(0.3, 0.7)] * 7), classes(*[1] * 7)).tolist() == []


@pytest.mark.parametrize("choices", [1, 4])
def test_no_label_gives_no_suspicion(choices: int) -> None:
    assert suspects(torch.zeros(0, choices), classes()).shape == (0,)


def test_equally_suspicious_labels_keep_their_order() -> None:
    probabilities = rows((0.9, 0.1), (0.1, 0.9), (0.1, 0.9), *[(0.9, 0.1)] * 8)
    labels = classes(0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0)

    assert suspects(probabilities, labels).tolist() == [6, 7, 9]


@given(st.data())
def test_any_labels_of_any_classes_can_be_judged(data: st.DataObject) -> None:
    count, choices = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 2**16))
    logits = 4 * torch.randn(count, choices, generator=torch.Generator().manual_seed(seed))
    labels = data.draw(st.lists(st.integers(0, choices - 1), min_size=count, max_size=count))
    probabilities, targets = logits.softmax(dim=1), classes(*labels)

    suggested = suggested_classes(probabilities, targets)
    found = suspects(probabilities, targets)

    assert set(suggested.tolist()) <= set(labels)
    assert sorted(found.tolist()) == (suggested != targets).nonzero()[:, 0].tolist()
    assert not (probabilities[found].argmax(dim=1) == targets[found]).any()


def test_a_suspect_says_which_task_what_was_given_and_what_it_should_be() -> None:
    found = suspected_labels(
        TWO_CLASSES, TWO_CLASSES_GIVEN, range(11, 17), ["Tee", "Shoe"], multiple=False
    )

    assert json.loads(json.dumps(found)) == [
        {
            "task": 13,
            "given": ["Tee"],
            "suggested": ["Shoe"],
            "confidence": pytest.approx(0.9),
        },
        {
            "task": 16,
            "given": ["Shoe"],
            "suggested": ["Tee"],
            "confidence": pytest.approx(0.6),
        },
    ]


def test_with_multiple_choices_each_is_judged_by_itself() -> None:
    # The first choice is wanting in the third row and too much in the fourth, where the second
    # one is wanting as well; nobody made the third choice, so it cannot be suggested.
    probabilities = rows(
        (0.9, 0.1, 0.9),
        (0.1, 0.9, 0.9),
        (0.95, 0.1, 0.9),
        (0.1, 0.99, 0.9),
        (0.1, 0.9, 0.9),
        (0.9, 0.1, 0.9),
    )
    targets = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float32
    )

    found = suspected_labels(
        probabilities, targets, [1, 2, 3, 4, 5, 6], ["wet", "torn", "old"], multiple=True
    )

    assert json.loads(json.dumps(found)) == [
        {
            "task": 4,
            "given": ["wet"],
            "suggested": ["torn"],
            "confidence": pytest.approx(0.99),
        },
        {
            "task": 3,
            "given": [],
            "suggested": ["wet"],
            "confidence": pytest.approx(0.95),
        },
    ]


def test_without_labels_there_are_no_suspects() -> None:
    for multiple, targets in ((False, classes()), (True, torch.zeros(0, 2))):
        assert suspected_labels(torch.zeros(0, 2), targets, [], ["a", "b"], multiple=multiple) == []


@pytest.mark.parametrize("multiple", [False, True])
def test_a_report_keeps_the_most_suspicious_ones(multiple: bool) -> None:
    # Half of the labels are wrong, ever more so.
    count = MOST + 100
    surety = torch.linspace(0.7, 0.99, count).repeat_interleave(2)
    given = torch.zeros(2 * count, 2)
    given[0::2, 0] = 1
    given[1::2, 1] = 1
    # Far more right ones keep the thresholds below every wrong one's probability.
    right = torch.tensor([[0.6, 0.4], [0.4, 0.6]]).repeat(20 * count, 1)
    wrong = torch.where(given.bool(), (1 - surety)[:, None], surety[:, None])
    probabilities = torch.cat([wrong, right])
    targets = torch.cat([given, (right > 0.5).float()])

    found = suspected_labels(
        probabilities,
        targets if multiple else targets.argmax(dim=1),
        range(len(targets)),
        ["a", "b"],
        multiple=multiple,
    )

    assert len(found) == MOST
    assert {suspect["task"] for suspect in found} == set(range(2 * count - MOST, 2 * count))
    confidences = [suspect["confidence"] for suspect in found]
    assert confidences == sorted(confidences, reverse=True)


def test_wrong_labels_among_many_right_ones_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (500,), generator=generator)
    logits = 1.5 * torch.randn(500, 5, generator=generator)
    logits[torch.arange(500), truth] += 6
    wrong = torch.randperm(500, generator=generator)[:50]
    labels = truth.clone()
    labels[wrong] = (truth[wrong] + 1) % 5

    probabilities = logits.softmax(dim=1)
    found = suspects(probabilities, labels)

    hits = len(set(found.tolist()) & set(wrong.tolist()))
    assert hits / len(found) > 0.9
    assert hits / len(wrong) > 0.7
    suggested = suggested_classes(probabilities, labels)[found]
    assert (suggested == truth[found]).double().mean() > 0.9
