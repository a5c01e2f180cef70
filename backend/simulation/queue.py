"""The order in which annotators label what Label Studio's queue serves them."""

from __future__ import annotations

from collections import deque

import numpy as np

from backend.simulation.learners import Indices


class Queue:
    """Label Studio's queue while people, all equally fast, empty it.

    Each of them has a picture before them, which nobody else is served, and is served the next one
    when that is labelled: the least certain that is left, in the order of the last refresh.

    Parameters
    ----------
    annotators : int
        How many people annotate at once.
    delay : int
        Labels that are saved from the moment that a training reads the labels until the queue is
        in the order of what it has learnt.

    """

    def __init__(self, annotators: int, delay: int) -> None:
        self._annotators = annotators
        self._delay = delay
        self._refreshes: deque[tuple[int, Indices]] = deque()
        self._open: list[int] = []
        self._served: set[int] = set()
        self._shown: deque[int] = deque()
        self._labels = 0

    def refresh(self, order: Indices) -> None:
        """Serve pictures in this order from when the delay is over; the first order at once."""
        since = self._labels + self._delay if self._served else 0
        self._refreshes.append((since, order))

    def annotate(self, count: int) -> Indices:
        """Return the next pictures that are labelled: `count`, or all that are left."""
        labelled: list[int] = []
        while len(labelled) < count:
            while self._refreshes and self._refreshes[0][0] <= self._labels:
                self.switch(self._refreshes.popleft()[1])
            while self._open and len(self._shown) < self._annotators:
                # In turn, since all are equally fast.
                picture = self.choose(self._open, len(self._served) % self._annotators)
                self._open.remove(picture)
                self._served.add(picture)
                self._shown.append(picture)
            if not self._shown:
                break
            labelled.append(self._shown.popleft())
            self._labels += 1
        return np.array(labelled, dtype=np.int64)

    def switch(self, order: Indices) -> None:
        """Serve in this order from now on."""
        self._open = [picture for picture in order.tolist() if picture not in self._served]

    def choose(self, pictures: list[int], annotator: int) -> int:  # noqa: ARG002
        """Return what an annotator is served, of pictures in order that nobody was served."""
        return pictures[0]
