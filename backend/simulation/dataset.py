"""A labelled set, and the CSV of path, label and split that it is kept in."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import DatasetError
from backend.simulation.atomic import replacing

Vectors = NDArray[np.float32]

TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Pictures of one class each.

    Attributes
    ----------
    paths : N paths
    labels : NDArray[N] int64
        Indices into `classes`.
    classes : K distinct names, sorted
    validation : NDArray[N] bool, or None
        Which pictures are set aside for validation; None where the CSV has no split.

    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    validation: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class EmbeddedDataset:
    """A labelled set as the learner sees it.

    Attributes
    ----------
    embeddings : NDArray[N, D] float32
        Unit vectors.
    labels : NDArray[N] int64
        Indices into `classes`.
    classes : K distinct names
    text : NDArray[K, D] float32, or None
        Unit embeddings of the classes' prompts, the zero-shot weights.
    logit_scale : float, or None
        CLIP's own factor from cosine to logit.
    validation : NDArray[N] bool, or None
        What is set aside for validation; None where nothing is yet.

    """

    embeddings: Vectors
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    text: Vectors | None
    logit_scale: float | None
    validation: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Row:
    """One record of a CSV as it is written there; `split` is None where it has no such column."""

    line: int
    path: str
    label: str
    split: str | None


def read_rows(path: Path) -> list[Row]:
    """Return the records of a CSV with the columns path and label, and maybe split.

    Column names are case-insensitive, other columns and empty lines are ignored, cells that a
    record lacks are empty.

    Raises DatasetError for a file that cannot be read, is not UTF-8 or not CSV, or lacks a column.
    """
    line = 1
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(records, [])]
            column = {name: _column(path, header, name) for name in ("path", "label", "split")}
            line = records.line_num + 1
            for record in records:
                if any("\0" in cell for cell in record):
                    raise csv.Error("it has a NUL, as UTF-16 has")
                cells = {
                    name: record[index] if index < len(record) else ""
                    for name, index in column.items()
                    if index is not None
                }
                if any(cell.strip() for cell in record):
                    split = cells["split"].strip().lower() if "split" in cells else None
                    rows.append(Row(line, cells["path"], cells["label"].strip(), split))
                line = records.line_num + 1
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DatasetError(f"{path}, line {line}: not valid CSV: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    return rows


def read_dataset(path: Path) -> LabelledImages:
    """Read a CSV of path, label and optionally split, such as `clip-backend dataset` writes.

    Relative paths are relative to the CSV's folder. Whether the pictures exist is not looked at.

    Raises DatasetError, which names the line, for a record that lacks something, and for a set
    that is empty, has one class only or has nothing in one part of its split.
    """
    rows = read_rows(path)
    for row in rows:
        if not row.path.strip():
            raise DatasetError(f"{path}, line {row.line}: the path is empty")
        if not row.label:
            raise DatasetError(f"{path}, line {row.line}: the label is empty")
        if row.split not in (TRAIN, VALIDATION, None):
            raise DatasetError(
                f"{path}, line {row.line}: the split is {row.split!r}; it must be {TRAIN} or "
                f"{VALIDATION}"
            )
    folder = path.parent.resolve()
    images = labelled_images(
        [folder / row.path for row in rows],
        [row.label for row in rows],
        str(path),
        np.array([row.split == VALIDATION for row in rows])
        if rows and rows[0].split is not None
        else None,
    )
    if images.validation is not None and len(set(images.validation.tolist())) == 1:
        part = TRAIN if images.validation[0] else VALIDATION
        raise DatasetError(
            f"{path}: no picture is in the split {part!r}; leave the column out or fill both parts"
        )
    return images


def labelled_images(
    paths: Sequence[Path],
    labels: Sequence[str],
    origin: str,
    validation: NDArray[np.bool_] | None = None,
) -> LabelledImages:
    """Return a set in the order given; `origin` names it in errors.

    Raises DatasetError where there is nothing to classify: no picture, or one class only.
    """
    classes, indices = np.unique(np.array(labels, dtype=object), return_inverse=True)
    if len(classes) == 0:
        raise DatasetError(f"{origin} holds no labelled picture that can be read")
    if len(classes) == 1:
        raise DatasetError(
            f"{origin} has one class only, {classes[0]!r}: a classifier needs at least two"
        )
    return LabelledImages(
        tuple(paths), indices.astype(np.int64), tuple(map(str, classes)), validation
    )


def path_in_csv(picture: Path, csv_path: Path) -> str:
    """Return how a CSV names a picture: relative under its folder's parent, else absolute.

    So a set can be moved together with its pictures, and is not torn apart otherwise.
    """
    # Without links, or ".." would lead elsewhere than its text says.
    real = picture.parent.resolve() / picture.name
    folder = csv_path.parent.resolve()
    if real.is_relative_to(folder.parent):
        return Path(os.path.relpath(real, folder)).as_posix()
    return real.as_posix()


def write_dataset(path: Path, images: LabelledImages, validation: NDArray[np.bool_]) -> None:
    """Write a set and its split as CSV, in the set's order.

    Raises DatasetError where the file cannot be written.
    """
    with replacing(path) as file:
        # The default dialect ends lines with \r\n, which makes it quote either within a path.
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(("path", "label", "split"))
        for picture, label, validates in zip(images.paths, images.labels, validation, strict=True):
            part = VALIDATION if validates else TRAIN
            writer.writerow((path_in_csv(picture, path), images.classes[label], part))
        text.detach()


def stratified_split(
    labels: NDArray[np.int64], groups: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the pictures for validation, class by class, without tearing a group apart.

    Each class gives its share of groups, rounded so that the whole share is met as closely as
    can be (largest remainders), but at least one group to each part; unlike scikit-learn's
    `train_test_split`, which may leave a small class out of validation. What cannot be judged
    stays in train: classes of a single group, and groups whose pictures differ in label.

    Parameters
    ----------
    labels : NDArray[N] int64
        Indices of classes.
    groups : NDArray[N] int64
        Pictures with the same number are duplicates of each other.
    share : float
        Of the groups that is set aside, above 0 and below 1.
    seed : int
        The same seed chooses the same pictures.

    Returns
    -------
    NDArray[N] bool

    """
    random = np.random.default_rng(seed)
    pairs = np.unique(np.stack((groups, labels), axis=1), axis=0)
    numbers, n_labels = np.unique(pairs[:, 0], return_counts=True)
    agreed = pairs[np.isin(pairs[:, 0], numbers[n_labels == 1])]
    of_class = [
        random.permutation(own)
        for label in np.unique(agreed[:, 1])
        if len(own := agreed[agreed[:, 1] == label, 0]) > 1
    ]
    sizes = np.array([len(own) for own in of_class], dtype=np.int64)
    counts = np.clip(np.floor(share * sizes), 1, sizes - 1).astype(np.int64)
    remainders = np.where(counts < sizes - 1, share * sizes - counts, 0)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-remainders[order], kind="stable")]
    missing = max(0, round(share * int(sizes.sum())) - int(counts.sum()))
    counts[order[:missing]] += remainders[order[:missing]] > 0
    chosen = [own[:count] for own, count in zip(of_class, counts, strict=True)]
    return np.isin(groups, np.concatenate(chosen)) if chosen else np.zeros(len(groups), bool)


def _column(path: Path, header: Sequence[str], name: str) -> int | None:
    if header.count(name) > 1:
        raise DatasetError(f"{path} has two columns named {name!r}")
    if name in header:
        return header.index(name)
    if name == "split":
        return None
    raise DatasetError(
        f"{path} has no column {name!r}: its first line names the columns path and label, "
        f"separated by commas; it has {', '.join(map(repr, header[:10])) or 'none'}"
    )
