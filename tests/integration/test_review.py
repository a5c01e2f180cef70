"""What `review` prints of a version's report, and the view that it keeps in Label Studio."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.errors import SettingsError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.views import MOST_IN_VIEW
from backend.learning.head import Head
from backend.review import VIEW_TITLE, review
from backend.store import Store
from backend.store.versions import ControlHead, Version
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio

Report = dict[str, dict[str, Any]]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    # One database will do: the store's own tests hold both to the same.
    return f"sqlite:///{tmp_path / 'store.sqlite3'}"


@pytest.fixture
def run(
    store: Store, label_studio: FakeLabelStudio, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Return what reviews the fake project and returns what was printed."""
    client = LabelStudio(label_studio.url, label_studio.token)
    store.projects.set_up(PROJECT)

    def run(limit: int = 50) -> str:
        review(store, client, PROJECT, limit=limit)
        return capsys.readouterr().out

    yield run
    client.close()


def publish(store: Store, report: Report) -> None:
    def head() -> Head:
        return Head(weights=torch.zeros(2, 4), bias=torch.zeros(2), multiple=False)

    store.versions.publish(
        Version(
            project_id=PROJECT,
            number=0,
            fingerprint="0" * 64,
            encoder="tiny",
            query_strategy="margin",
            score="confidence",
            heads={name: ControlHead(("red", "green"), head()) for name in report},
            report=report,
        )
    )


def suspect(task: int, **changes: Any) -> dict[str, Any]:
    facts = {"task": task, "given": ["red"], "suggested": ["green"], "confidence": 0.876}
    return facts | changes


def annotated(label_studio: FakeLabelStudio, count: int) -> list[int]:
    tasks = label_studio.add_tasks(*["picture"] * count)
    for task in tasks:
        label_studio.annotate(task, "red")
    return tasks


def shown_tasks(label_studio: FakeLabelStudio) -> list[int]:
    """Return the tasks that the only view finds, as Label Studio reads its filter."""
    [view] = label_studio.views.values()
    assert view["title"] == VIEW_TITLE
    [wanted] = view["filters"]["items"]
    assert (wanted["filter"], wanted["operator"]) == ("filter:tasks:id", "regex")
    # Only so does the page of the Data Manager know the operator.
    assert wanted["type"] == view["columnsDisplayType"]["tasks:id"] == "String"
    return [task for task in label_studio.tasks if re.search(wanted["value"], str(task))]


