"""How often annotators keep what they were shown."""

from __future__ import annotations

from typing import Any

from backend.labelstudio.acceptance import Acceptance, acceptance_of
from backend.labelstudio.client import RemotePrediction, RemoteTask
from backend.labelstudio.config import Control, parse_labeling_config
from backend.store.versions import is_ours

OURS = "clip-backend-1-0123abcd"


def control(choice: str = "single") -> Control:
    (found,) = parse_labeling_config(
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="colour" toName="image" choice="{choice}">'
        '<Choice value="red"/><Choice value="green"/><Choice value="blue"/></Choices></View>'
    ).controls
    return found


def result(*choices: str) -> list[dict[str, Any]]:
    return [
        {
            "from_name": "colour",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": list(choices)},
        }
    ]


def annotation(number: int, *choices: str, of: int | None = 1, **fields: Any) -> dict[str, Any]:
    return {"id": number, "result": result(*choices), "parent_prediction": of, **fields}


def task(*annotations: dict[str, Any], predicted: Any = ("red",), by: str = OURS) -> RemoteTask:
    predictions = (RemotePrediction(1, 1, by, result(*predicted), 0.5),)
    return RemoteTask(1, {}, True, len(annotations), annotations, predictions)


def judged(*tasks: RemoteTask, before: Acceptance | None = None) -> tuple[int, int]:
    found = acceptance_of(control(), tasks, is_ours, before)
    return found["shown"], found["kept"]


def test_an_annotation_that_says_what_its_prediction_said_was_kept() -> None:
    assert judged(task(annotation(1, "red")), task(annotation(2, "blue"))) == (2, 1)


def test_an_answer_that_was_taken_away_was_not_kept() -> None:
    assert judged(task({**annotation(1), "result": []})) == (1, 0)


def test_what_was_skipped_or_started_from_scratch_is_not_counted() -> None:
    skipped = annotation(1, "red", was_cancelled=True)

    assert judged(task(skipped, annotation(2, "red", of=None), annotation(3, "red", of=9))) == (
        0,
        0,
    )


def test_another_models_prediction_is_not_counted() -> None:
    assert judged(task(annotation(1, "red"), by="another model")) == (0, 0)


def test_a_prediction_without_an_answer_of_this_control_is_not_counted() -> None:
    assert judged(
        RemoteTask(
            1,
            {},
            True,
            1,
            (annotation(1, "red"),),
            (RemotePrediction(1, 1, OURS, [], 0.5),),
        )
    ) == (0, 0)


def test_all_choices_of_a_multiple_control_must_be_kept() -> None:
    tasks = [
        task(annotation(1, "blue", "red"), predicted=("red", "blue")),
        task(annotation(2, "red"), predicted=("red", "blue")),
    ]

    found = acceptance_of(control("multiple"), tasks, is_ours, None)

    assert (found["shown"], found["kept"]) == (2, 1)


def test_each_annotation_is_judged_once_also_when_its_prediction_is_gone() -> None:
    first = acceptance_of(control(), [task(annotation(1, "red"))], is_ours, None)
    gone = RemoteTask(1, {}, True, 1, (annotation(1, "red", of=None),))

    again = acceptance_of(control(), [task(annotation(1, "blue"))], is_ours, first)
    later = acceptance_of(control(), [gone, task(annotation(2, "blue"))], is_ours, first)

    assert again == first == Acceptance(shown=1, kept=1, until=1)
    assert later == Acceptance(shown=2, kept=1, until=2)


def test_an_older_copy_of_label_studio_gives_its_ids_anew() -> None:
    before = Acceptance(shown=5, kept=5, until=50)

    restored = acceptance_of(control(), [task(annotation(3, "red"))], is_ours, before)
    after = acceptance_of(control(), [task(annotation(4, "blue"))], is_ours, restored)

    assert restored == Acceptance(shown=5, kept=5, until=3)
    assert after == Acceptance(shown=6, kept=5, until=4)


def test_annotations_that_are_not_as_expected_are_left_out() -> None:
    odd = [{}, {"id": "x"}, {"id": 1, "parent_prediction": {}}, annotation(2, "red", of=None)]

    assert judged(task(*odd)) == (0, 0)
