from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.clip.prompts import TEMPLATES, prompts


def test_a_name_is_said_in_every_template() -> None:
    assert prompts(["mug"]) == [
        "a photo of a mug.",
        "a picture of a mug.",
        "a drawing of a mug.",
        "mug",
    ]


def test_each_name_of_a_choice_counts_alike() -> None:
    said = prompts(["Tee", "t-shirt"])

    assert said == prompts(["Tee"]) + prompts(["t-shirt"])


def test_names_that_read_the_same_are_said_once() -> None:
    assert prompts(["polo_shirt", "polo  shirt", "polo shirt"]) == prompts(["polo shirt"])


@pytest.mark.parametrize("name", ["{}", "{0}", "{name}", "a {b", "100%"])
def test_braces_in_a_name_are_text(name: str) -> None:
    assert f"a photo of a {name}." in prompts([name])


@given(st.lists(st.text(), min_size=1))
def test_any_names_give_prompts(names: list[str]) -> None:
    said = prompts(names)

    readable = {" ".join(name.replace("_", " ").split()) for name in names}
    assert readable <= set(said)
    assert len(said) == len(readable) * len(TEMPLATES)
