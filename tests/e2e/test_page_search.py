"""Searching and rewording on the page, in a real browser beside a real Label Studio."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from backend.demo.label_studio import LabelStudioServer
from backend.page.searching import VIEW_TITLE
from tests.e2e.browser import GRAVE, log_in
from tests.e2e.parts import (
    PATIENCE,
    SOME_CHOICES,
    LabelledProject,
    RunningBackend,
    assert_settled,
    wait_for,
)

NewProject = Callable[..., LabelledProject]

CHOICE = SOME_CHOICES[0]


@pytest.fixture
def images(backend: RunningBackend, project: NewProject) -> LabelledProject:
    """A connected project of which half of the pictures are annotated."""
    made = project(pictures=60)
    backend.connect(made)
    assert_settled(backend, made)
    for task in made.tasks()[:30]:
        made.annotate(task.id, made.choice_of(task))
    wait_for(lambda: not backend.work(made.id), "all annotations are looked at")
    return made


@pytest.fixture
def page(
    browser: Browser,
    label_studio: LabelStudioServer,
    backend: RunningBackend,
    images: LabelledProject,
) -> Iterator[Page]:
    """The project's page, for somebody who is logged in to Label Studio too."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        http_credentials={"username": "label-studio", "password": "not a secret"},
    )
    context.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    opened = context.new_page()
    log_in(opened, label_studio)
    opened.goto(f"{backend.url}/projects/{images.id}")
    yield opened
    context.close()


def shown(page: Page, name: str) -> Locator:
    """Return a panel once it has something to show."""
    panel = page.locator(f"#panel-{name}")
    panel.scroll_into_view_if_needed()
    expect(panel.locator(".waiting")).to_have_count(0)
    return panel


def hits(panel: Locator) -> list[int]:
    """Return the tasks that are shown, most alike first."""
    pictures = panel.locator("#search-hits .pictures img")
    names = [str(each.get_attribute("alt")) for each in pictures.all()]
    return [int(re.findall(r"\d+", name)[0]) for name in names]


def assert_accessible(page: Page, panel: str) -> None:
    found = Axe().run(page, context=f"#panel-{panel}").response["violations"]
    assert [each for each in found if each["impact"] in GRAVE] == []


def test_what_is_found_is_refined_by_examples_and_shown_in_label_studio(
    page: Page, images: LabelledProject
) -> None:
    tasks = {task.id: task for task in images.tasks()}
    alike = {task_id for task_id, task in tasks.items() if images.choice_of(task) == CHOICE}
    still_open = {task_id for task_id, task in tasks.items() if task.open}
    panel = shown(page, "search")

    panel.get_by_role("searchbox").fill(CHOICE)
    panel.get_by_role("searchbox").press("Enter")

    expect(panel.locator("#search-hits .pictures img")).to_have_count(len(still_open))
    found = hits(panel)
    right = len(alike & still_open)
    assert len(set(found[:right]) & alike) >= right - 1
    first = panel.locator("#search-hits .pictures li").first
    wait_for(
        lambda: first.locator("img").evaluate("(image) => image.naturalWidth > 0"),
        "the picture comes from Label Studio",
    )
    assert_accessible(page, "search")

    first.get_by_role("checkbox").check()
    panel.get_by_role("checkbox", name="only tasks that are not labelled yet").uncheck()
    panel.get_by_role("button", name="Search").click()

    expect(panel.get_by_role("checkbox", name=f"task {found[0]}")).to_be_checked()
    expect(panel.locator("#search-hits .pictures img")).to_have_count(len(tasks) - 1)
    assert len(set(hits(panel)[: len(alike) - 3]) & alike) > (len(alike) - 3) // 2

    panel.get_by_label("like tasks").fill("4711000")
    panel.get_by_role("button", name="Search").click()
    expect(page.locator("#said")).to_contain_text("has no task 4711000")


def test_the_hits_are_a_view_of_the_data_manager(page: Page, images: LabelledProject) -> None:
    panel = shown(page, "search")
    panel.get_by_role("searchbox").fill(CHOICE)
    panel.get_by_role("button", name="Search").click()
    expect(panel.locator("#search-hits .pictures img").first).to_be_visible()
    found = hits(panel)

    panel.get_by_role("button", name="Show these in Label Studio").dblclick()
    link = panel.get_by_role("link", name=VIEW_TITLE)
    expect(link).to_be_visible()

    with page.context.expect_page() as opened:
        link.click()
    data_manager = opened.value
    expect(data_manager.get_by_text(f"Tasks: {len(found)} / {len(images.tasks())}")).to_be_visible()
    rows = data_manager.get_by_role("checkbox", name=re.compile(r"^Select Task \d+$"))
    expect(rows.first).to_be_visible()
    # Label Studio draws those that are in sight.
    labels = {str(row.get_attribute("aria-label")) for row in rows.all()}
    assert labels <= {f"Select Task {task}" for task in found}
    assert [view["data"]["title"] for view in images.client.views(images.id)].count(VIEW_TITLE) == 1


def test_prompts_are_judged_saved_and_make_a_new_version(
    page: Page, backend: RunningBackend, images: LabelledProject
) -> None:
    before = backend.store.versions.active(images.id)
    assert before is not None
    panel = shown(page, "prompts")

    panel.get_by_label(CHOICE).fill("zzz\nqqq")
    panel.get_by_role("button", name="Show the effect").click()

    expect(panel.locator("#prompts-effect")).to_contain_text("on 30 labelled tasks")
    expect(panel.locator("#prompts-effect")).to_contain_text("95 % interval")
    [ours] = images.client.ml_backends(images.id)
    assert not ours["extra_params"]
    assert_accessible(page, "prompts")

    panel.get_by_label(CHOICE).fill("something else")
    panel.get_by_role("button", name="Save these prompts").click()
    expect(page.locator("#said")).to_contain_text("show the effect again")

    panel.get_by_label(CHOICE).fill("zzz\nqqq")
    panel.get_by_role("button", name="Save these prompts").dblclick()
    expect(page.locator("#said")).to_contain_text("The prompts are saved")

    [saved] = images.client.ml_backends(images.id)
    assert saved["extra_params"] == {"prompts": {CHOICE: ["zzz", "qqq"]}}
    unchanged = ("title", "state", "auth_method", "basic_auth_user", "basic_auth_pass_is_set")
    assert [saved[name] for name in unchanged] == [ours[name] for name in unchanged]
    # The form shows what is kept now, and a training has followed by itself.
    expect(panel.locator("#prompts-effect")).to_be_empty()
    expect(panel.get_by_label(CHOICE)).to_have_value("zzz\nqqq")

    def changed() -> bool:
        after = backend.store.versions.active(images.id)
        return after is not None and after.fingerprint != before.fingerprint

    wait_for(changed, "a version with the prompts is published")
