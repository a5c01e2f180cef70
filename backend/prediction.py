"""Tasks in, predictions out: the one path that both /predict and refresh take."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from backend.clip.prompts import NEUTRAL, prompts
from backend.errors import ImageError, LabelingConfigError, TaskError
from backend.instruments import Instruments
from backend.labelstudio.config import Control, LabelingConfig, image_source
from backend.labelstudio.decoding import ImageLimits, decode
from backend.settings import LearningSettings, Score
from backend.store.embeddings import Embeddings, Failure, Vector
from backend.store.tasks import Task
from backend.store.versions import ControlHead, Version

if TYPE_CHECKING:
    import torch

    from backend.clip.encoder import Encoder

Used = TypeVar("Used")

# Bounds the memory of one pass.
TASKS_AT_ONCE = 1000

# Of one control: 20,000 choices, each with a value and an alias, in each of the templates.
_MAX_PROMPTS = 160_000

# A broken picture may be replaced under its address, but not every minute.
BROKEN_FOR = 3600.0
UNREACHABLE_FOR = 30.0


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one task, in Label Studio's terms; `score` is in [0, 1]."""

    task_id: int | None
    result: list[dict[str, object]]
    score: float
    model_version: str


@dataclass(frozen=True)
class Scores:
    """What a version says of tasks, as numbers.

    `usable` are the tasks, by index, whose pictures could be had; `errors` say for all why not,
    where not. For each control, `probabilities` are [N, K] of the usable tasks, columns in the
    order of the head's choices, and `uncertainties` [N] in [0, 1]; there are none without usable
    tasks.
    """

    usable: list[int]
    probabilities: list[Vector]
    uncertainties: list[torch.Tensor]
    errors: list[TaskError]


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
class _Found:
    """Which tasks, by index, can be predicted, and for all why not, where not.

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


class Predictor:
    """Turns tasks into predictions, with embeddings from the store as far as it has them.

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

    def predict(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version, *, fetch: bool = True
    ) -> list[Prediction | TaskError]:
        """Return a prediction, or why there is none, for each task, in the tasks' order.

        With `fetch` False only pictures that the store has an embedding of are predicted.
        """
        predictions: list[Prediction | TaskError] = []
        for some in _chunks(tasks, TASKS_AT_ONCE):
            predictions += self._predict(some, config, version, fetch=fetch)
        return predictions

    def score(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version, *, fetch: bool = True
    ) -> Scores:
        """Return the numbers that `predict` makes its predictions of, for as many tasks as fit."""
        found = self._look_up(tasks, config, fetch=fetch)
        if not found.usable:
            return Scores([], [], [], found.errors)
        return Scores(
            found.usable,
            [
                version.heads[control.name].head.probabilities(vectors).numpy()
                for control, vectors in zip(config.controls, found.vectors, strict=True)
            ],
            _uncertainties(tasks, found, config, version),
            found.errors,
        )

    def embed(self, tasks: Iterable[Task], config: LabelingConfig) -> int:
        """Make sure that the store has the tasks' pictures; return how many could not be had."""
        pictures = [picture for task in tasks for picture in self._pictures(task, config)]
        outcome = self._vectors(pictures, fetch=True)
        return sum(isinstance(found, Failure) for found in outcome.values())

    def sources(self, tasks: Iterable[Task], config: LabelingConfig) -> set[str]:
        """Return under which sources the store keeps the tasks' pictures."""
        return {picture.located for task in tasks for picture in self._pictures(task, config)}

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

    def zero_shot(
        self, project_id: int, config: LabelingConfig, learning: LearningSettings
    ) -> Version:
        """Return a version that knows the choices by their names alone."""
        return Version(
            project_id=project_id,
            number=0,
            fingerprint=fingerprint(self.encoder.identity, config, learning),
            encoder=self.encoder.identity,
            query_strategy=learning.query_strategy.value,
            score=learning.score.value,
            heads={
                control.name: zero_shot_head(self.encoder, control, learning)
                for control in config.controls
            },
        )

    def uncertainties(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version
    ) -> tuple[list[int], torch.Tensor]:
        """Return the ids of the tasks that are embedded, and how uncertain they are [N] in [0, 1].

        Each is looked at alone, as `predict` does.
        """
        import torch

        from backend.learning.strategies import combine

        found = self._look_up(tasks, config, fetch=False)
        if not found.usable:
            return [], torch.empty(0)
        ids = [task_id for index in found.usable if (task_id := tasks[index].id) is not None]
        return ids, combine(_uncertainties(tasks, found, config, version))

    def _predict(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version, *, fetch: bool
    ) -> list[Prediction | TaskError]:
        from backend.learning.strategies import combine

        scores = self.score(tasks, config, version, fetch=fetch)
        outcome: list[Prediction | TaskError] = [*scores.errors]
        if not scores.usable:
            return outcome
        results: list[list[dict[str, object]]] = [[] for _ in scores.usable]
        for control, probabilities in zip(config.controls, scores.probabilities, strict=True):
            values = version.heads[control.name].values
            for result, row in zip(results, probabilities, strict=True):
                result.extend(_result(control, values, row))
        uncertainties = combine(scores.uncertainties).tolist()
        for index, result, uncertainty in zip(scores.usable, results, uncertainties, strict=True):
            outcome[index] = Prediction(
                tasks[index].id, result, score_of(uncertainty, version), version.name
            )
        return outcome

    def _look_up(self, tasks: Sequence[Task], config: LabelingConfig, *, fetch: bool) -> _Found:
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
        return _Found(usable, [torch.from_numpy(np.stack(column)) for column in columns], errors)

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


