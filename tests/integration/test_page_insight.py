"""The page's panels on labels and predictions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient

from backend.labelstudio.client import LabelStudio
from backend.learning.confusion import confusion
from backend.page import embedding_map
from backend.store import Store
from backend.store.contents import (
    NO_CHOICE,
    EmbeddingMap,
    MapColours,
    QueuedTask,
    confusions_to_bytes,
    map_to_bytes,
    queue_to_bytes,
)
from backend.store.findings import FindingKind
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask
from tests.integration.conftest import StartApp
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.page_parts import (
    HOSTILE_NAMES,
    HTMX,
    LABEL_STUDIO,
    SAME_ORIGIN,
    config_of,
    publish,
    with_page,
)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SIZES = (10, 15, 20, 30, 40, 60, 80, 120, 160)

# Nothing of these may stand in a page as it is.
DANGEROUS = ("<img src=x", "<script>alert", "<svg/onload", "</script><script>")


@pytest.fixture
def page(start_app: StartApp, store: Store, label_studio: FakeLabelStudio) -> Iterator[FlaskClient]:
    client = LabelStudio(label_studio.url, label_studio.token)
    yield with_page(start_app(), store, client=client)
    client.close()


def panel(page: FlaskClient, name: str) -> str:
    answer = page.get(f"/projects/{PROJECT}/panels/{name}", headers=HTMX)
    assert answer.status_code == 200, answer.text
    assert not [text for text in DANGEROUS if text in answer.text]
    return answer.text


def options(html: str) -> list[dict[str, Any]]:
    """Return the charts of a fragment."""
    scripts = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in scripts]


def series(option: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in option["series"] if each["name"] == name]
    return dict(found)


def add_tasks(store: Store, *ids: int, is_open: bool = True) -> None:
    store.tasks.mirror(
        PROJECT,
        [
            [
                StoredTask(number, {"image": f"/data/upload/7/{number}.jpg"}, is_open)
                for number in ids
            ]
        ],
    )


def measured(labels: int, **more: Any) -> dict[str, Any]:
    accuracy = 0.95 - 2 * labels**-0.7
    return {
        "labels": labels,
        "out_of_fold": {"top1": accuracy - 0.1},
        "pool_accuracy": {
            "value": accuracy,
            "low": accuracy - 0.04,
            "high": accuracy + 0.04,
        },
        **more,
    }


# The learning curve


def test_the_curve_has_each_version_and_where_the_next_labels_lead(
    page: FlaskClient, store: Store
) -> None:
    for labels in SIZES:
        publish(store, {"colour": measured(labels)})

    html = panel(page, "learning_curve")

    (option,) = options(html)
    estimates = series(option, "open tasks (estimate)")["data"]
    assert [point["value"][0] for point in estimates] == [*SIZES]
    assert estimates[-1]["value"][1] == pytest.approx(100 * (0.95 - 2 * 160**-0.7), abs=0.01)
    ahead = series(option, "where it leads")["data"]
    assert [point["value"][0] for point in ahead] == [160, 170, 180, 190, 200, 210]
    assert "The next 50 labels lead to about 90%" in html
    assert html.count("<tr>") == 1 + len(SIZES)


def test_a_short_history_leads_nowhere_and_says_so(page: FlaskClient, store: Store) -> None:
    publish(store, {"colour": measured(10, advice="the next 50 labels bring about 9 points")})

    html = panel(page, "learning_curve")

    (option,) = options(html)
    assert "where it leads" not in [each["name"] for each in option["series"]]
    assert "cannot be told yet" in html
    assert "the next 50 labels bring about 9 points" in html


def test_each_control_has_a_curve_and_one_without_labels_has_none(
    page: FlaskClient, store: Store
) -> None:
    publish(
        store,
        {HOSTILE_NAMES[0]: measured(10), "mood": measured(12), "empty": {"labels": 0}},
    )

    html = panel(page, "learning_curve")

    assert len(options(html)) == 2
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "empty" not in html


def test_a_long_history_is_drawn_with_few_points_and_its_last_one(
    page: FlaskClient, store: Store
) -> None:
    for labels in range(20, 520):
        publish(store, {"colour": measured(labels)})

    (option,) = options(panel(page, "learning_curve"))

    drawn = [point["value"][0] for point in series(option, "open tasks (estimate)")["data"]]
    assert len(drawn) <= 200
    assert drawn[-1] == 519


# The acceptance rate


def test_the_acceptance_rate_is_that_of_stretches_that_are_long_enough(
    page: FlaskClient, store: Store
) -> None:
    for shown, kept in ((0, 0), (10, 5), (25, 15), (30, 20), (65, 55)):
        report = {"acceptance": {"shown": shown, "kept": kept, "until": 9}}
        publish(store, {"colour": report})

    html = panel(page, "acceptance")

    (option,) = options(html)
    # Of the first 25, 15 were kept; of the next 40, 40.
    assert [point["value"][1] for point in option["series"][0]["data"]] == [60, 100]
    assert "they kept 55" in html


def test_a_rate_that_is_counted_anew_goes_on_from_there(page: FlaskClient, store: Store) -> None:
    for shown, kept in ((40, 20), (0, 0), (20, 20)):
        publish(store, {"colour": {"acceptance": {"shown": shown, "kept": kept, "until": 9}}})

    (option,) = options(panel(page, "acceptance"))

    assert [point["value"][1] for point in option["series"][0]["data"]] == [50, 100]


# Confused choices


def confuse(store: Store, choices: Sequence[str], *controls: str) -> None:
    """Publish a version that takes the first choice for the second, twice, and once back."""
    rows = [(0.1, 0.9), (0.2, 0.8), (0.9, 0.1), (0.9, 0.1)]
    columns = torch.zeros(4, len(choices))
    columns[:, :2] = torch.tensor(rows)
    found = confusion(
        columns, torch.tensor([0, 0, 1, 0]), [11, 12, 13, 14], choices, multiple=False
    )
    publish(
        store,
        {control: {"labels": 4} for control in controls},
        findings={FindingKind.CONFUSION: confusions_to_bytes(dict.fromkeys(controls, found))},
    )


def test_the_confused_choices_are_a_heat_map_and_a_list(page: FlaskClient, store: Store) -> None:
    confuse(store, ("red", "blue", "green"), "colour")

    html = panel(page, "confusion")

    (option,) = options(html)
    assert option["xAxis"]["data"] == option["yAxis"]["data"] == ["red", "blue"]
    (cells,) = [each["data"] for each in option["series"]]
    # Across what was predicted, down what was given.
    assert [cell["value"] for cell in cells] == [[1, 0, 2], [0, 1, 1]]
    assert all(f'id="{cell["button"]}"' in html for cell in cells)
    assert "3 mistakes in 4 labels" in html
    assert "2 of 3" in html


def test_a_button_has_label_studio_show_the_tasks_of_a_pair(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio
) -> None:
    confuse(store, HOSTILE_NAMES, *HOSTILE_NAMES[:3])
    keys = re.findall(r'name="key" value="(\w+)"', panel(page, "confusion"))
    assert len({*keys}) == len(keys) == 6

    for _ in range(2):
        answer = page.post(
            f"/projects/{PROJECT}/confused", data={"key": keys[0]}, headers=SAME_ORIGIN
        )

    ((view_id, view),) = label_studio.views.items()
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"{LABEL_STUDIO}/projects/{PROJECT}/data?tab={view_id}"
    assert view["title"] == "Confused choices"
    assert view["filters"]["items"][0]["value"] == "^(11|12)$"


def test_a_pair_that_is_not_confused_any_more_is_a_sentence(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio
) -> None:
    confuse(store, ("red", "blue"), "colour")

    answer = page.post(f"/projects/{PROJECT}/confused", data={"key": "x"}, headers=SAME_ORIGIN)

    assert answer.status_code == 404
    assert "load the page again" in answer.text
    assert label_studio.views == {}


@pytest.mark.parametrize("verb", ["confused", "suspected"])
def test_another_site_s_form_shows_nothing(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio, verb: str
) -> None:
    confuse(store, ("red", "blue"), "colour")

    answer = page.post(f"/projects/{PROJECT}/{verb}", headers={"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 403
    assert label_studio.views == {}


def test_of_a_thousand_choices_the_most_confused_are_drawn(page: FlaskClient, store: Store) -> None:
    generator = torch.Generator().manual_seed(0)
    choices = [f"choice {number}" for number in range(1000)]
    found = confusion(
        torch.rand(3000, 1000, generator=generator),
        torch.randint(0, 1000, (3000,), generator=generator),
        [*range(3000)],
        choices,
        multiple=False,
    )
    content = confusions_to_bytes({"colour": found})
    publish(store, {"colour": {"labels": 3000}}, findings={FindingKind.CONFUSION: content})

    html = panel(page, "confusion")

    (option,) = options(html)
    assert 2 <= len(option["xAxis"]["data"]) <= 20
    assert len(html) < 150_000


def test_without_label_studio_s_address_a_button_says_what_to_set(
    start_app: StartApp, store: Store
) -> None:
    page = with_page(start_app(), store)
    confuse(store, ("red", "blue"), "colour")
    (key, *_) = re.findall(r'name="key" value="(\w+)"', panel(page, "confusion"))

    answer = page.post(f"/projects/{PROJECT}/confused", data={"key": key}, headers=SAME_ORIGIN)

    assert answer.status_code >= 400
    assert "LABEL_STUDIO_API_KEY" in answer.text


# The least certain images


def queue(store: Store, *ids: int, controls: Sequence[str] = ("colour",)) -> None:
    choices = HOSTILE_NAMES
    head = [
        QueuedTask(
            task,
            0.01 * place,
            {
                name: [(choices[task % 9], 0.42), (choices[(task + 1) % 9], 0.4)]
                for name in controls
            },
        )
        for place, task in enumerate(ids)
    ]
    content = {FindingKind.QUEUE: queue_to_bytes(head)}
    publish(store, {"colour": {"labels": 3}}, labels=("red", "blue"), findings=content)


def test_the_first_open_tasks_of_the_queue_are_shown_in_its_order(
    page: FlaskClient, store: Store
) -> None:
    queue(store, *range(60, 0, -1))
    add_tasks(store, *range(1, 61))
    store.tasks.close_all_but(PROJECT, {60, 58})

    html = panel(page, "uncertain")

    pictures = re.findall(r'<img src="([^"]+)"', html)
    expected = [59, *range(57, 34, -1)]
    assert pictures == [f"{LABEL_STUDIO}/data/upload/7/{task}.jpg" for task in expected]
    links = re.findall(r'<a href="([^"]+)"', html)
    assert links[0] == f"{LABEL_STUDIO}/projects/{PROJECT}/data?task=59"
    assert html.count("42%") == 24


def test_hostile_choices_of_several_controls_are_text(page: FlaskClient, store: Store) -> None:
    queue(store, *range(9), controls=HOSTILE_NAMES[:3])
    add_tasks(store, *range(9))

    html = panel(page, "uncertain")

    assert html.count("42%") == 27
    assert "{{ 7 * 7 }}" in unescape(html)
    assert "\u202e" not in html
    assert "x" * 100 not in html


def test_a_picture_that_no_browser_shows_is_a_sentence(page: FlaskClient, store: Store) -> None:
    queue(store, 1, 2)
    store.tasks.mirror(
        PROJECT,
        [[StoredTask(1, {"image": "javascript:alert(1)"}, True), StoredTask(2, {}, True)]],
    )

    html = panel(page, "uncertain")

    assert html.count("no picture that a browser can show") == 2
    assert "javascript:" not in html


def test_a_head_of_the_queue_that_is_all_annotated_is_a_sentence(
    page: FlaskClient, store: Store
) -> None:
    queue(store, 1)
    add_tasks(store, 1, is_open=False)

    assert "is open any more" in panel(page, "uncertain")


# Suspected label errors


def suspect(task: int, confidence: float = 0.9) -> dict[str, Any]:
    return {
        "task": task,
        "given": [HOSTILE_NAMES[0]],
        "suggested": ["blue", HOSTILE_NAMES[1]],
        "confidence": confidence,
    }


def test_suspects_are_shown_with_what_was_given_and_what_is_suggested(
    page: FlaskClient, store: Store
) -> None:
    suspected = [suspect(task) for task in range(1, 31)]
    publish(
        store,
        {
            "colour": {"suspects": suspected},
            "shape": {"suspects": []},
            "mood": {},
        },
        labels=("red", "blue"),
    )
    add_tasks(store, *range(2, 31))

    html = panel(page, "suspects")

    # The first was deleted since.
    assert len(re.findall(r"<img ", html)) == 11
    assert f'href="{LABEL_STUDIO}/projects/{PROJECT}/data?task=2"' in html
    assert "30 suspected" in html
    assert "No label is suspected" in html
    assert "Too few labels" in html


def test_all_suspects_are_shown_in_the_view_that_review_keeps(
    page: FlaskClient, store: Store, label_studio: FakeLabelStudio
) -> None:
    publish(
        store,
        {"colour": {"suspects": [suspect(5), suspect(9)]}, "b": {"suspects": [suspect(7)]}},
    )

    answer = page.post(f"/projects/{PROJECT}/suspected", headers=SAME_ORIGIN)

    ((view_id, view),) = label_studio.views.items()
    assert answer.headers["Location"] == f"{LABEL_STUDIO}/projects/{PROJECT}/data?tab={view_id}"
    assert view["title"] == "Suspected label errors"
    assert view["filters"]["items"][0]["value"] == "^(5|7|9)$"


def test_a_form_that_ends_in_label_studio_is_let_there(page: FlaskClient, store: Store) -> None:
    publish(store, {})

    policy = page.get(f"/projects/{PROJECT}").headers["Content-Security-Policy"]

    assert f"form-action 'self' {LABEL_STUDIO};" in policy


# The map


def draw(
    store: Store, count: int = 30, *, choices: Sequence[str] = HOSTILE_NAMES, done: bool = True
) -> str:
    """Publish a version and keep a map of it; return the version's name."""
    version = publish(store, {"colour": {"labels": 3}}, labels=("red", "blue"))
    add_tasks(store, *range(100, 100 + count))
    generator = np.random.default_rng(0)
    predicted = (np.arange(count) % len(choices)).astype(np.int32)
    given = np.where(np.arange(count) % 3 == 0, predicted, NO_CHOICE).astype(np.int32)
    colours = MapColours(choices, given, predicted)
    drawn = EmbeddingMap(
        source="tiny $image",
        rounds=4,
        done=done,
        tasks=count,
        ids=np.arange(100, 100 + count, dtype=np.int64),
        places=generator.normal(size=(count, 2)).astype(np.float32),
        uncertainties=generator.uniform(size=count).astype(np.float32),
        colours={"colour": colours, HOSTILE_NAMES[0]: colours},
    )
    store.findings.keep(PROJECT, version.name, {FindingKind.MAP: map_to_bytes(drawn)})
    return version.name


