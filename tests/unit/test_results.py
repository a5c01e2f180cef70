"""Probabilities to what Label Studio shows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from backend.labelstudio.choices import Choice
from backend.labelstudio.config import Control, Shortlist
from backend.results import Answers, is_alike


def path(*steps: str, is_leaf: bool = True) -> Choice:
    return Choice(" / ".join(steps), (steps[-1],), steps, steps[:-1], is_leaf)


FLAT = Control(
    "kind", "img", "$image", tuple(Choice(each, (each,)) for each in "ABC"), False, False
)
TREE = replace(
    FLAT,
    kind="taxonomy",
    choices=(
        path("Clothes", is_leaf=False),
        path("Clothes", "Shirt"),
        path("Cars", "Red"),
        path("Clothes", "Coat"),
        path("Sky"),
    ),
)
PROBABILITIES = np.array([0.05, 0.5, 0.1, 0.3, 0.05], dtype=np.float32)


def results(control: Control, probabilities: np.ndarray) -> list[dict[str, object]]:
    return Answers(control, control.choices).results(probabilities)


def test_the_likeliest_choice_is_selected() -> None:
    assert results(FLAT, np.array([0.2, 0.7, 0.1], dtype=np.float32)) == [
        {
            "from_name": "kind",
            "to_name": "img",
            "type": "choices",
            "value": {"choices": ["B"]},
            "score": 0.7,
        }
    ]


def test_a_path_is_selected_with_how_likely_each_of_its_steps_is() -> None:
    (result,) = results(TREE, PROBABILITIES)

    assert result["type"] == "taxonomy"
    assert result["value"] == {"taxonomy": [["Clothes", "Shirt"]]}
    assert result["score"] == 0.5
    # A step is as likely as all that share it, itself as a choice among them.
    assert result["meta"] == {"levels": [pytest.approx(0.85), pytest.approx(0.5)]}


def test_a_step_of_the_same_name_elsewhere_is_another_step() -> None:
    control = replace(TREE, choices=(path("A", "x"), path("B", "x"), path("B", "A", "x")))
    (result,) = results(control, np.array([0.5, 0.3, 0.2], dtype=np.float32))
    assert result["meta"] == {"levels": [0.5, 0.5]}


def test_of_independent_paths_no_sum_is_stated() -> None:
    control = replace(TREE, multiple=True)
    probabilities = np.array([0.1, 0.9, 0.1, 0.8, 0.1], dtype=np.float32)

    (result,) = results(control, probabilities)

    assert result["value"] == {"taxonomy": [["Clothes", "Shirt"], ["Clothes", "Coat"]]}
    assert "meta" not in result


def test_the_shortlist_is_the_five_likeliest_with_their_levels() -> None:
    control = replace(
        TREE,
        choices=(*TREE.choices, path("Sky", "Dark")),
        shortlist=Shortlist("top", "img"),
    )
    _, shown = results(control, np.append(PROBABILITIES, np.float32(0.001)))

    assert shown["from_name"] == "top"
    assert shown["type"] == "textarea"
    assert shown["value"] == {
        "text": [
            "Clothes / Shirt – 50% (Clothes 85%)",
            "Clothes / Coat – 30% (Clothes 85%)",
            "Cars / Red – 10% (Cars 10%)",
            "Clothes – 5%",
            "Sky – 5%",
        ]
    }


def test_a_shortlist_is_shown_where_nothing_is_selected() -> None:
    control = replace(FLAT, multiple=True, shortlist=Shortlist("top", "img"))
    (shown,) = results(control, np.array([0.2, 0.1, 0.001], dtype=np.float32))
    assert shown["value"] == {"text": ["A – 20%", "B – 10%", "C – under 1%"]}


def test_what_another_machine_makes_of_the_same_picture_is_alike() -> None:
    control = replace(FLAT, shortlist=Shortlist("likely", "img"))
    expected = results(control, np.array([0.2, 0.7, 0.1], dtype=np.float32))

    # As Label Studio gives it back.
    given = json.loads(json.dumps(results(control, np.array([0.2004, 0.6996, 0.1], np.float32))))

    assert is_alike([{"id": "a1", **item} for item in given], expected)


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        [],
        ["B"],
        results(FLAT, np.array([0.7, 0.2, 0.1], dtype=np.float32)),
        results(FLAT, np.array([0.2, 0.698, 0.1], dtype=np.float32)),
        results(replace(FLAT, name="sort"), np.array([0.2, 0.7, 0.1], dtype=np.float32)),
        2 * results(FLAT, np.array([0.2, 0.7, 0.1], dtype=np.float32)),
        [{**results(FLAT, np.array([0.2, 0.7, 0.1], np.float32))[0], "score": "high"}],
        [{"score": 0.7}],
    ],
)
def test_what_says_another_thing_is_not_alike(given: object) -> None:
    assert not is_alike(given, results(FLAT, np.array([0.2, 0.7, 0.1], dtype=np.float32)))


def test_two_selections_of_nothing_are_alike() -> None:
    assert is_alike([], results(replace(FLAT, multiple=True), np.zeros(3, dtype=np.float32)))
