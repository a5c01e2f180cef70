"""Tasks to the unit vectors of their pictures, each encoded once, whoever asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from backend.errors import ImageError, ImageFault, TaskError
from backend.instruments import Instruments
from backend.labelstudio.config import Control, LabelingConfig
from backend.labelstudio.decoding import ImageLimits, decode
from backend.labelstudio.task_data import image_source
from backend.store import embeddings as stored
from backend.store.embeddings import LONGEST_PAUSE, Embeddings, Failure, Vector
from backend.store.tasks import Task

if TYPE_CHECKING:
    import torch

    from backend.clip.encoder import Encoder

Used = TypeVar("Used")

# A broken picture may be replaced under its address, but not every minute.
BROKEN_FOR = LONGEST_PAUSE
UNREACHABLE_FOR = 30.0
# What a server says that it has not, or answers oddly, may be a proxy's answer while it is down.
MISSING_FOR = 600.0


class Pictures(Protocol):
    """Where pictures come from: `labelstudio.images.ImageFetcher`, or files."""

    def locate(self, source: str) -> str:
        """Name the picture; raises ImageError for a source that is not supported."""

    def fetch_all(
        self,
        wanted: Iterable[tuple[str, int | None]],
        use: Callable[[bytes], Used],
        *,
        ahead: int,
    ) -> Iterator[Used | ImageError]:
        """Yield what `use` makes of each picture's bytes, in order."""


@dataclass(frozen=True)
class _Picture:
    """Where a picture comes from; `located` is its identity, whatever task refers to it."""

    source: str
    task_id: int | None
    located: str


@dataclass(frozen=True)
class Found:
    """Which tasks, by index, have all their pictures, and for all why not, where not.

    `vectors` are, for each control, the unit vectors [N, D] of the usable tasks' pictures; there
    are none without usable tasks.
    """

    usable: list[int]
    vectors: list[torch.Tensor]
    errors: list[TaskError]


@dataclass(frozen=True)
class _Prepared:
    """A picture as the encoder takes it, and the digest of its bytes."""

    digest: str
    image: torch.Tensor


