"""Choosing several pictures together: the geometry behind the diverse query strategies.

All are greedy, so that the first few of what they pick are what they would pick of so few; and
deterministic, by fixed seeds. Distances are between centred embeddings: CLIP's lie in a narrow
cone, where all cosines look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor
from torch.nn.functional import normalize

from backend.learning.head import Head

# Nobody labels more between two trainings: what comes after is in the measure's order.
PICKED = 100

# What clusters are made for: one pick of each, and only then a second.
_BATCH = 20

# More clusters, or more pictures to find them with, do not show in what is picked.
_CLUSTERS = 500
_CLUSTERED = 20_000

# Up to so many pictures everything is computed exactly.
_FEW = 2000
_AT_ONCE = 10_000

_SEED = 0
_SAMPLES = 10
_NEIGHBOURS = 20
_NEAR = 500
_LEAST_DENSITY = 1e-3


def dropped_out(head: Head, *, rate: float = 0.3, samples: int = _SAMPLES) -> Iterator[Head]:
    """Yield heads that each ignore a share of the embedding's components."""
    generator = torch.Generator().manual_seed(_SEED)
    for _ in range(samples):
        kept = torch.rand(head.weights.shape[1], generator=generator) >= rate
        yield replace(head, weights=head.weights * kept.to(head.weights) / (1 - rate))


def farthest(embeddings: Tensor, labelled: Tensor, count: int = PICKED) -> Tensor:
    """Return up to `count` indices, each farthest from all that is labelled or picked.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating, N > 0
    labelled : Tensor[M, D], floating
    count : int

    Returns
    -------
    Tensor[min(count, N)] int64.

    """
    x, centre = _centred(embeddings)
    squares = x.square().sum(dim=1)

    def distance(index: int) -> Tensor:
        return squares + squares[index] - 2 * (x @ x[index])

    if len(labelled):
        nearest = _nearest(x, labelled.float() - centre)
    else:
        # The most typical one first: an outlier would stand for nothing.
        nearest = distance(int(squares.argmin()))
        nearest[squares.argmin()] = torch.inf
    return _greedy(nearest, distance, count)


def typical(embeddings: Tensor, labelled: Tensor, count: int = PICKED) -> Tensor:
    """Return one index for each of the largest clusters that hold no label, the most typical.

    Typicality is the inverse mean distance to the 20 nearest neighbours in the cluster.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating, N > 0
    labelled : Tensor[M, D], floating
    count : int

    Returns
    -------
    Tensor[≤ min(count, N)] int64, the largest cluster's first.

    """
    x, centre = _centred(embeddings)
    everything = torch.cat([x, labelled.float() - centre]).cpu().numpy()
    found = _clusters(everything, min(len(labelled) + _BATCH, _CLUSTERS))
    of_pool, of_labelled = found[: len(x)], found[len(x) :]
    sizes = np.bincount(of_pool, minlength=found.max() + 1)
    labels = np.bincount(of_labelled, minlength=found.max() + 1)
    ranked = [cluster for cluster in np.lexsort((-sizes, labels)) if sizes[cluster]]
    groups = []
    for cluster in ranked[:count]:
        members = torch.from_numpy(np.flatnonzero(of_pool == cluster)[:_NEAR]).to(x.device)
        distances = torch.cdist(x[members], x[members])
        nearest = distances.topk(min(_NEIGHBOURS + 1, len(members)), largest=False).values
        groups.append(members[nearest.mean(dim=1).argsort(stable=True)])
    return _in_turn(groups, count)


