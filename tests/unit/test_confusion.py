from __future__ import annotations

import json

import torch
from torch import Tensor

from backend.learning.confusion import MOST_CELLS, MOST_TASKS, NOTHING, Confusion, confusion

CHOICES = ("Tee", "Shoe", "Hat")


def rows(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities)


def of_single(probabilities: Tensor, given: list[int], ids: list[int]) -> Confusion:
    values = CHOICES[: probabilities.shape[1]]
    return confusion(probabilities, torch.tensor(given), ids, values, multiple=False)


def named(found: Confusion) -> list[tuple[str | None, str | None, int, list[int]]]:
    values = {place: choice["value"] for place, choice in enumerate(found["choices"])}
    return [
        (values.get(cell["given"]), values.get(cell["predicted"]), cell["count"], cell["tasks"])
        for cell in found["cells"]
    ]


def test_what_is_predicted_for_another_choice_is_counted_with_the_surest_tasks_first() -> None:
    found = of_single(
        rows((0.4, 0.6, 0.0), (0.1, 0.9, 0.0), (0.9, 0.1, 0.0), (0.2, 0.0, 0.8), (0.0, 1.0, 0.0)),
        [0, 0, 0, 1, 1],
        [11, 12, 13, 14, 15],
    )

    assert named(found) == [("Tee", "Shoe", 2, [12, 11]), ("Shoe", "Hat", 1, [14])]
    assert found["choices"] == [
        {"value": "Tee", "given": 3, "right": 1},
        {"value": "Shoe", "given": 2, "right": 1},
        {"value": "Hat", "given": 0, "right": 0},
    ]
    assert (found["labels"], found["wrong"]) == (5, 3)


def test_choices_that_nobody_confuses_are_left_out() -> None:
    found = of_single(rows((0.9, 0.1, 0.0), (0.1, 0.9, 0.0)), [0, 1], [1, 2])

    assert found == {"labels": 2, "wrong": 0, "choices": [], "cells": []}


def test_of_several_choices_a_missed_one_is_crossed_with_one_that_came_instead() -> None:
    probabilities = rows((0.1, 0.9, 0.9), (0.9, 0.2, 0.1), (0.9, 0.9, 0.0), (0.9, 0.0, 0.0))
    given = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]])

    found = confusion(probabilities, given, [1, 2, 3, 4], CHOICES, multiple=True)

    assert named(found) == [
        (None, "Shoe", 1, [3]),
        ("Tee", "Shoe", 1, [1]),
        ("Shoe", None, 1, [2]),
    ]
    assert {cell["given"] for cell in found["cells"]} >= {NOTHING}
    assert [(each["given"], each["right"]) for each in found["choices"]] == [(4, 3), (1, 0)]


def test_a_report_stays_small_with_a_thousand_choices_and_ten_thousand_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(10_000, 1000, generator=generator)
    given = torch.randint(0, 1000, (10_000,), generator=generator)
    values = [f"choice {index}" for index in range(1000)]

    found = confusion(probabilities, given, [*range(10_000)], values, multiple=False)

    assert len(found["cells"]) == MOST_CELLS
    assert len(json.dumps(found)) < 60_000
    assert found["wrong"] > 9000


def test_of_a_full_cell_some_tasks_are_kept() -> None:
    count = MOST_TASKS + 10
    probabilities = torch.linspace(0.6, 0.9, count)
    found = of_single(
        torch.stack([1 - probabilities, probabilities], dim=1), [0] * count, [*range(count)]
    )

    assert [cell["count"] for cell in found["cells"]] == [count]
    assert found["cells"][0]["tasks"] == [*range(count)][::-1][:MOST_TASKS]
