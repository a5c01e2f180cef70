from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.doctor import Finding
from backend.errors import LabelStudioError
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask
from tests.integration.conftest import StartApp
from tests.integration.page_parts import (
    HOSTILE_NAMES,
    HTMX,
    LABEL_STUDIO,
    PROJECT,
    SAME_ORIGIN,
    publish,
    with_page,
)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MACHINE = {"Accept": "*/*"}


@pytest.fixture
def page(start_app: StartApp, store: Store) -> FlaskClient:
    return with_page(start_app(), store)


def panel(page: FlaskClient, name: str) -> str:
    answer = page.get(f"/projects/{PROJECT}/panels/{name}", headers=HTMX)
    assert answer.status_code == 200, answer.text
    return answer.text


def options(html: str) -> list[dict[str, Any]]:
    """Return the charts of a fragment."""
    scripts = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in scripts]


def wanted(store: Store) -> list[Kind]:
    return sorted(item.request.kind for item in store.requests.waiting(PROJECT))


# Addresses


def test_a_browser_at_the_root_comes_to_the_projects(page: FlaskClient) -> None:
    answer = page.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "/projects")


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_label_studio_at_the_root_hears_that_the_backend_is_up(
    page: FlaskClient, accept: str
) -> None:
    assert page.get("/", headers={"Accept": accept}).get_json()["status"] == "UP"


def test_the_projects_are_listed_with_what_is_known_of_them(
    page: FlaskClient, store: Store
) -> None:
    version = publish(store, {})
    store.projects.set_up(8, label_config="<View/>", extra_params={})
    store.projects.update(8, connected=False)

    text = page.get("/projects").text

    assert 'href="/projects/7"' in text
    assert version.name in text
    assert "disconnected" in text.partition("Project 8")[2]


def test_without_projects_the_list_says_how_one_is_connected(page: FlaskClient) -> None:
    assert "clip-backend connect --project ID" in page.get("/projects/").text


def test_a_project_has_its_panels_and_a_link_to_label_studio(
    page: FlaskClient, store: Store
) -> None:
    version = publish(store, {})

    text = page.get("/projects/7").text

    assert version.name in text
    assert f'href="{LABEL_STUDIO}/projects/7/data"' in text
    assert 'hx-get="/projects/7/panels/class_balance"' in text


def test_every_panel_of_a_project_without_a_version_says_something(
    page: FlaskClient, store: Store
) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>", extra_params={})

    text = page.get("/projects/7").text

    assert "No model version yet" in text
    for address in re.findall(r'hx-get="([^"]+)"', text):
        answer = page.get(address, headers=HTMX)
        assert answer.status_code == 200
        assert answer.text.strip()


@pytest.mark.parametrize(
    "path", ["/projects/8", "/projects/8/panels/class_balance", "/projects/7/panels/none"]
)
def test_what_is_not_there_is_a_page_to_people_and_json_to_machines(
    page: FlaskClient, store: Store, path: str
) -> None:
    store.projects.set_up(PROJECT, label_config="<View/>", extra_params={})

    to_people, to_machines = page.get(path), page.get(path, headers=MACHINE)

    assert (to_people.status_code, to_machines.status_code) == (404, 404)
    assert to_people.mimetype == "text/html"
    sentence = to_machines.get_json()["error"]
    assert sentence in unescape(to_people.text)


def test_the_page_of_an_unknown_project_says_how_it_is_connected(page: FlaskClient) -> None:
    assert "clip-backend connect --project 8" in page.get("/projects/8").text


@pytest.mark.parametrize("path", ["/projects/0", "/projects/99999999999", "/projects/seven"])
def test_what_is_no_project_s_number_is_not_found(page: FlaskClient, path: str) -> None:
    answer = page.get(path)

    assert answer.status_code == 404
    assert answer.mimetype == "text/html"


# Headers


@pytest.mark.parametrize(
    "path", ["/projects", "/projects/7", "/projects/7/panels/class_balance", "/projects/8"]
)
def test_a_page_runs_and_shows_nothing_but_its_own(
    page: FlaskClient, store: Store, path: str
) -> None:
    publish(store, {})

    headers = page.get(path).headers

    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    # Pictures are where tasks say, which may be another server of the house.
    assert policy["img-src"] == "'self' data: http: https:"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_page_has_no_script_or_style_of_its_own_in_its_text(
    page: FlaskClient, store: Store
) -> None:
    publish(store, {"colour": {"per_choice": {"red": 1}}})

    text = page.get("/projects/7").text + panel(page, "class_balance")

    assert not re.search(r"<script(?![^>]*(src=|application/json))", text)
    assert not re.search(r"\sstyle=|<style|\son\w+=|hx-on|javascript:", text)


