from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio.annotations import Labels, labels_of
from backend.labelstudio.choices import Choice
from backend.labelstudio.config import Control

Annotation = Mapping[str, object]


def control(*, multiple: bool = False, conditional: bool = False) -> Control:
    choices = tuple(Choice(value, (value,)) for value in ("A", "B", "C"))
    return Control("kind", "img", "$image", choices, multiple, conditional)


SINGLE = control()
MULTIPLE = control(multiple=True)


def item(*choices: str, name: str = "kind") -> dict[str, object]:
    return {
        "from_name": name,
        "to_name": "img",
        "type": "choices",
        "value": {"choices": list(choices)},
    }


def annotation(*choices: str, **fields: object) -> Annotation:
    return {"result": [item(*choices)] if choices else [], "was_cancelled": False, **fields}


def label(which: Control, *annotations: Annotation) -> frozenset[str] | None:
    return labels_of(which, {1: annotations}).values.get(1)


def test_one_annotation_gives_the_task_its_choice() -> None:
    labels = labels_of(SINGLE, {7: [annotation("A")], 8: [annotation("B")], 9: []})
    assert labels == Labels({7: frozenset("A"), 8: frozenset("B")}, ties=0, unknown=0)


def test_the_most_frequent_choice_wins() -> None:
    votes = [annotation("B"), annotation("A"), annotation("C"), annotation("A")]
    assert label(SINGLE, *votes) == {"A"}


def test_a_task_whose_annotators_disagree_evenly_is_left_out_and_counted() -> None:
    labels = labels_of(SINGLE, {1: [annotation("A"), annotation("B")], 2: [annotation("A")]})
    assert labels == Labels({2: frozenset("A")}, ties=1, unknown=0)


def test_cancelled_annotations_do_not_vote() -> None:
    assert label(SINGLE, annotation("A", was_cancelled=True)) is None
    assert label(SINGLE, annotation("A", was_cancelled=True), annotation("B")) == {"B"}


def test_ground_truth_wins_over_all_others() -> None:
    votes = [annotation("A"), annotation("A"), annotation("B", ground_truth=True)]
    assert label(SINGLE, *votes) == {"B"}


def test_a_cancelled_ground_truth_does_not_count() -> None:
    votes = [annotation("A"), annotation("B", ground_truth=True, was_cancelled=True)]
    assert label(SINGLE, *votes) == {"A"}


def test_choices_that_the_config_lost_are_left_out_and_counted() -> None:
    labels = labels_of(SINGLE, {1: [annotation("Gone")], 2: [annotation("Gone"), annotation("A")]})
    assert labels == Labels({2: frozenset("A")}, ties=0, unknown=2)
    labels = labels_of(MULTIPLE, {1: [annotation("Gone", "A")]})
    assert labels == Labels({1: frozenset("A")}, ties=0, unknown=1)


def test_an_unanswered_single_control_is_no_vote() -> None:
    assert label(SINGLE, annotation()) is None
    assert label(SINGLE, annotation(), annotation("A")) == {"A"}


def test_an_unanswered_multiple_control_is_a_vote_for_nothing() -> None:
    assert label(MULTIPLE, annotation()) == frozenset()
    assert label(MULTIPLE, annotation(), annotation(), annotation("A")) == frozenset()


def test_an_unanswered_multiple_control_that_may_be_hidden_is_no_vote() -> None:
    hidden = control(multiple=True, conditional=True)
    assert label(hidden, annotation()) is None
    assert label(hidden, annotation(), annotation("A")) == {"A"}


def test_a_multiple_control_keeps_each_label_that_most_annotators_chose() -> None:
    votes = [annotation("A", "B"), annotation("A"), annotation("A", "C")]
    assert label(MULTIPLE, *votes) == {"A"}


def test_one_evenly_tied_label_leaves_the_task_out() -> None:
    labels = labels_of(MULTIPLE, {1: [annotation("A", "B"), annotation("A")]})
    assert labels == Labels({}, ties=1, unknown=0)


def test_several_choices_left_over_for_a_single_control_are_no_vote() -> None:
    assert label(SINGLE, annotation("A", "B")) is None


def test_results_of_other_controls_and_images_are_not_read() -> None:
    other_image = {**item("B"), "to_name": "back"}
    results = [item("B", name="other"), other_image, item("A")]
    assert label(SINGLE, {"result": results}) == {"A"}


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        [{**item("A"), "value": None}],
        [{**item("A"), "value": {"choices": "A"}}],
        [{**item("A"), "value": {"choices": [["A", "B"]]}}],
        [{**item("A"), "type": "labels"}],
    ],
)
@pytest.mark.parametrize("which", [SINGLE, MULTIPLE])
def test_what_cannot_be_read_is_no_vote(which: Control, result: object) -> None:
    assert label(which, {"result": result}) is None


def test_malformed_items_beside_a_good_one_do_no_harm() -> None:
    assert label(SINGLE, {"result": [None, 3, {}, item("A")]}) == {"A"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["A", "kind", "img", "choices"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from_name", "to_name", "type", "value", "choices", "result"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(["result", "was_cancelled"]), json_values)))
def test_no_annotation_however_malformed_breaks_the_rest(annotations: list[Annotation]) -> None:
    for which in (SINGLE, MULTIPLE):
        labels = labels_of(which, {1: annotations, 2: [annotation("B")]})
        assert labels.values[2] == {"B"}
        assert all(chosen <= {"A", "B", "C"} for chosen in labels.values.values())


@given(st.permutations([annotation("A"), annotation("A", "B"), annotation("C"), annotation()]))
def test_the_order_of_annotations_does_not_matter(annotations: list[Annotation]) -> None:
    in_one_order = [annotation("A"), annotation("A", "B"), annotation("C"), annotation()]
    for which in (SINGLE, MULTIPLE):
        assert labels_of(which, {1: annotations}) == labels_of(which, {1: in_one_order})
