"""Where labelled pictures come from: a folder a class, or a CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import DatasetError, ImageError
from backend.simulation.dataset import TRAIN, VALIDATION, read_rows

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", re.ASCII)

NOT_LOCAL = "is not a local file"


@dataclass(frozen=True)
class Picture:
    """A picture with its class; `split` where the source has one."""

    path: Path
    label: str
    split: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A picture that is left out, by the name that its source has for it, and why."""

    name: str
    reason: str


@dataclass
class Source:
    """What a source holds.

    `unlabelled` counts pictures without a class, `ties` those whose annotators disagree evenly,
    `several` those with more than one choice; `notes` are sentences for the user.
    """

    pictures: list[Picture] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    unlabelled: int = 0
    ties: int = 0
    several: int = 0
    notes: list[str] = field(default_factory=list)


def is_remote(name: str) -> bool:
    """Tell whether a picture's name is an address rather than a path."""
    return _REMOTE.match(name) is not None


def from_folder(folder: Path) -> Source:
    """Find the pictures below a folder that has a folder a class.

    Hidden files are passed over, links to folders are not followed, files beside the classes'
    folders count as unlabelled. Every other file is taken for a picture until it is read.

    Raises DatasetError for a folder that cannot be listed.
    """
    source = Source()
    for path in files_below(folder, source.unreadable):
        place = path.relative_to(folder)
        label = place.parts[0].strip()
        if len(place.parts) == 1 or not label:
            source.unlabelled += 1
        else:
            source.pictures.append(Picture(path, label))
    return source


def from_csv(path: Path) -> Source:
    """Read a CSV with the columns path and label, and maybe split.

    Relative paths are relative to the CSV. The split is kept if every picture has one and both
    parts have a picture; otherwise a note says so.

    Raises DatasetError for a file that is not such a CSV.
    """
    source = Source()
    folder = path.parent.absolute()
    rows = read_rows(path)
    for row in rows:
        if not row.label:
            source.unlabelled += 1
        elif not row.path.strip():
            source.unreadable.append(Unreadable(f"line {row.line}", "the path is empty"))
        elif is_remote(row.path):
            source.unreadable.append(Unreadable(row.path, NOT_LOCAL))
        else:
            source.pictures.append(Picture(folder / row.path, row.label, row.split))
    splits = {picture.split for picture in source.pictures}
    if splits not in ({None}, {TRAIN, VALIDATION}):
        source.pictures = [Picture(picture.path, picture.label) for picture in source.pictures]
        if splits:
            source.notes.append(
                f"The column split of {path} is not kept: not every picture is in {TRAIN} or "
                f"{VALIDATION}, or all are in one of them."
            )
    return source


def files_below(folder: Path, left_out: list[Unreadable]) -> Iterator[Path]:
    """Yield the files below a folder by name; hidden ones are passed over.

    Links to folders are not followed but added to `left_out`. Raises DatasetError for a folder
    that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{error.filename} cannot be listed: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(place, name)
            if path.is_symlink():
                left_out.append(
                    Unreadable(str(path), "is a link to a folder, which is not followed")
                )
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return a picture file's bytes; raises ImageError."""
    try:
        # Looked at first: opening a pipe would wait for a writer.
        if not path.is_file():
            raise ImageError("is not a file" if path.exists() else "does not exist")
        if path.stat().st_size > max_bytes:
            raise ImageError(f"larger than the limit of {max_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error


def why_no_picture(error: ImageError) -> str:
    """Return why a file is no picture."""
    # What would be a server's message is a file of its own here.
    return str(error) if error.permanent else "not a picture: the file is text"


def printable(text: str) -> str:
    """Return a text that cannot move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)