def score_of(uncertainty: float, version: Version) -> float:
    """Return what Label Studio orders its queue by, in [0, 1]."""
    confident = version.score == Score.CONFIDENCE.value
    return round(1 - uncertainty if confident else uncertainty, 6)


def zero_shot_head(encoder: Encoder, control: Control, learning: LearningSettings) -> ControlHead:
    """Return the head of a control's choices from their names alone.

    Raises LabelingConfigError where the choices have too many names.
    """
    import torch

    from backend.learning.head import zero_shot

    wordings = [_wordings(choice.value, choice.names, learning) for choice in control.choices]
    if (count := sum(map(len, wordings))) > _MAX_PROMPTS:
        raise LabelingConfigError(
            f'<Choices name="{control.name}"> has {count} prompts; CLIP reads at most '
            f"{_MAX_PROMPTS}: give fewer predicted_values, or fewer prompts in the extra params"
        )
    flat = encoder.encode_texts([text for texts in wordings for text in texts])
    rows, start = [], 0
    for texts in wordings:
        rows.append(flat[start : start + len(texts)].mean(axis=0))
        start += len(texts)
    text = torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=-1)
    neutral = None
    if control.multiple:
        mean = torch.from_numpy(encoder.encode_texts(NEUTRAL).mean(axis=0))
        neutral = torch.nn.functional.normalize(mean, dim=-1)
    return ControlHead(control.values, zero_shot(text, encoder.logit_scale, neutral=neutral))


def fingerprint(
    encoder: str,
    config: LabelingConfig,
    learning: LearningSettings,
    labels: Mapping[str, Mapping[int, frozenset[str]]] | None = None,
) -> str:
    """Return a digest of everything that a version depends on.

    `labels` are the choices by control and task. Equal fingerprints mean equal predictions.
    """
    facts = {
        "encoder": encoder,
        "controls": [
            [
                control.name,
                control.to_name,
                control.image,
                control.multiple,
                [[choice.value, *choice.names] for choice in control.choices],
            ]
            for control in config.controls
        ],
        "learning": learning.model_dump(mode="json", exclude={"retrain_delay"}),
        "labels": {
            control: [[task_id, sorted(of_control[task_id])] for task_id in sorted(of_control)]
            for control, of_control in (labels or {}).items()
        },
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fits(version: Version, config: LabelingConfig, encoder: str) -> bool:
    """Tell whether a version can predict what a labeling config asks for."""
    return version.encoder == encoder and all(
        control.name in version.heads
        and version.heads[control.name].values == control.values
        and version.heads[control.name].head.multiple == control.multiple
        for control in config.controls
    )


def _wordings(value: str, names: Sequence[str], learning: LearningSettings) -> list[str]:
    for name in (value, *names):
        if name in learning.prompts:
            return learning.prompts[name]
    return prompts(names)


def chosen_by(control: Control, probabilities: Vector) -> list[int]:
    """Return which choices a row of probabilities [K] stands for: the likeliest, or all likely."""
    if control.multiple:
        return np.flatnonzero(probabilities >= 0.5).tolist()
    return [int(probabilities.argmax())]


def _result(
    control: Control, values: Sequence[str], probabilities: Vector
) -> list[dict[str, object]]:
    chosen = chosen_by(control, probabilities)
    if not chosen:
        return []
    certainty = float(probabilities[chosen].min())
    return [
        {
            "from_name": control.name,
            "to_name": control.to_name,
            "type": "choices",
            "value": {"choices": [values[index] for index in chosen]},
            "score": round(certainty, 6),
        }
    ]


def _uncertainties(
    tasks: Sequence[Task], found: _Found, config: LabelingConfig, version: Version
) -> list[torch.Tensor]:
    from backend.learning.strategies import STRATEGIES, Pool

    keys = [f"{tasks[index].id}:{version.name}" for index in found.usable]
    measure = STRATEGIES[version.query_strategy].measure
    return [
        measure(Pool(vectors, version.heads[control.name].head, vectors[:0], keys))
        for control, vectors in zip(config.controls, found.vectors, strict=True)
    ]


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
    return Failure(str(error), time.time() + (BROKEN_FOR if error.permanent else UNREACHABLE_FOR))


def _chunks(tasks: Sequence[Task], size: int) -> Iterable[Sequence[Task]]:
    return (tasks[start : start + size] for start in range(0, len(tasks), size))
