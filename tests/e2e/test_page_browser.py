"""What an annotation lead sees: the page of a project in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from backend.demo.label_studio import LabelStudioServer
from backend.settings import Settings
from backend.store import Store
from backend.store.requests import Kind, Request
from backend.store.tasks import StoredTask
from tests.e2e.browser import GRAVE, save_screenshot, serving
from tests.e2e.parts import PATIENCE, LabelledProject, RunningBackend, assert_settled
from tests.integration.page_parts import HOSTILE_NAMES, PROJECT, publish

NewProject = Callable[..., LabelledProject]

USER, PASSWORD = "lead", "not a secret"
CHOICES = ("cup", "plate", "bowl", "fork", "spoon")
WIDE, NARROW = 1280, 390


@dataclass
class Served:
    """The API with the page, and its database."""

    url: str
    store: Store

    @property
    def page(self) -> str:
        return f"{self.url}/projects/{PROJECT}"

    def wanted(self) -> list[Kind]:
        return [item.request.kind for item in self.store.requests.waiting(PROJECT)]


@dataclass
class Heard:
    """What a browser said and asked that it should not have."""

    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def report(labels: int) -> dict[str, object]:
    annotators = [
        {"annotator": 1, "tasks": labels, "compared": 9, "agreement": 0.875},
        {"annotator": 2, "tasks": 30, "compared": 9, "agreement": 0.7},
    ]
    agreement = {"tasks": 9, "pairwise": 0.8, "alpha": 0.71, "annotators": annotators}
    known = {
        "labels": labels,
        "out_of_fold": {"top1": 1 - 8 / labels},
        "acceptance": {"shown": labels, "kept": labels * 3 // 4, "until": 9},
        "agreement": agreement,
    }
    many = {f"kind {number}": number * 7 % 31 for number in range(300)}
    return {
        "colour": {**known, "per_choice": dict(zip(CHOICES, (9, 14, 4, 0, 7), strict=True))},
        HOSTILE_NAMES[0]: {**known, "per_choice": dict.fromkeys(HOSTILE_NAMES, 2)},
        "kind": {**known, "per_choice": many},
    }


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    settings = Settings(
        data_dir=tmp_path,
        clip_model="tiny",
        # Nobody listens there.
        label_studio_url="http://127.0.0.1:1",
        label_studio_api_key="token",
        basic_auth_user=USER,
        basic_auth_pass=PASSWORD,
    )
    store = Store.open(settings.database)
    for labels in (20, 34):
        publish(store, report(labels), labels=CHOICES)
    store.tasks.mirror(PROJECT, [[StoredTask(number, {}, open=True) for number in range(1, 9)]])
    store.requests.add(Request(PROJECT, Kind.EMBED, 1), delay=1000)
    with serving(settings) as address:
        yield Served(address, store)
    store.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def open_page(browser: Browser, served: Served, heard: Heard) -> Iterator[OpenPage]:
    """Return what opens the page of the project; nothing but the backend can be asked."""
    contexts: list[BrowserContext] = []

    def open_it(*, width: int = WIDE, scheme: str = "light", with_clock: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            http_credentials={"username": USER, "password": PASSWORD},
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        expect.set_options(timeout=PATIENCE * 1000)
        page.on("console", lambda said: heard.complaints.append(said.text))
        page.on("pageerror", lambda error: heard.complaints.append(str(error)))
        page.on("dialog", lambda dialog: heard.complaints.append(dialog.message))

        def refuse(route: Route) -> None:
            heard.foreign.append(route.request.url)
            route.abort()

        page.route(lambda url: not url.startswith(f"{served.url}/"), refuse)
        if with_clock:
            page.clock.install()
        page.goto(served.page)
        expect_loaded(page)
        return page

    yield open_it
    for context in contexts:
        context.close()


def expect_loaded(page: Page) -> None:
    """Wait until every panel shows something, also those that wait until they are in sight."""
    for panel in page.locator("section[data-panel]").all():
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".waiting")).to_have_count(0)
    expect(page.locator("#panel-class_balance canvas")).to_have_count(3)
    page.evaluate("window.scrollTo(0, 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_accessible_and_asks_nobody_else(
    open_page: OpenPage,
    heard: Heard,
    request: pytest.FixtureRequest,
    width: int,
    scheme: str,
) -> None:
    page = open_page(width=width, scheme=scheme)

    found = Axe().run(page).response["violations"]
    assert [each for each in found if each["impact"] in GRAVE] == []
    assert (heard.complaints, heard.foreign) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The colours are those of the scheme, in the charts too.
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 19, 24)") == (scheme == "dark")
    folder: Path | None = request.config.getoption("--screenshots")
    if folder is not None:
        save_screenshot(page, folder / f"page-{width}-{scheme}.png", full_page=True)


def test_of_a_long_path_in_a_chart_the_choice_itself_is_seen(open_page: OpenPage) -> None:
    page = open_page()

    labels = page.evaluate(
        """names => {
            const chart = document.querySelector("#panel-class_balance [data-chart]");
            const [axis] = echarts.getInstanceByDom(chart).getOption().yAxis;
            return names.map(axis.axisLabel.formatter);
        }""",
        ["cup", "Clothes and shoes / For the rain / Jackets", "m" * 80],
    )

    assert labels[0] == "cup"
    assert re.fullmatch(r"Cl.*….* / Jackets", labels[1])
    assert re.fullmatch("m+…m+", labels[2])
    assert len(labels[2]) < 20


def test_what_a_version_is_marked_with_stays_in_one_line(open_page: OpenPage) -> None:
    page = open_page()

    # Only a version that others can be used instead of has a column as wide as a button.
    page.locator("#panel-versions button").evaluate_all("all => all.forEach(one => one.remove())")
    page.locator("#panel-versions table").evaluate("table => { table.style.width = 0 }")

    mark = page.locator("#panel-versions .mark")
    assert mark.evaluate("mark => mark.getClientRects().length") == 1


def test_hostile_names_are_shown_as_names(open_page: OpenPage, heard: Heard) -> None:
    page = open_page()

    panel = page.locator("#panel-class_balance")
    panel.locator("summary").nth(1).click()
    expect(panel.get_by_role("cell", name=HOSTILE_NAMES[0])).to_be_visible()
    panel.locator("canvas").nth(1).hover(position={"x": 300, "y": 20})
    expect(panel.locator(".tip").get_by_text(HOSTILE_NAMES[0])).to_be_visible()

    assert panel.locator("img, svg, iframe, object").count() == 0
    assert heard.complaints == []


def test_the_keyboard_reaches_every_button_and_its_focus_is_seen(open_page: OpenPage) -> None:
    page = open_page()
    wanted = {button.get_attribute("id") for button in page.locator("button").all()}
    assert len(wanted) >= 3

    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if focused[0] in wanted:
            assert focused[1] != "none"
            reached.add(focused[0])

    assert reached == wanted


def test_each_button_can_be_pressed_twice(
    open_page: OpenPage, served: Served, heard: Heard
) -> None:
    page = open_page()
    newest, older = (each.name for each in served.store.standings.newest(PROJECT, 2))

    for name in ("Train now", "Refresh"):
        page.get_by_role("button", name=name).dblclick()
        expect(page.locator("#said")).not_to_be_empty()
        page.get_by_role("button", name=name).click()
    expect(page.locator("#panel-jobs")).to_contain_text("training: 1 waiting")
    expect(page.locator("#panel-jobs")).to_contain_text("listing tasks: 1 waiting")
    assert sorted(served.wanted()) == sorted([Kind.TRAIN, Kind.SYNC, Kind.EMBED, Kind.MAP])

    page.get_by_role("button", name="Use this one").dblclick()
    expect(page.locator("#panel-versions")).to_contain_text(f"Pinned to {older}")
    expect(page.locator("#panel-overview")).to_contain_text(older)
    page.get_by_role("button", name="Follow the trainings again").dblclick()
    expect(page.locator("#panel-overview")).to_contain_text(newest)
    expect(page.locator("#panel-versions")).not_to_contain_text("Pinned")
    assert heard.complaints == []


def test_a_button_works_with_the_keyboard_and_keeps_the_focus(
    open_page: OpenPage, served: Served
) -> None:
    page = open_page()

    page.locator("#train").focus()
    page.keyboard.press("Enter")

    # Waiting for the database instead would keep this thread from letting the request through.
    expect(page.locator("#said")).not_to_be_empty()
    assert Kind.TRAIN in served.wanted()
    expect(page.locator("#train")).to_be_focused()

    page.get_by_role("button", name="Use this one").focus()
    page.keyboard.press("Enter")

    # That button is gone.
    expect(page.locator("#panel-versions")).to_contain_text("Pinned")
    expect(page.locator("#panel-versions")).to_be_focused()


def test_the_page_follows_what_happens_without_being_loaded_again(
    open_page: OpenPage, heard: Heard, served: Served
) -> None:
    page = open_page()
    page.evaluate("window.same = true")
    page.locator("#panel-class_balance summary").first.click()

    version = publish(served.store, report(50), labels=CHOICES)

    expect(page.locator("#panel-overview")).to_contain_text(version.name)
    expect(page.locator("#panel-versions")).to_contain_text(version.name)
    assert page.evaluate("window.same")
    # What somebody has opened stays open.
    expect(page.locator("#panel-class_balance details").first).to_have_attribute("open", "")
    # A chart that replaces another brings no styles that the page forbids.
    expect(page.locator("#panel-learning_curve table").first).to_contain_text("50")
    assert heard.complaints == []


def test_a_panel_that_fails_says_so_keeps_what_it_showed_and_goes_on(
    open_page: OpenPage, served: Served
) -> None:
    page = open_page()
    jobs = page.locator("#panel-jobs")
    problem = jobs.locator(".problem")

    page.route("**/panels/jobs", lambda route: route.abort())
    expect(problem).to_contain_text("the backend does not answer")
    expect(jobs.locator(".content")).to_contain_text("embedding pictures")
    page.unroute("**/panels/jobs")
    page.route(
        "**/panels/jobs",
        lambda route: route.fulfill(status=503, content_type="text/html", body="<p>locked</p>"),
    )
    expect(problem).to_contain_text("locked (trying again)")
    page.unroute("**/panels/jobs")

    expect(problem).to_be_hidden()
    expect(page.locator("#panel-versions .problem")).to_be_hidden()


def test_a_tab_that_nobody_sees_asks_nothing(open_page: OpenPage) -> None:
    page = open_page(with_clock=True)
    page.evaluate(
        "Object.defineProperty(document, 'visibilityState', {get: () => window.shown ?? 'hidden'})"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    page.clock.run_for(60_000)
    assert asked == []

    page.evaluate("window.shown = 'visible'")
    with page.expect_request("**/panels/jobs"):
        page.clock.run_for(1_000)


def test_label_studio_leads_to_the_page_and_the_page_to_label_studio(
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    project: NewProject,
    browser: Browser,
) -> None:
    images = project(pictures=12, title="Things to wear")
    said = backend.run_cli("connect", "--project", str(images.id), "--backend-url", backend.url)
    address = f"{backend.url}/projects/{images.id}"
    assert f"see the project at {address}" in said
    [registered] = images.client.ml_backends(images.id)
    assert address in registered["title"]
    assert address in registered["description"]
    assert_settled(backend, images)

    context = browser.new_context(
        http_credentials={"username": "label-studio", "password": "not a secret"}
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    page.goto(address)
    expect(page.locator("h1")).to_have_text("Things to wear")
    expect(page.locator("#panel-jobs")).to_contain_text("12 of 12 open tasks")
    health = page.locator("#panel-health")
    health.scroll_into_view_if_needed()
    expect(health).to_contain_text("All is well.")
    expect(page.locator("#panel-class_balance")).to_contain_text("0 labels of")

    [task, *_] = images.tasks()
    images.annotate(task.id, images.choice_of(task))

    expect(page.locator("#panel-class_balance")).to_contain_text("1 labels of")
    expect(page.locator("#panel-overview")).to_contain_text(
        re.compile("learned from 1 annotated tasks")
    )
    link = page.get_by_role("link", name="Open in Label Studio", exact=True).get_attribute("href")
    assert link == f"{label_studio.url}/projects/{images.id}/data"
    context.close()
