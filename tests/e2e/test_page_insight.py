"""The page's panels on labels and predictions, in a real browser beside a real Label Studio."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from backend.demo.label_studio import LabelStudioServer
from backend.learning.confusion import confusion
from backend.settings import Settings
from backend.store import Store
from backend.store.contents import (
    EmbeddingMap,
    MapColours,
    QueuedTask,
    confusions_to_bytes,
    map_to_bytes,
    queue_to_bytes,
)
from backend.store.findings import FindingKind
from backend.store.tasks import StoredTask
from tests.e2e.browser import GRAVE, log_in, save_screenshot, serving
from tests.e2e.parts import PATIENCE, LabelledProject, RunningBackend, assert_settled, wait_for
from tests.integration.page_parts import HOSTILE_NAMES, PROJECT, publish

NewProject = Callable[..., LabelledProject]

PANELS = ("learning_curve", "uncertain", "confusion", "acceptance", "suspects", "map")
SIZES = (10, 15, 20, 30, 40, 60, 80, 120, 160)
MANY = 20_000

# A chart that ECharts has drawn.
DRAWN = "[data-chart][_echarts_instance_]"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's window of somebody whom the backend knows, and nobody else yet."""
    opened = browser.new_context(
        viewport={"width": 1280, "height": 900},
        http_credentials={"username": "label-studio", "password": "not a secret"},
    )
    opened.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    yield opened
    opened.close()


def shown(page: Page, name: str) -> Locator:
    """Return a panel once it has something to show."""
    panel = page.locator(f"#panel-{name}")
    panel.scroll_into_view_if_needed()
    expect(panel.locator(".waiting")).to_have_count(0)
    return panel


# With a real Label Studio


@pytest.fixture
def annotated(backend: RunningBackend, project: NewProject) -> LabelledProject:
    """A project half of whose pictures are annotated, some of them wrongly."""
    images = project(pictures=60)
    backend.connect(images)
    assert_settled(backend, images)
    for number, task in enumerate(images.tasks()[:30]):
        right = images.choice_of(task)
        images.annotate(task.id, "Hat" if number % 7 == 3 and right != "Hat" else right)
    assert_settled(backend, images)
    return images


def loaded(picture: Locator) -> bool:
    return bool(picture.evaluate("(image) => image.complete && image.naturalWidth > 0"))


def test_pictures_are_those_that_the_viewer_may_see_in_label_studio(
    annotated: LabelledProject,
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    context: BrowserContext,
) -> None:
    page = context.new_page()
    address = f"{backend.url}/projects/{annotated.id}"
    page.goto(address)
    picture = shown(page, "uncertain").locator("img").first
    wait_for(lambda: picture.evaluate("(image) => image.complete"), "the picture is asked for")
    assert not loaded(picture)

    log_in(page, label_studio)
    page.goto(address)

    panel = shown(page, "uncertain")
    expect(panel.locator("img")).to_have_count(24)
    wait_for(lambda: loaded(panel.locator("img").first), "the picture is shown")
    first = annotated.next()
    assert first is not None
    link = panel.locator("a").first.get_attribute("href")
    assert link == f"{label_studio.url}/projects/{annotated.id}/data?task={first.id}"


def test_what_is_confused_opens_in_label_studio(
    annotated: LabelledProject,
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    context: BrowserContext,
) -> None:
    page = context.new_page()
    log_in(page, label_studio)
    page.goto(f"{backend.url}/projects/{annotated.id}")
    row = shown(page, "confusion").locator("tr", has=page.locator("form")).first
    count = int(re.findall(r"\d+", row.locator("td").nth(2).inner_text())[0])

    with context.expect_page() as opened:
        row.get_by_role("button").click()

    data_manager = opened.value
    data_manager.wait_for_url(re.compile(rf"{label_studio.url}/projects/{annotated.id}/data"))
    expect(data_manager.get_by_text("Confused choices").first).to_be_visible()
    expect(data_manager.get_by_text(re.compile(rf"Tasks: {count} / 60")).first).to_be_visible()


def test_the_map_is_drawn_while_the_page_is_open_and_shows_each_picture(
    annotated: LabelledProject,
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    context: BrowserContext,
    request: pytest.FixtureRequest,
) -> None:
    page = context.new_page()
    log_in(page, label_studio)
    page.goto(f"{backend.url}/projects/{annotated.id}")

    panel = shown(page, "map")

    expect(panel).to_contain_text("60 images")
    expect(panel).not_to_contain_text("being drawn")
    folder: Path | None = request.config.getoption("--screenshots")
    if folder is not None:
        keep_whole_page(page, folder / "page.png")
    wait_for(lambda: tip_of_a_point(panel), "a point tells of its task")
    wait_for(lambda: loaded(panel.locator(".tip img")), "its picture is shown")


def keep_whole_page(page: Page, file: Path) -> None:
    for panel in page.locator(".panel").all():
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".waiting")).to_have_count(0)
    for picture in page.locator("img").all():
        wait_for(lambda picture=picture: loaded(picture), "a picture is shown")
    save_screenshot(page, file, full_page=True)


