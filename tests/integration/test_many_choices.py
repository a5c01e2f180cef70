"""Taxonomies and choices that come with tasks, from annotations to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backend.jobs.services import Services
from backend.labelstudio.config import parse_labeling_config
from backend.page.panels import BY_NAME
from backend.portable.export import export
from backend.portable.folder import read
from backend.prompt_effect import prompt_effect
from backend.store import Store
from backend.store.requests import Kind
from backend.store.tasks import Task
from tests.integration.conftest import StartApp, data_uri
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.page_parts import with_page
from tests.integration.test_jobs import MakeServices, do, do_all, make_services

__all__ = ["make_services"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

TAXONOMY = """
<View>
  <Image name="image" value="$image"/>
  <Taxonomy name="colour" toName="image">
    <Choice value="Warm"><Choice value="red"/><Choice value="orange"/></Choice>
    <Choice value="Cold"><Choice value="blue" alias="b"/><Choice value="green"/></Choice>
  </Taxonomy>
  <TextArea name="likeliest" toName="image" shortlistOf="colour"/>
</View>
"""
BY_TASK = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image" value="$options"/>
</View>
"""


@pytest.fixture
def set_up(make_services: MakeServices, store: Store, label_studio: FakeLabelStudio) -> Any:
    def with_config(config: str) -> Services:
        assert label_studio.project is not None
        label_studio.project["label_config"] = config
        store.projects.set_up(PROJECT, label_config=config, extra_params={})
        return make_services()

    return with_config


def choose(label_studio: FakeLabelStudio, task_id: int, *path: str) -> None:
    label_studio.annotate(task_id)
    (item,) = label_studio.tasks[task_id]["annotations"][-1]["result"]
    item |= {"type": "taxonomy", "value": {"taxonomy": [list(path)]}}


def results(label_studio: FakeLabelStudio) -> dict[int, list[dict[str, Any]]]:
    return {each["task"]: each["result"] for each in label_studio.predictions.values()}


def test_a_path_is_learnt_and_one_that_leads_further_once_it_was_chosen(
    set_up: Any, store: Store, label_studio: FakeLabelStudio
) -> None:
    set_up(TAXONOMY)
    ids = label_studio.add_tasks(
        *(data_uri((shade, 10, 250 - shade)) for shade in range(0, 240, 20))
    )
    do(store, Kind.SYNC)
    do(store, Kind.TRAIN)
    first = store.versions.active(PROJECT)
    assert first is not None
    leaves = ("Warm / red", "Warm / orange", "Cold / b", "Cold / green")
    assert first.heads["colour"].values == leaves

    for task_id in ids[:3]:
        choose(label_studio, task_id, "Cold", "b")
    for task_id in ids[8:10]:
        choose(label_studio, task_id, "Warm")
    choose(label_studio, ids[10], "Warm", "gone")
    do(store, Kind.TRAIN)
    do_all(store)

    version = store.versions.active(PROJECT)
    assert version is not None
    assert version.heads["colour"].values == ("Warm", *leaves)
    report = version.report["colour"]
    assert (report["labels"], report["unknown_choices"]) == (5, 1)
    assert report["per_choice"]["Cold / b"] == 3
    selection, shortlist = results(label_studio)[ids[5]]
    assert selection["type"] == "taxonomy"
    assert len(selection["meta"]["levels"]) == len(selection["value"]["taxonomy"][0])
    assert len(shortlist["value"]["text"]) == 5


def test_a_task_is_predicted_among_its_own_choices_and_new_ones_are_learnt(
    set_up: Any, store: Store, label_studio: FakeLabelStudio
) -> None:
    services = set_up(BY_TASK)
    warm = [{"value": "red"}, {"value": "orange", "alias": "o"}]
    cold = [{"value": "blue"}, {"value": "green"}]
    ids = []
    for options in (warm, cold, warm, "broken"):
        ids += label_studio.add_tasks(data_uri((200, 10, 10)), options=options)  # type: ignore[arg-type]
    do(store, Kind.SYNC)
    do_all(store)

    version = store.versions.active(PROJECT)
    assert version is not None
    assert version.heads["colour"].values == ("red", "o", "blue", "green")
    predicted = results(label_studio)
    assert set(predicted) == set(ids[:3])
    for task_id, allowed in zip(ids, ({"red", "o"}, {"blue", "green"}, {"red", "o"}), strict=False):
        (selection,) = predicted[task_id]
        assert set(selection["value"]["choices"]) <= allowed
        # Of two choices one is at least as likely as not: the others' share is theirs.
        assert selection["score"] >= 0.5

    new = label_studio.add_tasks(data_uri((10, 200, 10)), options=[{"value": "teal"}, *warm])  # type: ignore[arg-type]
    config = parse_labeling_config(BY_TASK)
    (outcome,) = services.predictor.predict(
        [Task(new[0], label_studio.tasks[new[0]]["data"])], config, version
    )
    assert "new here" in str(outcome)
    label_studio.annotate(new[0], "teal")
    label_studio.annotate(ids[0], "red")
    do(store, Kind.SYNC)
    do_all(store)

    learnt = store.versions.active(PROJECT)
    assert learnt is not None
    assert set(learnt.heads["colour"].values) == {"red", "o", "blue", "green", "teal"}
    assert learnt.report["colour"]["labels"] == 2


