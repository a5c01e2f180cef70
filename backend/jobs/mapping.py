"""The map of a project's embeddings, drawn for people to look at while nothing else is wanted.

It makes way for all other work between steps of a second or so, and goes on with what it had drawn
until then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.jobs.services import Services
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.prediction import fits
from backend.store.contents import (
    NO_CHOICE,
    EmbeddingMap,
    GivenLabels,
    MapColours,
    labels_from_bytes,
    map_from_bytes,
    map_to_bytes,
)
from backend.store.embeddings import Vector
from backend.store.findings import FindingKind
from backend.store.requests import Claim, Kind
from backend.store.tasks import StoredTask
from backend.store.versions import Version

if TYPE_CHECKING:
    from backend.learning.projection import Projection

log = logging.getLogger(__name__)

# As many points as a browser draws at once; of more tasks a sample.
MOST = 20_000

# Looked up and predicted in one step.
CHUNK = 1000

# In seconds: another worker embeds pictures that are to be on the map.
_GROWN_AFTER = 5.0

# A map stays as it is while it has so many of the landmarks that it is to be drawn by.
_STILL_THERE = 0.8


def draw_map(services: Services, claim: Claim) -> None:
    """Draw or complete a project's map, and colour it by the active version."""
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected:
        return
    config = parse_labeling_config(project.label_config)
    version = store.versions.active(project_id)
    encoder = services.predictor.encoder.identity
    if version is None or not config.controls or not fits(version, config, encoder):
        # The map that is asked for again once the next version is there.
        return
    if _is_growing(services, project_id):
        store.requests.add(claim.request, delay=_GROWN_AFTER)
        return
    # Counted first: what is imported from now on makes the map one of fewer tasks than there are.
    total = store.tasks.progress(project_id, None).tasks
    tasks = store.tasks.some(project_id, MOST)
    seen = _look_at(services, claim, tasks, config, version)
    if seen is None:
        store.requests.add(claim.request)
        return
    if not len(seen.ids):
        return
    # Which pictures: those of the first control.
    source = f"{encoder} {config.controls[0].image}"
    projection = _begun(services, project_id, source, seen)
    while True:
        drawn = EmbeddingMap(
            source=source,
            rounds=projection.rounds,
            done=projection.done,
            tasks=total,
            ids=seen.ids,
            places=projection.places(),
            uncertainties=seen.uncertainties,
            colours=seen.colours,
        )
        if store.projects.get(project_id) is None:
            return
        store.findings.keep(project_id, version.name, {FindingKind.MAP: map_to_bytes(drawn)})
        if projection.done:
            log.info("drew the map project=%d tasks=%d", project_id, len(seen.ids))
            return
        if _should_make_way(services, claim):
            store.requests.add(claim.request)
            return
        projection.draw()


@dataclass(frozen=True)
class _Seen:
    """What is known of the tasks that are embedded, a row each; `vectors` of the first control."""

    ids: NDArray[np.int64]
    vectors: Vector
    uncertainties: NDArray[np.float32]
    colours: dict[str, MapColours]


def _look_at(
    services: Services,
    claim: Claim,
    tasks: list[StoredTask],
    config: LabelingConfig,
    version: Version,
) -> _Seen | None:
    """Return what the version says of the tasks; None where other work is more urgent."""
    from backend.learning.strategies import combine

    ids: list[int] = []
    vectors = [np.empty((0, 0), np.float32)]
    uncertainties = [np.empty(0, np.float32)]
    predicted: dict[str, list[NDArray[np.int32]]] = {
        control.name: [np.empty(0, np.int32)] for control in config.controls
    }
    remaining = iter(tasks)
    while some := list(islice(remaining, CHUNK)):
        if _should_make_way(services, claim):
            return None
        scores = services.predictor.score(some, config, version, fetch=False)
        if not scores.usable:
            continue
        ids += [some[index].id for index in scores.usable]
        vectors.append(scores.vectors[0].numpy())
        uncertainties.append(combine(scores.uncertainties).numpy())
        for control, probabilities in zip(config.controls, scores.probabilities, strict=True):
            predicted[control.name].append(probabilities.argmax(axis=1).astype(np.int32))
    labels = _labels(services, version.project_id)
    return _Seen(
        np.array(ids, np.int64),
        np.concatenate(vectors[1:] or vectors),
        np.concatenate(uncertainties),
        {
            control.name: MapColours(
                version.heads[control.name].values,
                _given(ids, version.heads[control.name].values, labels.get(control.name)),
                np.concatenate(predicted[control.name]),
            )
            for control in config.controls
        },
    )


def _labels(services: Services, project_id: int) -> dict[str, GivenLabels]:
    found = services.store.findings.get(project_id, FindingKind.LABELS)
    return {} if found is None else labels_from_bytes(found.content)


def _given(
    ids: list[int], values: tuple[str, ...], labels: GivenLabels | None
) -> NDArray[np.int32]:
    place = {value: index for index, value in enumerate(values)}
    by_task = {}
    if labels is not None:
        # Another config may have had other choices.
        choices = [place.get(value, NO_CHOICE) for value in labels.choices]
        by_task = {
            task: choices[given] for task, given in zip(labels.tasks, labels.given, strict=True)
        }
    return np.array([by_task.get(task, NO_CHOICE) for task in ids], np.int32)


def _begun(services: Services, project_id: int, source: str, seen: _Seen) -> Projection:
    """Return the projection as far as it was drawn the last time."""
    from backend.learning.projection import LANDMARKS, Projection

    found = services.store.findings.get(project_id, FindingKind.MAP)
    before = None if found is None else map_from_bytes(found.content)
    if before is None or before.source != source:
        return Projection(seen.vectors)
    row = {task: index for index, task in enumerate(before.ids.tolist())}
    rows = np.array([row.get(task, -1) for task in seen.ids.tolist()])
    if (rows[:LANDMARKS] >= 0).mean() < _STILL_THERE:
        return Projection(seen.vectors)
    places = np.full((len(rows), 2), np.nan, np.float32)
    places[rows >= 0] = before.places[rows[rows >= 0]]
    return Projection(seen.vectors, places, before.rounds)


def _is_growing(services: Services, project_id: int) -> bool:
    waiting = services.store.requests.waiting(project_id, (Kind.SYNC, Kind.EMBED))
    # What fails may go on failing, and is not waited for.
    return any(not each.attempts for each in waiting)


def _should_make_way(services: Services, claim: Claim) -> bool:
    return (
        claim.lost.is_set()
        or services.stopping.is_set()
        or services.store.requests.more_urgent_is_due(Kind.MAP)
    )
