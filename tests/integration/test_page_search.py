"""Searching on a project's page, and a view of what was found."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend import assembly
from backend.clip.encoder import Encoder
from backend.demo.pictures import CHOICES, render
from backend.embedding import Embedder
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import parse_labeling_config
from backend.page.searching import HITS, VIEW_TITLE
from backend.settings import Settings
from backend.store import Store
from backend.store.tasks import StoredTask
from tests.integration.conftest import StartApp
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio
from tests.integration.page_parts import HTMX, LABEL_STUDIO, SAME_ORIGIN, with_page

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

TASKS = 80
DRAWN = [CHOICES[number % len(CHOICES)] for number in range(TASKS)]


@pytest.fixture
def embedder(store: Store, encoder: Encoder) -> Embedder:
    settings = Settings.read()
    return Embedder(
        encoder,
        store.embeddings,
        assembly.image_fetcher(settings, None),
        assembly.image_limits(settings),
    )


@pytest.fixture
def client(label_studio: FakeLabelStudio) -> Iterator[LabelStudio]:
    client = LabelStudio(label_studio.url, label_studio.token)
    yield client
    client.close()


@pytest.fixture
def page(start_app: StartApp, store: Store, embedder: Embedder, client: LabelStudio) -> FlaskClient:
    """Return a browser's client; the project has drawings, the last ten of them labelled."""
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})
    tasks = [
        StoredTask(number, {"image": f"https://pictures.example.com/{number}.png"}, number < 70)
        for number in range(TASKS)
    ]
    store.tasks.mirror(PROJECT, [tasks])
    vectors = embedder.encoder.encode_images(
        [render(each, number, 96) for number, each in enumerate(DRAWN)]
    )
    contents = {str(task.data["image"]): f"{task.id:064x}" for task in tasks}
    rows = dict(zip(contents.values(), vectors, strict=True))
    store.embeddings.save(embedder.encoder.identity, contents, rows, {})
    return with_page(start_app(), store, embedder=lambda: embedder, client=client)


def search(page: FlaskClient, **query: Any) -> Any:
    return page.get(f"/projects/{PROJECT}/search", query_string=query, headers=HTMX)


def shown(text: str) -> list[int]:
    return [int(found) for found in re.findall(r'alt="Picture of task (\d+)"', text)]


def test_a_text_finds_pictures_with_their_tasks_and_similarities(page: FlaskClient) -> None:
    answer = search(page, text="Hat", open="1")

    assert answer.status_code == 200
    found = shown(answer.text)
    assert len(found) == HITS
    assert [DRAWN[task] for task in found[:4]] == ["Hat"] * 4
    assert f'href="{LABEL_STUDIO}/projects/{PROJECT}/data?task={found[0]}"' in answer.text
    assert f'src="https://pictures.example.com/{found[0]}.png"' in answer.text
    similarities = [float(each) for each in re.findall(r">(\d\.\d{3})<", answer.text)]
    assert similarities == sorted(similarities, reverse=True)
    assert f"The {HITS} most alike of 70" in answer.text


def test_done_tasks_are_found_when_they_are_asked_for(page: FlaskClient) -> None:
    only_open, everything = search(page, text="Hat", open="1"), search(page, text="Hat")

    assert all(task < 70 for task in shown(only_open.text))
    assert "most alike of 80" in everything.text
    assert "· done" in everything.text
    assert "· done" not in only_open.text


def test_examples_are_typed_or_ticked_and_stay_ticked(page: FlaskClient) -> None:
    hats = [number for number, each in enumerate(DRAWN) if each == "Hat"]

    answer = search(page, like=["#3, 1", str(hats[0])])

    assert answer.text.count('form="search-form" checked') == 3
    assert not {3, 1, hats[0]} & set(shown(answer.text))
    alone = search(page, like=str(hats[0]))
    assert DRAWN[shown(alone.text)[0]] == "Hat"


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ({}, 400, "say what to search for"),
        ({"text": "x" * 301}, 400, "at most 300 characters"),
        ({"like": "twelve"}, 400, "whole numbers"),
        ({"like": "9" * 30}, 400, "whole numbers"),
        ({"like": "0" * 10 + "1" + "9" * 5000}, 400, "whole numbers"),
        ({"like": ",".join(map(str, range(1, 102)))}, 400, "at most 100 tasks"),
        ({"like": "4711"}, 404, "has no task 4711"),
    ],
)
def test_what_cannot_be_searched_for_is_said_in_a_sentence(
    page: FlaskClient, query: dict[str, str], status: int, sentence: str
) -> None:
    answer = search(page, **query)

    assert answer.status_code == status
    assert sentence in html.unescape(answer.text)
    assert "<html" not in answer.text


