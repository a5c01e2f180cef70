"""Hundreds of labels: a tree of them, a shortlist beside them, and lists that come with tasks."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

from playwright.sync_api import Page, expect

from backend.demo.label_studio import LabelStudioServer
from backend.demo.pictures import render
from tests.e2e.parts import (
    PATIENCE,
    SOME_CHOICES,
    LabelledProject,
    RunningBackend,
    assert_settled,
    wait_for,
)
from tests.e2e.test_browser import keep_screenshot, page

__all__ = ["keep_screenshot", "page"]

NewProject = Callable[..., LabelledProject]

IMAGE = '<Image name="image" value="$image" maxWidth="300px"/>'
SHORTLIST = (
    '<TextArea name="likeliest" toName="image" shortlistOf="choice" editable="false" '
    'maxSubmissions="0"/>'
)

# The choices of the drawn pictures, some in each branch, among others that no picture shows.
BRANCHES = {"Shown": SOME_CHOICES[:3], "Also shown": SOME_CHOICES[3:], "Never": ("Sky", "Sea")}
PATH_OF = {leaf: [branch, leaf] for branch, leaves in BRANCHES.items() for leaf in leaves}


def taxonomy() -> str:
    tree = "".join(
        f'<Choice value="{branch}">{"".join(f"""<Choice value="{leaf}"/>""" for leaf in leaves)}'
        "</Choice>"
        for branch, leaves in BRANCHES.items()
    )
    return (
        f"<View>{IMAGE}{SHORTLIST}"
        f'<Taxonomy name="choice" toName="image" showFullPath="true" leafsOnly="true">{tree}'
        "</Taxonomy></View>"
    )


def data_uri(choice: str, number: int) -> str:
    file = BytesIO()
    render(choice, number, 96).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def annotate(project: LabelledProject, task_id: int, kind: str, selected: list[Any]) -> None:
    item = {
        "from_name": "choice",
        "to_name": "image",
        "type": kind,
        "value": {kind: selected},
    }
    project.api("POST", f"/api/tasks/{task_id}/annotations/", json={"result": [item]})


def shown(project: LabelledProject) -> dict[int, list[dict[str, Any]]]:
    """Return the results of the current version's predictions by task."""
    version = project.model_version()
    listed = project.api("GET", "/api/predictions", params={"project": project.id})
    return {each["task"]: each["result"] for each in listed if each["model_version"] == version}


def test_a_taxonomy_is_predicted_learnt_and_shown_with_its_likeliest_paths(
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    project: NewProject,
    page: Page,
    keep_screenshot: Callable[[str], None],
) -> None:
    images = project(pictures=36, size=256, config=taxonomy(), title="Things in a tree")
    backend.connect(images)
    first = assert_settled(backend, images)
    for task in images.tasks()[:18]:
        annotate(images, task.id, "taxonomy", [PATH_OF[images.choice_of(task)]])

    assert assert_settled(backend, images) != first
    version = backend.store.versions.active(images.id)
    assert version is not None
    assert version.report["choice"]["labels"] == 18
    predicted = shown(images)
    open_tasks = [task for task in images.tasks() if task.open]
    right = 0
    for task in open_tasks:
        selection, shortlist = predicted[task.id]
        (path,) = selection["value"]["taxonomy"]
        right += path == PATH_OF[images.choice_of(task)]
        of_branch, of_leaf = selection["meta"]["levels"]
        assert of_branch >= of_leaf == selection["score"]
        assert shortlist["value"]["text"][0].startswith(" / ".join(path))
        assert len(shortlist["value"]["text"]) == 5
    assert right / len(open_tasks) > 0.5

    served = images.api("GET", f"/api/projects/{images.id}/next")
    page.goto(f"{label_studio.url}/projects/{images.id}/data?labeling=1", wait_until="commit")

    selection, shortlist = predicted[served["id"]]
    (path,) = selection["value"]["taxonomy"]
    for line in shortlist["value"]["text"]:
        expect(page.get_by_text(line, exact=True)).to_be_visible(timeout=PATIENCE * 1000)
    expect(page.locator(".htx-taxonomy, .lsf-taxonomy, .taxonomy").first).to_contain_text(
        " / ".join(path)
    )
    keep_screenshot("shortlist-taxonomy")

    page.get_by_role("button", name="Submit current annotation").click()
    address = f"/api/tasks/{served['id']}"
    wait_for(lambda: images.api("GET", address)["annotations"], "the annotation is saved")
    (annotation,) = images.api("GET", address)["annotations"]
    kept = {each["from_name"]: each["value"] for each in annotation["result"]}
    assert kept["choice"] == {"taxonomy": [path]}
    # With that annotation it is all settled again: what the shortlist said is no label.
    assert_settled(backend, images)


