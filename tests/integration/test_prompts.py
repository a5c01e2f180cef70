"""Prompts by people: what they would do, and how they come to Label Studio and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend import assembly
from backend.clip.encoder import Encoder
from backend.demo.pictures import CHOICES, render
from backend.embedding import Embedder
from backend.errors import NotFoundError, RequestError
from backend.labelstudio.client import LabelStudio, RemoteTask
from backend.labelstudio.config import Control, parse_labeling_config
from backend.prompt_editing import read_prompts, save_prompts, with_prompts
from backend.prompt_effect import Effect, prompt_effect
from backend.settings import LearningSettings, Settings
from backend.store import Store
from backend.store.projects import Project
from backend.store.tasks import StoredTask
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio

SOME = CHOICES[:4]
LEARNING = Settings.read().learning
# Words that mean nothing to CLIP.
NONSENSE = {choice: [f"zzz {number}"] for number, choice in enumerate(SOME)}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    # One database will do: nothing here is the database's own.
    return f"sqlite:///{tmp_path / 'store.sqlite3'}"


def control(kind: str = "single") -> Control:
    choices = "".join(f'<Choice value="{choice}"/>' for choice in SOME)
    [found] = parse_labeling_config(
        f'<View><Image name="image" value="$image"/><Choices name="kind" toName="image" '
        f'choice="{kind}">{choices}</Choices></View>'
    ).controls
    return found


def annotated(task_id: int, *choices: str) -> RemoteTask:
    chosen = {
        "from_name": "kind",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(choices)},
    }
    return RemoteTask(
        task_id,
        {"image": source(task_id)},
        is_labeled=True,
        annotation_count=1,
        annotations=({"id": task_id, "was_cancelled": False, "result": [chosen]},),
    )


def source(task_id: int) -> str:
    return f"https://pictures.example.com/{task_id}.png"


@pytest.fixture
def effect(store: Store, encoder: Encoder) -> Callable[..., Effect | None]:
    """Return what compares prompts on so many labelled drawings."""
    embedder = Embedder(
        encoder,
        store.embeddings,
        assembly.image_fetcher(Settings.read(), None),
        assembly.image_limits(Settings.read()),
    )

    def compare(
        before: dict[str, list[str]],
        after: dict[str, list[str]],
        labels: int = 60,
        kind: str = "single",
        embedded: bool = True,
    ) -> Effect | None:
        drawn = [SOME[number % len(SOME)] for number in range(labels)]
        if embedded and labels:
            vectors = encoder.encode_images(
                [render(each, number, 96) for number, each in enumerate(drawn)]
            )
            contents = {source(number): f"{number:064x}" for number in range(labels)}
            rows = dict(zip(contents.values(), vectors, strict=True))
            store.embeddings.save(encoder.identity, contents, rows, {})
        return prompt_effect(
            embedder,
            control(kind),
            [annotated(number, each) for number, each in enumerate(drawn)],
            [StoredTask(number, {"image": source(number)}, False) for number in range(labels)],
            learning(before),
            learning(after),
        )

    return compare


def learning(prompts: dict[str, list[str]]) -> LearningSettings:
    return LEARNING.overridden_by({"prompts": prompts} if prompts else {})


@pytest.mark.parametrize("kind", ["single", "multiple"])
def test_prompts_that_name_the_choices_are_better_than_ones_that_do_not(
    effect: Callable[..., Effect | None], kind: str
) -> None:
    found = effect(NONSENSE, {}, kind=kind)

    assert found is not None
    assert found.better
    assert not found.worse
    assert found.labels == 60
    assert found.after - found.before == pytest.approx(found.difference.value)
    assert found.after > 0.7 > found.before


def test_prompts_that_name_nothing_are_worse_and_the_choices_say_so(
    effect: Callable[..., Effect | None],
) -> None:
    found = effect({}, NONSENSE)

    assert found is not None
    assert found.worse
    assert not found.better
    assert {each.value for each in found.choices} == set(SOME)
    assert sum(each.labels for each in found.choices) == 60
    assert sum(each.before for each in found.choices) > sum(each.after for each in found.choices)


def test_the_effect_of_one_choices_prompts_is_that_of_the_whole_head(
    effect: Callable[..., Effect | None],
) -> None:
    spelled_out = {SOME[1]: NONSENSE[SOME[1]]}

    one = effect({}, spelled_out)
    back = effect(spelled_out, {})

    assert one is not None
    assert back is not None
    assert (one.before, one.after) == pytest.approx((back.after, back.before), abs=0.05)
    assert SOME[1] in {each.value for each in one.choices}


def test_no_difference_and_few_labels_are_not_sold_as_progress(
    effect: Callable[..., Effect | None],
) -> None:
    same = effect({}, {SOME[0]: [f"a photo of a {SOME[0]}."]})
    few = effect(NONSENSE, {}, labels=3)

    for found in (same, few):
        assert found is not None
        assert not found.better
        assert not found.worse


def test_without_a_label_whose_picture_is_known_there_is_no_effect(
    effect: Callable[..., Effect | None],
) -> None:
    assert effect({}, NONSENSE, labels=0) is None
    assert effect({}, NONSENSE, embedded=False) is None


def test_prompts_are_read_a_line_each() -> None:
    assert read_prompts("Tee", " a  photo of a tee \r\n\r\na tee\na tee") == [
        "a photo of a tee",
        "a tee",
    ]
    assert read_prompts("Tee", " \n ") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 301, "at most 300 characters"),
        ("\n".join(map(str, range(101))), "at most 100 prompts"),
    ],
)
def test_too_long_and_too_many_prompts_are_refused(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=f"Tee: .*{problem}"):
        read_prompts("Tee", text)


ALIASES = parse_labeling_config("""
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="Red" alias="red" predicted_values="crimson"/><Choice value="green"/>
  </Choices>
