"""Embeddings of a labelled set: computed, kept in a file, compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.clip.prompts import prompts
from backend.errors import DatasetError, ImageError
from backend.labelstudio.decoding import ImageLimits, decode
from backend.simulation.atomic import replacing
from backend.simulation.dataset import EmbeddedDataset, LabelledImages, Vectors
from backend.simulation.sources import read_file, why_no_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from backend.clip.encoder import Encoder

# Called with how many pictures are done, and of how many.
OnProgress = Callable[[int, int], None]

# Two encodings of one picture in another batch or in float16 differ by less than 1e-5; two shots
# of one scene by much more.
SAME = 0.9999

_PICTURES_AT_ONCE = 64
_DECODERS = 8

# Similarities that are in memory at once: 16 MiB of float32.
_BLOCK = 1 << 22


def embed(
    images: LabelledImages, encoder: Encoder, limits: ImageLimits, *, on_progress: OnProgress
) -> EmbeddedDataset:
    """Encode a set's pictures and the names of its classes.

    Raises DatasetError where a picture cannot be read.
    """
    embeddings, unreadable = encode_files(images.paths, encoder, limits, on_progress=on_progress)
    if unreadable:
        index, reason = next(iter(unreadable.items()))
        raise DatasetError(
            f"{images.paths[index]}: {reason}; `clip-backend dataset` makes a set without "
            f"unreadable pictures ({len(unreadable)} here)"
        )
    return with_texts(images, embeddings, encoder)


def with_texts(images: LabelledImages, embeddings: Vectors, encoder: Encoder) -> EmbeddedDataset:
    """Put a set, its pictures' embeddings [N, D] and those of its classes' prompts together."""
    text = np.stack([encoder.encode_texts(prompts([name])).mean(axis=0) for name in images.classes])
    return EmbeddedDataset(
        embeddings,
        images.labels,
        images.classes,
        _unit(text),
        encoder.logit_scale,
        images.validation,
    )


def encode_files(
    paths: Sequence[Path], encoder: Encoder, limits: ImageLimits, *, on_progress: OnProgress
) -> tuple[Vectors, dict[int, str]]:
    """Return the unit vectors of the pictures that can be read, and why others cannot, by index."""
    vectors: list[Vectors] = []
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(_DECODERS) as threads:
        for start in range(0, len(paths), _PICTURES_AT_ONCE):
            some = paths[start : start + _PICTURES_AT_ONCE]
            readable: list[Image] = []
            for index, outcome in enumerate(threads.map(lambda path: _read(path, limits), some)):
                if isinstance(outcome, str):
                    unreadable[start + index] = outcome
                else:
                    readable.append(outcome)
            if readable:
                vectors.append(encoder.encode_images(readable))
            on_progress(start + len(some), len(paths))
    return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32), unreadable


def duplicates(embeddings: Vectors) -> list[NDArray[np.int64]]:
    """Find the pictures that the encoder cannot tell apart.

    Two unit vectors are the same from a cosine similarity of `SAME` on; what is the same as a
    member of a group belongs to it.

    Parameters
    ----------
    embeddings : NDArray[N, D] float32
        Unit vectors.

    Returns
    -------
    list of NDArray int64
        The indices of each group of two or more, ascending, by their first.

    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(embeddings)
    everyone = np.arange(n)
    first = everyone  # the first member of the group that each belongs to
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, n, step):
        similar = embeddings[start : start + step] @ embeddings[start:].T >= SAME
        rows, columns = np.nonzero(np.triu(similar, 1))
        if len(rows):
            # The groups so far are edges too, so that no more than one block is ever held.
            ends = (np.append(rows + start, everyone), np.append(columns + start, first))
            graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(n, n))
            _, component = connected_components(graph, directed=False)
            _, leaders, of_component = np.unique(component, return_index=True, return_inverse=True)
            first = leaders[of_component]
    members = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[members])) + 1
    return [group for group in np.split(members, starts) if len(group) > 1]


