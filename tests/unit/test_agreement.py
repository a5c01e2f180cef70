from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio.agreement import Agreement, agreement_of, krippendorff_alpha
from backend.labelstudio.choices import Choice
from backend.labelstudio.config import Control

Annotation = Mapping[str, object]

ADA, BOB, CYD = 1, 2, 3


def control(*, multiple: bool = False) -> Control:
    choices = tuple(Choice(value, (value,)) for value in ("A", "B", "C", "D"))
    return Control("kind", "img", "$image", choices, multiple, conditional=False)


SINGLE = control()
MULTIPLE = control(multiple=True)


def by(annotator: object, *choices: str, **fields: object) -> Annotation:
    item = {
        "from_name": "kind",
        "to_name": "img",
        "type": "choices",
        "value": {"choices": list(choices)},
    }
    return {
        "completed_by": annotator,
        "was_cancelled": False,
        "ground_truth": False,
        "result": [item] if choices else [],
        **fields,
    }


def of(agreement: Agreement, annotator: int) -> tuple[int, int, float | None]:
    [found] = [each for each in agreement["annotators"] if each["annotator"] == annotator]
    return found["tasks"], found["compared"], found["agreement"]


def units(*labels: str) -> list[list[frozenset[str]]]:
    return [[frozenset(label) for label in unit] for unit in labels]


def test_each_annotator_is_compared_with_the_consensus_of_the_others() -> None:
    agreement = agreement_of(
        SINGLE,
        {
            1: [by(ADA, "A"), by(BOB, "A"), by(CYD, "B")],
            2: [by(ADA, "B"), by(BOB, "B"), by(CYD, "B")],
            3: [by(ADA, "C"), by(BOB, "A")],
            4: [by(ADA, "C")],
        },
    )

    # Of task 1, Ada's and Bob's others are evenly divided.
    assert of(agreement, ADA) == (4, 2, 0.5)
    assert of(agreement, BOB) == (3, 2, 0.5)
    assert of(agreement, CYD) == (2, 2, 0.5)


def test_tasks_of_several_annotators_are_counted_and_compared_pair_by_pair() -> None:
    agreement = agreement_of(
        SINGLE,
        {
            1: [by(ADA, "A"), by(BOB, "A"), by(CYD, "B")],
            2: [by(ADA, "B"), by(BOB, "B")],
            3: [by(ADA, "C")],
        },
    )

    assert agreement["tasks"] == 2
    # One pair of three, and one of one.
    assert agreement["pairwise"] == 2 / 4


def test_one_annotator_alone_is_counted_and_compared_with_nobody() -> None:
    agreement = agreement_of(SINGLE, {1: [by(ADA, "A")], 2: [by(ADA, "B")]})

    assert agreement == {
        "tasks": 0,
        "pairwise": None,
        "alpha": None,
        "annotators": [{"annotator": ADA, "tasks": 2, "compared": 0, "agreement": None}],
    }


def test_nothing_annotated_is_nothing_to_compare() -> None:
    assert agreement_of(SINGLE, {1: []}) == {
        "tasks": 0,
        "pairwise": None,
        "alpha": None,
        "annotators": [],
    }


def test_what_does_not_vote_is_not_compared() -> None:
    agreement = agreement_of(
        SINGLE,
        {
            1: [by(ADA, "A"), by(BOB, "B", was_cancelled=True)],
            2: [by(ADA, "A"), by(BOB)],
            3: [by(ADA, "A"), by(BOB, "Gone")],
            4: [by(ADA, "A"), by(None, "B")],
            5: [by(ADA, "A"), {"result": None}],
        },
    )

    assert agreement["tasks"] == 0
    assert of(agreement, ADA) == (5, 0, None)