def test_new_choices_of_tasks_that_come_unnoticed_before_a_training_are_learnt(
    set_up: Any, store: Store, label_studio: FakeLabelStudio
) -> None:
    set_up(BY_TASK)
    warm = [{"value": "red"}, {"value": "orange"}]
    ids = label_studio.add_tasks(data_uri("red"), data_uri("orange"), options=warm)  # type: ignore[arg-type]
    do(store, Kind.SYNC)
    do_all(store)
    do(store, Kind.RECONCILE)

    (new,) = label_studio.add_tasks(data_uri("green"), options=[{"value": "teal"}, *warm])  # type: ignore[arg-type]
    label_studio.annotate(ids[0], "red")
    do(store, Kind.TRAIN)
    do(store, Kind.RECONCILE)
    do_all(store)

    learnt = store.versions.active(PROJECT)
    assert learnt is not None
    assert set(learnt.heads["colour"].values) == {"red", "orange", "teal"}
    assert new in results(label_studio)


@pytest.mark.parametrize("config", [TAXONOMY, BY_TASK], ids=["taxonomy", "choices of tasks"])
def test_the_page_shows_paths_and_choices_that_come_with_tasks(
    set_up: Any, store: Store, label_studio: FakeLabelStudio, start_app: StartApp, config: str
) -> None:
    services = set_up(config)
    ids = []
    for options in ([{"value": "red"}, {"value": "orange"}], [{"value": "blue"}]) * 6:
        shade = 20 * len(ids)
        ids += label_studio.add_tasks(data_uri((shade, 10, 250 - shade)), options=options)  # type: ignore[arg-type]
    for task_id in ids[:8]:
        if config == BY_TASK:
            label_studio.annotate(task_id, "red" if task_id % 2 else "blue")
        else:
            choose(label_studio, task_id, *(("Warm", "red"), ("Cold",))[task_id % 2])
    do(store, Kind.SYNC)
    do_all(store)
    do(store, Kind.MAP)

    page = with_page(
        start_app(),
        store,
        client=services.label_studio,
        embedder=lambda: services.predictor.embedder,
    )
    answers = {name: page.get(f"/projects/{PROJECT}/panels/{name}") for name in BY_NAME}
    points = page.get(f"/projects/{PROJECT}/map?colour=0").get_json()

    assert {answer.status_code for answer in answers.values()} == {200}
    chosen = "red" if config == BY_TASK else "Warm / red"
    assert chosen in answers["class_balance"].text
    assert chosen in answers["uncertain"].text
    assert chosen in str(points)


def test_other_prompts_are_judged_by_the_paths_that_people_chose(
    set_up: Any, store: Store, label_studio: FakeLabelStudio
) -> None:
    services = set_up(TAXONOMY)
    ids = label_studio.add_tasks(*(data_uri((10, 20 * shade, 10)) for shade in range(6)))
    for task_id in ids:
        choose(label_studio, task_id, "Cold", "green")
    do(store, Kind.SYNC)
    do_all(store)
    (control,) = parse_labeling_config(TAXONOMY).controls
    (annotated,) = services.label_studio.annotated_tasks(PROJECT)
    before = services.learning
    after = before.model_copy(update={"prompts": {"Cold / green": ["a red apple"]}})

    effect = prompt_effect(services.predictor.embedder, control, annotated, [], before, after)

    assert effect is not None
    assert effect.labels == len(ids)


@pytest.mark.parametrize("config", [TAXONOMY, BY_TASK])
def test_an_exported_model_predicts_without_a_task_s_data(
    set_up: Any, store: Store, label_studio: FakeLabelStudio, tmp_path: Path, config: str
) -> None:
    services = set_up(config)
    options: Any = [{"value": "red"}, {"value": "blue"}]
    label_studio.add_tasks(data_uri((200, 10, 10)), options=options)
    do(store, Kind.SYNC)
    do_all(store)
    version = store.versions.active(PROJECT)
    assert version is not None

    export(
        version,
        config,
        parse_labeling_config(config),
        services.predictor.encoder,
        tmp_path / "model",
        pretrained=None,
    )
    _, read_version, read_config = read(tmp_path / "model")

    (control,) = read_config.controls
    assert control.options is None
    (outcome,) = services.predictor.predict(
        [Task(1, {"image": data_uri((10, 10, 200))})], read_config, read_version
    )
    assert outcome.result[0]["type"] == control.kind  # type: ignore[union-attr]


def test_predict_answers_for_a_taxonomy_and_for_tasks_choices_as_described(
    start_app: StartApp,
) -> None:
    client = start_app().test_client()
    for config, data in (
        (TAXONOMY, {}),
        (BY_TASK, {"options": [{"value": "red"}, {"value": "blue"}]}),
    ):
        task = {"id": 1, "data": {"image": data_uri((200, 10, 10)), **data}}
        answer = client.post("/predict", json={"tasks": [task], "label_config": config})
        assert answer.status_code == 200
        (item,) = answer.json["results"]  # type: ignore[index]
        assert item["result"][0]["from_name"] == "colour"


def test_five_thousand_choices_are_not_sent_with_each_prediction(start_app: StartApp) -> None:
    client = start_app().test_client()
    listed = "".join(f'<Choice value="part {number}"/>' for number in range(5000))
    config = (
        '<View><Image name="image" value="$image"/><TextArea name="top" toName="image" '
        f'shortlistOf="part"/><Choices name="part" toName="image">{listed}</Choices></View>'
    )
    tasks = [{"id": 1 + n, "data": {"image": data_uri((n, 10, 10))}} for n in range(20)]

    answer = client.post("/predict", json={"tasks": tasks, "label_config": config})

    assert answer.status_code == 200
    assert len(answer.data) < 20 * 1000