def save_embeddings(path: Path, dataset: EmbeddedDataset) -> None:
    """Write a set as .npz for `load_embeddings`; what is None is left out.

    Raises DatasetError where the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "embeddings": dataset.embeddings,
        "labels": dataset.labels,
        "classes": np.array(dataset.classes, dtype=np.str_),
        "text": dataset.text,
        "logit_scale": dataset.logit_scale,
        "validation": dataset.validation,
    }
    with replacing(path) as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def load_embeddings(path: Path) -> EmbeddedDataset:
    """Read a set from an .npz file; nothing in it is executed.

    It has the arrays `embeddings` [N, D] floating and `labels` [N] whole numbers, and may have
    `classes` [K] text, `text` [K, D] floating, `logit_scale` a number, `validation` [N] bool.
    With `classes` or `text` the labels are indices into them; without, the distinct labels are
    the classes. Rows of `embeddings` and `text` are scaled to unit length.

    Raises DatasetError for a file that is not so.
    """
    names = ("embeddings", "labels", "classes", "text", "logit_scale", "validation")
    try:
        # Opened here: NumPy leaves a file open that is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in names if name in file}
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # on hostile bytes NumPy and zipfile raise almost anything
        raise DatasetError(
            f"{path} is not a file of plain arrays: write it with numpy.savez"
        ) from error
    for required in ("embeddings", "labels"):
        if required not in arrays:
            raise DatasetError(f"{path} has no array `{required}`")
    embeddings = _vectors(path, "embeddings", arrays["embeddings"])
    n, dimensions = embeddings.shape
    text = _vectors(path, "text", arrays["text"]) if "text" in arrays else None
    labels, classes = _labels(path, arrays, n, text)
    if text is not None and text.shape != (len(classes), dimensions):
        raise DatasetError(
            f"{path}: `text` must be {len(classes)} x {dimensions}, a row a class and as wide as "
            f"`embeddings`; it is {_shape(text)}"
        )
    return EmbeddedDataset(
        embeddings, labels, classes, text, _logit_scale(path, arrays), _validation(path, arrays, n)
    )


def _labels(
    path: Path, arrays: Mapping[str, NDArray[Any]], n: int, text: Vectors | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    given = arrays["labels"]
    if given.shape != (n,) or given.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: `labels` must be {n} whole numbers, one for each row of `embeddings`; it is "
            f"{_shape(given)} of {given.dtype}"
        )
    distinct, indices = np.unique(given, return_inverse=True)
    if len(distinct) == 1:
        raise DatasetError(f"{path} has one class only: a classifier needs at least two")
    if "classes" in arrays:
        classes = _classes(path, arrays["classes"])
    elif text is not None:
        classes = tuple(map(str, range(len(text))))
    else:
        return indices.astype(np.int64), tuple(map(str, distinct.tolist()))
    if distinct[0] < 0 or distinct[-1] >= len(classes):
        wrong = distinct[0] if distinct[0] < 0 else distinct[-1]
        raise DatasetError(
            f"{path}: `labels` has {wrong}, but the {len(classes)} classes are numbered from 0 to "
            f"{len(classes) - 1}"
        )
    return given.astype(np.int64), classes


def _classes(path: Path, given: NDArray[Any]) -> tuple[str, ...]:
    if given.ndim != 1 or given.dtype.kind != "U":
        raise DatasetError(
            f"{path}: `classes` must be a list of text; it is {_shape(given)} of {given.dtype}"
        )
    classes = tuple(map(str, given.tolist()))
    if len(set(classes)) < len(classes):
        raise DatasetError(f"{path}: `classes` has a name twice")
    return classes


def _vectors(path: Path, name: str, given: NDArray[Any]) -> Vectors:
    if given.ndim != 2 or 0 in given.shape or given.dtype.kind != "f":
        raise DatasetError(
            f"{path}: `{name}` must be a matrix of floating-point numbers, a vector a row; it is "
            f"{_shape(given)} of {given.dtype}"
        )
    # In float64, where no sum of a float32's squares overflows.
    norms = np.linalg.norm(given.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(wrong):
        raise DatasetError(f"{path}: row {wrong[0]} of `{name}` is zero, infinite or not a number")
    unit: Vectors = (given / norms).astype(np.float32)
    return unit


def _logit_scale(path: Path, arrays: Mapping[str, NDArray[Any]]) -> float | None:
    if "logit_scale" not in arrays:
        return None
    given = arrays["logit_scale"]
    if given.size != 1 or given.dtype.kind not in "fiu" or not 0 < given.item() < np.inf:
        raise DatasetError(f"{path}: `logit_scale` must be one positive number")
    return float(given.item())


def _validation(path: Path, arrays: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_] | None:
    if "validation" not in arrays:
        return None
    given = arrays["validation"]
    if given.shape != (n,) or given.dtype != np.bool_ or given.all() or not given.any():
        raise DatasetError(
            f"{path}: `validation` must be {n} booleans, one for each row of `embeddings`, with "
            "both values among them"
        )
    return given


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "one value"


def _read(path: Path, limits: ImageLimits) -> Image | str:
    try:
        return decode(read_file(path, limits.max_bytes), limits)
    except ImageError as error:
        return why_no_picture(error)