# Who may


def test_where_credentials_are_set_a_browser_is_asked_for_them(
    start_app: StartApp, store: Store
) -> None:
    page = with_page(start_app(basic_auth_user="me", basic_auth_pass="secret"), store)

    for path in ("/projects", "/projects/7", "/projects/7/panels/x", "/projects/static/page.js"):
        answer = page.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert answer.mimetype == "text/html"
    assert page.post("/projects/7/train", headers=SAME_ORIGIN).status_code == 401
    assert page.get("/projects", auth=("me", "secret")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Origin": "http://localhost"},
        {"Origin": "https://LOCALHOST"},
        {"Origin": "https://clip.example.com"},
    ],
)
def test_the_page_s_own_buttons_work(
    start_app: StartApp, store: Store, headers: dict[str, str]
) -> None:
    address = "https://clip.example.com"
    page = with_page(start_app(public_url=address), store, public_url=address)
    publish(store, {})

    answer = page.post("/projects/7/train", headers=headers)

    assert (answer.status_code, answer.headers["Location"]) == (303, "/projects/7")
    assert wanted(store) == [Kind.TRAIN]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "Same-Origin, cross-site"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "https://evil.example/http://localhost"},
        {"Origin": "ftp://localhost"},
        {"Origin": "http://["},
        {"Referer": "http://localhost/projects/7"},
    ],
)
def test_another_site_s_form_does_nothing(
    page: FlaskClient, store: Store, headers: dict[str, str]
) -> None:
    publish(store, {})

    for verb in ("train", "refresh"):
        answer = page.post(f"/projects/7/{verb}", headers=headers)
        assert answer.status_code == 403
        assert "the page's own buttons" in unescape(answer.text)
    assert wanted(store) == []


@pytest.mark.parametrize(
    "sent", [{"data": b"x" * 70_000}, {"headers": {"Transfer-Encoding": "chunked"}}]
)
def test_a_form_says_its_length_and_is_small(
    page: FlaskClient, store: Store, sent: dict[str, Any]
) -> None:
    publish(store, {})

    headers = SAME_ORIGIN | sent.get("headers", {})
    answer = page.post("/projects/7/train", **sent | {"headers": headers})

    assert answer.status_code == 413
    assert wanted(store) == []


# Buttons


def press(page: FlaskClient, verb: str, **form: str) -> TestResponse:
    return page.post(f"/projects/{PROJECT}/{verb}", data=form, headers=HTMX | SAME_ORIGIN)


@pytest.mark.parametrize(("verb", "kind"), [("train", Kind.TRAIN), ("refresh", Kind.SYNC)])
def test_a_button_asks_for_its_work_and_asks_once_when_it_is_pressed_twice(
    page: FlaskClient, store: Store, verb: str, kind: Kind
) -> None:
    publish(store, {})

    first, second = press(page, verb), press(page, verb)

    assert first.status_code == second.status_code == 200
    assert first.text.strip()
    assert json.loads(first.headers["HX-Trigger"]) == {"refresh-panels": None}
    assert wanted(store) == [kind]


def test_a_button_of_an_unknown_project_does_nothing(page: FlaskClient, store: Store) -> None:
    answer = page.post("/projects/8/train", headers=SAME_ORIGIN)

    assert answer.status_code == 404
    assert store.requests.waiting(8) == []


# Class balance


def test_the_class_balance_shows_the_labels_of_each_choice_of_each_control(
    page: FlaskClient, store: Store
) -> None:
    report = {
        "colour": {"per_choice": {"red": 1, "green": 5, "blue": 0}},
        "shape": {"per_choice": {"round": 2}},
    }
    publish(store, report)

    html = panel(page, "class_balance")

    colour, shape = options(html)
    assert colour["yAxis"]["data"] == ["green", "red", "blue"]
    assert colour["series"][0]["data"] == [5, 1, 0]
    assert shape["series"][0]["data"] == [2]
    assert "1 of them have no label yet" in " ".join(html.split())
    assert len(re.findall(r"<td><bdi>", html)) == 4


