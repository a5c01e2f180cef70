"""Pictures that are like a text or like other tasks, and a view of them in Label Studio."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Blueprint, render_template, request
from flask.typing import ResponseReturnValue

from backend.errors import RequestError, TooManyRequestsError
from backend.page.services import ProjectView
from backend.search import Found, Search

VIEW_TITLE = "Found by search"

# Pictures that are shown, and tasks that the view gets.
HITS = 60

_LONGEST_TEXT = 300
_MOST_EXAMPLES = 100
_LARGEST_ID = 2**31 - 1

# Each reads all embeddings of a project.
_AT_ONCE = 2


@dataclass(frozen=True)
class Question:
    """What is searched for: a text, tasks whose pictures are examples of it, or both."""

    text: str
    like: tuple[int, ...]
    only_open: bool


@dataclass(frozen=True)
class Thumbnail:
    """A hit as it is shown; `link` and `picture` are None where a browser cannot get there."""

    id: int
    similarity: float
    is_open: bool
    link: str | None
    picture: str | None


@dataclass(frozen=True)
class SearchForm:
    """What the form allows."""

    longest_text: int = _LONGEST_TEXT


@dataclass(frozen=True)
class Answer:
    """What was found for a question."""

    question: Question
    found: Found
    thumbnails: list[Thumbnail]


def search_form(_view: ProjectView) -> SearchForm:
    """Return what the panel shows before anything is searched for."""
    return SearchForm()


def add_search(page: Blueprint, project: str, view_of: Callable[[int], ProjectView]) -> None:
    """Add the addresses of the search to the page; `project` is where a project's begin."""
    slots = threading.BoundedSemaphore(_AT_ONCE)

    @page.get(f"{project}/search")
    def search(project_id: int) -> str:
        view = view_of(project_id)
        question = _question()
        with _taken(slots):
            answer = _answer(view, question)
        return render_template("search_hits.html", view=view, answer=answer)

    @page.post(f"{project}/show-hits")
    def show_hits(project_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        ids = _ids(request.form.getlist("task"), HITS)
        tasks = [task.id for task in view.store.tasks.named(project_id, ids)]
        if not tasks:
            raise RequestError("none of these tasks is left: search again")
        address = view.show_in_label_studio(VIEW_TITLE, tasks)
        return render_template(
            "search_view.html",
            title=VIEW_TITLE,
            tasks=len(tasks),
            address=address,
        )


def _answer(view: ProjectView, question: Question) -> Answer:
    search = Search(view.services.embedder(), view.store.tasks, view.project.id, view.config)
    found = search.nearest(
        search.query(question.text, question.like),
        HITS,
        only_open=question.only_open,
        but=question.like,
    )
    links, project_id = view.label_studio, view.project.id
    return Answer(
        question,
        found,
        [
            Thumbnail(
                hit.task.id,
                hit.similarity,
                hit.task.open,
                links.task(project_id, hit.task.id),
                links.picture(hit.task.id, hit.picture),
            )
            for hit in found.hits
        ],
    )


def _question() -> Question:
    text = request.args.get("text", "").strip()
    if len(text) > _LONGEST_TEXT:
        raise RequestError(f"a text to search for has at most {_LONGEST_TEXT} characters")
    # A typed list and ticked pictures.
    examples = [part for given in request.args.getlist("like") for part in _parts(given)]
    return Question(text, tuple(_ids(examples, _MOST_EXAMPLES)), "open" in request.args)


def _parts(given: str) -> list[str]:
    return [part for part in re.split(r"[\s,;#]+", given) if part]


def _ids(given: Sequence[str], most: int) -> list[int]:
    if len(given) > most:
        raise RequestError(f"at most {most} tasks at once")
    for each in given:
        is_number = each.isascii() and each.isdigit() and len(each) <= len(str(_LARGEST_ID))
        if not is_number or not 0 < int(each) <= _LARGEST_ID:
            raise RequestError("the IDs of tasks are whole numbers, as Label Studio shows them")
    return list(dict.fromkeys(map(int, given)))


@contextmanager
def _taken(slots: threading.BoundedSemaphore) -> Iterator[None]:
    if not slots.acquire(blocking=False):
        raise TooManyRequestsError(
            "others are searching right now: try again in a few seconds", retry_after=3
        )
    try:
        yield
    finally:
        slots.release()
