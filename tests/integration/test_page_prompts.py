"""Prompts of choices on a project's page: edited, judged on what is labelled, saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from flask import Flask
from flask.testing import FlaskClient

from backend import assembly
from backend.clip.encoder import Encoder
from backend.demo.pictures import CHOICES, render
from backend.embedding import Embedder
from backend.labelstudio.client import LabelStudio
from backend.page.prompts import SHOWN
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind
from tests.integration.conftest import StartApp
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.page_parts import HOSTILE_NAMES, HTMX, SAME_ORIGIN, with_page

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SOME = CHOICES[:4]


def config(*choices: str) -> str:
    tags = "".join(f"<Choice value={quoteattr(choice)}/>" for choice in choices)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="kind" toName="image">{tags}</Choices></View>'
    )


@pytest.fixture
def client(label_studio: FakeLabelStudio) -> Iterator[LabelStudio]:
    client = LabelStudio(label_studio.url, label_studio.token)
    yield client
    client.close()


@pytest.fixture
def app(start_app: StartApp) -> Flask:
    return start_app()


@pytest.fixture
def page(
    app: Flask,
    store: Store,
    encoder: Encoder,
    client: LabelStudio,
    label_studio: FakeLabelStudio,
) -> FlaskClient:
    """Return a browser's client; Label Studio calls /setup when its ML backend is changed."""
    settings = Settings.read()
    embedder = Embedder(
        encoder,
        store.embeddings,
        assembly.image_fetcher(settings, None),
        assembly.image_limits(settings),
    )
    kept = {"score": "uncertainty"}
    store.projects.set_up(PROJECT, label_config=config(*SOME), extra_params=kept)
    label_studio.ml_backends = [
        {
            "id": 3,
            "project": PROJECT,
            "url": "http://backend:9090",
            "auth_method": "NONE",
            "model_version": "clip-backend",
            "extra_params": kept,
        }
    ]
    return with_page(app, store, embedder=lambda: embedder, client=client)


def set_up(app: Flask, label_studio: FakeLabelStudio, store: Store) -> None:
    """Call /setup as Label Studio does after a change."""
    project = store.projects.get(PROJECT)
    assert project is not None
    answer = app.test_client().post(
        "/setup",
        json={
            "project": f"{PROJECT}.1",
            "schema": project.label_config,
            "extra_params": label_studio.ml_backends[0]["extra_params"],
        },
    )
    assert answer.status_code == 200


def label(label_studio: FakeLabelStudio, store: Store, encoder: Encoder, count: int) -> None:
    """Draw and annotate pictures of the choices, by turns."""
    drawn = [SOME[number % len(SOME)] for number in range(count)]
    sources = [f"https://pictures.example.com/{number}.png" for number in range(count)]
    tasks = label_studio.add_tasks(*sources)
    for task, choice in zip(tasks, drawn, strict=True):
        label_studio.annotate(task, choice, control="kind")
    vectors = encoder.encode_images([render(each, n, 96) for n, each in enumerate(drawn)])
    contents = {source: f"{number:064x}" for number, source in enumerate(sources)}
    rows = dict(zip(contents.values(), vectors, strict=True))
    store.embeddings.save(encoder.identity, contents, rows, {})


def form_of(text: str) -> dict[str, list[str]]:
    """Return what a browser would send of the form."""
    fields: dict[str, list[str]] = {"choice": [], "before": [], "prompts": []}
    for name, value in re.findall(
        r'<input type="hidden" name="(choice|before)" value="([^"]*)"', text
    ):
        fields[name].append(unescape(value))
    fields["prompts"] = [
        unescape(value) for value in re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", text, re.S)
    ]
    if seen := re.search(r'name="seen" value="(\w+)"', text):
        fields["seen"] = [seen[1]]
    return fields


def panel(page: FlaskClient) -> str:
    answer = page.get(f"/projects/{PROJECT}/panels/prompts", headers=HTMX)
    assert answer.status_code == 200
    return answer.text


