from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.api import messages
from backend.errors import RequestError, TaskError
from backend.prediction import Prediction
from backend.store.tasks import Task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)

# Bodies that have the right keys and anything at all under them.
KEYS = st.sampled_from(
    [
        *("project", "schema", "extra_params", "tasks", "label_config", "action", "task"),
        *("annotation", "annotations", "project_src", "project_dst", "config", "job"),
        *("id", "data"),
    ]
)
BODIES = JSON | st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=8)

MODELS = [
    messages.SetupRequest,
    messages.PredictRequest,
    messages.WebhookRequest,
    messages.ProjectRequest,
    messages.DuplicateRequest,
    messages.ValidateRequest,
    messages.JobStatusRequest,
]


def event(**body: Any) -> messages.WebhookRequest:
    return messages.parse(messages.WebhookRequest, {"action": "ANNOTATION_CREATED", **body})


# Project ids


@pytest.mark.parametrize("value", [7, "7", "7.1718000000", "7.1718000000.123"])
def test_a_project_is_named_in_label_studio_s_ways(value: object) -> None:
    assert messages.project_id(value) == 7


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 7.0, 2**31, [], {}, {"id": 7}),
        *("", ".", "seven", "-7", "+7", " 7", "７", "²", "2147483648", "9" * 5000),
    ],
)
def test_what_names_no_project_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"^project: "):
        messages.project_id(value)


def test_the_largest_project_id_that_the_database_holds_is_taken() -> None:
    assert messages.project_id("2147483647") == 2**31 - 1


@given(JSON)
def test_any_project_gives_an_id_or_a_request_error(value: object) -> None:
    with suppress(RequestError):
        assert 0 < messages.project_id(value) < 2**31


# The project that a webhook is about


@pytest.mark.parametrize(
    "body",
    [
        {"project": {"id": 7, "title": "Clothes"}},
        {"project": 7},
        {"project": "7"},
        {"task": {"id": 1, "project": 7}},
        {"annotation": {"id": 1, "project": 7}},
        {"annotation": [{"id": 1, "project": 7}, {"id": 2, "project": 7}]},
        {"annotations": [{"id": 1, "project": 7}]},
        {"tasks": [{"id": 1, "project": 7}]},
        {"project": {"title": "without id"}, "task": {"project": 7}},
        {"project": None, "annotations": [], "tasks": [{"project": 7}]},
        {"project": {"id": 7}, "task": {"project": 8}},
    ],
)
def test_the_project_is_found_wherever_the_event_names_it(body: dict[str, Any]) -> None:
    assert event(**body).project_id == 7


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"project": {}},
        {"task": 3},
        {"tasks": []},
        {"annotations": [3]},
        {"annotation": "x", "tasks": [[1]]},
    ],
)
def test_an_event_without_a_project_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="names no project"):
        _ = event(**body).project_id


def test_the_labeling_config_is_read_where_the_event_carries_it() -> None:
    assert event(project={"id": 7, "label_config": "<View/>"}).label_config == "<View/>"
    assert event(project={"id": 7, "label_config": 3}).label_config is None
    assert event(project=7).label_config is None


# Any body


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@given(body=BODIES)
def test_any_json_is_a_message_or_a_request_error(model: Any, body: object) -> None:
    with suppress(RequestError):
        message = messages.parse(model, body)
        if isinstance(message, messages.WebhookRequest):
            assert message.label_config is None or isinstance(message.label_config, str)
            assert message.project_id > 0


@given(JSON)
def test_any_json_is_a_task_or_says_why_it_is_none(value: object) -> None:
    assert isinstance(messages.task(value), Task | TaskError)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestError, match=r"^tasks: "):
        messages.parse(messages.PredictRequest, {"label_config": "<View/>"})


def test_the_rejected_value_stays_out_of_the_message() -> None:
    with pytest.raises(RequestError) as caught:
        messages.parse(messages.SetupRequest, {"schema": {"token": "hunter2"}})

    assert "hunter2" not in str(caught.value)


def test_the_access_token_of_a_setup_is_not_kept() -> None:
    body = {"project": "7.1", "schema": "<View/>", "access_token": "hunter2"}

    message = messages.parse(messages.SetupRequest, body)

    assert "hunter2" not in repr(message)


# Tasks and what is answered


def test_a_task_keeps_its_id_and_data() -> None:
    assert messages.task({"id": 5, "data": {"image": "a"}, "meta": {}}) == Task(5, {"image": "a"})


@pytest.mark.parametrize("task_id", [None, "5", 5.0, True, [5]])
def test_a_task_without_a_usable_id_can_still_be_predicted(task_id: object) -> None:
    assert messages.task({"id": task_id, "data": {"image": "a"}}) == Task(None, {"image": "a"})


@pytest.mark.parametrize("value", [None, 5, "task", [], {}, {"data": None}, {"data": [1]}])
def test_what_is_no_task_says_so(value: object) -> None:
    assert isinstance(messages.task(value), TaskError)


def test_a_failed_task_has_an_error_and_no_result() -> None:
    assert messages.result(TaskError("no picture")) == {"error": "no picture"}


def test_a_prediction_shows_what_label_studio_stores() -> None:
    prediction = Prediction(5, [{"type": "choices"}], 0.25, "v1")

    assert messages.result(prediction) == {
        "result": [{"type": "choices"}],
        "score": 0.25,
        "model_version": "v1",
    }