def points(page: FlaskClient, colour: str) -> list[dict[str, Any]]:
    answer = page.get(f"/projects/{PROJECT}/map?colour={colour}")
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    return list(answer.get_json()["series"])


def test_a_map_is_asked_for_once_while_it_is_missing(page: FlaskClient, store: Store) -> None:
    publish(store, {})

    for _ in range(2):
        assert "being drawn" in panel(page, "map")

    ((waiting),) = store.requests.waiting(PROJECT)
    assert waiting.request == Request(PROJECT, Kind.MAP)
    with store.requests.claimed(waiting.request) as claim:
        assert claim is not None
        panel(page, "map")
    assert store.requests.waiting(PROJECT) == []


def test_every_kind_of_work_has_words(page: FlaskClient, store: Store) -> None:
    publish(store, {})
    store.requests.add_all([Request(PROJECT, kind) for kind in Kind])

    html = panel(page, "jobs")

    assert html.count("<li>") == len(Kind)
    assert "drawing the map" in html


def test_a_map_that_is_done_is_not_asked_for_again(page: FlaskClient, store: Store) -> None:
    name = draw(store)

    html = panel(page, "map")

    assert name in html
    assert "30 images" in " ".join(html.split())
    assert store.requests.waiting(PROJECT) == []


def test_a_map_that_is_half_drawn_is_shown_and_asked_for(page: FlaskClient, store: Store) -> None:
    draw(store, done=False)

    assert "Still being drawn" in panel(page, "map")
    assert [item.request.kind for item in store.requests.waiting(PROJECT)] == [Kind.MAP]