class Embedder:
    """Turns pictures into vectors; the store has those that are known.

    One serves all threads of a process.
    """

    def __init__(
        self,
        encoder: Encoder,
        embeddings: Embeddings,
        images: Pictures,
        limits: ImageLimits,
        instruments: Instruments | None = None,
    ) -> None:
        from joblib import cpu_count

        self.encoder = encoder
        self._embeddings = embeddings
        self._images = images
        self._limits = limits
        self._instruments = instruments or Instruments()
        # A large picture takes hundreds of megabytes while it is decoded.
        self._decoding = threading.BoundedSemaphore(cpu_count())

    def embed(self, tasks: Iterable[Task], config: LabelingConfig) -> int:
        """Make sure that the store has the tasks' pictures; return how many could not be had."""
        pictures = [picture for task in tasks for picture in self._pictures(task, config)]
        outcome = self._vectors(pictures, fetch=True)
        return sum(isinstance(found, Failure) for found in outcome.values())

    def sources(self, tasks: Iterable[Task], config: LabelingConfig) -> set[str]:
        """Return under which sources the store keeps the tasks' pictures."""
        return {picture.located for task in tasks for picture in self._pictures(task, config)}

    def picture(self, task: Task, control: Control) -> str | None:
        """Return a digest of where a task's picture is, None where it has none."""
        picture = self._picture(control, task)
        return stored.digest(picture.located) if isinstance(picture, _Picture) else None

    def missing(self, tasks: Sequence[Task], config: LabelingConfig) -> list[int]:
        """Return the ids of the tasks with a picture that nobody has tried to embed lately."""
        by_task = {
            task.id: [picture.located for picture in self._pictures(task, config)]
            for task in tasks
            if task.id is not None
        }
        known = self._embeddings.find(
            self.encoder.identity, {source for sources in by_task.values() for source in sources}
        )
        return [
            task_id
            for task_id, sources in by_task.items()
            if any(source not in known for source in sources)
        ]

    def vectors_of(
        self, tasks: Sequence[Task], control: Control, *, fetch: bool = True
    ) -> tuple[list[int], torch.Tensor]:
        """Return the ids of the tasks whose picture can be had, and its unit vectors [N, D].

        With `fetch` False only pictures that the store has an embedding of.
        """
        import torch

        pictures = {
            task.id: picture
            for task in tasks
            if task.id is not None and isinstance(picture := self._picture(control, task), _Picture)
        }
        found = self._vectors(pictures.values(), fetch=fetch)
        ids, rows = [], []
        for task_id, picture in pictures.items():
            vector = found.get(picture.located)
            if isinstance(vector, np.ndarray):
                ids.append(task_id)
                rows.append(vector)
        return ids, torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, 0)

    def look_up(self, tasks: Sequence[Task], config: LabelingConfig, *, fetch: bool) -> Found:
        """Return the unit vectors of the tasks' pictures; none are fetched without `fetch`."""
        import torch

        pictures = [[self._picture(control, task) for control in config.controls] for task in tasks]
        found = self._vectors(
            (
                picture
                for of_task in pictures
                for picture in of_task
                if isinstance(picture, _Picture)
            ),
            fetch=fetch,
        )
        nothing = TaskError("the labeling config has nothing to predict")
        errors = [nothing] * len(tasks)
        usable: list[int] = []
        vectors: list[list[Vector]] = []
        for index, of_task in enumerate(pictures):
            got = [_vector(picture, found) for picture in of_task]
            error = next((item for item in got if isinstance(item, TaskError)), None)
            if error is not None:
                errors[index] = error
            elif got:
                usable.append(index)
                vectors.append([item for item in got if not isinstance(item, TaskError)])
        columns = zip(*vectors, strict=True)
        return Found(usable, [torch.from_numpy(np.stack(column)) for column in columns], errors)

    def _pictures(self, task: Task, config: LabelingConfig) -> list[_Picture]:
        found = (self._picture(control, task) for control in config.controls)
        return [picture for picture in found if isinstance(picture, _Picture)]

    def _picture(self, control: Control, task: Task) -> _Picture | TaskError:
        try:
            source = image_source(control, task.data)
            return _Picture(source, task.id, self._images.locate(source))
        except TaskError as error:
            return error

    def _vectors(self, pictures: Iterable[_Picture], *, fetch: bool) -> dict[str, Vector | Failure]:
        """Return the unit vectors by location; encode and store those that are not known."""
        wanted = {picture.located: picture for picture in pictures}
        found = self._embeddings.find(self.encoder.identity, wanted)
        if fetch:
            missing = [picture for located, picture in wanted.items() if located not in found]
            prepared = zip(
                missing,
                self._images.fetch_all(
                    ((picture.source, picture.task_id) for picture in missing),
                    self._prepare,
                    ahead=2 * self.encoder.batch_size,
                ),
                strict=True,
            )
            while some := list(islice(prepared, self.encoder.batch_size)):
                found |= self._encode(some)
        return found

    def _prepare(self, body: bytes) -> _Prepared:
        digest = sha256(body).hexdigest()
        with self._decoding:
            image = decode(body, self._limits, self.encoder.preprocess.enough)
            return _Prepared(digest, self.encoder.preprocess(image))

    def _encode(
        self, prepared: Sequence[tuple[_Picture, _Prepared | ImageError]]
    ) -> dict[str, Vector | Failure]:
        contents: dict[str, str] = {}
        images: dict[str, torch.Tensor] = {}
        failures: dict[str, Failure] = {}
        for picture, outcome in prepared:
            if isinstance(outcome, ImageError):
                self._instruments.not_fetched(outcome)
                failures[picture.located] = _failure(outcome)
            else:
                contents[picture.located] = outcome.digest
                images[outcome.digest] = outcome.image
        for digest in self._embeddings.find_by_content(self.encoder.identity, images):
            del images[digest]
        vectors = (
            dict(
                zip(
                    images,
                    self.encoder.encode_preprocessed([*images.values()], self._instruments.encoded),
                    strict=True,
                )
            )
            if images
            else {}
        )
        self._embeddings.save(self.encoder.identity, contents, vectors, failures)
        # Read back: what is predicted now and what is predicted from the store later are the
        # same, to the last bit.
        return failures | self._embeddings.find(self.encoder.identity, contents)


def _vector(
    picture: _Picture | TaskError, found: Mapping[str, Vector | Failure]
) -> Vector | TaskError:
    if isinstance(picture, TaskError):
        return picture
    vector = found.get(picture.located)
    if vector is None:
        return TaskError("the picture is not embedded yet")
    return TaskError(vector.message) if isinstance(vector, Failure) else vector


def _failure(error: ImageError) -> Failure:
    pause = BROKEN_FOR if error.permanent else UNREACHABLE_FOR
    if error.fault in (ImageFault.MISSING, ImageFault.ANSWER):
        pause = min(pause, MISSING_FOR)
    return Failure(str(error), time.time() + pause)
