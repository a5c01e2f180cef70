"""Query strategies: which tasks to ask a human about first, the most uncertain ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from backend.learning.head import Head
from backend.learning.uncertainty import (
    Measure,
    entropy,
    least_certain_label,
    least_confidence,
    margin,
)


@dataclass(frozen=True)
class Pool:
    """What a query strategy may look at.

    Attributes
    ----------
    embeddings : Tensor[N, D], floating
        Unit vectors of the pictures without a label.
    head : Head
        The current one.
    labelled : Tensor[M, D], floating
        Unit vectors of the labelled set.
    keys : N strings
        What a draw depends on, such as the task and the model version.

    """

    embeddings: Tensor
    head: Head
    labelled: Tensor
    keys: Sequence[str]


class Strategy(Protocol):
    """A way to say how much a label of each picture would teach."""

    def __call__(self, pool: Pool) -> Tensor:
        """Return uncertainties [N] float32 in [0, 1]; the highest is asked about first."""
        ...


def by(measure: Measure) -> Strategy:
    """Return the strategy that asks first where `measure` is highest.

    Parameters
    ----------
    measure : Callable[[Tensor[N, K]], Tensor[N]]
        An uncertainty in [0, 1]; with `multiple` probabilities it is asked about each label alone.

    """

    def strategy(pool: Pool) -> Tensor:
        probabilities = pool.head.probabilities(pool.embeddings)
        if pool.head.multiple:
            return least_certain_label(probabilities, measure).float()
        return measure(probabilities).float()

    return strategy


def random(pool: Pool) -> Tensor:
    """Return a stable pseudo-random uncertainty in [0, 1) per key: the baseline of every study.

    A hash of the key, so that a task's place in the queue holds until its key changes.
    """
    # 24 bits are what a float32 holds exactly: more could round up to 1.
    draws = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big") for key in pool.keys]
    return torch.tensor(draws, dtype=torch.float32, device=pool.embeddings.device) / 2**24


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