def test_a_map_of_an_older_version_is_coloured_again_after_a_while(
    page: FlaskClient, store: Store
) -> None:
    draw(store)
    publish(store, {})

    panel(page, "map")

    (waiting,) = store.requests.waiting(PROJECT)
    assert waiting.request.kind is Kind.MAP
    assert store.requests.due() == []


def test_a_map_of_fewer_or_more_tasks_than_there_are_is_drawn_again_after_a_while(
    page: FlaskClient, store: Store
) -> None:
    draw(store)
    for ids in (range(100, 131), range(100, 129)):
        add_tasks(store, *ids)

        assert "30 images" in " ".join(panel(page, "map").split())

        (waiting,) = store.requests.waiting(PROJECT)
        assert waiting.request.kind is Kind.MAP
        assert store.requests.due() == []
        store.requests.forget(PROJECT)


def test_a_project_without_a_version_has_no_map(page: FlaskClient, store: Store) -> None:
    store.projects.set_up(PROJECT, label_config=config_of(("red",)), extra_params={})

    assert "once there is a version" in panel(page, "map")
    assert store.requests.waiting(PROJECT) == []


def test_each_task_is_a_point_of_its_choice_s_colour(page: FlaskClient, store: Store) -> None:
    draw(store, choices=("red", "blue", "green"))

    found = points(page, "0")

    tasks = [point[2] for each in found for point in each["data"]]
    assert sorted(tasks) == [*range(100, 130)]
    by_tip = {each["tip"]: [point[2] for point in each["data"]] for each in found}
    assert by_tip["labelled: red"] == [*range(100, 130, 3)]
    assert by_tip.keys() == {"labelled: red", "predicted: blue", "predicted: green"}
    for each in found:
        assert each["picture"] == f"/projects/{PROJECT}/pictures/{{id}}"
        assert each["href"] == f"{LABEL_STUDIO}/projects/{PROJECT}/data?task={{id}}"


