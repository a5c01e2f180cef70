"""What jobs find out for people to look at: confusions, the head of the queue, the map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backend.errors import LabelStudioError
from backend.jobs import mapping
from backend.jobs import refresh as refresh_module
from backend.jobs.services import Services
from backend.jobs.worker import perform
from backend.store import Store
from backend.store.contents import (
    NO_CHOICE,
    EmbeddingMap,
    QueuedTask,
    confusions_from_bytes,
    labels_from_bytes,
    map_from_bytes,
    queue_from_bytes,
)
from backend.store.findings import FindingKind, Found
from backend.store.requests import Kind, Request
from tests.integration.conftest import data_uri
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.test_jobs import active, do, do_all, predicted_and_settled, shades, waiting

THREE_CONTROLS = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image"><Choice value="red"/><Choice value="blue"/></Choices>
  <Choices name="&lt;img src=x onerror=alert(1)&gt;" toName="image" choice="multiple">
    <Choice value="&quot;&gt;&lt;script&gt;"/><Choice value="dark"/><Choice value="{VALUE}"/>
  </Choices>
  <Choices name="mood" toName="image"><Choice value="\u202egnaw"/><Choice value="warm"/></Choices>
</View>
""".replace("{VALUE}", "x" * 5000)
HOSTILE = "<img src=x onerror=alert(1)>"


def found(store: Store, kind: FindingKind) -> Found:
    finding = store.findings.get(PROJECT, kind)
    assert finding is not None
    return finding


def head(store: Store) -> list[QueuedTask]:
    return queue_from_bytes(found(store, FindingKind.QUEUE).content)


def drawn(store: Store) -> EmbeddingMap:
    return map_from_bytes(found(store, FindingKind.MAP).content)


def wrongly_labelled(label_studio: FakeLabelStudio) -> list[int]:
    """Return sixteen annotated tasks, of which the first is a red one that is called blue."""
    reds = [data_uri((200 + 5 * n, 10, 10)) for n in range(8)]
    blues = [data_uri((10, 10, 200 + 5 * n)) for n in range(8)]
    ids = label_studio.add_tasks(*reds, *blues)
    for index, task_id in enumerate(ids):
        label_studio.annotate(task_id, "red" if 0 < index < 8 else "blue")
    return ids


def use(config: str, store: Store, label_studio: FakeLabelStudio) -> None:
    assert label_studio.project is not None
    label_studio.project["label_config"] = config
    store.projects.update(PROJECT, label_config=config)


# Training