def test_suspects_are_listed_and_shown_in_a_view(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    tasks = annotated(label_studio, 5)
    publish(store, {"colour": {"suspects": [suspect(tasks[3]), suspect(tasks[1])]}})

    printed = run()

    [view] = label_studio.views
    row = next(line for line in printed.splitlines() if "88%" in line)
    assert [str(tasks[3]), "red", "green", "88%"] == row.replace("│", " ").split()
    assert f"{label_studio.url}/projects/{PROJECT}/data?tab={view}\n" in printed
    assert shown_tasks(label_studio) == [tasks[1], tasks[3]]


def test_a_second_review_moves_the_view_and_keeps_its_columns(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    tasks = annotated(label_studio, 4)
    publish(store, {"colour": {"suspects": [suspect(tasks[0])]}})
    run()
    [view] = label_studio.views
    label_studio.views[view] |= {
        "columnsWidth": {"id": 90},
        "columnsDisplayType": {"tasks:data.size": "Number"},
        "selectedItems": {"all": True},
    }
    publish(store, {"colour": {"suspects": [suspect(tasks[2])]}})

    assert f"tab={view}" in run()

    assert shown_tasks(label_studio) == [tasks[2]]
    assert label_studio.views[view]["columnsWidth"] == {"id": 90}
    assert label_studio.views[view]["columnsDisplayType"]["tasks:data.size"] == "Number"
    assert "selectedItems" not in label_studio.views[view]


def test_the_view_goes_when_nothing_is_suspected(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    [task] = annotated(label_studio, 1)
    label_studio.views[99] = {"title": "Mine"}
    publish(store, {"colour": {"suspects": [suspect(task)]}})
    run()
    publish(store, {"colour": {"suspects": []}})

    printed = run()

    assert "colour: no label is suspected" in printed
    assert f'removed the view "{VIEW_TITLE}"' in printed
    assert label_studio.views == {99: {"title": "Mine"}}
    assert "removed" not in run()


def test_too_few_labels_are_told_from_labels_that_are_all_right(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    publish(store, {"colour": {"labels": 2}, "kind": {"suspects": None}})

    printed = run()

    assert "colour: too few labels to judge each by the others" in printed
    assert "kind: too few labels to judge each by the others" in printed
    assert label_studio.views == {}


def test_the_limit_shortens_the_list_and_not_the_view(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    tasks = annotated(label_studio, 5)
    publish(store, {"colour": {"suspects": [suspect(task) for task in tasks]}})

    printed = run(limit=2)

    assert printed.count("88%") == 2
    assert "and 3 more" in printed
    assert shown_tasks(label_studio) == tasks


def test_the_view_holds_the_most_suspicious_tasks_of_all_controls(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    tasks = annotated(label_studio, MOST_IN_VIEW + 20)
    publish(
        store,
        {
            "colour": {"suspects": [suspect(task) for task in tasks[: MOST_IN_VIEW + 5]]},
            # One of them is suspected of both.
            "kind": {"suspects": [suspect(task) for task in (tasks[0], *tasks[-5:])]},
        },
    )

    printed = run()

    assert f"of {MOST_IN_VIEW} tasks, the most suspicious ones:" in printed
    assert shown_tasks(label_studio) == [*tasks[: MOST_IN_VIEW - 5], *tasks[-5:]]


def test_the_choices_of_a_multiple_control_are_listed_as_they_are_named(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    [task] = annotated(label_studio, 1)
    changed = suspect(task, given=[], suggested=["[red]wet[/red]", "old"])
    publish(store, {"[bold]state": {"suspects": [changed]}})

    printed = run()

    assert "[bold]state: suspected label errors" in printed
    assert "–" in printed
    assert "[red]wet[/red], old" in printed


def test_annotators_are_listed_by_email_with_their_agreement(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    agreement = {
        "tasks": 40,
        "pairwise": 0.875,
        "alpha": 0.8123,
        "annotators": [
            {"annotator": 1, "tasks": 60, "compared": 40, "agreement": 0.925},
            {"annotator": 3, "tasks": 5, "compared": 0, "agreement": None},
        ],
    }
    publish(store, {"colour": {"suspects": [], "agreement": agreement}})

    printed = run()

    cells = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["ada@example.com", "60", "40", "92%"] in cells
    # Somebody who has left.
    assert ["user", "3", "5", "0", "–"] in cells
    assert "pairwise agreement 88%" in " ".join(printed.split())
    assert "alpha 0.81" in " ".join(printed.split())


def test_annotators_who_share_no_task_are_not_compared(
    run: Callable[..., str], store: Store, label_studio: FakeLabelStudio
) -> None:
    alone = {"annotator": 1, "tasks": 60, "compared": 0, "agreement": None}
    agreement = {"tasks": 0, "pairwise": None, "alpha": None, "annotators": [alone]}
    publish(store, {"colour": {"suspects": [], "agreement": agreement}})

    assert "annotators" not in run()


@pytest.mark.parametrize("connection", [None, {"backend_url": "http://backend:9090"}])
def test_the_view_is_remembered_where_it_can_be_undone(
    run: Callable[..., str],
    store: Store,
    label_studio: FakeLabelStudio,
    connection: dict[str, Any] | None,
) -> None:
    [task] = annotated(label_studio, 1)
    publish(store, {"colour": {"suspects": [suspect(task)]}})
    store.projects.update(PROJECT, connection=connection)

    run()

    project = store.projects.get(PROJECT)
    assert project is not None
    [view] = label_studio.views
    assert project.connection == (connection and connection | {"views": {VIEW_TITLE: view}})


def test_a_project_without_a_version_is_told_to_train(run: Callable[..., str]) -> None:
    with pytest.raises(SettingsError, match=f"clip-backend train --project {PROJECT}"):
        run()
