"""Tasks found by a text or by other tasks, over stored embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backend import assembly
from backend.clip.encoder import Encoder
from backend.demo.pictures import CHOICES, render
from backend.embedding import Embedder
from backend.errors import NotFoundError, RequestError
from backend.labelstudio.config import parse_labeling_config
from backend.search import Search
from backend.settings import Settings
from backend.store import Store
from backend.store.tasks import StoredTask

PROJECT = 7
ONE_PICTURE = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="kind" toName="image"><Choice value="a"/><Choice value="b"/></Choices>
  <Choices name="state" toName="image"><Choice value="new"/><Choice value="old"/></Choices>
</View>
"""
TWO_PICTURES = """
<View>
  <Image name="front" value="$front"/><Image name="back" value="$back"/>
  <Choices name="kind" toName="front"><Choice value="a"/><Choice value="b"/></Choices>
  <Choices name="state" toName="back"><Choice value="new"/><Choice value="old"/></Choices>
</View>
"""


@pytest.fixture
def search(store: Store, encoder: Encoder) -> Callable[..., Search]:
    embedder = Embedder(
        encoder,
        store.embeddings,
        assembly.image_fetcher(Settings.read(), None),
        assembly.image_limits(Settings.read()),
    )
    return lambda config=ONE_PICTURE: Search(
        embedder, store.tasks, PROJECT, parse_labeling_config(config)
    )


def source(task_id: int, field: str = "image") -> str:
    return f"https://pictures.example.com/{field}/{task_id}.png"


def embed(store: Store, encoder: Encoder, vectors: dict[str, np.ndarray]) -> None:
    rows = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    contents = {name: f"{hash(name) & 2**63 - 1:064x}" for name in rows}
    by_content = {contents[name]: row.astype(np.float32) for name, row in rows.items()}
    store.embeddings.save(encoder.identity, contents, by_content, {})


def mirror(store: Store, *ids: int, closed: tuple[int, ...] = (), project: int = PROJECT) -> None:
    tasks = [StoredTask(each, {"image": source(each)}, each not in closed) for each in ids]
    store.tasks.mirror(project, [tasks])


def directions(count: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(128, count)))[0].T


def test_the_most_alike_tasks_come_first_whatever_page_they_are_on(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    towards, across = directions(2)
    ids = range(1, 2501)
    mirror(store, *ids)
    alike = {task_id: task_id * 7919 % 2503 / 2503 for task_id in ids}
    embed(
        store,
        encoder,
        {source(each): towards * share + across for each, share in alike.items()},
    )

    found = search().nearest(towards.astype(np.float32), 20, only_open=False)

    assert [hit.task.id for hit in found.hits] == sorted(ids, key=lambda each: -alike[each])[:20]
    best = found.hits[0]
    cosine = alike[best.task.id] / np.hypot(alike[best.task.id], 1)
    assert best.similarity == pytest.approx(cosine, abs=1e-3)
    assert best.picture == source(best.task.id)
    assert (found.compared, found.not_embedded) == (2500, 0)


def test_tasks_that_are_done_can_be_left_out_and_other_projects_always_are(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    [towards] = directions(1)
    mirror(store, 1, 2, 3, closed=(2,))
    mirror(store, 4, project=PROJECT + 1)
    embed(store, encoder, {source(each): towards for each in (1, 2, 3, 4)})
    query = towards.astype(np.float32)

    everything = search().nearest(query, 10, only_open=False)
    only_open = search().nearest(query, 10, only_open=True)

    assert [hit.task.id for hit in everything.hits] == [1, 2, 3]
    assert [hit.task.id for hit in only_open.hits] == [1, 3]
    assert only_open.compared == 2


def test_tasks_without_an_embedding_are_counted(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    [towards] = directions(1)
    mirror(store, 1, 2, 3)
    embed(store, encoder, {source(2): towards})

    found = search().nearest(towards.astype(np.float32), 10, only_open=False)

    assert [hit.task.id for hit in found.hits] == [2]
    assert (found.compared, found.not_embedded) == (1, 2)


def test_a_task_with_two_pictures_is_found_by_the_one_that_is_more_alike(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    towards, across = directions(2)
    tasks = [
        StoredTask(each, {"front": source(each, "front"), "back": source(each, "back")}, True)
        for each in (1, 2)
    ]
    store.tasks.mirror(PROJECT, [tasks])
    embed(
        store,
        encoder,
        {
            source(1, "front"): across,
            source(1, "back"): towards,
            source(2, "front"): towards + across,
            source(2, "back"): across,
        },
    )

    found = search(TWO_PICTURES).nearest(towards.astype(np.float32), 10, only_open=False)

    assert [(hit.task.id, hit.picture) for hit in found.hits] == [
        (1, source(1, "back")),
        (2, source(2, "front")),
    ]
    assert found.compared == 2


@pytest.mark.parametrize(
    ("text", "choice"), [("Hat", "Hat"), ("a bag", "Bag"), ("Pants", "Trousers")]
)
def test_a_text_finds_the_pictures_of_what_it_names(
    store: Store, encoder: Encoder, search: Callable[..., Search], text: str, choice: str
) -> None:
    drawn = [CHOICES[number % len(CHOICES)] for number in range(60)]
    pictures = [render(each, number, 96) for number, each in enumerate(drawn)]
    mirror(store, *range(60))
    vectors = encoder.encode_images(pictures)
    embed(store, encoder, {source(each): vector for each, vector in enumerate(vectors)})
    finder = search()

    by_text = finder.nearest(finder.query(text, []), 5, only_open=False)

    assert [drawn[hit.task.id] for hit in by_text.hits].count(choice) >= 4


def test_a_search_for_tasks_leaves_them_out_and_takes_the_mean_of_several(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    first, second, other = directions(3)
    mirror(store, *range(1, 6))
    embed(
        store,
        encoder,
        {
            source(1): first,
            source(2): second,
            source(3): first + second,
            source(4): first + other,
            source(5): other,
        },
    )
    finder = search()

    like_one = finder.nearest(finder.query("", [1]), 1, only_open=False, but=[1])
    like_both = finder.nearest(finder.query("", [1, 2]), 3, only_open=False, but=[1, 2])

    assert like_one.hits[0].task.id in (3, 4)
    assert [hit.task.id for hit in like_both.hits] == [3, 4, 5]
    assert like_both.hits[0].similarity == pytest.approx(1, abs=1e-3)


def test_found_tasks_refine_a_text(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    mirror(store, 1)
    [picture] = encoder.encode_images([render("Hat", 1, 96)])
    embed(store, encoder, {source(1): picture})
    finder = search()

    text, task, both = (finder.query(*given) for given in (("Hat", []), ("", [1]), ("Hat", [1])))

    assert np.linalg.norm(both) == pytest.approx(1, abs=1e-5)
    assert both == pytest.approx((text + task) / np.linalg.norm(text + task), abs=1e-5)


def test_what_cannot_be_searched_for_is_said_in_a_sentence(
    store: Store, encoder: Encoder, search: Callable[..., Search]
) -> None:
    mirror(store, 1)

    with pytest.raises(RequestError, match="say what to search for"):
        search().query("  ", [])
    with pytest.raises(NotFoundError, match="has no task 99"):
        search().query("", [99])
    with pytest.raises(NotFoundError, match="task 1 is not embedded yet"):
        search().query("hat", [1])