</View>
""")


def test_other_extra_params_and_other_choices_prompts_stay() -> None:
    before = {"query_strategy": "entropy", "prompts": {"green": ["grass"], "blue": ["sky"]}}

    after = with_prompts(before, ALIASES, {"red": ["a red thing"]})

    assert after == {
        "query_strategy": "entropy",
        "prompts": {"green": ["grass"], "blue": ["sky"], "red": ["a red thing"]},
    }
    assert before["prompts"] == {"green": ["grass"], "blue": ["sky"]}


def test_an_empty_list_gives_the_default_wording_back_under_whatever_name_it_was() -> None:
    before = {"prompts": {"crimson": ["blood"], "green": ["grass"]}}

    assert with_prompts(before, ALIASES, {"red": []}) == {"prompts": {"green": ["grass"]}}
    assert with_prompts(before, ALIASES, {"red": [], "green": []}) == {}
    assert with_prompts(before, ALIASES, {"red": ["x"]})["prompts"]["red"] == ["x"]
    assert "crimson" not in with_prompts(before, ALIASES, {"red": ["x"]})["prompts"]


def test_prompts_of_no_choice_and_extra_params_that_are_not_valid_are_refused() -> None:
    with pytest.raises(RequestError, match="no choice 'purple'"):
        with_prompts({}, ALIASES, {"purple": ["x"]})
    with pytest.raises(RequestError, match=r"unheard_of.*not known"):
        with_prompts({"unheard_of": 1}, ALIASES, {"red": ["x"]})


@pytest.fixture
def client(label_studio: FakeLabelStudio) -> Iterator[LabelStudio]:
    client = LabelStudio(label_studio.url, label_studio.token)
    yield client
    client.close()


def backend(**values: Any) -> dict[str, Any]:
    return {
        "id": 3,
        "project": PROJECT,
        "url": "http://backend:9090",
        "title": "Ours",
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": "label-studio",
        "basic_auth_pass_is_set": True,
        "model_version": "clip-backend",
        "extra_params": None,
        **values,
    }


COLOURS = parse_labeling_config(CONFIG)
CONNECTED = Project(PROJECT, CONFIG, connection={"ml_backend": 3})


@pytest.mark.parametrize("before", [{"score": "uncertainty"}, '{"score": "uncertainty"}'])
def test_saving_changes_nothing_but_the_prompts(
    client: LabelStudio, label_studio: FakeLabelStudio, before: object
) -> None:
    other = backend(id=2, url="http://somebody:9091", model_version="else")
    label_studio.ml_backends = [other, backend(extra_params=before)]

    save_prompts(client, CONNECTED, COLOURS, {"red": ["a red thing"]})

    [untouched, ours] = label_studio.ml_backends
    assert untouched == other
    assert ours["extra_params"] == {"score": "uncertainty", "prompts": {"red": ["a red thing"]}}
    # Label Studio takes an empty password for the one that it has.
    assert ours["basic_auth_pass"] == ""
    assert ours["title"] == "Ours"


def test_saving_finds_a_backend_that_was_added_by_hand(
    client: LabelStudio, label_studio: FakeLabelStudio
) -> None:
    by_hand = replace(CONNECTED, connection=None)
    label_studio.ml_backends = [
        backend(id=2, model_version="else"),
        backend(
            id=9,
            model_version="clip-backend-3-0123abcd",
            auth_method="NONE",
            basic_auth_pass_is_set=False,
        ),
    ]

    save_prompts(client, by_hand, COLOURS, {"red": ["a red thing"]})

    assert label_studio.ml_backends[1]["extra_params"] == {"prompts": {"red": ["a red thing"]}}
    assert "basic_auth_pass" not in label_studio.ml_backends[1]


def test_a_project_without_our_backend_is_told_to_connect(
    client: LabelStudio, label_studio: FakeLabelStudio
) -> None:
    label_studio.ml_backends = [backend(id=2, model_version="else")]

    with pytest.raises(NotFoundError, match=f"clip-backend connect --project {PROJECT}"):
        save_prompts(client, CONNECTED, COLOURS, {"red": ["x"]})


@pytest.mark.parametrize("broken", ["{", "[]", {"prompts": ["x"]}])
def test_extra_params_that_cannot_be_read_are_left_as_they_are(
    client: LabelStudio, label_studio: FakeLabelStudio, broken: object
) -> None:
    label_studio.ml_backends = [backend(extra_params=broken)]

    with pytest.raises(RequestError, match="mend them there"):
        save_prompts(client, CONNECTED, COLOURS, {"red": ["x"]})

    assert label_studio.ml_backends == [backend(extra_params=broken)]
