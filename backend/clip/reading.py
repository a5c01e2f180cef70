"""Pictures are read by threads while the model works on the batch before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_THREADS = min(8, os.cpu_count() or 1)


def read_ahead(read: Callable[[int], T], batches: Iterable[Sequence[int]]) -> Iterator[list[T]]:
    """Yield for each batch of positions what `read` returns for them, in order.

    `read` runs in threads, one batch ahead of the caller; what it raises is raised here.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: list[Future[T]] | None = None
        for batch in batches:
            futures = [pool.submit(read, position) for position in batch]
            if ahead is not None:
                yield [future.result() for future in ahead]
            ahead = futures
        if ahead is not None:
            yield [future.result() for future in ahead]