def tip_of_a_point(panel: Locator) -> bool:
    """Move the mouse over the map until a point tells of itself."""
    chart = panel.locator(DRAWN)
    box = chart.bounding_box()
    assert box is not None
    for y in range(50, int(box["height"]) - 10, 12):
        chart.hover(position={"x": box["width"] / 2, "y": y})
        for x in range(10, int(box["width"]) - 10, 12):
            panel.page.mouse.move(box["x"] + x, box["y"] + y)
            if panel.locator(".tip").filter(has_text="task").count():
                return True
    return False


# With names and numbers that no real project has at once


def hostile_project(store: Store) -> None:
    """Keep a project of three controls and 20,000 tasks whose names are all hostile."""
    choices = HOSTILE_NAMES
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, len(choices), (900,), generator=generator)
    logits = torch.randn(900, len(choices), generator=generator)
    logits[torch.arange(900), given] += 3
    found = confusion(logits.softmax(dim=1), given, [*range(900)], choices, multiple=False)
    random = np.random.default_rng(0)
    predicted = random.integers(0, len(choices), MANY).astype(np.int32)
    colours = MapColours(
        choices, np.where(np.arange(MANY) % 9, -1, predicted).astype(np.int32), predicted
    )
    drawn = EmbeddingMap(
        source="tiny $image",
        rounds=4,
        done=True,
        tasks=MANY,
        ids=np.arange(MANY, dtype=np.int64),
        places=random.normal(size=(MANY, 2)).astype(np.float32),
        uncertainties=random.uniform(size=MANY).astype(np.float32),
        colours=dict.fromkeys(choices[:3], colours),
    )
    head = [
        QueuedTask(task, 0.1, {name: [(choices[task % 9], 0.4)] * 2 for name in choices[:3]})
        for task in range(200)
    ]
    suspects = [
        {"task": task, "given": [choices[0]], "suggested": [choices[task % 9]], "confidence": 0.9}
        for task in range(300)
    ]
    for labels in SIZES:
        accuracy = 0.95 - 2 * labels**-0.7
        report = {
            "labels": labels,
            "per_choice": dict.fromkeys(choices, labels),
            "out_of_fold": {"top1": accuracy - 0.05, "calibration_error": 0.05},
            "pool_accuracy": {"value": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.04},
            "acceptance": {"shown": labels, "kept": labels // 2, "until": labels},
            "suspects": suspects,
        }
        version = publish(store, dict.fromkeys(choices[:3], report), labels=choices)
    store.findings.keep(
        PROJECT,
        version.name,
        {
            FindingKind.CONFUSION: confusions_to_bytes(dict.fromkeys(choices[:3], found)),
            FindingKind.QUEUE: queue_to_bytes(head),
            FindingKind.MAP: map_to_bytes(drawn),
        },
    )
    pages = (
        [
            StoredTask(n, {"image": f"/data/upload/7/{n}.png"}, True)
            for n in range(start, start + 1000)
        ]
        for start in range(0, MANY, 1000)
    )
    store.tasks.mirror(PROJECT, pages)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a page whose Label Studio is away."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("page"),
        clip_model="tiny",
        # Nobody listens there.
        label_studio_url="http://127.0.0.1:1",
        label_studio_api_key="token",
    )
    store = Store.open(settings.database)
    hostile_project(store)
    with serving(settings) as address:
        yield f"{address}/projects/{PROJECT}"
    store.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_panels_are_accessible_at_any_width(
    browser: Browser,
    served: str,
    width: int,
    scheme: str,
    request: pytest.FixtureRequest,
) -> None:
    complaints: list[str] = []
    window = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = window.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    page.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    page.goto(served)

    for name in PANELS:
        shown(page, name)
    for name, count in (("learning_curve", 3), ("confusion", 3), ("acceptance", 1), ("map", 1)):
        expect(page.locator(f"#panel-{name} {DRAWN}")).to_have_count(count)

    found = Axe().run(page).response["violations"]
    assert [each for each in found if each["impact"] in GRAVE] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder: Path | None = request.config.getoption("--screenshots")
    if folder is not None:
        for name in PANELS:
            page.locator(f"#panel-{name}").screenshot(path=folder / f"{name}-{width}-{scheme}.png")
    window.close()


def test_a_map_of_many_points_is_coloured_as_one_chooses(
    served: str, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(served)
    panel = shown(page, "map")
    chart = panel.locator(DRAWN)
    expect(chart).to_have_count(1)
    chosen = panel.get_by_label("Colours")
    before = chart.screenshot()

    with page.expect_response(re.compile("colour=uncertainty")):
        chosen.select_option("uncertainty")

    wait_for(lambda: chart.screenshot() != before, "the colours are others")
    assert tip_of_a_point(panel)


def test_a_click_on_a_cell_presses_the_button_of_its_tasks(
    served: str, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(served)
    chart = shown(page, "confusion").locator(DRAWN).first
    box = chart.bounding_box()
    assert box is not None

    def press() -> bool:
        for x in range(int(box["width"] * 0.4), int(box["width"] * 0.9), 24):
            chart.click(position={"x": x, "y": 60})
            if len(context.pages) > 1:
                return True
        return False

    wait_for(press, "a cell is pressed")

    # Label Studio is away, and the page says so.
    expect(context.pages[1].locator("main")).to_contain_text("Label Studio does not answer")
