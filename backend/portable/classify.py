"""`classify`: a model on a folder of pictures, without Label Studio."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backend.clip.encoder import Encoder
from backend.embedding import Embedder
from backend.errors import ModelError
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.decoding import ImageLimits
from backend.portable.files import FilePictures
from backend.portable.results import LabelStudioTasks, Results, Table, image_fields
from backend.prediction import Predictor
from backend.simulation.atomic import replacing
from backend.simulation.sources import Unreadable, files_below, printable
from backend.store.embeddings import Embeddings
from backend.store.schema import Database
from backend.store.tasks import Task
from backend.store.versions import Version

# Whatever tags a config has its pictures in, here each has one.
_FIELD = "picture"

_PICTURES_AT_ONCE = 64

# The kinds of files that can be written, by suffix.
_TABLE, _TASKS = ".csv", ".json"


@dataclass(frozen=True)
class Model:
    """A version with all that it needs to predict."""

    version: Version
    config: LabelingConfig
    encoder: Encoder


def check(folder: Path, out: Path) -> None:
    """Raise ModelError, before CLIP is loaded, for what can be seen to be wrong."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder")
    if out.suffix.lower() not in (_TABLE, _TASKS):
        raise ModelError(f"{out}: name a {_TABLE}, or a {_TASKS} of tasks for Label Studio")


def classify(folder: Path, model: Model, out: Path, limits: ImageLimits) -> None:
    """Write what a model says of the pictures below a folder, as its suffix tells: CSV or JSON.

    The file appears, or is replaced, once it is complete. Pictures that cannot be read are
    printed. Raises ModelError for an empty folder, DatasetError where it cannot be listed or the
    file cannot be written.
    """
    # Not resolved: Label Studio may know the folder by a link's name.
    folder, out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    unreadable: list[Unreadable] = []
    paths = [path for path in files_below(folder, unreadable) if path != out]
    if not paths:
        raise ModelError(f"{folder} has no pictures")
    asked = replace(
        model.config,
        controls=tuple(replace(control, image=f"${_FIELD}") for control in model.config.controls),
    )
    with (
        tempfile.TemporaryDirectory() as temporary,
        closing(Database(f"sqlite:///{Path(temporary) / 'embeddings.sqlite3'}")) as database,
        replacing(out) as file,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bar,
    ):
        predictor = Predictor(
            Embedder(model.encoder, Embeddings(database), FilePictures(limits), limits)
        )
        results: Results
        if out.suffix.lower() == _TABLE:
            results, top = Table(file, asked, model.version), folder
        else:
            fields = image_fields(model.config)
            results = LabelStudioTasks(file, asked, model.version, fields)
            top = folder.parent
        shown = bar.add_task("classifying", total=len(paths))
        step = max(_PICTURES_AT_ONCE, model.encoder.batch_size)
        for start in range(0, len(paths), step):
            some = paths[start : start + step]
            errors = _add(results, predictor, some, top, start)
            unreadable += [
                Unreadable(str(path), error)
                for path, error in zip(some, errors, strict=True)
                if error
            ]
            bar.advance(shown, len(some))
        results.end()
    _show(paths, unreadable, model.version, out)


def _add(
    results: Results, predictor: Predictor, paths: Sequence[Path], top: Path, start: int
) -> list[str]:
    names = [path.relative_to(top).as_posix() for path in paths]
    tasks = [Task(start + index, {_FIELD: str(path)}) for index, path in enumerate(paths)]
    return results.add(predictor, names, tasks)


def _show(
    paths: Sequence[Path], unreadable: Sequence[Unreadable], version: Version, out: Path
) -> None:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    failed = {each.name for each in unreadable}
    readable = sum(str(path) not in failed for path in paths)
    if unreadable:
        console.print(f"Left out, unreadable: {len(unreadable)}")
    for each in unreadable:
        console.print(f"  {printable(each.name)}: {printable(each.reason)}")
    console.print(f"wrote {out}: {readable} pictures by {version.name}")
