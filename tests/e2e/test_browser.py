"""What an annotator sees: Label Studio's own page in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from backend.demo.label_studio import LabelStudioServer
from tests.e2e.browser import chromium, log_in, save_screenshot
from tests.e2e.parts import PATIENCE, LabelledProject, RunningBackend, assert_settled, wait_for

NewProject = Callable[..., LabelledProject]

# Of the projects that the documentation shows.
TITLE = "Things to wear"


@pytest.fixture
def page(label_studio: LabelStudioServer) -> Iterator[Page]:
    """Return a page of a browser that is logged in."""
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(PATIENCE * 1000)
        # Nothing but Label Studio is asked for anything.
        opened.route(lambda url: not url.startswith(label_studio.url), lambda route: route.abort())
        log_in(opened, label_studio)
        yield opened


@pytest.fixture
def keep_screenshot(page: Page, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what takes a picture of the page for the documentation, where --screenshots asks."""
    folder: Path | None = request.config.getoption("--screenshots")

    def keep(name: str) -> None:
        if folder is not None:
            save_screenshot(page, folder / f"{name}.png")

    return keep


def test_the_annotator_is_shown_the_least_certain_task_with_its_prediction_selected(
    backend: RunningBackend, label_studio: LabelStudioServer, project: NewProject, page: Page
) -> None:
    images = project(pictures=30)
    backend.connect(images)
    assert_settled(backend, images)
    _train_when_asked(backend, images)
    version = images.model_version()
    current = [each for each in images.predictions() if each.model_version == version]
    first, second = sorted(current, key=lambda prediction: prediction.score)[:2]

    page.goto(f"{label_studio.url}/projects/{images.id}/data?labeling=1", wait_until="commit")

    _expect_task(page, first.task)
    assert _selected(page) == list(first.choices)

    [served] = [task for task in images.tasks() if task.id == first.task]
    truth = images.choice_of(served)
    page.locator(f'input.ant-checkbox-input[name="{truth}"]').check()
    page.get_by_role("button", name="Submit current annotation").click()

    _expect_task(page, second.task)
    assert _selected(page) == list(second.choices)
    [annotated] = [task for page_ in images.client.annotated_tasks(images.id) for task in page_]
    assert annotated.id == first.task
    assert annotated.annotations[0]["result"][0]["value"]["choices"] == [truth]  # type: ignore[index]

    backend.run_cli("train", "--project", str(images.id))
    assert_settled(backend, images)
    least_certain = images.next()
    assert least_certain is not None
    page.goto(f"{label_studio.url}/projects/{images.id}/data?labeling=1", wait_until="commit")

    _expect_task(page, least_certain.id)
    assert _selected(page) == list(least_certain.choices)


def test_the_view_of_the_data_manager_lists_the_least_certain_task_first(
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    project: NewProject,
    page: Page,
    keep_screenshot: Callable[[str], None],
) -> None:
    images = project(pictures=12, size=256, title=TITLE)
    backend.connect(images)
    assert_settled(backend, images)
    version = images.model_version()
    current = [each for each in images.predictions() if each.model_version == version]
    expected = [each.task for each in sorted(current, key=lambda each: each.score)]
    [view] = images.client.views(images.id)

    page.goto(f"{label_studio.url}/projects/{images.id}/data?tab={view['id']}", wait_until="commit")

    rows = page.get_by_role("checkbox", name=re.compile(r"^Select Task \d+$"))
    expect(rows).to_have_count(len(expected), timeout=PATIENCE * 1000)
    labels = [row.get_attribute("aria-label") for row in rows.all()]
    assert labels == [f"Select Task {task}" for task in expected]
    keep_screenshot("data-manager")


def test_a_task_and_the_model_page_as_the_documentation_shows_them(
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    project: NewProject,
    page: Page,
    keep_screenshot: Callable[[str], None],
) -> None:
    images = project(pictures=30, size=256, title=TITLE)
    backend.connect(images)
    assert_settled(backend, images)
    images.annotate_next(10)
    assert_settled(backend, images)
    task = images.next()
    assert task is not None

    page.goto(f"{label_studio.url}/projects/{images.id}/data?labeling=1", wait_until="commit")

    _expect_task(page, task.id)
    keep_screenshot("labeling")

    page.goto(f"{label_studio.url}/projects/{images.id}/settings/ml", wait_until="commit")

    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    keep_screenshot("model-settings")


def _train_when_asked(backend: RunningBackend, images: LabelledProject) -> None:
    # Otherwise the order could become another one between two looks at the page.
    [ml_backend] = images.client.ml_backends(images.id)
    images.client.update_ml_backend(
        ml_backend["id"],
        project=images.id,
        url=ml_backend["url"],
        title=ml_backend["title"],
        auth_method=ml_backend["auth_method"],
        basic_auth_user=backend.environment["BASIC_AUTH_USER"],
        basic_auth_pass=backend.environment["BASIC_AUTH_PASS"],
        extra_params={"retrain_delay": 3600},
    )
    wait_for(
        lambda: backend.store.projects.get(images.id).extra_params,  # type: ignore[union-attr]
        "the extra params arrive",
    )
    assert_settled(backend, images)


def _expect_task(page: Page, task_id: int) -> None:
    expect(page.locator(".lsf-current-task__task-id")).to_have_text(
        re.compile(rf"^{task_id}\s"), use_inner_text=True, timeout=PATIENCE * 1000
    )
    expect(page.locator("input.ant-checkbox-input:checked")).to_have_count(1)


def _selected(page: Page) -> list[str | None]:
    boxes = page.locator("input.ant-checkbox-input:checked")
    return [box.get_attribute("name") for box in boxes.all()]
