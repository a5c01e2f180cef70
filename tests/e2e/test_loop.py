"""What annotators and their lead see of a connected project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.demo.label_studio import LabelStudioServer
from backend.demo.pictures import render
from backend.demo.project import label_config
from tests.e2e.parts import (
    SOME_CHOICES,
    LabelledProject,
    RunningBackend,
    assert_settled,
    is_refreshed,
    of_somebody_else,
    somebody_elses,
    wait_for,
)

NewProject = Callable[..., LabelledProject]

# What changes by itself.
_VOLATILE = {"updated_at", "queue_left", "queue_total", "queue_done"}


def test_the_queue_is_ordered_and_learns_from_each_annotation(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=60)
    # People who call things by other names: what CLIP says at first is all wrong.
    renamed = dict(zip(SOME_CHOICES, (*SOME_CHOICES[1:], SOME_CHOICES[0]), strict=True))
    images.truth = {name: renamed[choice] for name, choice in images.truth.items()}
    backend.connect(images)
    first = assert_settled(backend, images)
    zero_shot = images.accuracy()

    images.annotate_next(24)

    assert assert_settled(backend, images) != first
    assert images.accuracy() > zero_shot + 0.3
    assert backend.store.versions.active(images.id).annotations == 24  # type: ignore[union-attr]


def test_an_annotation_is_taken_whose_page_was_opened_several_versions_ago(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=30)
    backend.connect(images)
    assert_settled(backend, images)
    opened = images.api("GET", f"/api/projects/{images.id}/next")
    (shown,) = opened["predictions"]

    others = [task for task in images.tasks() if task.id != opened["id"]]
    for task in others[:4]:
        images.annotate(task.id, images.choice_of(task))
        wait_for(
            lambda: is_refreshed(backend, images),
            "the annotation is learnt",
            lambda: backend.log()[-2000:],
        )

    # As the page does: with the id of the prediction that it was opened with.
    images.api(
        "POST",
        f"/api/tasks/{opened['id']}/annotations/",
        json={"result": shown["result"], "parent_prediction": shown["id"]},
    )
    assert shown["model_version"] != images.model_version()


def test_connecting_twice_changes_nothing_and_disconnecting_restores_everything(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=30)
    images.client.import_predictions(images.id, somebody_elses(images.tasks()))
    images.api("PATCH", f"/api/projects/{images.id}", json={"model_version": "somebody-else"})
    images.client.add_view(images.id, {"title": "Mine", "type": "list", "target": "tasks"})
    images.client.add_webhook(
        project=images.id, url="http://127.0.0.1:1/mine", send_for_all_actions=True
    )
    before = _everything(images)

    planned = backend.run_cli(
        "connect", "--project", str(images.id), "--backend-url", backend.url, "--dry-run"
    )
    assert "would change" in planned
    assert _everything(images) == before

    backend.connect(images)
    assert_settled(backend, images)
    connected = _everything(images)
    again = backend.run_cli(
        "connect", "--project", str(images.id), "--backend-url", backend.url, "--dry-run"
    )
    assert "connected as it should be" in again
    assert "would change" not in again
    backend.connect(images)
    assert_settled(backend, images)
    assert _everything(images) == connected

    backend.run_cli("disconnect", "--project", str(images.id))
    assert _everything(images) == before
    left = backend.store.projects.get(images.id)
    assert left is not None
    assert not left.connected
    assert backend.store.requests.waiting(images.id) == []


def test_predictions_of_somebody_else_survive(backend: RunningBackend, project: NewProject) -> None:
    images = project(pictures=30)
    images.client.import_predictions(images.id, somebody_elses(images.tasks()))
    theirs = of_somebody_else(images)

    backend.connect(images)
    assert_settled(backend, images)
    images.annotate_next(6)
    assert_settled(backend, images)

    assert of_somebody_else(images) == theirs


def test_two_controls_are_predicted_and_learnt_together(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(
        pictures=30,
        config="""
        <View>
          <Image name="image" value="$image"/>
          <Choices name="kind" toName="image" choice="single">
            <Choice value="Something to wear" alias="clothes"/>
            <Choice value="Something to carry" alias="things"/>
          </Choices>
          <Choices name="seen" toName="image" choice="multiple">
            <Choice value="T-shirt" alias="shirt" predicted_values="polo shirt, sweater"/>
            <Choice value="Shoe" alias="shoe"/>
            <Choice value="Hat" alias="hat"/>
          </Choices>
        </View>
        """,
    )
    backend.connect(images)
    assert_settled(backend, images)
    seen = {"T-shirt": ["shirt"], "Shoe": ["shoe"], "Hat": ["hat", "shirt"]}

    for _ in range(12):
        task = images.next()
        assert task is not None
        choice = images.truth[task.picture]
        kind = "things" if choice == "Bag" else "clothes"
        result = [_choices("kind", [kind])]
        if choice in seen:
            result.append(_choices("seen", seen[choice]))
        images.api("POST", f"/api/tasks/{task.id}/annotations/", json={"result": result})
    assert_settled(backend, images)

    version = backend.store.versions.active(images.id)
    assert version is not None
    assert version.report["kind"]["labels"] == 12
    assert version.report["seen"]["labels"] == 12
    assert set(version.report["seen"]["per_choice"]) == {"shirt", "shoe", "hat"}
    items = [
        item
        for prediction in images.api("GET", "/api/predictions", params={"project": images.id})
        for item in prediction["result"]
    ]
    assert {item["from_name"] for item in items} >= {"kind"}
    for item in items:
        allowed = {"kind": {"clothes", "things"}, "seen": {"shirt", "shoe", "hat"}}
        assert set(item["value"]["choices"]) <= allowed[item["from_name"]]


def test_annotations_made_from_predictions_in_bulk_are_learnt(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=30)
    backend.connect(images)
    first = assert_settled(backend, images)
    chosen = [task.id for task in images.tasks()][:10]

    images.api(
        "POST",
        "/api/dm/actions",
        params={"id": "predictions_to_annotations", "project": images.id},
        json={"model_version": first, "selectedItems": {"all": False, "included": chosen}},
    )

    assert assert_settled(backend, images) != first
    assert {task.id for task in images.tasks() if not task.open} == set(chosen)


@pytest.mark.parametrize("how", ["one by one", "in bulk"])
def test_deleted_annotations_are_forgotten(
    backend: RunningBackend, project: NewProject, how: str
) -> None:
    images = project(pictures=30)
    backend.connect(images)
    first = assert_settled(backend, images)
    annotations = []
    for _ in range(6):
        task = images.next()
        assert task is not None
        annotations.append(images.annotate(task.id, images.truth[task.picture]))
    second = assert_settled(backend, images)
    assert second != first

    if how == "in bulk":
        images.api(
            "POST",
            "/api/dm/actions",
            params={"id": "delete_tasks_annotations", "project": images.id},
            json={"selectedItems": {"all": True, "excluded": []}},
        )
    else:
        for annotation in annotations:
            images.api("DELETE", f"/api/annotations/{annotation}/")

    assert assert_settled(backend, images) not in (first, second)
    assert all(task.open for task in images.tasks())
    assert {each.task for each in images.predictions()} == {task.id for task in images.tasks()}


def test_a_choice_that_is_added_midway_is_predicted(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=36, config=label_config(SOME_CHOICES[:4]))
    backend.connect(images)
    assert_settled(backend, images)
    known = [task for task in images.tasks() if images.choice_of(task) in SOME_CHOICES[:4]]
    for task in known[:8]:
        images.annotate(task.id, images.choice_of(task))
    before = assert_settled(backend, images)

    images.api(
        "PATCH", f"/api/projects/{images.id}", json={"label_config": label_config(SOME_CHOICES)}
    )
    wait_for(lambda: images.model_version() != before, "a version with the new choices")
    assert_settled(backend, images)
    fresh = [task for task in images.tasks() if images.choice_of(task) in SOME_CHOICES[4:]]
    for task in fresh[:8]:
        images.annotate(task.id, images.choice_of(task))

    assert_settled(backend, images)
    version = backend.store.versions.active(images.id)
    assert version is not None
    assert version.heads["choice"].values == SOME_CHOICES
    assert version.report["choice"]["labels"] == 16


def test_tasks_that_are_imported_during_a_training_are_predicted(
    backend: RunningBackend, project: NewProject
) -> None:
    images = project(pictures=24)
    backend.connect(images)
    assert_settled(backend, images)

    images.annotate_next(6)
    wait_for(lambda: backend.work(images.id), "a training is asked for")
    images.draw(24)
    images.annotate_next(2)

    assert_settled(backend, images)
    assert [task.open for task in images.tasks()].count(True) == 40


def test_files_on_label_studios_disk_are_predicted(
    backend: RunningBackend, project: NewProject, shared_pictures: Path
) -> None:
    folder = shared_pictures / "catalogue"
    folder.mkdir()
    for number in range(12):
        render(SOME_CHOICES[number % 6], number, 96).save(folder / f"{number} & more.png")
    images = project(pictures=0)
    storage = images.api(
        "POST",
        "/api/storages/localfiles",
        json={
            "project": images.id,
            "path": str(folder),
            "use_blob_urls": True,
            "regex_filter": ".*png",
        },
    )
    images.api("POST", f"/api/storages/localfiles/{storage['id']}/sync")
    assert all("/data/local-files/" in str(task.data) for task in images.tasks())

    backend.connect(images)

    assert_settled(backend, images)
    assert len(images.predictions()) == 12


def test_a_personal_access_token_does_as_well_as_a_legacy_one(
    label_studio: LabelStudioServer, project: NewProject, tmp_path: Path
) -> None:
    images = project(pictures=12)
    settings = images.api("GET", "/api/jwt/settings")
    images.api("POST", "/api/jwt/settings", json=settings | {"api_tokens_enabled": True})
    token = images.api("POST", "/api/token/")["token"]
    assert token.count(".") == 2
    backend = RunningBackend(label_studio, tmp_path / "backend", token=token)
    backend.start()
    try:
        backend.connect(images)
        first = assert_settled(backend, images)
        images.annotate_next(2)
        assert assert_settled(backend, images) != first
    finally:
        backend.stop()


def _choices(control: str, choices: list[str]) -> dict[str, Any]:
    return {
        "from_name": control,
        "to_name": "image",
        "type": "choices",
        "value": {"choices": choices},
    }


def _everything(images: LabelledProject) -> dict[str, Any]:
    """Return what Label Studio knows of a project, but for our own predictions."""

    def lasting(item: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in item.items() if name not in _VOLATILE}

    return {
        **lasting(images.api("GET", f"/api/projects/{images.id}")),
        "ml_backends": [lasting(item) for item in images.client.ml_backends(images.id)],
        "webhooks": [lasting(item) for item in images.client.webhooks(images.id)],
        "views": images.client.views(images.id),
        "others": of_somebody_else(images),
    }
