"""Embeddings to a map: two coordinates a picture, neighbours next to each other.

t-SNE of a sample (the landmarks), the others at the place of their nearest landmarks. A few
thousand points show what there is to see, and the time does not grow with the square of the pool
(Kobak and Berens, 2019, "The Art of Using t-SNE for Single-Cell Transcriptomics", section
"Extending t-SNE to large data").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

LANDMARKS = 2000

# Rounds of 250 iterations: the first with early exaggeration, the others let it unfold.
ROUNDS = 4
_ITERATIONS = 250
_EARLY_EXAGGERATION = 12.0

_DIMENSIONS = 50
_PERPLEXITY = 30.0
# With fewer pictures there are no neighbourhoods to keep.
_FEWEST = 10
_NEIGHBOURS = 5
_SEED = 0

# The spread of the first layout, small enough for points to pass each other.
_START = 1e-4


class Projection:
    """A map of embeddings that is drawn in rounds, so that one can stop and go on between them.

    The same embeddings give the same map, to the last bit on one machine.

    Parameters
    ----------
    embeddings : float32 [N, D]
        Unit vectors; the first `LANDMARKS` of them are the landmarks, so they have to be a sample.
    places : float32 [N, 2], optional
        Of an earlier map, NaN where it has none of a picture.
    rounds : int
        How many that map was drawn in.

    """

    def __init__(self, embeddings: Vectors, places: Vectors | None = None, rounds: int = 0) -> None:
        count = min(len(embeddings), LANDMARKS)
        self._points = _reduced(embeddings, count)
        self._count = count
        self.rounds = 0 if places is None else rounds
        if places is None:
            self._landmarks = self._first_layout()
        else:
            self._landmarks = places[:count].copy()
            new = np.isnan(self._landmarks).any(axis=1)
            points = self._points[:count]
            self._landmarks[new] = _placed(points[new], points[~new], self._landmarks[~new])
        if count < _FEWEST:
            self.rounds = ROUNDS

    @property
    def done(self) -> bool:
        """Whether another round would change little."""
        return self.rounds >= ROUNDS

    def draw(self) -> None:
        """Do one more round: some seconds of one core."""
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        exaggeration = 1.0 if self.rounds else _EARLY_EXAGGERATION
        layout = TSNE(
            init=self._landmarks,
            perplexity=min(_PERPLEXITY, (self._count - 1) / 3),
            early_exaggeration=exaggeration,
            # By the source, of the number of points.
            learning_rate=max(self._count / _EARLY_EXAGGERATION, 50.0),
            max_iter=_ITERATIONS,
            random_state=_SEED,
        )
        # Sums of several threads differ by their rounding from time to time.
        with threadpool_limits(1):
            self._landmarks = layout.fit_transform(self._points[: self._count])
        self.rounds += 1

    def places(self) -> Vectors:
        """Return where each picture is [N, 2], as far as it is drawn."""
        others = _placed(self._points[self._count :], self._points[: self._count], self._landmarks)
        return np.asarray(np.concatenate([self._landmarks, others]), np.float32)

    def _first_layout(self) -> Vectors:
        start = np.zeros((self._count, 2), np.float32)
        plane = self._points[: self._count, :2]
        start[:, : plane.shape[1]] = plane
        return start / max(float(start.std()), 1e-12) * _START


def _reduced(embeddings: Vectors, count: int) -> Vectors:
    """Return the principal components [N, C] of the first `count` embeddings, of all of them."""
    from sklearn.decomposition import PCA

    if count < _FEWEST:
        return np.asarray(embeddings - embeddings.mean(axis=0), np.float32)
    components = min(_DIMENSIONS, count, embeddings.shape[1])
    pca = PCA(components, svd_solver="randomized", random_state=_SEED).fit(embeddings[:count])
    return np.asarray(pca.transform(embeddings), np.float32)


def _placed(points: Vectors, landmarks: Vectors, places: Vectors) -> Vectors:
    """Return where points belong by their nearest landmarks, the nearer the more."""
    from sklearn.neighbors import NearestNeighbors

    if not len(points):
        return np.empty((0, 2), np.float32)
    neighbours = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(landmarks)), algorithm="brute")
    distances, nearest = neighbours.fit(landmarks).kneighbors(points)
    weights = 1 / np.maximum(distances, 1e-6) ** 2
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray((weights[:, :, None] * places[nearest]).sum(axis=1), np.float32)
