from __future__ import annotations

import numpy as np
import pytest

from backend.learning.projection import ROUNDS, Projection, Vectors


def clusters(count: int, classes: int = 4, seed: int = 0) -> tuple[Vectors, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, 64))
    of = generator.integers(0, classes, count)
    vectors = centres[of] + 0.5 * generator.normal(size=(count, 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), of


def drawn(projection: Projection) -> Vectors:
    while not projection.done:
        projection.draw()
    return projection.places()


def together(places: Vectors, of: np.ndarray) -> float:
    """Return the share of points whose nearest neighbour is of the same class."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((of[distances.argmin(axis=1)] == of).mean())


def test_pictures_that_are_alike_are_next_to_each_other() -> None:
    vectors, of = clusters(300)

    places = drawn(Projection(vectors))

    assert places.shape == (300, 2)
    assert np.isfinite(places).all()
    assert together(places, of) > 0.97


def test_those_that_are_no_landmarks_are_among_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.learning.projection.LANDMARKS", 150)
    vectors, of = clusters(400)

    assert together(drawn(Projection(vectors)), of) > 0.97


def test_the_same_pictures_give_the_same_map() -> None:
    vectors, _ = clusters(120)

    assert np.array_equal(drawn(Projection(vectors)), drawn(Projection(vectors)))


def test_a_map_that_was_left_is_gone_on_with() -> None:
    vectors, _ = clusters(120)
    first = Projection(vectors)
    first.draw()
    first.draw()

    second = Projection(vectors, first.places(), first.rounds)

    assert not second.done
    assert np.array_equal(drawn(second), drawn(first))


def test_new_pictures_find_their_place_on_a_map_that_is_done() -> None:
    vectors, of = clusters(200)
    places = drawn(Projection(vectors))
    known = places.copy()
    known[:20] = np.nan

    again = Projection(vectors, known, ROUNDS)

    assert again.done
    assert np.array_equal(again.places()[20:], places[20:])
    assert together(again.places(), of) > 0.95


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 12])
def test_a_handful_of_pictures_is_a_map_too(count: int) -> None:
    places = drawn(Projection(clusters(count)[0]))

    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_one_picture_many_times_is_no_trouble() -> None:
    vectors = np.repeat(clusters(1)[0], 40, axis=0)

    assert np.isfinite(drawn(Projection(vectors))).all()