def test_a_thousand_choices_are_predicted_with_the_five_likeliest_beside_them(
    backend: RunningBackend,
    label_studio: LabelStudioServer,
    project: NewProject,
    page: Page,
    keep_screenshot: Callable[[str], None],
) -> None:
    names = [*SOME_CHOICES, *(f"part {number:04d}" for number in range(994))]
    listed = "".join(f'<Choice value="{name}"/>' for name in names)
    images = project(
        pictures=24,
        size=256,
        config=f'<View>{IMAGE}{SHORTLIST}<Choices name="choice" toName="image" layout="select">'
        f"{listed}</Choices></View>",
        title="A thousand choices",
    )
    backend.connect(images)
    assert_settled(backend, images)
    for task in images.tasks()[:12]:
        images.annotate(task.id, images.choice_of(task))
    assert_settled(backend, images)

    version = backend.store.versions.active(images.id)
    assert version is not None
    assert version.report["choice"]["choices"] == 1000
    predicted = shown(images)
    assert all(len(str(result)) < 2000 for result in predicted.values())
    served = images.api("GET", f"/api/projects/{images.id}/next")
    page.goto(f"{label_studio.url}/projects/{images.id}/data?labeling=1", wait_until="commit")

    _, shortlist = predicted[served["id"]]
    assert len(shortlist["value"]["text"]) == 5
    for line in shortlist["value"]["text"]:
        expect(page.get_by_text(line, exact=True)).to_be_visible(timeout=PATIENCE * 1000)
    keep_screenshot("shortlist")


def test_each_task_is_predicted_among_the_choices_that_it_lists(
    backend: RunningBackend, label_studio: LabelStudioServer, project: NewProject, page: Page
) -> None:
    config = f'<View>{IMAGE}<Choices name="choice" toName="image" value="$options"/></View>'
    images = project(pictures=0, title="Choices of tasks", config=config)
    tasks: list[dict[str, Any]] = [
        {
            "image": data_uri(SOME_CHOICES[number % 6], number),
            "options": [
                {"value": SOME_CHOICES[number % 6]},
                {"value": "A thing", "alias": f"thing-{number % 3}"},
            ],
        }
        for number in range(12)
    ]
    images.api("POST", f"/api/projects/{images.id}/import", json=tasks[:8])
    backend.connect(images)
    assert_settled(backend, images)
    some = images.tasks()[:4]
    for task in some:
        options = task.data["options"]
        annotate(images, task.id, "choices", [options[0]["value"]])  # type: ignore[index]
    # Those that come later have choices that no version knows yet.
    tasks[9]["options"] = [{"value": "Brand new"}, {"value": "Newer", "alias": "newer"}]
    images.api("POST", f"/api/projects/{images.id}/import", json=tasks[8:])

    assert_settled(backend, images)

    predicted = shown(images)
    for task in images.tasks():
        if task.open:
            (selection,) = predicted[task.id]
            stored = {each.get("alias", each["value"]) for each in task.data["options"]}  # type: ignore[attr-defined]
            assert set(selection["value"]["choices"]) <= stored
    new = next(task for task in images.tasks() if "Brand new" in str(task.data))
    page.goto(f"{label_studio.url}/projects/{images.id}/data?task={new.id}", wait_until="commit")
    expect(page.locator(".lsf-choice").first).to_be_visible(timeout=PATIENCE * 1000)
    expect(page.locator("input.ant-checkbox-input:checked")).to_have_count(1)