def test_a_search_while_clip_is_loaded_says_so(start_app: StartApp, store: Store) -> None:
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})

    answer = search(with_page(start_app(), store), text="hat")

    assert answer.status_code == 503
    assert "CLIP is still being loaded" in answer.text


def test_what_people_type_and_tasks_say_is_never_markup(
    page: FlaskClient, store: Store, embedder: Embedder
) -> None:
    hostile = 'https://pictures.example.com/"><img src=x onerror=alert(1)>'
    task = StoredTask(5, {"image": hostile}, True)
    store.tasks.mirror(PROJECT, [[task]])
    [located] = embedder.sources([task], parse_labeling_config(CONFIG))
    [vector] = embedder.encoder.encode_images([render("Hat", 1, 96)])
    store.embeddings.save(embedder.encoder.identity, {located: "f" * 64}, {"f" * 64: vector}, {})

    answer = search(page, text="<img src=x onerror=alert(1)>")

    assert answer.status_code == 200
    assert shown(answer.text) == [5]
    assert "<img src=x" not in answer.text


def test_more_searches_at_once_than_two_are_refused(
    page: FlaskClient, start_app: StartApp, store: Store, embedder: Embedder
) -> None:
    inside, release = threading.Barrier(3), threading.Event()

    def slow() -> Embedder:
        inside.wait()
        release.wait()
        return embedder

    slow_page = with_page(start_app(), store, embedder=slow)
    threads = [
        threading.Thread(target=lambda: search(slow_page.application.test_client(), text="hat"))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    inside.wait()

    refused = search(slow_page, text="hat")

    assert refused.status_code == 429
    assert "try again in a few seconds" in refused.text
    release.set()
    for thread in threads:
        thread.join()


def show(page: FlaskClient, *tasks: object, **headers: str) -> Any:
    return page.post(
        f"/projects/{PROJECT}/show-hits",
        data={"task": [str(task) for task in tasks]},
        headers=HTMX | (headers or SAME_ORIGIN),
    )


def test_what_was_found_is_listed_in_a_view_that_disconnect_knows(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio
) -> None:
    store.projects.update(PROJECT, connection={"backend_url": "http://backend:9090"})

    first, second = show(page, 3, 12, 4711), show(page, 20)

    [(view_id, view)] = label_studio.views.items()
    assert view["title"] == VIEW_TITLE
    assert view["filters"]["items"][0]["value"] == "^(20)$"
    assert f'href="{LABEL_STUDIO}/projects/{PROJECT}/data?tab={view_id}"' in first.text
    assert "a view of 2 tasks" in first.text
    assert "a view of 1 task." in second.text
    project = store.projects.get(PROJECT)
    assert project is not None
    assert project.connection is not None
    assert project.connection["views"] == {VIEW_TITLE: view_id}


@pytest.mark.parametrize("tasks", [(), (4711,)])
def test_a_view_of_nothing_is_not_made(
    page: FlaskClient, label_studio: FakeLabelStudio, tasks: tuple[int, ...]
) -> None:
    answer = show(page, *tasks)

    assert answer.status_code == 400
    assert "search again" in answer.text
    assert label_studio.views == {}


def test_other_sites_cannot_make_views(page: FlaskClient, label_studio: FakeLabelStudio) -> None:
    assert show(page, 3, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert label_studio.views == {}


def test_label_studio_that_refuses_is_told_in_a_sentence(
    page: FlaskClient, label_studio: FakeLabelStudio
) -> None:
    label_studio.instead = lambda _method, _path: (400, {}, b'{"detail": "no views today"}')

    answer = show(page, 3)

    assert answer.status_code == 502
    assert "no views today" in answer.text


def test_without_label_studio_configured_the_view_says_what_to_set(
    start_app: StartApp, store: Store, page: FlaskClient
) -> None:
    answer = show(with_page(start_app(), store), 3)

    assert answer.status_code == 502
    assert "LABEL_STUDIO_URL" in answer.text
