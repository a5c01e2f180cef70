"""Which choices are taken for which others, in a bounded form however many there are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypedDict

import torch
from torch import Tensor

# Cells that are kept, and tasks of each: more than anybody looks at, in some tens of kilobytes.
MOST_CELLS = 200
MOST_TASKS = 50

# What stands for no choice at all, where several may apply.
NOTHING = -1


class Choice(TypedDict):
    """A choice that is confused with another: how often it was given, and rightly predicted."""

    value: str
    given: int
    right: int


class Cell(TypedDict):
    """How often one choice was predicted where people gave another, and some of those tasks.

    `given` and `predicted` are places in `Confusion.choices`, or `NOTHING`.
    """

    given: int
    predicted: int
    count: int
    tasks: list[int]


class Confusion(TypedDict):
    """The confused choices of a control, in the config's order, and the cells off the diagonal.

    The cells are the fullest ones, the fullest first; `wrong` counts what is in all there are.
    """

    labels: int
    wrong: int
    choices: list[Choice]
    cells: list[Cell]


def confusion(
    probabilities: Tensor,
    targets: Tensor,
    task_ids: Sequence[int],
    values: Sequence[str],
    *,
    multiple: bool,
) -> Confusion:
    """Compare out-of-fold predictions with what people gave.

    Where several choices may apply, each that was given and missed is crossed with each that was
    predicted and not given; where there is none of the other kind, it is crossed with nothing, as
    in the multi-label confusion matrix (Heydarian, Doyle and Samavi, 2022, "MLCM: Multi-Label
    Confusion Matrix", section III).

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        Out-of-fold; rows that sum to 1, with `multiple` an independent probability per choice.
    targets : Tensor[N] int64, or with `multiple` Tensor[N, K] of 0 and 1
        The given choices.
    task_ids : N ints
        Which task each row is.
    values : K strings
        The choices, in the order of the columns.
    multiple : bool
        Whether several choices may apply; one is predicted from a probability of 0.5 on.

    """
    wrong: defaultdict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    pairs = _missed_and_added if multiple else _mistaken
    for row, given, predicted, probability in pairs(probabilities, targets):
        # The surest mistakes first.
        wrong[given, predicted].append((-probability, task_ids[row]))
    fullest = sorted(wrong, key=lambda cell: (-len(wrong[cell]), cell))[:MOST_CELLS]
    confused = sorted({choice for cell in fullest for choice in cell} - {NOTHING})
    given_counts, right_counts = _counts(probabilities, targets, multiple=multiple)
    place = {choice: index for index, choice in enumerate(confused)} | {NOTHING: NOTHING}
    return Confusion(
        labels=len(task_ids),
        wrong=sum(map(len, wrong.values())),
        choices=[
            Choice(value=values[choice], given=given_counts[choice], right=right_counts[choice])
            for choice in confused
        ],
        cells=[
            Cell(
                given=place[given],
                predicted=place[predicted],
                count=len(wrong[given, predicted]),
                tasks=[task for _, task in sorted(wrong[given, predicted])[:MOST_TASKS]],
            )
            for given, predicted in fullest
        ],
    )


def _mistaken(probabilities: Tensor, targets: Tensor) -> Iterator[tuple[int, int, int, float]]:
    highest, predicted = probabilities.max(dim=1)
    rows = (predicted != targets).nonzero()[:, 0]
    yield from zip(
        rows.tolist(),
        targets[rows].tolist(),
        predicted[rows].tolist(),
        highest[rows].tolist(),
        strict=True,
    )


def _missed_and_added(
    probabilities: Tensor, targets: Tensor
) -> Iterator[tuple[int, int, int, float]]:
    predicted = probabilities >= 0.5
    given = targets.bool()
    for row in (predicted != given).any(dim=1).nonzero()[:, 0].tolist():
        missed = (given[row] & ~predicted[row]).nonzero()[:, 0].tolist()
        added = (predicted[row] & ~given[row]).nonzero()[:, 0].tolist()
        for one, other in product(missed or [NOTHING], added or [NOTHING]):
            sure = probabilities[row, other] if other != NOTHING else 1 - probabilities[row, one]
            yield row, one, other, float(sure)


def _counts(
    probabilities: Tensor, targets: Tensor, *, multiple: bool
) -> tuple[Counter[int], Counter[int]]:
    if multiple:
        given = targets.bool()
        right = given & (probabilities >= 0.5)
        return (
            Counter(dict(enumerate(given.sum(dim=0).tolist()))),
            Counter(dict(enumerate(right.sum(dim=0).tolist()))),
        )
    is_right = probabilities.argmax(dim=1) == targets
    choices = probabilities.shape[1]
    return (
        Counter(dict(enumerate(torch.bincount(targets, minlength=choices).tolist()))),
        Counter(dict(enumerate(torch.bincount(targets[is_right], minlength=choices).tolist()))),
    )