def edited(page: FlaskClient, **prompts: str) -> dict[str, list[str]]:
    """Return the form with some choices' prompts replaced."""
    text = panel(page)
    fields = form_of(text)
    names = [unescape(name) for name in re.findall(r"<label[^>]*><bdi>(.*?)</bdi>", text)]
    for name, value in prompts.items():
        fields["prompts"][names.index(name)] = value
    return fields


def post(page: FlaskClient, verb: str, fields: dict[str, list[str]], **headers: str) -> Any:
    return page.post(
        f"/projects/{PROJECT}/{verb}", data=fields, headers=HTMX | (headers or SAME_ORIGIN)
    )


def test_each_choice_is_shown_with_its_own_prompts_or_the_default(
    page: FlaskClient, store: Store
) -> None:
    store.projects.update(PROJECT, extra_params={"prompts": {SOME[2]: ["first", "second"]}})

    fields = form_of(panel(page))

    # Those with prompts of their own come first.
    assert fields["prompts"] == ["first\nsecond", "", "", ""]
    assert f"a photo of a {SOME[0]}." in panel(page)


def test_many_choices_are_filtered_by_name(page: FlaskClient, store: Store) -> None:
    names = [f"kind {number:03d}" for number in range(300)]
    store.projects.set_up(PROJECT, label_config=config(*names))

    everything = panel(page)
    some = page.get(
        f"/projects/{PROJECT}/prompts", query_string={"filter": "KIND 12"}, headers=HTMX
    ).text
    none = page.get(
        f"/projects/{PROJECT}/prompts", query_string={"filter": "<b>"}, headers=HTMX
    ).text

    assert len(form_of(everything)["choice"]) == SHOWN
    assert "20 of 300 choices" in everything
    assert len(form_of(some)["choice"]) == 10
    assert "No choice has <bdi>&lt;b&gt;</bdi>" in none


def test_the_effect_is_shown_on_what_is_labelled_and_then_saved(
    app: Flask,
    page: FlaskClient,
    store: Store,
    encoder: Encoder,
    label_studio: FakeLabelStudio,
) -> None:
    label(label_studio, store, encoder, 60)
    fields = edited(page, **{SOME[0]: "zzz\nqqq"})

    shown = post(page, "prompts-effect", fields)

    assert shown.status_code == 200
    assert "on 60 labelled tasks" in shown.text
    assert "Worse" in shown.text
    assert "95 % interval" in shown.text
    assert label_studio.ml_backends[0]["extra_params"] == {"score": "uncertainty"}

    saved = post(page, "save-prompts", fields | {"seen": form_of(shown.text)["seen"]})

    assert saved.status_code == 200
    assert "A training follows by itself" in saved.text
    assert label_studio.ml_backends[0]["extra_params"] == {
        "score": "uncertainty",
        "prompts": {SOME[0]: ["zzz", "qqq"]},
    }
    set_up(app, label_studio, store)
    assert Kind.TRAIN in {item.request.kind for item in store.requests.waiting(PROJECT)}
    assert form_of(panel(page))["prompts"][0] == "zzz\nqqq"

    # Back to the default wording, with the same button.
    fields = edited(page, **{SOME[0]: ""})
    fields |= {"seen": form_of(post(page, "prompts-effect", fields).text)["seen"]}
    assert post(page, "save-prompts", fields).status_code == 200
    assert label_studio.ml_backends[0]["extra_params"] == {"score": "uncertainty"}