def test_the_rarer_choices_are_grey_together(page: FlaskClient, store: Store) -> None:
    draw(store, 200, choices=[f"choice {number}" for number in range(100)])

    found = points(page, "1")

    names = {each["name"] for each in found}
    assert len(names) == 8
    assert "all others" in names
    assert sum(len(each["data"]) for each in found) == 200


def test_uncertainty_is_a_scale_of_colours(page: FlaskClient, store: Store) -> None:
    draw(store)

    found = points(page, "uncertainty")

    assert [each["name"] for each in found] == [
        f"{low} to {low + 20} % uncertain" for low in range(0, 100, 20)
    ]
    assert sum(len(each["data"]) for each in found) == 30


def test_all_points_are_within_the_map(
    page: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(store)

    places = [point[:2] for each in points(page, "0") for point in each["data"]]

    assert np.min(places) == 0
    assert np.max(places) == embedding_map._WIDTH


@pytest.mark.parametrize("colour", ["", "2", "-1", "x", "²", "9" * 400])
def test_colours_that_there_are_not_are_not_found(
    page: FlaskClient, store: Store, colour: str
) -> None:
    assert page.get(f"/projects/{PROJECT}/map?colour=0").status_code == 404
    draw(store)

    assert page.get(f"/projects/{PROJECT}/map?colour={colour}").status_code == 404


def test_a_point_s_picture_is_where_the_viewer_s_own_rights_are_asked(
    page: FlaskClient, store: Store
) -> None:
    publish(store, {}, labels=("red", "blue"))
    add_tasks(store, 5)

    answer = page.get(f"/projects/{PROJECT}/pictures/5")

    assert answer.status_code == 302
    assert answer.headers["Location"] == f"{LABEL_STUDIO}/data/upload/7/5.jpg"
    assert page.get(f"/projects/{PROJECT}/pictures/6").status_code == 404
    assert page.get("/projects/8/pictures/5").status_code == 404


def test_hostile_names_come_to_a_map_as_text(page: FlaskClient, store: Store) -> None:
    draw(store)

    html = panel(page, "map")
    names = {each["name"] for each in points(page, "0")}

    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<img src=x onerror=alert(1)>" in names
    assert not any("\u202e" in name or len(name) > 80 for name in names)


def test_the_panels_of_several_choices_and_three_controls_answer(
    page: FlaskClient, store: Store
) -> None:
    config = "".join(
        f"<Choices name={quoteattr(name)} toName='image' choice='multiple'>"
        "<Choice value='red'/><Choice value='blue'/></Choices>"
        for name in ("a", "b", "&lt;c&gt;")
    )
    found = confusion(
        torch.tensor([[0.9, 0.9], [0.1, 0.1]]),
        torch.tensor([[1, 0], [0, 1]]),
        [1, 2],
        ("red", "blue"),
        multiple=True,
    )
    publish(
        store,
        {name: measured(20) for name in ("a", "b", "&lt;c&gt;")},
        findings={FindingKind.CONFUSION: confusions_to_bytes({"a": found, "b": found})},
    )
    store.projects.update(
        PROJECT, label_config=f'<View><Image name="image" value="$image"/>{config}</View>'
    )

    html = panel(page, "confusion")
    for name in ("learning_curve", "acceptance", "uncertain", "suspects", "map"):
        assert panel(page, name).strip()

    assert html.count("(none)") >= 4
