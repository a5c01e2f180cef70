"""Pictures on this machine, where `prediction.Predictor` otherwise fetches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from backend.clip.reading import read_ahead
from backend.errors import ImageError
from backend.labelstudio.decoding import ImageLimits
from backend.simulation.sources import read_file, why_no_picture

Used = TypeVar("Used")


class FilePictures:
    """Pictures by their paths."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def locate(self, source: str) -> str:
        """Return the path itself."""
        return source

    def fetch_all(
        self,
        wanted: Iterable[tuple[str, int | None]],
        use: Callable[[bytes], Used],
        *,
        ahead: int,
    ) -> Iterator[Used | ImageError]:
        """Yield what `use` makes of each file's bytes, in order; read by threads."""
        paths = [Path(source) for source, _ in wanted]

        def read(position: int) -> Used | ImageError:
            try:
                return use(read_file(paths[position], self._limits.max_bytes))
            except ImageError as error:
                return ImageError(why_no_picture(error))

        # One batch is used while the next is read.
        step = max(1, ahead // 2)
        batches = (range(i, min(i + step, len(paths))) for i in range(0, len(paths), step))
        for outcomes in read_ahead(read, batches):
            yield from outcomes
