"""Suspected label errors, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.functional import one_hot

# The most that a report keeps of a control: more than anybody looks through before training again.
MOST = 1000

# The mean of equal numbers can come out above them by a rounding.
_ROUNDING = 1e-6


class Suspect(TypedDict):
    """A task whose label is suspected, as a report keeps it.

    `confidence` is the out-of-fold probability of the suggested choice; of a multiple control the
    highest probability that one of the choices that differ is as suggested.
    """

    task: int
    given: list[str]
    suggested: list[str]
    confidence: float


def suggested_classes(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the class that each example's label should be: its own unless that is suspected.

    The threshold of a class j is the mean probability of j over the examples labelled j. An
    example labelled i counts as a j where j is the most probable of the classes whose threshold it
    reaches; off the diagonal (i ≠ j) of this *confident joint* its label is suspected, unless i
    is still its most probable class. A class without a label has no threshold, so is not
    suggested.

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        Out-of-fold: of each example by a head that has not seen its label.
    labels : Tensor[N] int64
        The given classes.

    Returns
    -------
    Tensor[N] int64.

    """
    probabilities = probabilities.double()
    own = probabilities.gather(1, labels[:, None])[:, 0]
    choices = probabilities.shape[1]
    counts = torch.bincount(labels, minlength=choices)
    sums = torch.zeros(choices, dtype=own.dtype, device=own.device).index_add(0, labels, own)
    thresholds = torch.where(counts > 0, sums / counts, torch.inf)

    reached = probabilities >= thresholds - _ROUNDING
    confident = torch.where(reached, probabilities, -1).argmax(dim=1)
    suspected = reached.any(dim=1) & (probabilities.argmax(dim=1) != labels)
    return torch.where(suspected, confident, labels)


def suspects(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of the examples whose label is suspected, the most suspicious first.

    Ranked by the normalized margin: the probability of the given class less that of the most
    probable other one. See `suggested_classes` for the parameters.

    Returns
    -------
    Tensor[M] int64.

    """
    suspected = (suggested_classes(probabilities, labels) != labels).nonzero()[:, 0]
    own = labels[suspected, None]
    others = probabilities[suspected].scatter(1, own, -torch.inf).amax(dim=1)
    margins = probabilities[suspected].gather(1, own)[:, 0] - others
    return suspected[margins.argsort(stable=True)]


def suspected_labels(
    probabilities: Tensor,
    targets: Tensor,
    task_ids: Sequence[int],
    values: Sequence[str],
    *,
    multiple: bool,
) -> list[Suspect]:
    """Return the tasks whose label is suspected and what it should be, the most suspicious first.

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
        Each choice is then a two-class problem of its own, and one that is suspected makes the
        task suspected.

    Returns
    -------
    list of at most `MOST` Suspect.

    """
    if multiple:
        given = targets.long()
        suggested, confidences = _of_multiple(probabilities, given)
        rows = (suggested != given).any(dim=1).nonzero()[:, 0]
        rows = rows[confidences[rows].argsort(descending=True, stable=True)][:MOST]
        given, suggested, confidences = given[rows], suggested[rows], confidences[rows]
    else:
        rows = suspects(probabilities, targets)[:MOST]
        classes = suggested_classes(probabilities, targets)[rows]
        confidences = probabilities[rows].gather(1, classes[:, None])[:, 0]
        given, suggested = (one_hot(each, len(values)) for each in (targets[rows], classes))
    return [
        Suspect(
            task=task_ids[row],
            given=list(compress(values, of_given)),
            suggested=list(compress(values, of_suggested)),
            confidence=confidence,
        )
        for row, of_given, of_suggested, confidence in zip(
            rows.tolist(),
            given.tolist(),
            suggested.tolist(),
            confidences.tolist(),
            strict=True,
        )
    ]


def _of_multiple(probabilities: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    two_class = torch.stack([1 - probabilities, probabilities], dim=2)
    suggested = torch.stack(
        [
            suggested_classes(of_choice, labels)
            for of_choice, labels in zip(two_class.unbind(dim=1), given.unbind(dim=1), strict=True)
        ],
        dim=1,
    )
    certainty = two_class.gather(2, suggested[:, :, None])[:, :, 0]
    return suggested, torch.where(suggested != given, certainty, 0).amax(dim=1)