def test_several_annotations_of_one_person_are_one_label() -> None:
    agreement = agreement_of(
        SINGLE,
        {
            1: [by(ADA, "A"), by(ADA, "A"), by(ADA, "B"), by(BOB, "A")],
            # Ada contradicts herself.
            2: [by(ADA, "A"), by(ADA, "B"), by(BOB, "A")],
        },
    )

    assert agreement["tasks"] == 1
    assert agreement["pairwise"] == 1
    assert of(agreement, ADA) == (1, 1, 1)


def test_the_ground_truth_of_others_is_their_consensus() -> None:
    agreement = agreement_of(
        SINGLE, {1: [by(ADA, "A"), by(BOB, "A"), by(CYD, "B", ground_truth=True)]}
    )

    assert of(agreement, ADA) == (1, 1, 0)


def test_an_annotator_can_be_given_as_the_user() -> None:
    user = {"id": BOB, "email": "bob@example.com"}

    agreement = agreement_of(SINGLE, {1: [by(ADA, "A"), by(user, "A")], 2: [by(BOB, "A")]})

    assert of(agreement, BOB) == (2, 1, 1)


def test_sets_of_choices_agree_as_far_as_they_overlap() -> None:
    agreement = agreement_of(
        MULTIPLE,
        {
            1: [by(ADA, "A", "B"), by(BOB, "B", "C")],
            2: [by(ADA, "A"), by(BOB, "A")],
            3: [by(ADA), by(BOB)],
            4: [by(ADA, "D"), by(BOB)],
        },
    )

    assert agreement["pairwise"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)
    assert of(agreement, ADA) == (4, 4, pytest.approx((1 / 3 + 1 + 1 + 0) / 4))


def test_the_agreement_is_json() -> None:
    agreement = agreement_of(SINGLE, {1: [by(ADA, "A"), by(BOB, "B")], 2: [by(BOB, "B")]})

    assert json.loads(json.dumps(agreement)) == agreement


def test_alpha_of_the_published_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C: four observers,
    # twelve units, values missing; the twelfth unit has one value only.
    published = units(
        *("111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11")
    )

    assert krippendorff_alpha(published) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_sets_by_hand() -> None:
    labels = [[frozenset("AB"), frozenset("A")], [frozenset("B"), frozenset("B")]]

    # Distances: AB–A 1/2, AB–B 1/2 twice, A–B 1 twice, B–B 0. Two labels of a unit are 1/4 apart
    # on average, two of the six pairs of all labels 7/12.
    assert krippendorff_alpha(labels) == pytest.approx(1 - (1 / 4) / (3.5 / 6))


def test_alpha_is_one_where_all_agree_and_negative_where_all_differ() -> None:
    assert krippendorff_alpha(units("AA", "BB", "CCC")) == 1
    alpha = krippendorff_alpha(units("AB", "BA", "AB"))
    assert alpha is not None
    assert alpha < 0


@pytest.mark.parametrize("labels", [units(), units("AA", "AAA")])
def test_alpha_says_nothing_of_labels_that_are_all_the_same(
    labels: list[list[frozenset[str]]],
) -> None:
    assert krippendorff_alpha(labels) is None


votes = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.lists(st.sampled_from(["A", "B", "C", "Gone"]), max_size=3, unique=True),
    ),
    max_size=6,
)


@given(st.lists(votes, max_size=6), st.booleans())
def test_every_share_lies_between_none_and_all(
    of_tasks: list[list[tuple[int, list[str]]]], multiple: bool
) -> None:
    annotations = {
        task_id: [by(annotator, *choices) for annotator, choices in of_task]
        for task_id, of_task in enumerate(of_tasks)
    }

    agreement = agreement_of(control(multiple=multiple), annotations)

    shares = [agreement["pairwise"], *(each["agreement"] for each in agreement["annotators"])]
    assert all(share is None or 0 <= share <= 1 for share in shares)
    assert agreement["alpha"] is None or -1 <= agreement["alpha"] <= 1
    assert (agreement["pairwise"] is None) == (agreement["tasks"] == 0)
    assert all(each["compared"] <= each["tasks"] for each in agreement["annotators"])
