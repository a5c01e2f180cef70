"""What a classifier is given as pictures, to what CLIP sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.clip.encoder import Encoder
from backend.clip.reading import read_ahead
from backend.errors import ClassifierError, ImageError
from backend.labelstudio.decoding import ImageLimits, decode, to_rgb

T = TypeVar("T")

Picture: TypeAlias = str | os.PathLike[str] | Image.Image
_KINDS = (str, os.PathLike, Image.Image)

_LIMITS = ImageLimits(max_bytes=50_000_000, max_pixels=100_000_000, timeout=30, attempts=1)


def as_pictures(data: object) -> list[Picture] | None:
    """Return the pictures, or None for what looks like an array.

    Raises ClassifierError for a single picture, or where something else is among them.
    """
    if isinstance(data, _KINDS):
        raise ClassifierError("X is one picture: give a list of pictures")
    if not hasattr(data, "__len__") or not hasattr(data, "__iter__"):
        return None
    if getattr(data, "ndim", 1) != 1:
        return None
    items = list(data)
    kinds = [isinstance(item, _KINDS) for item in items]
    if not any(kinds):
        return None
    if not all(kinds):
        position = kinds.index(False)
        raise ClassifierError(
            f"X[{position}] is neither a path nor a picture of Pillow, but a "
            f"{type(items[position]).__name__}"
        )
    return items


def read(pictures: Sequence[Picture], position: int) -> Image.Image:
    """Return the RGB picture at a position; raises ImageError that names it."""
    picture = pictures[position]
    if isinstance(picture, Image.Image):
        try:
            return to_rgb(picture)
        except Exception as error:  # a lazily opened picture is decoded here, as hostile as any
            raise ImageError(f"X[{position}]: the picture is broken: {error}") from error
    path = Path(picture)
    try:
        size = path.stat().st_size
        if size > _LIMITS.max_bytes:
            raise ImageError(f"{path}: {size} bytes; the limit is {_LIMITS.max_bytes}")
        return decode(path.read_bytes(), _LIMITS)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # no file's name holds a null
        raise ImageError(f"{path!r}: {error}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def embed(encoder: Encoder, pictures: Sequence[Picture]) -> Tensor:
    """Return unit vectors [N, D] float32; raises ImageError that names all that are broken."""
    vectors = [
        encoder.encode_preprocessed(batch)
        for batch in _read_all(pictures, encoder.preprocess, encoder.batch_size)
    ]
    return torch.from_numpy(np.concatenate(vectors))


def refuse_broken(pictures: Sequence[Picture]) -> None:
    """Raise ImageError that names all pictures that are broken, if any is."""
    for _ in _read_all(pictures, lambda _: None, 64):
        pass


def _read_all(
    pictures: Sequence[Picture], convert: Callable[[Image.Image], T], batch_size: int
) -> Iterator[list[T]]:
    """Yield batches of converted pictures, as far as none is broken."""

    def attempt(position: int) -> T | ImageError:
        try:
            return convert(read(pictures, position))
        except ImageError as error:
            return error

    broken: list[ImageError] = []
    starts = range(0, len(pictures), batch_size)
    positions = (range(i, min(i + batch_size, len(pictures))) for i in starts)
    for outcomes in read_ahead(attempt, positions):
        whole = []
        for outcome in outcomes:
            if isinstance(outcome, ImageError):
                broken.append(outcome)
            else:
                whole.append(outcome)
        if not broken:
            yield whole
    if broken:
        raise ImageError(
            f"{len(broken)} of {len(pictures)} pictures cannot be used: "
            + "; ".join(map(str, broken))
        )
