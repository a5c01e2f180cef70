"""Whether one way to decide is better than another, judged on the same pictures."""

from __future__ import annotations

import math

from torch import Tensor

from backend.learning.estimation import Estimate

_Z = 1.959964  # of a 95 % interval


def paired_difference(before: Tensor, after: Tensor, weights: Tensor) -> Estimate:
    """Return by how much more decisions are right than before, with its 95 % interval.

    Wald's interval of a matched difference after half a picture was added to each way that a pair
    can turn out, which holds what it says for few pictures too (Agresti and Min, 2005, "Simple
    improved confidence intervals for comparing matched proportions").

    Parameters
    ----------
    before, after : Tensor[N], floating in [0, 1], N > 0
        Share of each picture's decisions that are right.
    weights : Tensor[N], floating, not all 0
        How much each picture counts. Uneven ones count as fewer pictures (Kish, 1965, "Survey
        Sampling", section 8.2).

    """
    weights = weights.double()
    weights = weights / weights.sum()
    change = after.double() - before.double()
    count = 1 / (weights**2).sum().item()
    mean = (weights * change).sum().item()
    square = (weights * change**2).sum().item()
    shrunk = count * mean / (count + 2)
    variance = (count * square + 1) / (count + 2) - shrunk**2
    half = _Z * math.sqrt(variance / (count + 2))
    return Estimate(mean, max(-1.0, shrunk - half), min(1.0, shrunk + half))
