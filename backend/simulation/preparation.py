"""`clip-backend dataset`: from labelled pictures of any source to a set that can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from backend.errors import DatasetError
from backend.labelstudio.decoding import ImageLimits
from backend.simulation.atomic import replacing
from backend.simulation.dataset import (
    TRAIN,
    VALIDATION,
    LabelledImages,
    Vectors,
    labelled_images,
    path_in_csv,
    stratified_split,
    write_dataset,
)
from backend.simulation.embedded import duplicates, encode_files, save_embeddings, with_texts
from backend.simulation.export import ExportOptions, from_export
from backend.simulation.sources import Source, Unreadable, from_csv, from_folder, printable

if TYPE_CHECKING:
    from backend.clip.encoder import Encoder

# How many of the unreadable pictures and of the duplicates the terminal names; the report has all.
_SHOWN = 10


@dataclass(frozen=True)
class Files:
    """Where the set goes, its report (by default beside it) and, if wanted, its embeddings."""

    dataset: Path
    report: Path | None = None
    embeddings: Path | None = None


@dataclass(frozen=True)
class _Prepared:
    images: LabelledImages
    validation: NDArray[np.bool_]
    groups: list[NDArray[np.int64]]
    notes: list[str]

    def counts(self) -> list[tuple[str, int, int]]:
        """Return each class's name and its pictures in train and in validation."""
        labels, k = self.images.labels, len(self.images.classes)
        train = np.bincount(labels[~self.validation], minlength=k).tolist()
        validation = np.bincount(labels[self.validation], minlength=k).tolist()
        return list(zip(self.images.classes, train, validation, strict=True))

    def contradicts(self, group: NDArray[np.int64]) -> bool:
        """Tell whether duplicates of each other differ in label."""
        return len(np.unique(self.images.labels[group])) > 1


def prepare(
    source: Path,
    files: Files,
    *,
    share: float,
    seed: int,
    export: ExportOptions,
    overwrite: bool,
    load_encoder: Callable[[], Encoder],
    limits: ImageLimits,
) -> None:
    """Turn a folder a class, a CSV or a Label Studio export into a split set of readable pictures.

    Writes the files and prints what is in the set and what was left out. `share` of each class
    goes to validation, chosen by `seed`; duplicates stay in one part. An existing file is
    replaced only with `overwrite`.

    Raises DatasetError for anything about the source or the files that a user can mend.
    """
    if not 0 < share < 1:
        raise DatasetError("--validation: a share above 0 and below 1, such as 0.2")
    _check(source, files, overwrite=overwrite)
    found = _read(source, export)
    _leave_out_unwritable(found, files.dataset)
    found.pictures.sort(key=lambda each: (path_in_csv(each.path, files.dataset), each.label))
    # Checked before CLIP is loaded and again when it is known what can be read.
    labelled_images(
        [each.path for each in found.pictures], [each.label for each in found.pictures], str(source)
    )
    encoder = load_encoder()
    embeddings = _encode(found, encoder, limits)
    prepared = _split(found, embeddings, share, seed, str(source))

    report = files.report or files.dataset.with_name("dataset-report.json")
    write_dataset(files.dataset, prepared.images, prepared.validation)
    _write_report(report, source, files.dataset, found, prepared)
    if files.embeddings is not None:
        images = replace(prepared.images, validation=prepared.validation)
        save_embeddings(files.embeddings, with_texts(images, embeddings, encoder))
    _show(found, prepared, files, report)


def _check(source: Path, files: Files, *, overwrite: bool) -> None:
    if not source.exists():
        raise DatasetError(f"{source} does not exist")
    for path in (files.dataset, files.report, files.embeddings):
        if path is None or not path.exists():
            continue
        if path.is_dir():
            raise DatasetError(f"{path} is a folder: name a file")
        if path.samefile(source):
            raise DatasetError(f"{path} is the source itself: name another file")
        if not overwrite:
            raise DatasetError(f"{path} exists: name another file, or say --overwrite")


def _read(source: Path, export: ExportOptions) -> Source:
    suffix = source.suffix.lower()
    if source.is_file() and suffix == ".json":
        return from_export(source, export)
    if export != ExportOptions():
        raise DatasetError(
            "--root, --control and --image-key are for a Label Studio export, a .json file"
        )
    if source.is_dir():
        return from_folder(source)
    if suffix == ".csv":
        return from_csv(source)
    raise DatasetError(
        f"{source} is neither a folder, nor a .csv file, nor a .json export of Label Studio"
    )


def _leave_out_unwritable(found: Source, dataset: Path) -> None:
    pictures = found.pictures
    found.pictures = []
    for each in pictures:
        if _is_writable(path_in_csv(each.path, dataset)) and _is_writable(each.label):
            found.pictures.append(each)
        else:
            found.unreadable.append(
                Unreadable(str(each.path), "its name or label has characters that no CSV can hold")
            )


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file is bytes, and these are not UTF-8
        return False
    return "\0" not in text


