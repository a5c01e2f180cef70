"""The demo's pictures are reproducible, varied, and what they are asked to be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from backend.demo.pictures import CHOICES, collection, render


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_renders_as_rgb_with_something_to_see(choice: str) -> None:
    for seed in range(8):
        picture = render(choice, seed, size=64)
        assert picture.mode == "RGB"
        assert picture.size == (64, 64)
        assert np.asarray(picture).std() > 3


@pytest.mark.parametrize("size", [48, 224, 300])
def test_a_picture_has_the_size_asked_for(size: int) -> None:
    assert render("Umbrella", seed=3, size=size).size == (size, size)


def test_the_same_arguments_give_the_same_pixels() -> None:
    assert render("Shoe", seed=11).tobytes() == render("Shoe", seed=11).tobytes()


def test_another_seed_or_another_choice_gives_another_picture() -> None:
    shoe = render("Shoe", seed=11).tobytes()
    assert render("Shoe", seed=12).tobytes() != shoe
    assert render("Hat", seed=11).tobytes() != shoe


def test_a_collection_is_reproducible_and_depends_on_its_seed() -> None:
    first, again, other = collection(30, seed=5), collection(30, seed=5), collection(30, seed=6)
    assert [choice for choice, _ in first] == [choice for choice, _ in again]
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(first, again, strict=True))
    assert [choice for choice, _ in first] != [choice for choice, _ in other]


def test_a_collection_covers_every_choice_unevenly_and_in_mixed_order() -> None:
    choices = [choice for choice, _ in collection(240, seed=1)]
    counts = Counter(choices)
    repeats = sum(a == b for a, b in pairwise(choices))
    assert len(choices) == 240
    assert set(counts) == set(CHOICES)
    assert 1 < max(counts.values()) / min(counts.values()) < 3
    assert repeats < 60


def test_a_small_collection_has_exactly_as_many_pictures_as_asked_for() -> None:
    assert [len(collection(count, seed=2)) for count in (0, 1, 5, 13)] == [0, 1, 5, 13]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(KeyError):
        render("Spaceship", seed=0)


def test_importing_the_pictures_does_not_import_torch() -> None:
    code = "import sys, backend.demo.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