def representative(embeddings: Tensor, uncertainties: Tensor, count: int = PICKED) -> Tensor:
    """Return up to `count` indices of uncertain pictures that each stand for many others.

    Greedy by uncertainty · density · distance to the nearest one picked: density the mean cosine
    to the 20 nearest of a sample of the pool, distance 1 − cosine, both of centred embeddings.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating, N > 0
    uncertainties : Tensor[N], floating in [0, 1]
    count : int

    Returns
    -------
    Tensor[min(count, N)] int64.

    """
    x = normalize(_centred(embeddings)[0], dim=1)
    sample = x[:: -(-len(x) // _NEAR)]
    neighbours = min(_NEIGHBOURS, len(sample))
    density = torch.cat(
        [
            (x[start : start + _AT_ONCE] @ sample.T).topk(neighbours, dim=1).values.mean(dim=1)
            for start in range(0, len(x), _AT_ONCE)
        ]
    )
    worth = uncertainties * density.clamp_min(_LEAST_DENSITY)
    return _greedy(worth, lambda index: worth * (1 - x @ x[index]), count)


def spread_gradients(
    embeddings: Tensor, probabilities: Tensor, *, multiple: bool, count: int = PICKED
) -> Tensor:
    """Return up to `count` indices by k-means++ on the gradients of the likeliest label's loss.

    The gradient of a linear head's weights is (p − y) ⊗ x, whose inner products are products of
    inner products: it is never written down.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating, N > 0
    probabilities : Tensor[N, K], floating
    multiple : bool
        Independent probabilities; the likeliest label is then each choice's own.
    count : int

    Returns
    -------
    Tensor[min(count, N)] int64.

    """
    x = embeddings.float()
    residuals = probabilities.clone().float()
    if multiple:
        residuals -= (residuals >= 0.5).float()
    else:
        residuals[torch.arange(len(x)), residuals.argmax(dim=1)] -= 1
    norms = x.square().sum(dim=1) * residuals.square().sum(dim=1)

    def distance(index: int) -> Tensor:
        return norms + norms[index] - 2 * (x @ x[index]) * (residuals @ residuals[index])

    first = int(norms.argmax())
    return _greedy(distance(first), distance, count - 1, first=first, sampled=True)


def unstable_centres(
    embeddings: Tensor, head: Head, uncertainties: Tensor, count: int = PICKED
) -> Tensor:
    """Return the pictures in the centres of clusters of those whose label changes under dropout.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating, N > 0
    head : Head
    uncertainties : Tensor[N], floating
        Decide between pictures that change equally often.
    count : int

    Returns
    -------
    Tensor[≤ min(count, N)] int64, the least certain first.

    """
    chosen = _decisions(head, embeddings)
    changes = torch.stack(
        [
            (_decisions(other, embeddings) != chosen).any(dim=1)
            for other in dropped_out(head, rate=0.75, samples=3)
        ]
    ).sum(dim=0)
    # The paper's are those that change in more than half of the passes; where too few do, the next.
    ranked = (changes + uncertainties).argsort(descending=True, stable=True)
    unstable = ranked[: max(int((changes >= 2).sum()), min(5 * count, len(ranked)))]
    x, _ = _centred(embeddings[unstable])
    found = torch.from_numpy(_clusters(x.cpu().numpy(), _BATCH)).to(x.device)
    groups = []
    for cluster in range(int(found.max()) + 1):
        members = (found == cluster).nonzero()[:, 0]
        distances = (x[members] - x[members].mean(dim=0)).square().sum(dim=1)
        groups.append(unstable[members[distances.argsort(stable=True)]])
    centres = uncertainties[torch.stack([group[0] for group in groups])]
    return _in_turn([groups[index] for index in centres.argsort(descending=True)], count)


def _decisions(head: Head, embeddings: Tensor) -> Tensor:
    logits = head.logits(embeddings)
    return logits > 0 if head.multiple else logits.argmax(dim=1, keepdim=True)


def _centred(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    x = embeddings.float()
    centre = x.mean(dim=0)
    return x - centre, centre


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    """Return the squared distance [N] of each row of x to the nearest of others."""
    parts = [
        torch.cdist(x[start : start + _AT_ONCE], others).amin(dim=1)
        for start in range(0, len(x), _AT_ONCE)
    ]
    return torch.cat(parts).square()


def _clusters(x: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the cluster, below `count`, of each row; none is empty."""
    some = x[:: -(-len(x) // _CLUSTERED)]
    count = min(count, len({row.tobytes() for row in some}))
    if len(x) <= _FEW:
        kmeans = KMeans(count, n_init=1, max_iter=20, random_state=_SEED).fit(x)
    else:
        kmeans = MiniBatchKMeans(count, n_init=1, max_iter=2, batch_size=4096, random_state=_SEED)
        kmeans.fit(some)
    found = np.unique(kmeans.predict(x), return_inverse=True)[1]
    return np.asarray(found, dtype=np.int64)


def _in_turn(groups: Sequence[Tensor], count: int) -> Tensor:
    """Return the first of each group, then the second of each, up to `count` in all."""
    ranks = torch.cat([torch.arange(len(group)) for group in groups])
    members = torch.cat(list(groups))
    return members[ranks.argsort(stable=True).to(members.device)][:count]


def _greedy(
    nearest: Tensor,
    distance: Callable[[int], Tensor],
    count: int,
    *,
    first: int | None = None,
    sampled: bool = False,
) -> Tensor:
    """Return indices, each far from those before: the farthest, or drawn by squared distance.

    `nearest` [N] are the squared distances to what is there before; `first` is picked already.
    """
    generator = torch.Generator(device=nearest.device).manual_seed(_SEED)
    picked = [] if first is None else [first]
    wanted = min(len(picked) + count, len(nearest))
    nearest[torch.tensor(picked, dtype=torch.int64)] = -1
    while len(picked) < wanted:
        if sampled and nearest.max() > 0:
            steps = nearest.clamp_min(0).double().cumsum(dim=0)
            draw = torch.rand(1, generator=generator, dtype=torch.float64, device=nearest.device)
            index = int(torch.searchsorted(steps, draw * steps[-1]).clamp_max(len(steps) - 1))
        else:
            index = int(nearest.argmax())
        picked.append(index)
        nearest = torch.minimum(nearest, distance(index).clamp_min(0))
        nearest[index] = -1
    return torch.tensor(picked, dtype=torch.int64, device=nearest.device)