def test_a_second_press_of_save_changes_nothing(
    page: FlaskClient, label_studio: FakeLabelStudio
) -> None:
    fields = edited(page, **{SOME[0]: "one"})
    fields |= {"seen": form_of(post(page, "prompts-effect", fields).text)["seen"]}

    answers = [post(page, "save-prompts", fields) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert label_studio.ml_backends[0]["extra_params"]["prompts"] == {SOME[0]: ["one"]}


def test_what_somebody_else_has_saved_meanwhile_stays(
    page: FlaskClient, label_studio: FakeLabelStudio
) -> None:
    fields = edited(page, **{SOME[0]: "mine"})
    label_studio.ml_backends[0]["extra_params"] = {"prompts": {SOME[1]: ["theirs"]}}
    fields |= {"seen": form_of(post(page, "prompts-effect", fields).text)["seen"]}

    post(page, "save-prompts", fields)

    assert label_studio.ml_backends[0]["extra_params"] == {
        "prompts": {SOME[0]: ["mine"], SOME[1]: ["theirs"]}
    }


def test_without_labels_nothing_is_compared_and_prompts_can_be_saved(page: FlaskClient) -> None:
    fields = edited(page, **{SOME[0]: "one"})

    shown = post(page, "prompts-effect", fields)

    assert "no labelled tasks with an embedding yet" in shown.text
    assert 'id="save-prompts"' in shown.text


def test_prompts_whose_effect_was_not_shown_are_not_saved(
    page: FlaskClient, label_studio: FakeLabelStudio
) -> None:
    before = dict(label_studio.ml_backends[0])
    fields = edited(page, **{SOME[0]: "one"})
    seen = form_of(post(page, "prompts-effect", fields).text)["seen"]
    changed = edited(page, **{SOME[0]: "two"})

    for fields_then in (changed, changed | {"seen": seen}):
        answer = post(page, "save-prompts", fields_then)
        assert answer.status_code == 400
        assert "show the effect again" in answer.text
    assert label_studio.ml_backends == [before]


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ("x" * 301, "at most 300 characters"),
        ("\n".join(map(str, range(101))), "at most 100 prompts"),
        ("", "no prompt was changed"),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(
    page: FlaskClient, prompts: str, sentence: str
) -> None:
    answer = post(page, "prompts-effect", edited(page, **{SOME[0]: prompts}))

    assert answer.status_code == 400
    assert sentence in answer.text
    assert "<html" not in answer.text


def test_a_form_of_an_older_labeling_config_is_refused(page: FlaskClient, store: Store) -> None:
    fields = edited(page, **{SOME[0]: "one"})
    store.projects.set_up(PROJECT, label_config=config("other", "names"))

    answer = post(page, "prompts-effect", fields)

    assert answer.status_code == 400
    assert "load the page anew" in answer.text


def test_other_sites_cannot_save_prompts(page: FlaskClient, label_studio: FakeLabelStudio) -> None:
    fields = edited(page, **{SOME[0]: "one"})
    fields |= {"seen": form_of(post(page, "prompts-effect", fields).text)["seen"]}

    answer = post(page, "save-prompts", fields, **{"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 403
    assert "prompts" not in label_studio.ml_backends[0]["extra_params"]


@pytest.mark.parametrize("verb", ["prompts-effect", "save-prompts"])
def test_label_studio_that_is_down_is_told_in_a_sentence(
    page: FlaskClient, label_studio: FakeLabelStudio, verb: str
) -> None:
    fields = edited(page, **{SOME[0]: "one"})
    fields |= {"seen": form_of(post(page, "prompts-effect", fields).text)["seen"]}
    label_studio.instead = lambda _method, _path: (400, {}, b'{"detail": "closed today"}')

    answer = post(page, verb, fields)

    assert answer.status_code == 502
    assert "closed today" in answer.text


def test_hostile_names_of_choices_are_edited_like_any_other(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio
) -> None:
    names = [name.replace("\0", "").replace("\u2028", " ") for name in HOSTILE_NAMES]
    store.projects.set_up(PROJECT, label_config=config(*names))

    text = panel(page)
    fields = form_of(text)
    fields["prompts"] = [f"prompt {number}" for number in range(len(names))]
    shown = post(page, "prompts-effect", fields)
    saved = post(page, "save-prompts", fields | {"seen": form_of(shown.text)["seen"]})

    assert saved.status_code == 200
    assert "onerror=alert(1)>" not in text
    kept = label_studio.ml_backends[0]["extra_params"]["prompts"]
    assert sorted(map(len, kept.values())) == [1] * len(names)
    assert set(kept) == {name for name in names if name.strip()}
