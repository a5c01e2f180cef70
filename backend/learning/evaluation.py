"""How good probabilities are, against the labels that people gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The number of bins of Guo et al. (2017) and of nearly all who report the figure since.
_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Figures of N labelled pictures; each but `labels` is in [0, 1], `log_loss` in nats.

    Attributes
    ----------
    labels : int
        N.
    top1, top5 : float
        Share whose label is the likeliest choice, or among the five likeliest. With `multiple`
        probabilities, of all (picture, choice) pairs the share decided rightly at 0.5, and `top5`
        is the same.
    log_loss : float
        Mean negative log likelihood of the labels.
    calibration_error : float
        Expected calibration error of the likeliest choice in 15 bins of equal width (Guo et al.,
        2017, "On Calibration of Modern Neural Networks", equation 3).

    """

    labels: int
    top1: float
    top5: float
    log_loss: float
    calibration_error: float


def evaluate(probabilities: Tensor, targets: Tensor) -> Evaluation:
    """Compare probabilities with labels.

    Parameters
    ----------
    probabilities : Tensor[N, K], floating, N > 0
        Rows that sum to 1, or independent ones with targets of two dimensions.
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1
        Index of the choice, or which choices apply.

    """
    p = probabilities.double()
    tiny = torch.finfo(torch.float64).tiny
    if targets.ndim == 2:
        # Each pair is a problem of two classes.
        p = torch.stack([1 - p, p], dim=2).reshape(-1, 2)
        targets = targets.reshape(-1).long()
    right = p.gather(1, targets[:, None])
    confidence, chosen = p.max(dim=1)
    correct = (chosen == targets).double()
    top5 = (p.topk(min(5, p.shape[1]), dim=1).indices == targets[:, None]).any(dim=1)
    if p.shape[1] == 2:
        top5 = correct
    return Evaluation(
        labels=len(probabilities),
        top1=correct.mean().item(),
        top5=top5.double().mean().item(),
        log_loss=-right.clamp_min(tiny).log().mean().item(),
        calibration_error=calibration_error(confidence, correct),
    )


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return Σ share of bin · |accuracy − mean confidence| over 15 bins of equal width.

    Parameters
    ----------
    confidence : Tensor[N], floating in [0, 1]
    correct : Tensor[N] of 0 and 1

    """
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(
        0, bins.cpu(), (correct.double() - confidence.double()).cpu()
    )
    return (gaps.abs().sum() / len(confidence)).item()