def test_hostile_names_are_names(page: FlaskClient, store: Store) -> None:
    per_choice = dict.fromkeys(HOSTILE_NAMES, 1)
    publish(store, {name: {"per_choice": per_choice} for name in HOSTILE_NAMES})

    html = panel(page, "class_balance")

    assert len(options(html)) == len(HOSTILE_NAMES)
    tags = set(re.findall(r"<([a-z0-9]+)", re.sub(r"<script.*?</script>", "", html, flags=re.S)))
    assert not tags & {"img", "svg", "script"}
    assert "\u202e" not in html
    assert "49" not in html.replace("&#39;", "").replace("&#34;", "")
    assert max(map(len, options(html)[0]["yAxis"]["data"])) <= 80
    # A table of names is no longer than what it says of them.
    assert "x" * 100 not in html


def test_thousands_of_choices_are_shown_as_far_as_anybody_looks(
    page: FlaskClient, store: Store
) -> None:
    per_choice = {f"choice {number}": number for number in range(5000)}
    publish(store, {"kind": {"per_choice": per_choice}})

    html = panel(page, "class_balance")

    (option,) = options(html)
    assert len(option["yAxis"]["data"]) == 1000
    assert option["dataZoom"]
    assert "and 4000 more" in html


# Versions


def test_a_version_is_used_until_the_trainings_are_followed_again(
    page: FlaskClient, store: Store
) -> None:
    first, second = (publish(store, {}, labels=("red", "green")) for _ in range(2))
    html = panel(page, "versions")
    assert f'value="{first.name}"' in html
    assert f'value="{second.name}"' not in html

    for _ in range(2):
        answer = press(page, "use", version=first.name)
        assert answer.status_code == 200
        assert first.name in answer.text

    assert store.projects.get(PROJECT).pinned == first.name  # type: ignore[union-attr]
    assert wanted(store) == [Kind.REFRESH]
    html = panel(page, "versions")
    assert f"The latest is {second.name}" in html
    assert f'value="{second.name}"' in html
    assert f"Predicted by <strong>{first.name}</strong>, which is pinned" in panel(page, "overview")

    for _ in range(2):
        assert press(page, "use", version="latest").status_code == 200

    project = store.projects.get(PROJECT)
    assert project is not None
    assert (project.pinned, project.model_version) == (None, second.name)


@pytest.mark.parametrize("version", ["", "none", "0", "clip-backend-9-00000000", "\0", "x" * 9000])
def test_a_version_that_is_not_there_cannot_be_used(
    page: FlaskClient, store: Store, version: str
) -> None:
    publish(store, {}, labels=("red", "green"))

    assert press(page, "use", version=version).status_code == 404
    assert store.projects.get(PROJECT).pinned is None  # type: ignore[union-attr]


def test_a_version_of_other_choices_cannot_be_used(page: FlaskClient, store: Store) -> None:
    old = publish(store, {}, labels=("red", "green"))
    publish(store, {}, labels=("blue", "green"))

    answer = press(page, "use", version=old.name)

    assert answer.status_code == 400
    assert "has other choices" in answer.text
    assert store.projects.get(PROJECT).pinned is None  # type: ignore[union-attr]


def test_versions_are_listed_with_the_labels_and_the_accuracy_of_each_control(
    page: FlaskClient, store: Store
) -> None:
    publish(store, {"colour": {"labels": 1200, "out_of_fold": {"top1": 0.876}}, "shape": {}})

    html = " ".join(panel(page, "versions").split())

    assert "<bdi>colour</bdi>: 1,200, 88%" in html
    assert "<bdi>shape</bdi>: –, –" in html


def test_of_many_versions_the_newest_are_listed(page: FlaskClient, store: Store) -> None:
    for _ in range(22):
        newest = publish(store, {})

    html = panel(page, "versions")

    assert html.count("<tr>") == 21
    assert newest.name in html
    assert "clip-backend versions --project 7" in html


# Jobs


