"""Query strategies: which tasks to ask a human about first, the most uncertain ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from backend.learning.uncertainty import (
    Measure,
    entropy,
    least_certain_label,
    least_confidence,
    margin,
)


class Strategy(Protocol):
    """A way to say how much a label of each task would teach."""

    def __call__(self, probabilities: Tensor, *, multiple: bool, keys: Sequence[str]) -> Tensor:
        """Return uncertainties [N] float32 in [0, 1] of tasks with probabilities [N, K]."""
        ...


def by(measure: Measure) -> Strategy:
    """Return the strategy that asks first where `measure` is highest.

    Parameters
    ----------
    measure : Callable[[Tensor[N, K]], Tensor[N]]
        An uncertainty in [0, 1]; with `multiple` probabilities it is asked about each label alone.

    """

    def strategy(probabilities: Tensor, *, multiple: bool, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
        uncertainties = (
            least_certain_label(probabilities, measure) if multiple else measure(probabilities)
        )
        return uncertainties.float()

    return strategy


def random(probabilities: Tensor, *, multiple: bool, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
    """Return a stable pseudo-random uncertainty in [0, 1) per key: the baseline of every study.

    A hash of the key, so that a task's place in the queue holds until its key changes.

    Parameters
    ----------
    probabilities : Tensor[N, K]
        Only its device is used.
    multiple : bool
        Unused.
    keys : N strings
        What the draw depends on: the task and the model version.

    Returns
    -------
    Tensor[N] float32.

    """
    # 24 bits are what a float32 holds exactly: more could round up to 1.
    draws = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big") for key in keys]
    return torch.tensor(draws, dtype=torch.float32, device=probabilities.device) / 2**24


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "margin": by(margin),
        "entropy": by(entropy),
        "least": by(least_confidence),
        "random": random,
    }
)


def combine(uncertainties: Sequence[Tensor]) -> Tensor:
    """Return the uncertainty of tasks with several controls: the least certain one decides.

    Parameters
    ----------
    uncertainties : non-empty sequence of Tensor[N] float32
        One per control.

    Returns
    -------
    Tensor[N] float32.

    """
    return torch.stack(list(uncertainties)).amax(dim=0)
