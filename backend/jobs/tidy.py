"""Bounded growth: once a day, what nobody has used for long goes.

A round marks the pictures of every task of the connected projects as used, has each project
compared with Label Studio task by task and prediction by prediction, and removes the pictures that
were last used too long ago. It makes way for all other work and goes on where it was: a round over
a million tasks takes minutes.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256

from backend.jobs.mirroring import config_of
from backend.jobs.services import Services
from backend.store.projects import Project
from backend.store.requests import SKEW, Claim, Kind, Request

log = logging.getLogger(__name__)

EVERY = 24 * 3600.0


def tidy(services: Services, claim: Claim) -> None:
    """Remove unused pictures and embeddings, and ask to be called again tomorrow."""
    store = services.store
    store.forget_leftovers()
    while project := _to_mark(services):
        if not _mark(services, claim, project):
            store.requests.add(claim.request)
            return
    store.usage.mark_encoders(services.predictor.encoder.identity)
    pictures = embeddings = 0
    # What a connected project refers to was marked in the last half day, and is kept for longer.
    for removed in store.usage.remove_unused(time.time() - services.keep_unused):
        pictures += removed.pictures
        embeddings += removed.embeddings
        if _should_make_way(services, claim):
            store.requests.add(claim.request)
            break
    else:
        store.requests.add(claim.request, delay=EVERY)
    if pictures or embeddings:
        log.info("removed what is unused pictures=%d embeddings=%d", pictures, embeddings)


def _to_mark(services: Services) -> Project | None:
    return next(
        (
            project
            for project in services.store.projects.all()
            if project.connected and not _is_recent(project.marked_at or 0.0)
        ),
        None,
    )


def _is_recent(then: float) -> bool:
    # What lies ahead was written before the clock went back.
    now = time.time()
    return now - EVERY / 2 <= then <= now + SKEW


def _mark(services: Services, claim: Claim, project: Project) -> bool:
    """Mark the pictures of a project's tasks as used; False where other work is more urgent."""
    store = services.store
    config_digest = sha256(project.label_config.encode(errors="replace")).hexdigest()
    marking = project.marking
    if (
        marking is None
        or marking["began_at"] > time.time() + SKEW
        # Another config may look at other pictures of the tasks.
        or marking["label_config"] != config_digest
    ):
        marking = {"began_at": time.time(), "after": -1, "label_config": config_digest}
    # Of a project for which nothing is predicted no picture is in use.
    config = config_of(project)
    for page in store.tasks.all(project.id, after=marking["after"]):
        store.usage.mark(
            services.predictor.embedder.sources(page, config), since=marking["began_at"]
        )
        if _should_make_way(services, claim):
            store.projects.update(project.id, marking=marking | {"after": page[-1].id})
            return False
    store.projects.update(project.id, marked_at=marking["began_at"], marking=None)
    # What comparisons cannot see: as many predictions lost as doubled, and tasks that Label Studio
    # does not say have changed.
    store.requests.add_all([Request(project.id, kind) for kind in (Kind.SYNC, Kind.SWEEP)])
    return True


def _should_make_way(services: Services, claim: Claim) -> bool:
    return (
        claim.lost.is_set()
        or services.stopping.is_set()
        or services.store.requests.more_urgent_is_due(Kind.TIDY)
    )
