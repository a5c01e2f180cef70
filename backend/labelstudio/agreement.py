"""How far several annotators of the same tasks agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import TypedDict

import numpy as np

from backend.labelstudio.annotations import labels_of
from backend.labelstudio.config import Control

Annotation = Mapping[str, object]


class AnnotatorAgreement(TypedDict):
    """One annotator, by Label Studio's user id.

    `tasks` counts those that they labelled, `compared` those of them where the others have a
    consensus, `agreement` is the mean similarity to it.
    """

    annotator: int
    tasks: int
    compared: int
    agreement: float | None


class Agreement(TypedDict):
    """What a report keeps of a control's annotators; None where nothing can be compared.

    `tasks` counts those that several people labelled, `pairwise` is the mean similarity of two
    labels of one task, `alpha` Krippendorff's.
    """

    tasks: int
    pairwise: float | None
    alpha: float | None
    annotators: list[AnnotatorAgreement]


def agreement_of(control: Control, annotations: Mapping[int, Sequence[Annotation]]) -> Agreement:
    """Compare a control's annotators, from each task's annotations as the API gives them.

    Two labels are as similar as the Jaccard index |A ∩ B| / |A ∪ B| of their choices: 1 or 0 for
    a single control, and for a multiple one choices that neither has are no agreement. What one
    person said of a task, and the consensus of all others, is what `labels_of` makes of their
    annotations: ties are left out. So are annotations that name nobody.
    """
    by_task: dict[int, list[tuple[int, Annotation]]] = {}
    by_annotator: dict[int, dict[int, list[Annotation]]] = defaultdict(dict)
    for task_id, of_task in annotations.items():
        named = [(by, each) for each in of_task if (by := _completed_by(each)) is not None]
        by_task[task_id] = named
        for by, each in named:
            by_annotator[by].setdefault(task_id, []).append(each)

    labels: dict[int, list[frozenset[str]]] = defaultdict(list)
    annotators = []
    for annotator, theirs in sorted(by_annotator.items()):
        given = labels_of(control, theirs).values
        for task_id, label in given.items():
            labels[task_id].append(label)
        others = {
            task_id: [each for by, each in by_task[task_id] if by != annotator] for task_id in given
        }
        consensus = labels_of(control, others).values
        same = [_similarity(given[task_id], label) for task_id, label in consensus.items()]
        annotators.append(
            AnnotatorAgreement(
                annotator=annotator,
                tasks=len(given),
                compared=len(same),
                agreement=fmean(same) if same else None,
            )
        )
    shared = [of_task for of_task in labels.values() if len(of_task) > 1]
    pairs = [_similarity(*pair) for of_task in shared for pair in combinations(of_task, 2)]
    return Agreement(
        tasks=len(shared),
        pairwise=fmean(pairs) if pairs else None,
        alpha=krippendorff_alpha(shared),
        annotators=annotators,
    )


def krippendorff_alpha(units: Sequence[Sequence[frozenset[str]]]) -> float | None:
    """Return 1 − D_o / D_e: 1 is agreement, 0 what chance alone gives, below 0 less than that.

    D_o is the mean distance of two labels of the same unit, D_e that of any two labels. The
    distance is 1 − Jaccard, which for sets of one choice is the nominal distance (Krippendorff,
    "Content Analysis", 4th ed., 2018, chapter 12; Passonneau, 2004, for sets).

    Parameters
    ----------
    units : sequences of at least two labels
        A label is the set of its choices.

    Returns
    -------
    float, at most 1, or None where all labels are equal, so that chance alone would agree.

    """
    counts = Counter(label for labels in units for label in labels)
    if len(counts) < 2:
        return None
    expected = _distances_of_any_two(counts)
    observed = sum(
        sum(1 - _similarity(*pair) for pair in combinations(labels, 2)) / (len(labels) - 1)
        for labels in units
    )
    return 1 - (counts.total() - 1) * observed / expected


def _distances_of_any_two(counts: Counter[frozenset[str]]) -> float:
    choices = sorted(frozenset().union(*counts))
    members = np.array([[choice in label for choice in choices] for label in counts], dtype=float)
    sizes = members.sum(axis=-1)
    weights = np.array(list(counts.values()), dtype=float)
    total = 0.0
    # A row at a time: people can make thousands of different sets of a multiple control's choices.
    for row, size, weight in zip(members, sizes, weights, strict=True):
        common = members @ row
        united = sizes + size - common
        distances = np.divide(united - common, united, out=np.zeros_like(united), where=united > 0)
        total += float(weight * (weights @ distances))
    return total / 2


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _completed_by(annotation: Annotation) -> int | None:
    # A user's id, or where Label Studio was asked to resolve it, the user.
    by = annotation.get("completed_by")
    by = by.get("id") if isinstance(by, Mapping) else by
    return by if isinstance(by, int) else None