def _encode(found: Source, encoder: Encoder, limits: ImageLimits) -> Vectors:
    """Return the embeddings of the readable pictures, and leave only those among the pictures."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("encoding", total=len(found.pictures))
        embeddings, unreadable = encode_files(
            [each.path for each in found.pictures],
            encoder,
            limits,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    found.unreadable += [
        Unreadable(str(found.pictures[index].path), reason) for index, reason in unreadable.items()
    ]
    found.pictures = [each for index, each in enumerate(found.pictures) if index not in unreadable]
    return embeddings


def _split(found: Source, embeddings: Vectors, share: float, seed: int, origin: str) -> _Prepared:
    images = labelled_images(
        [each.path for each in found.pictures], [each.label for each in found.pictures], origin
    )
    notes = list(found.notes)
    groups = duplicates(embeddings)
    group_of = np.arange(len(images.paths))
    for group in groups:
        group_of[group] = group[0]
    if found.pictures[0].split is None:
        validation = stratified_split(images.labels, group_of, share, seed)
    else:
        validation = np.array([each.split == VALIDATION for each in found.pictures])
        notes.append("The source's own split is kept.")
        torn = [group for group in groups if len(set(validation[group].tolist())) == 2]
        if torn:
            moved = np.concatenate(torn)
            notes.append(
                f"Moved from its validation to train, where their duplicates are: "
                f"{int(validation[moved].sum())}."
            )
            validation[moved] = False
    if not validation.any():
        raise DatasetError(
            f"{origin}: nothing can be set aside for validation; a class needs two readable "
            "pictures that are not duplicates"
        )
    for part, members in ((VALIDATION, validation), (TRAIN, ~validation)):
        absent = sorted(set(images.classes) - {images.classes[k] for k in images.labels[members]})
        if absent:
            names = ", ".join(map(repr, absent[:_SHOWN])) + (", …" if absent[_SHOWN:] else "")
            notes.append(f"Classes without a picture in {part}: {len(absent)} ({names}).")
    return _Prepared(images, validation, groups, notes)


def _write_report(
    path: Path, source: Path, dataset: Path, found: Source, prepared: _Prepared
) -> None:
    images = prepared.images
    counts = prepared.counts()
    report = {
        "source": str(source),
        "dataset": str(dataset),
        "pictures": len(images.paths),
        TRAIN: sum(train for _, train, _ in counts),
        VALIDATION: sum(validation for _, _, validation in counts),
        "classes": [
            {"name": name, TRAIN: train, VALIDATION: validation}
            for name, train, validation in counts
        ],
        "unreadable": [{"path": each.name, "reason": each.reason} for each in found.unreadable],
        "unlabelled": found.unlabelled,
        "ties": found.ties,
        "several_choices": found.several,
        "duplicates": [
            {
                "contradictory": prepared.contradicts(group),
                "split": VALIDATION if prepared.validation[group[0]] else TRAIN,
                "pictures": [
                    {
                        "path": path_in_csv(images.paths[index], dataset),
                        "label": images.classes[images.labels[index]],
                    }
                    for index in group
                ],
            }
            for group in prepared.groups
        ],
        "notes": prepared.notes,
    }
    with replacing(path) as file:
        # Bytes of a name that are not UTF-8 become JSON's own escapes.
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        file.write(text.encode(errors="backslashreplace"))


def _show(found: Source, prepared: _Prepared, files: Files, report: Path) -> None:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    images = prepared.images
    table = Table("class", TRAIN, VALIDATION, "all")
    for name, train, validation in prepared.counts():
        table.add_row(Text(printable(name)), str(train), str(validation), str(train + validation))
    table.add_section()
    validation = int(prepared.validation.sum())
    n = len(images.paths)
    table.add_row("all", str(n - validation), str(validation), str(n))
    console.print(table)
    for note in prepared.notes:
        console.print(printable(note))
    for count, what in (
        (found.unlabelled, "without a label"),
        (found.ties, "annotators disagree evenly"),
        (found.several, "several choices"),
    ):
        if count:
            console.print(f"Left out, {what}: {count}")
    _show_some(
        console,
        f"Left out, unreadable: {len(found.unreadable)}",
        [f"{each.name}: {each.reason}" for each in found.unreadable],
    )
    # Contradictory ones first: they are label errors, or pictures that nobody can tell apart.
    disagreeing = [group for group in prepared.groups if prepared.contradicts(group)]
    agreeing = [group for group in prepared.groups if not prepared.contradicts(group)]
    for title, groups in (
        (
            "Groups of duplicates with contradictory labels (label errors, or pictures that CLIP "
            f"cannot tell apart), kept in {TRAIN}",
            disagreeing,
        ),
        ("Groups of duplicates with one label, each kept in one part", agreeing),
    ):
        lines = [
            "; ".join(
                f"{path_in_csv(images.paths[index], files.dataset)} "
                f"({images.classes[images.labels[index]]})"
                for index in group[:_SHOWN]
            )
            + (f"; and {len(group) - _SHOWN} more" if len(group) > _SHOWN else "")
            for group in groups[:_SHOWN]
        ]
        _show_some(console, f"{title}: {len(groups)}", lines, of=len(groups))
    for path in (files.dataset, report, files.embeddings):
        if path is not None:
            console.print(f"wrote {path}")


def _show_some(console: Console, title: str, lines: Sequence[str], of: int | None = None) -> None:
    if not lines:
        return
    console.print(title)
    for line in lines[:_SHOWN]:
        console.print(f"  {printable(line)}")
    more = (len(lines) if of is None else of) - _SHOWN
    if more > 0:
        console.print(f"  and {more} more: see the report")
