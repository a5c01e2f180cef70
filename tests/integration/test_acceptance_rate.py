"""The acceptance rate lives on when the predictions that people saw are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.jobs.services import Services
from backend.jobs.worker import perform
from backend.store.requests import Kind, Request
from tests.integration.conftest import data_uri
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio

OURS = "clip-backend-1-0123abcd"


def do(services: Services, *kinds: Kind) -> None:
    for kind in kinds:
        services.store.requests.add(Request(PROJECT, kind))
        perform(PROJECT, kind.value, 0)


def predict(label_studio: FakeLabelStudio, task_id: int, choice: str) -> int:
    """Show a prediction of ours as annotators see it; return its id."""
    label_studio.predict(task_id, OURS)
    prediction_id = max(label_studio.predictions)
    label_studio.predictions[prediction_id]["result"] = [
        {
            "from_name": "colour",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [choice]},
        }
    ]
    return prediction_id


def answer(label_studio: FakeLabelStudio, task_id: int, shown: str, given: str) -> None:
    parent = predict(label_studio, task_id, shown)
    label_studio.annotate(task_id, given)
    label_studio.tasks[task_id]["annotations"][-1]["parent_prediction"] = parent


def acceptance(services: Services) -> dict[str, Any]:
    version = services.store.versions.active(PROJECT)
    assert version is not None
    found: dict[str, Any] = version.report["colour"]["acceptance"]
    return found


def told(services: Services) -> Sequence[float | None]:
    (figures,) = services.store.versions.figures(10)
    return figures.shown, figures.kept


def test_it_is_counted_on_from_version_to_version(
    services: Services, label_studio: FakeLabelStudio
) -> None:
    first, second, third = label_studio.add_tasks(*map(data_uri, ("red", "green", "blue")))
    do(services, Kind.SYNC, Kind.EMBED, Kind.TRAIN)
    answer(label_studio, first, "red", "red")
    answer(label_studio, second, "red", "green")
    do(services, Kind.TRAIN)
    after_two = (acceptance(services)["shown"], acceptance(services)["kept"])

    # A sweep removes what is superseded, and Label Studio forgets who was shown it.
    label_studio.predictions.clear()
    for task in label_studio.tasks.values():
        for annotation in task["annotations"]:
            annotation["parent_prediction"] = None
    answer(label_studio, third, "blue", "blue")
    do(services, Kind.TRAIN)

    assert after_two == (2, 1)
    assert told(services) == (3, 2)


def test_an_annotation_that_changes_no_label_counts_too(
    services: Services, label_studio: FakeLabelStudio
) -> None:
    (task,) = label_studio.add_tasks(data_uri("red"))
    do(services, Kind.SYNC, Kind.EMBED)
    answer(label_studio, task, "red", "red")
    do(services, Kind.TRAIN)
    before = services.store.versions.active(PROJECT)

    answer(label_studio, task, "red", "red")
    do(services, Kind.TRAIN)

    after = services.store.versions.active(PROJECT)
    assert before is not None
    assert after is not None
    assert before.name == after.name
    assert told(services) == (2, 2)