def test_jobs_show_what_runs_what_waits_and_what_failed(page: FlaskClient, store: Store) -> None:
    publish(store, {})
    for part in range(3):
        store.requests.add(Request(PROJECT, Kind.EMBED, part))
    store.requests.add(Request(PROJECT, Kind.SYNC), delay=100)
    store.requests.add(Request(PROJECT, Kind.TRAIN))
    with (
        pytest.raises(LabelStudioError),
        store.requests.claimed(Request(PROJECT, Kind.TRAIN)),
    ):
        raise LabelStudioError("<b>no answer</b>")
    with store.requests.claimed(Request(PROJECT, Kind.EMBED, 1)):
        html = " ".join(panel(page, "jobs").split())

    assert "<strong>embedding pictures</strong>: 1 running, 2 waiting </li>" in html
    assert "<strong>listing tasks</strong>: 1 waiting until <time" in html
    assert "tried in vain (1): &lt;b&gt;no answer&lt;/b&gt;" in html
    assert html.index("training") < html.index("listing tasks") < html.index("embedding")


def test_jobs_show_how_many_open_tasks_are_predicted(page: FlaskClient, store: Store) -> None:
    version = publish(store, {})
    store.tasks.mirror(
        PROJECT, [[StoredTask(number, {}, open=number > 1) for number in range(1, 6)]]
    )
    store.tasks.mark_predicted(PROJECT, [2, 3], version.name)

    html = panel(page, "jobs")

    assert '<progress max="4" value="2"' in html
    assert "2 of 4 open tasks" in html


# People


def test_annotators_are_compared_under_their_emails(start_app: StartApp, store: Store) -> None:
    page = with_page(start_app(), store, emails=lambda: {1: "<ada>@example.com"})
    annotators = [
        {"annotator": 1, "tasks": 40, "compared": 9, "agreement": 0.875},
        {"annotator": 2, "tasks": 30, "compared": 0, "agreement": None},
    ]
    agreement = {"tasks": 9, "pairwise": 0.8, "alpha": 0.71, "annotators": annotators}
    publish(store, {"colour": {"agreement": agreement}, "shape": {"agreement": {"tasks": 0}}})

    html = panel(page, "agreement")

    assert "&lt;ada&gt;@example.com" in html
    assert "user 2" in html
    assert "88%" in html
    assert "alpha 0.71" in html
    assert "shape" not in html


def test_the_acceptance_rate_is_what_annotators_kept(page: FlaskClient, store: Store) -> None:
    publish(
        store,
        {
            "colour": {"acceptance": {"shown": 50, "kept": 31, "until": 9}},
            "shape": {"acceptance": {"shown": 0, "kept": 0, "until": 9}},
        },
    )

    html = panel(page, "acceptance")

    assert "62%" in html
    assert "shape" not in html


def test_of_labels_the_last_training_tells_also_where_another_version_is_pinned(
    page: FlaskClient, store: Store
) -> None:
    first = publish(store, {"colour": {"per_choice": {"red": 1}}})
    publish(store, {"colour": {"per_choice": {"red": 5}}})
    store.versions.pin(PROJECT, first.name)

    (option,) = options(panel(page, "class_balance"))

    assert option["series"][0]["data"] == [5]


# Health


def test_health_says_what_is_wrong_and_what_mends_it(start_app: StartApp, store: Store) -> None:
    found = [Finding("token", True, "of <me>"), Finding("worker", False, "none", "start one")]
    page = with_page(start_app(), store, findings=lambda _: found)
    publish(store, {})

    html = " ".join(panel(page, "health").split())

    assert "1 to mend" in html
    assert "token: of &lt;me&gt;" in html
    assert "worker: none <br>mend: start one" in html


def test_titles_come_from_label_studio(start_app: StartApp, store: Store) -> None:
    page = with_page(start_app(), store, titles=lambda: {PROJECT: "<i>Garments"})
    publish(store, {})

    assert "<h1><bdi>&lt;i&gt;Garments</bdi></h1>" in page.get("/projects/7").text
    assert "&lt;i&gt;Garments" in page.get("/projects").text


# What the page brings


def test_what_the_page_brings_is_served(page: FlaskClient, store: Store) -> None:
    publish(store, {})
    text = page.get("/projects/7").text
    brought = re.findall(r'(?:src|href)="(/projects/static/[^"]+)"', text)

    assert len(brought) == 5
    for address in brought:
        with page.get(address) as answer:
            assert answer.status_code == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_endless_accept_header_is_no_browser_s(start_app: StartApp, store: Store) -> None:
    client = with_page(start_app(), store)

    short = client.get("/", headers={"Accept": "text/html"})
    endless = client.get("/", headers={"Accept": "text/html" + " " * 2000})

    assert short.status_code == 302
    assert endless.get_json()["status"] == "UP"
