"""How unsure a probability row is, as a number from 0 (certain) to 1 (uncertain) for any K."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Measure = Callable[[Tensor], Tensor]


def margin(probabilities: Tensor) -> Tensor:
    """1 − (p1 − p2), p1 and p2 the two highest probabilities (Scheffer et al., 2001).

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        Rows that sum to 1.

    Returns
    -------
    Tensor[N], the dtype of `probabilities`, in [0, 1]; 0 where K = 1.

    """
    if probabilities.shape[1] < 2:
        return _certain(probabilities)
    top = probabilities.topk(2, dim=1).values
    return (1 - (top[:, 0] - top[:, 1])).clamp(0, 1)


def entropy(probabilities: Tensor) -> Tensor:
    """H / log K, H = −Σ p log p with 0 log 0 = 0 (Shannon, 1948; Settles, 2009).

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        Rows that sum to 1.

    Returns
    -------
    Tensor[N], the dtype of `probabilities`, in [0, 1]; 0 where K = 1.

    """
    choices = probabilities.shape[1]
    if choices < 2:
        return _certain(probabilities)
    return (-torch.xlogy(probabilities, probabilities).sum(dim=1) / math.log(choices)).clamp(0, 1)


def least_confidence(probabilities: Tensor) -> Tensor:
    """(1 − p1)·K/(K − 1), p1 the highest probability (Culotta and McCallum, 2005).

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        Rows that sum to 1.

    Returns
    -------
    Tensor[N], the dtype of `probabilities`, in [0, 1]; 0 where K = 1.

    """
    choices = probabilities.shape[1]
    if choices < 2:
        return _certain(probabilities)
    return ((1 - probabilities.amax(dim=1)) * (choices / (choices - 1))).clamp(0, 1)


def mutual_information(samples: Tensor) -> Tensor:
    """(H(mean p) − mean H(p)) / log K, over heads that disagree (Houlsby et al., 2011).

    Parameters
    ----------
    samples : Tensor[S, N, K], floating
        Rows that sum to 1, by head.

    Returns
    -------
    Tensor[N], the dtype of `samples`, in [0, 1]; 0 where K = 1.

    """
    alone = torch.stack([entropy(probabilities) for probabilities in samples]).mean(dim=0)
    return (entropy(samples.mean(dim=0)) - alone).clamp(0, 1)


def least_certain_label(probabilities: Tensor, measure: Measure) -> Tensor:
    """Uncertainty of the least certain label, each label being the two-class problem (p, 1 − p).

    Parameters
    ----------
    probabilities : Tensor[N, K], floating
        An independent probability per label.
    measure : Callable[[Tensor[M, 2]], Tensor[M]]
        `margin`, `entropy` or `least_confidence`.

    Returns
    -------
    Tensor[N], the dtype of `probabilities`, in [0, 1]; 0 where K = 0.

    """
    if probabilities.shape[1] == 0:
        return _certain(probabilities)
    two_class = torch.stack([probabilities, 1 - probabilities], dim=2)
    return measure(two_class.reshape(-1, 2)).reshape(probabilities.shape).amax(dim=1)


def _certain(probabilities: Tensor) -> Tensor:
    return probabilities.new_zeros(probabilities.shape[0])
