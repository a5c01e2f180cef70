"""How sharp probabilities should be: one temperature, from logits of pictures not trained on."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

# Of log temperature around 0, in labels' log loss: few labels cannot overrule CLIP's own scale.
_PULL = 10.0

_LARGEST = math.log(30)

# Logits that are looked at together: of thousands of choices each copy takes hundreds of megabytes.
_AT_ONCE = 10_000_000


def log_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log likelihood [N] of targets, in nats.

    Parameters
    ----------
    logits : Tensor[N, K], floating
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1 for independent choices

    """
    if targets.ndim == 2:
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits), reduction="none"
        )
        return losses.sum(dim=1)
    return functional.cross_entropy(logits, targets, reduction="none")


def temperature(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return the temperature T that makes logits / T likeliest, and the penalised log loss there.

    Temperature scaling (Guo et al., 2017, "On Calibration of Modern Neural Networks", section
    4.2) with a normal prior on log T.

    Parameters
    ----------
    logits : Tensor[N, K], floating
        Out-of-fold.
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1 for independent choices
    weights : Tensor[N], floating
        How much each label counts.

    Returns
    -------
    T, in [1/30, 30], and the loss in nats.

    """
    step = max(1, _AT_ONCE // max(1, logits.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(logits), step)]

    def loss(log_temperature: float) -> float:
        penalty = _PULL / 2 * log_temperature**2
        total = 0.0
        for part in parts:
            losses = log_loss(logits[part] / math.exp(log_temperature), targets[part])
            total += (weights[part] @ losses.to(weights)).item()
        return total + penalty

    found = minimize_scalar(
        loss, bounds=(-_LARGEST, _LARGEST), method="bounded", options={"xatol": 1e-4}
    )
    return math.exp(found.x), float(found.fun)