def test_a_version_comes_with_what_it_confuses(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = wrongly_labelled(label_studio)
    do(store, Kind.TRAIN)

    confusion = found(store, FindingKind.CONFUSION)

    assert confusion.model_version == active(store).name
    of_colour = confusions_from_bytes(confusion.content)["colour"]
    choices = [choice["value"] for choice in of_colour["choices"]]
    cells = [
        (choices[cell["given"]], choices[cell["predicted"]], cell["tasks"])
        for cell in of_colour["cells"]
    ]
    assert ("blue", "red", ids[:1]) in cells
    assert of_colour["labels"] == 16


def test_a_version_comes_with_the_labels_that_it_learned_from(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    use(THREE_CONTROLS, store, label_studio)
    first, second, third = label_studio.add_tasks(*map(data_uri, ("red", "blue", "green")))
    label_studio.annotate(first, "blue")
    label_studio.annotate(second, "dark", "x" * 5000, control=HOSTILE)
    label_studio.annotate(third, "red")

    do(store, Kind.TRAIN)

    labels = labels_from_bytes(found(store, FindingKind.LABELS).content)
    assert {name: [*of.choices] for name, of in labels.items()} == {
        "colour": ["red", "blue"],
        HOSTILE: ["dark"],
        "mood": [],
    }
    of_colour = labels["colour"]
    assert dict(zip(of_colour.tasks, of_colour.given, strict=True)) == {first: 1, third: 0}


# The head of the queue


def test_the_head_of_the_queue_is_kept_with_the_two_likeliest_choices(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(6))

    version = predicted_and_settled(store)

    assert found(store, FindingKind.QUEUE).model_version == version.name
    queue = head(store)
    assert {task.task for task in queue} == {*ids}
    assert [task.confidence for task in queue] == sorted(task.confidence for task in queue)
    for task in queue:
        (first, second) = task.likeliest["colour"]
        assert first[1] >= second[1]
        assert {first[0], second[0]} < {"red", "green", "blue"}
    scores = {
        prediction["task"]: prediction["score"] for prediction in label_studio.predictions.values()
    }
    assert [task.task for task in queue] == sorted(scores, key=lambda task: scores[task])


def test_the_head_is_that_of_each_control_whatever_it_is_called(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    use(THREE_CONTROLS, store, label_studio)
    label_studio.add_tasks(*shades(3))

    predicted_and_settled(store)

    assert all([*task.likeliest] == ["colour", HOSTILE, "mood"] for task in head(store))
    assert all(len(each) == 2 for task in head(store) for each in task.likeliest.values())


def test_of_a_long_queue_the_first_are_kept(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_module, "FIRST", 2)
    label_studio.add_tasks(*shades(5))

    predicted_and_settled(store)

    assert len(head(store)) == 2


def test_a_head_that_an_older_release_did_not_keep_is_found_out_without_a_new_prediction(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(3))
    predicted_and_settled(store)
    before = head(store)
    store.findings.forget(PROJECT)
    imports = len(label_studio.imports)

    do(store, Kind.REFRESH)

    assert head(store) == before
    assert len(label_studio.imports) == imports


# The map


def test_a_map_has_each_task_with_its_label_and_what_is_predicted(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = wrongly_labelled(label_studio)
    late = label_studio.add_tasks(*shades(4))
    version = predicted_and_settled(store)

    do(store, Kind.MAP)

    assert found(store, FindingKind.MAP).model_version == version.name
    shown = drawn(store)
    assert shown.done
    assert {*shown.ids.tolist()} == {*ids, *late}
    assert shown.tasks == 20
    assert shown.places.shape == (20, 2)
    assert np.isfinite(shown.places).all()
    assert ((shown.uncertainties >= 0) & (shown.uncertainties <= 1)).all()
    colours = shown.colours["colour"]
    assert [*colours.values] == ["red", "green", "blue"]
    given = dict(zip(shown.ids.tolist(), colours.given.tolist(), strict=True))
    assert [given[task] for task in ids] == [2, *[0] * 7, *[2] * 8]
    assert {given[task] for task in late} == {NO_CHOICE}
    assert {*colours.predicted.tolist()} <= {0, 1, 2}


def test_each_control_has_its_colours(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    use(THREE_CONTROLS, store, label_studio)
    ids = label_studio.add_tasks(*shades(12))
    label_studio.annotate(ids[0], "dark", "x" * 5000, control=HOSTILE)
    predicted_and_settled(store)

    do(store, Kind.MAP)

    shown = drawn(store)
    assert [*shown.colours] == ["colour", HOSTILE, "mood"]
    given = dict(zip(shown.ids.tolist(), shown.colours[HOSTILE].given.tolist(), strict=True))
    assert given == {ids[0]: 1, **dict.fromkeys(ids[1:], NO_CHOICE)}


def test_a_new_version_gives_new_colours_to_the_same_map(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    ids = label_studio.add_tasks(*shades(30))
    predicted_and_settled(store)
    do(store, Kind.MAP)
    before = drawn(store)
    for task in ids[:3]:
        label_studio.annotate(task, "green")
    version = predicted_and_settled(store)

    do(store, Kind.MAP)

    assert found(store, FindingKind.MAP).model_version == version.name
    after = drawn(store)
    assert np.array_equal(after.places, before.places)
    assert (after.colours["colour"].given != NO_CHOICE).sum() == 3


def test_a_map_makes_way_for_what_is_more_urgent_and_goes_on_afterwards(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label_studio.add_tasks(*shades(30))
    predicted_and_settled(store)
    rounds = []
    keep = store.findings.keep

    def keep_and_ask(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        rounds.append(drawn(store).rounds)
        # Somebody annotates.
        store.requests.add(Request(PROJECT, Kind.TRAIN))

    with monkeypatch.context() as patch:
        patch.setattr(store.findings, "keep", keep_and_ask)
        do(store, Kind.MAP)
        assert waiting(store) == {Kind.TRAIN, Kind.MAP}
        assert rounds == [0]
        # Nothing is even looked up while the training waits.
        patch.setattr(services.predictor, "score", None)
        perform(PROJECT, Kind.MAP.value, 0)
    assert waiting(store) == {Kind.TRAIN, Kind.MAP}

    do_all(store)

    assert drawn(store).done
    assert waiting(store) <= {Kind.RECONCILE}


def test_a_map_waits_for_pictures_that_are_being_embedded_unless_that_fails(
    services: Services, store: Store, label_studio: FakeLabelStudio
) -> None:
    label_studio.add_tasks(*shades(6))
    predicted_and_settled(store)
    embedding = Request(PROJECT, Kind.EMBED, 3)
    store.requests.add(embedding)

    with store.requests.claimed(embedding) as claim:
        assert claim is not None
        do(store, Kind.MAP)
        assert store.findings.get(PROJECT, FindingKind.MAP) is None
        assert {Kind.MAP} <= waiting(store)
    store.requests.add(embedding)
    with pytest.raises(LabelStudioError), store.requests.claimed(embedding):
        raise LabelStudioError("it does not answer")
    store.requests.add(Request(PROJECT, Kind.MAP))
    perform(PROJECT, Kind.MAP.value, 0)

    assert drawn(store).done


def test_a_map_that_was_left_goes_on_where_it_was(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label_studio.add_tasks(*shades(30))
    predicted_and_settled(store)
    do(store, Kind.MAP)
    whole = drawn(store)
    store.findings.forget(PROJECT)
    asked = iter([False, False, True])
    with monkeypatch.context() as patch:
        # Looked at once before the pictures are looked up, and after each round.
        patch.setattr(mapping, "_should_make_way", lambda *_: next(asked))
        do(store, Kind.MAP)
    assert drawn(store).rounds == 1

    perform(PROJECT, Kind.MAP.value, 0)

    assert drawn(store).rounds == whole.rounds
    assert np.array_equal(drawn(store).places, whole.places)


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.projects.update(PROJECT, connected=False),
        lambda store: store.projects.update(PROJECT, label_config="<View/>"),
        lambda store: store.versions.forget(PROJECT),
        lambda store: store.forget(PROJECT),
    ],
    ids=["disconnected", "nothing to predict", "no version", "forgotten"],
)
def test_without_a_version_that_predicts_there_is_no_map(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    change: Callable[[Store], None],
) -> None:
    label_studio.add_tasks(*shades(3))
    predicted_and_settled(store)
    change(store)

    do(store, Kind.MAP)

    assert store.findings.get(PROJECT, FindingKind.MAP) is None
    assert Kind.MAP not in waiting(store)


def test_of_many_tasks_a_sample_is_on_the_map(
    services: Services,
    store: Store,
    label_studio: FakeLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapping, "MOST", 12)
    label_studio.add_tasks(*shades(30))
    predicted_and_settled(store)

    do(store, Kind.MAP)

    assert len(drawn(store).ids) == 12
    assert drawn(store).tasks == 30


def test_the_map_is_the_least_urgent_of_all_work() -> None:
    assert [*Kind][-1] is Kind.MAP
