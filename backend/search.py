"""Tasks whose pictures are like a text or like other pictures, over a project's embeddings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.clip.prompts import prompts
from backend.embedding import Embedder
from backend.errors import NotFoundError, RequestError
from backend.labelstudio.config import Control, LabelingConfig
from backend.labelstudio.task_data import image_source
from backend.store.embeddings import Vector
from backend.store.tasks import StoredTask, Tasks

if TYPE_CHECKING:
    from backend.clip.encoder import Encoder


@dataclass(frozen=True)
class Hit:
    """A task, the control that asks about its most alike picture, and the cosine similarity."""

    task: StoredTask
    control: Control
    similarity: float

    @property
    def picture(self) -> str:
        """Where the picture comes from, as the task says it."""
        return image_source(self.control, self.task.data)


@dataclass(frozen=True)
class Found:
    """The hits, most alike first, of `compared` tasks; `not_embedded` have no embedding yet."""

    hits: list[Hit]
    compared: int
    not_embedded: int


class Search:
    """Searches one project; its pictures are those that its labeling config predicts.

    Memory is that of a thousand tasks, whatever the project's size.
    """

    def __init__(
        self, embedder: Embedder, tasks: Tasks, project_id: int, config: LabelingConfig
    ) -> None:
        self._embedder = embedder
        self._tasks = tasks
        self._project_id = project_id
        # Controls mostly ask about one and the same picture.
        self._controls = [*{control.image: control for control in config.controls}.values()]

    def query(self, text: str, like: Sequence[int]) -> Vector:
        """Return the unit vector [D] of a text, of tasks' pictures, or of both together.

        Of both it is their sum, which is how found examples refine a query (Rocchio, 1971,
        "Relevance Feedback in Information Retrieval").

        Raises RequestError where neither is given, NotFoundError for a task that is unknown or
        that has no embedding.
        """
        parts = []
        if text.strip():
            parts.append(text_vector(self._embedder.encoder, text))
        if like:
            parts.append(self._mean_of(like))
        if not parts:
            raise RequestError("say what to search for: a text, or the ID of a task")
        return _unit(np.sum(parts, axis=0))

    def nearest(
        self, query: Vector, count: int, *, only_open: bool, but: Collection[int] = ()
    ) -> Found:
        """Return the `count` tasks whose pictures have the highest cosine with a query [D].

        Parameters
        ----------
        query : Vector
            Unit vector [D].
        count : int
        only_open : bool
            Leave out what Label Studio wants no annotation of any more.
        but : collection of int
            Tasks that are left out.

        """
        left_out = set(but)
        pages = self._tasks.open if only_open else self._tasks.all
        best: list[Hit] = []
        compared = not_embedded = 0
        for page in pages(self._project_id):
            wanted = [task for task in page if task.id not in left_out]
            alike: dict[int, Hit] = {}
            for control, tasks, vectors in self._embedded(wanted):
                for task, similarity in zip(tasks, (vectors @ query).tolist(), strict=True):
                    known = alike.get(task.id)
                    if known is None or known.similarity < similarity:
                        alike[task.id] = Hit(task, control, similarity)
            compared += len(alike)
            not_embedded += len(wanted) - len(alike)
            best = nlargest(count, [*best, *alike.values()], key=attrgetter("similarity"))
        return Found(best, compared, not_embedded)

    def _mean_of(self, ids: Sequence[int]) -> Vector:
        tasks = self._tasks.named(self._project_id, ids)
        embedded = [(some, vectors) for _, some, vectors in self._embedded(tasks)]
        known = {task.id for some, _ in embedded for task in some}
        for task_id in ids:
            if task_id not in {task.id for task in tasks}:
                raise NotFoundError(f"project {self._project_id} has no task {task_id}")
            if task_id not in known:
                raise NotFoundError(
                    f"the picture of task {task_id} is not embedded yet: try again in a moment, "
                    "or see in the log of the worker why it cannot be had"
                )
        return _unit(np.concatenate([vectors for _, vectors in embedded]).mean(axis=0))

    def _embedded(
        self, tasks: Sequence[StoredTask]
    ) -> Iterator[tuple[Control, list[StoredTask], NDArray[np.float32]]]:
        by_id = {task.id: task for task in tasks}
        for control in self._controls:
            ids, vectors = self._embedder.vectors_of(tasks, control, fetch=False)
            if ids:
                yield control, [by_id[task_id] for task_id in ids], vectors.numpy()


def text_vector(encoder: Encoder, text: str) -> Vector:
    """Return the unit vector [D] of a text, in the same wordings as a choice of that name."""
    vector: Vector = encoder.encode_prompts([prompts([text])])[0]
    return vector


def _unit(vector: NDArray[np.float32]) -> Vector:
    return vector / np.float32(np.linalg.norm(vector))
