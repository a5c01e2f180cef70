"""What the workers still have to do, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from backend.page.services import ProjectView
from backend.store.requests import Kind, Waiting

_WORDS = {
    Kind.TRAIN: "training",
    Kind.REFRESH: "pushing predictions",
    Kind.SYNC: "listing tasks",
    Kind.RECONCILE: "comparing with Label Studio",
    Kind.EMBED: "embedding pictures",
    Kind.SWEEP: "removing old predictions",
    Kind.TIDY: "tidying up",
    Kind.MAP: "drawing the map",
}


@dataclass(frozen=True)
class Job:
    """Work of one kind: how many parts run and how many wait, and why one failed lately.

    `due_at` is when the first of them is due (Unix time), None where that is now.
    """

    words: str
    running: int
    waiting: int
    due_at: float | None
    attempts: int
    error: str | None


@dataclass(frozen=True)
class Jobs:
    """A project's work, and how many of its open tasks carry the active version's prediction."""

    jobs: list[Job]
    open: int
    predicted: int


def jobs(view: ProjectView) -> Jobs:
    """Return what is asked for and not done, most urgent first."""
    waiting = view.store.requests.waiting(view.project.id)
    by_kind = [[item for item in waiting if item.request.kind is kind] for kind in Kind]
    progress = view.store.tasks.progress(view.project.id, view.project.model_version)
    return Jobs([_job(items) for items in by_kind if items], progress.open, progress.predicted)


def _job(items: Sequence[Waiting]) -> Job:
    running = sum(item.running for item in items)
    due_at = min(item.due_at for item in items)
    failed = max(items, key=lambda item: item.attempts)
    return Job(
        _WORDS[items[0].request.kind],
        running=running,
        waiting=len(items) - running,
        due_at=due_at if due_at > time.time() else None,
        attempts=failed.attempts,
        error=failed.error,
    )
