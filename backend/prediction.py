"""Tasks in, predictions out: the one path that both /predict and refresh take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from backend.clip.prompts import NEUTRAL, prompts
from backend.embedding import Embedder, Found
from backend.errors import LabelingConfigError, TaskError
from backend.labelstudio.config import Control, LabelingConfig
from backend.settings import LearningSettings, Score
from backend.store.embeddings import Vector
from backend.store.tasks import Task
from backend.store.versions import ControlHead, Version

if TYPE_CHECKING:
    import torch

    from backend.clip.encoder import Encoder

# Bounds the memory of one pass.
TASKS_AT_ONCE = 1000

# Of one control: 20,000 choices, each with a value and an alias, in each of the templates.
_MAX_PROMPTS = 160_000


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
    where not. For each control, `vectors` are the unit vectors [N, D] of the usable tasks'
    pictures, `probabilities` are [N, K] of them, columns in the order of the head's choices, and
    `uncertainties` [N] in [0, 1]; there are none without usable tasks.
    """

    usable: list[int]
    vectors: list[torch.Tensor]
    probabilities: list[Vector]
    uncertainties: list[torch.Tensor]
    errors: list[TaskError]


class Predictor:
    """Turns tasks into predictions, one path for all who ask.

    One serves all threads of a process.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.encoder = embedder.encoder

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
        found = self.embedder.look_up(tasks, config, fetch=fetch)
        if not found.usable:
            return Scores([], [], [], [], found.errors)
        return Scores(
            found.usable,
            found.vectors,
            [
                version.heads[control.name].head.probabilities(vectors).numpy()
                for control, vectors in zip(config.controls, found.vectors, strict=True)
            ],
            _uncertainties(tasks, found, config, version),
            found.errors,
        )

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

        found = self.embedder.look_up(tasks, config, fetch=False)
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

    wordings = prompts_of(control, learning)
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


def prompts_of(control: Control, learning: LearningSettings) -> list[list[str]]:
    """Return what CLIP reads of each choice: the prompts that people gave it, or its names'."""
    return [
        _given(choice.value, choice.names, learning) or prompts(choice.names)
        for choice in control.choices
    ]


def _given(value: str, names: Sequence[str], learning: LearningSettings) -> list[str] | None:
    given = (learning.prompts[name] for name in (value, *names) if name in learning.prompts)
    return next(given, None)


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
    tasks: Sequence[Task], found: Found, config: LabelingConfig, version: Version
) -> list[torch.Tensor]:
    from backend.learning.strategies import STRATEGIES, Pool

    keys = [f"{tasks[index].id}:{version.name}" for index in found.usable]
    measure = STRATEGIES[version.query_strategy].measure
    return [
        measure(Pool(vectors, version.heads[control.name].head, vectors[:0], keys))
        for control, vectors in zip(config.controls, found.vectors, strict=True)
    ]


def _chunks(tasks: Sequence[Task], size: int) -> Iterable[Sequence[Task]]:
    return (tasks[start : start + size] for start in range(0, len(tasks), size))
