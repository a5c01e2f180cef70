"""Tasks in, predictions out: the one path that both /predict and refresh take."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from backend.clip.prompts import NEUTRAL, prompts
from backend.embedding import Embedder, Found
from backend.errors import LabelingConfigError, TaskError
from backend.labelstudio.choices import Choice, wordings
from backend.labelstudio.config import Control, LabelingConfig
from backend.offers import Offer, offers_of
from backend.results import Answers
from backend.settings import LearningSettings, Score
from backend.store.embeddings import Vector
from backend.store.tasks import Task
from backend.store.versions import ControlHead, Version

if TYPE_CHECKING:
    import torch

    from backend.clip.encoder import Encoder
    from backend.learning.head import Head

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
    `uncertainties` [N] in [0, 1]; there are none without usable tasks. `offers` say which of the
    choices the tasks have: the others' probability is 0.
    """

    usable: list[int]
    vectors: list[torch.Tensor]
    probabilities: list[Vector]
    uncertainties: list[torch.Tensor]
    errors: list[TaskError]
    offers: list[list[Offer]]


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
        found, offers = self._look_up(tasks, config, version, fetch=fetch)
        if not found.usable:
            return Scores([], [], [], [], found.errors, [])
        return Scores(
            found.usable,
            found.vectors,
            [
                _probabilities(version.heads[control.name].head, vectors, of_control)
                for control, vectors, of_control in zip(
                    config.controls, found.vectors, offers, strict=True
                )
            ],
            _uncertainties(tasks, found, config, version, offers),
            found.errors,
            offers,
        )

    def zero_shot(
        self, project_id: int, config: LabelingConfig, learning: LearningSettings
    ) -> Version:
        """Return a version that knows the choices of a config by their names alone."""
        return Version(
            project_id=project_id,
            number=0,
            fingerprint=fingerprint(self.encoder.identity, config, learning),
            encoder=self.encoder.identity,
            query_strategy=learning.query_strategy.value,
            score=learning.score.value,
            heads={
                control.name: zero_shot_head(self.encoder, learnable(control), learning)
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

        found, offers = self._look_up(tasks, config, version, fetch=False)
        if not found.usable:
            return [], torch.empty(0)
        ids = [task_id for index in found.usable if (task_id := tasks[index].id) is not None]
        return ids, combine(_uncertainties(tasks, found, config, version, offers))

    def _predict(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version, *, fetch: bool
    ) -> list[Prediction | TaskError]:
        from backend.learning.strategies import combine

        scores = self.score(tasks, config, version, fetch=fetch)
        outcome: list[Prediction | TaskError] = [*scores.errors]
        if not scores.usable:
            return outcome
        results: list[list[dict[str, object]]] = [[] for _ in scores.usable]
        for control, probabilities, offers in zip(
            config.controls, scores.probabilities, scores.offers, strict=True
        ):
            for offer in offers:
                answers = Answers(control, offer.choices)
                offered = slice(None) if offer.columns is None else offer.columns
                for row in offer.rows:
                    results[row] += answers.results(probabilities[row, offered])
        uncertainties = combine(scores.uncertainties).tolist()
        for index, result, uncertainty in zip(scores.usable, results, uncertainties, strict=True):
            outcome[index] = Prediction(
                tasks[index].id, result, score_of(uncertainty, version), version.name
            )
        return outcome

    def _look_up(
        self, tasks: Sequence[Task], config: LabelingConfig, version: Version, *, fetch: bool
    ) -> tuple[Found, list[list[Offer]]]:
        found = self.embedder.look_up(tasks, config, fetch=fetch)
        return offers_of(tasks, found, config, version.heads)


def score_of(uncertainty: float, version: Version) -> float:
    """Return what Label Studio orders its queue by, in [0, 1]."""
    confident = version.score == Score.CONFIDENCE.value
    return round(1 - uncertainty if confident else uncertainty, 6)


def learnable(control: Control, labelled: Collection[str] = ()) -> Control:
    """Return a control with the choices that its head is to know.

    A path that leads further is one where people have chosen it: its name alone would take from
    what it leads to.
    """
    wanted = (each for each in control.choices if each.is_leaf or each.value in labelled)
    return replace(control, choices=tuple(wanted))


def zero_shot_head(encoder: Encoder, control: Control, learning: LearningSettings) -> ControlHead:
    """Return the head of a control's choices from their names alone.

    Raises LabelingConfigError where the choices have too many names.
    """
    import torch

    from backend.learning.head import zero_shot

    sentences = prompts_of(control, learning)
    if (count := sum(map(len, sentences))) > _MAX_PROMPTS:
        raise LabelingConfigError(
            f"{control.tag} has {count} prompts; CLIP reads at most "
            f"{_MAX_PROMPTS}: give fewer predicted_values, or fewer prompts in the extra params"
        )
    mean = torch.from_numpy(encoder.encode_texts(NEUTRAL).mean(axis=0))
    neutral = torch.nn.functional.normalize(mean, dim=-1) if control.multiple else None
    # Before any task is known, choices that come with tasks are none.
    text = torch.empty(0, len(mean))
    if sentences:
        text = torch.from_numpy(encoder.encode_prompts(sentences))
    return ControlHead(control.values, zero_shot(text, encoder.logit_scale, neutral=neutral))


def fingerprint(
    encoder: str,
    config: LabelingConfig,
    learning: LearningSettings,
    labels: Mapping[str, Mapping[int, tuple[str | None, frozenset[str]]]] | None = None,
) -> str:
    """Return a digest of everything that a version depends on.

    `labels` are, by control and task, where its picture is, as a digest, and the choices. Equal
    fingerprints need no new training, though one would also see another pool.
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
                *_more_facts(control),
            ]
            for control in config.controls
        ],
        "learning": learning.model_dump(mode="json", exclude={"retrain_delay"}),
        "labels": {
            control: [
                [task_id, picture, sorted(choices)]
                for task_id, (picture, choices) in sorted(of_control.items())
            ]
            for control, of_control in (labels or {}).items()
        },
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _more_facts(control: Control) -> list[object]:
    # Nothing for plain <Choices>, so that versions of earlier releases stay what they are.
    facts: list[object] = []
    if control.kind == "taxonomy":
        facts.append([[*each.path, each.is_leaf, *each.within] for each in control.choices])
    if control.options is not None:
        facts.append(["options", control.options])
    if control.shortlist is not None:
        facts.append(["shortlist", control.shortlist.name, control.shortlist.to_name])
    return facts


def fits(version: Version, config: LabelingConfig, encoder: str) -> bool:
    """Tell whether a version can predict what a labeling config asks for."""
    return version.encoder == encoder and all(
        control.name in version.heads
        and _has_choices(control, version.heads[control.name].values)
        and version.heads[control.name].head.multiple == control.multiple
        for control in config.controls
    )


def _has_choices(control: Control, values: tuple[str, ...]) -> bool:
    # Which of the choices that come with tasks are known is seen task by task.
    return control.options is not None or values == learnable(control, frozenset(values)).values


def prompts_of(control: Control, learning: LearningSettings) -> list[Sequence[str]]:
    """Return what CLIP reads of each choice: the prompts that people gave it, or its names'."""
    return [
        _sentences(choice, names, learning)
        for choice, names in zip(control.choices, wordings(control.choices), strict=True)
    ]


def _sentences(choice: Choice, names: Sequence[str], learning: LearningSettings) -> Sequence[str]:
    for name in (choice.value, *choice.names):
        if name in learning.prompts:
            return learning.prompts[name]
    return prompts(names)


def _probabilities(head: Head, vectors: torch.Tensor, offers: Sequence[Offer]) -> Vector:
    probabilities: Vector
    if any(offer.columns is None for offer in offers):
        probabilities = head.probabilities(vectors).numpy()
        return probabilities
    probabilities = np.zeros((len(vectors), len(head.weights)), dtype=np.float32)
    for offer in offers:
        own = offer.of(head).probabilities(vectors[offer.rows]).numpy()
        probabilities[np.array(offer.rows)[:, None], offer.columns] = own
    return probabilities


def _uncertainties(
    tasks: Sequence[Task],
    found: Found,
    config: LabelingConfig,
    version: Version,
    offers: Sequence[Sequence[Offer]],
) -> list[torch.Tensor]:
    import torch

    from backend.learning.strategies import STRATEGIES, Pool

    keys = [f"{tasks[index].id}:{version.name}" for index in found.usable]
    measure = STRATEGIES[version.query_strategy].measure
    measured = []
    for control, vectors, of_control in zip(config.controls, found.vectors, offers, strict=True):
        head = version.heads[control.name].head
        uncertainties = torch.empty(len(vectors))
        for offer in of_control:
            own_keys = [keys[row] for row in offer.rows]
            pool = Pool(vectors[offer.rows], offer.of(head), vectors[:0], own_keys)
            uncertainties[offer.rows] = measure(pool).to(uncertainties)
        measured.append(uncertainties)
    return measured


def _chunks(tasks: Sequence[Task], size: int) -> Iterable[Sequence[Task]]:
    return (tasks[start : start + size] for start in range(0, len(tasks), size))
