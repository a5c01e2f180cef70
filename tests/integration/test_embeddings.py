from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from backend.store import Store
from backend.store.embeddings import LONGEST_PAUSE, Failure, Vector

ENCODER = "tiny-0123-float32"


def unit_vectors(count: int, size: int = 64, seed: int = 0) -> list[Vector]:
    rows = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return list(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def vector_of(store: Store, source: str, encoder: str = ENCODER) -> Vector:
    vector = store.embeddings.find(encoder, [source])[source]
    assert isinstance(vector, np.ndarray)
    return vector


def test_a_vector_comes_back_as_its_float16_value(store: Store) -> None:
    (vector,) = unit_vectors(1)

    store.embeddings.save(ENCODER, {"http://a": "content"}, {"content": vector}, {})

    found = vector_of(store, "http://a")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vector.astype(np.float16).astype(np.float32))


def test_what_was_never_seen_is_not_found(store: Store) -> None:
    assert store.embeddings.find(ENCODER, ["http://a"]) == {}
    assert store.embeddings.find(ENCODER, []) == {}


def test_one_picture_under_two_addresses_is_one_embedding(store: Store) -> None:
    (vector,) = unit_vectors(1)
    store.embeddings.save(ENCODER, {"http://a": "content"}, {"content": vector}, {})

    known = store.embeddings.find_by_content(ENCODER, ["content", "other"])
    store.embeddings.save(ENCODER, {"http://b": "content"}, {}, {})

    assert known == {"content"}
    assert store.embeddings.count() == 1
    np.testing.assert_array_equal(vector_of(store, "http://a"), vector_of(store, "http://b"))


def test_encoders_do_not_see_each_other_s_vectors(store: Store) -> None:
    first, second = unit_vectors(2)
    store.embeddings.save("one", {"http://a": "content"}, {"content": first}, {})

    assert store.embeddings.find("two", ["http://a"]) == {}
    assert store.embeddings.find_by_content("two", ["content"]) == set()

    store.embeddings.save("two", {"http://a": "content"}, {"content": second}, {})

    assert store.embeddings.count() == 2
    assert store.embeddings.count("two") == 1
    assert not np.array_equal(
        vector_of(store, "http://a", "one"), vector_of(store, "http://a", "two")
    )


def test_a_picture_that_changed_under_its_address_is_the_new_one(store: Store) -> None:
    old, new = unit_vectors(2)
    store.embeddings.save(ENCODER, {"http://a": "old"}, {"old": old}, {})

    store.embeddings.save(ENCODER, {"http://a": "new"}, {"new": new}, {})

    np.testing.assert_allclose(vector_of(store, "http://a"), new, atol=1e-3)


def test_a_failure_holds_until_its_time(store: Store) -> None:
    now = time.time()
    lasting, over = Failure("gone", now + 3600), Failure("busy", now - 1)

    store.embeddings.save(ENCODER, {}, {}, {"http://gone": lasting, "http://busy": over})

    found = store.embeddings.find(ENCODER, ["http://gone", "http://busy"])
    assert found == {"http://gone": lasting}


def test_a_clock_that_goes_back_has_failures_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time()
    store.embeddings.save(ENCODER, {}, {}, {"http://a": Failure("gone", ahead + LONGEST_PAUSE)})
    assert set(store.embeddings.find(ENCODER, ["http://a"])) == {"http://a"}

    monkeypatch.setattr(time, "time", lambda: ahead - 86_400)

    assert store.embeddings.find(ENCODER, ["http://a"]) == {}


@pytest.mark.parametrize("message", ["a\0b", "\udcff", "x" * 100_000])
def test_any_failure_can_be_kept(store: Store, message: str) -> None:
    store.embeddings.save(ENCODER, {}, {}, {"http://a": Failure(message, time.time() + 3600)})

    assert isinstance(store.embeddings.find(ENCODER, ["http://a"])["http://a"], Failure)


def test_a_picture_that_can_be_had_after_all_replaces_its_failure(store: Store) -> None:
    (vector,) = unit_vectors(1)
    failure = Failure("gone", time.time() + 3600)
    store.embeddings.save(ENCODER, {}, {}, {"http://a": failure})

    store.embeddings.save(ENCODER, {"http://a": "content"}, {"content": vector}, {})

    np.testing.assert_allclose(vector_of(store, "http://a"), vector, atol=1e-3)


@pytest.mark.parametrize("source", ["", "data:," + "x" * 100_000, "http://\udcff", "it's a % 日本"])
def test_any_address_can_be_kept(store: Store, source: str) -> None:
    (vector,) = unit_vectors(1)

    store.embeddings.save(ENCODER, {source: "content"}, {"content": vector}, {})

    np.testing.assert_allclose(vector_of(store, source), vector, atol=1e-3)


def test_more_pictures_than_a_statement_takes_are_found_in_one_call(store: Store) -> None:
    count = 2503
    vectors = unit_vectors(count, size=4)
    contents = {f"http://{index}": f"content {index}" for index in range(count)}

    store.embeddings.save(ENCODER, contents, dict(zip(contents.values(), vectors, strict=True)), {})

    found = store.embeddings.find(ENCODER, [*contents, "http://other"])
    assert found.keys() == contents.keys()
    np.testing.assert_allclose(np.stack([found[key] for key in contents]), vectors, atol=1e-3)
    assert store.embeddings.find_by_content(ENCODER, contents.values()) == set(contents.values())


def test_workers_that_save_the_same_pictures_do_not_disturb_each_other(store: Store) -> None:
    vectors = unit_vectors(200, size=4)
    contents = {f"http://{index}": f"content {index}" for index in range(200)}
    by_content = dict(zip(contents.values(), vectors, strict=True))
    errors: list[Exception] = []

    def save(backwards: bool) -> None:
        order = reversed(contents.items()) if backwards else contents.items()
        try:
            for _ in range(5):
                store.embeddings.save(ENCODER, dict(order), by_content, {})
        except Exception as error:  # noqa: BLE001 — shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=save, args=(odd,)) for odd in (False, True, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert store.embeddings.count(ENCODER) == 200
