"""Query strategies: which pictures to ask a human about first.

Each has a measure, which says of one picture alone how uncertain it is, so that a pool of any size
can be scored in parts. Some also pick: they look at the pictures together and choose the few that
come first, so that neighbours in the queue teach different things.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from backend.learning import picking
from backend.learning.head import Head
from backend.learning.uncertainty import (
    Measure,
    entropy,
    least_certain_label,
    least_confidence,
    margin,
    mutual_information,
)

# With up to so many labels a choice, covering the pool teaches more than uncertainty does.
_FEW_PER_CHOICE = 2

# Probabilities that are looked at together: of thousands of choices those of a whole pool take
# gigabytes, and each copy of them as many.
_AT_ONCE = 10_000_000
_SAMPLED_AT_ONCE = 5_000_000

# Between two of the picked: more than a score is rounded by.
_STEP = 2e-6


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


@dataclass(frozen=True)
class Strategy:
    """A way to say how much a label of each picture would teach.

    Attributes
    ----------
    measure : Callable[[Pool], Tensor[N]]
        Uncertainties in [0, 1], each of its picture alone.
    pick : Callable[[Pool, Tensor[N]], Tensor[P] int64], optional
        Given the uncertainties, the pictures that come first, in this order.

    """

    measure: Callable[[Pool], Tensor]
    pick: Callable[[Pool, Tensor], Tensor] | None = None

    def __call__(self, pool: Pool) -> Tensor:
        """Return uncertainties [N] float32 in [0, 1]; the highest is asked about first."""
        uncertainties = self.measure(pool)
        if self.pick is None or not len(uncertainties):
            return uncertainties
        return put_first(uncertainties, self.pick(pool, uncertainties))


def put_first(uncertainties: Tensor, picked: Tensor) -> Tensor:
    """Return the same uncertainties, dealt out so that the picked come first in their order.

    The others keep their order. What a number means holds: it is some picture's uncertainty, and
    a pool that is nearly learnt looks so. Only where equal ones would lose the order of the picked
    are they moved, by a few millionths.

    Parameters
    ----------
    uncertainties : Tensor[N] float32 in [0, 1]
    picked : Tensor[P] int64
        Distinct indices.

    """
    by_uncertainty = uncertainties.argsort(descending=True, stable=True)
    is_picked = torch.zeros_like(uncertainties, dtype=torch.bool)
    is_picked[picked] = True
    order = torch.cat([picked, by_uncertainty[~is_picked[by_uncertainty]]])
    steps = _STEP * torch.arange(len(order), device=order.device).clamp_max(len(picked))
    # Two falling sequences: the values, made to fall by a step at least, and a floor under them.
    values = (uncertainties[by_uncertainty] + steps).cummin(dim=0).values - steps
    values = torch.maximum(values, steps[-1] - steps)
    dealt = torch.empty_like(uncertainties)
    dealt[order] = values
    return dealt


def by(measure: Measure) -> Callable[[Pool], Tensor]:
    """Return a measure of pools from a measure of probabilities.

    Parameters
    ----------
    measure : Callable[[Tensor[N, K]], Tensor[N]]
        An uncertainty in [0, 1]; with `multiple` probabilities it is asked about each label alone.

    """

    def of_some(embeddings: Tensor, head: Head) -> Tensor:
        probabilities = head.probabilities(embeddings)
        if head.multiple:
            return least_certain_label(probabilities, measure).float()
        return measure(probabilities).float()

    return lambda pool: _in_parts(of_some, pool, _AT_ONCE)


def _in_parts(measure: Callable[[Tensor, Head], Tensor], pool: Pool, at_once: int) -> Tensor:
    """Return what a measure says of a pool, looking at so many probabilities at a time."""
    step = max(1, at_once // max(1, len(pool.head.weights)))
    starts = range(0, max(1, len(pool.embeddings)), step)
    return torch.cat([measure(pool.embeddings[i : i + step], pool.head) for i in starts])


def random(pool: Pool) -> Tensor:
    """Return a stable pseudo-random uncertainty in [0, 1) per key: the baseline of every study.

    A hash of the key, so that a task's place in the queue holds until its key changes.
    """
    # 24 bits are what a float32 holds exactly: more could round up to 1.
    draws = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big") for key in pool.keys]
    return torch.tensor(draws, dtype=torch.float32, device=pool.embeddings.device) / 2**24


def bald(pool: Pool) -> Tensor:
    """Return the mutual information between a picture's label and the head, over log K.

    How much heads that differ by dropout disagree about the picture, beyond what each is unsure
    of by itself (Houlsby et al., 2011, "Bayesian Active Learning for Classification and
    Preference Learning"; Gal, Islam and Ghahramani, 2017, "Deep Bayesian Active Learning with
    Image Data").
    """
    return _in_parts(_disagreement, pool, _SAMPLED_AT_ONCE)


def _disagreement(embeddings: Tensor, head: Head) -> Tensor:
    samples = torch.stack([other.probabilities(embeddings) for other in picking.dropped_out(head)])
    if not head.multiple:
        return mutual_information(samples)
    two_class = torch.stack([samples, 1 - samples], dim=3)
    of_choices = mutual_information(two_class.flatten(1, 2))
    return of_choices.reshape(samples.shape[1:]).amax(dim=1)


def coreset(pool: Pool, uncertainties: Tensor) -> Tensor:  # noqa: ARG001
    """Pick what is farthest from all that is labelled or picked (k-centre greedy).

    Sener and Savarese, 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", algorithm 1.
    """
    return picking.farthest(pool.embeddings, pool.labelled)


def typiclust(pool: Pool, uncertainties: Tensor) -> Tensor:  # noqa: ARG001
    """Pick the most typical picture of each of the largest clusters that have no label yet.

    Hacohen, Dekel and Weinshall, 2022, "Active Learning on a Budget: Opposite Strategies Suit
    High and Low Budgets", section 3.
    """
    return picking.typical(pool.embeddings, pool.labelled)


def badge(pool: Pool, uncertainties: Tensor) -> Tensor:  # noqa: ARG001
    """Pick by k-means++ on the gradients that the likeliest label would give the head.

    Ash et al., 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds",
    algorithm 1.
    """
    probabilities = pool.head.probabilities(pool.embeddings)
    return picking.spread_gradients(pool.embeddings, probabilities, multiple=pool.head.multiple)


def dropquery(pool: Pool, uncertainties: Tensor) -> Tensor:
    """Pick the centres of clusters of pictures whose label changes under dropout.

    Gupta et al., 2024, "Revisiting Active Learning in the Era of Vision Foundation Models",
    section 4.
    """
    return picking.unstable_centres(pool.embeddings, pool.head, uncertainties)


def auto(pool: Pool, uncertainties: Tensor) -> Tensor:
    """Cover the pool while labels are few, then pick uncertain pictures that stand for many others.

    Up to two labels a choice (and not beyond what is picked at once) as `typiclust`: what the head
    is unsure of is then a guess. From there by uncertainty · density · distance to what is picked,
    the first two as in information density (Settles and Craven, 2008, "An Analysis of Active
    Learning Strategies for Sequence Labeling Tasks", section 3.5). Chosen by measurement:
    `docs/learning.md`.
    """
    if len(pool.labelled) < min(_FEW_PER_CHOICE * len(pool.head.weights), picking.PICKED):
        return picking.typical(pool.embeddings, pool.labelled)
    return picking.representative(pool.embeddings, uncertainties)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "auto": Strategy(by(margin), auto),
        "margin": Strategy(by(margin)),
        "entropy": Strategy(by(entropy)),
        "least": Strategy(by(least_confidence)),
        "random": Strategy(random),
        "bald": Strategy(bald),
        "coreset": Strategy(by(margin), coreset),
        "typiclust": Strategy(by(margin), typiclust),
        "badge": Strategy(by(margin), badge),
        "dropquery": Strategy(by(margin), dropquery),
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
