"""How often annotators keep the prediction that they were shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict

from backend.labelstudio.annotations import chosen
from backend.labelstudio.client import RemoteTask
from backend.labelstudio.config import Control


class Acceptance(TypedDict):
    """What a report keeps of a control's predictions that people saw.

    Of `shown` annotations that were made from one of our predictions, `kept` say the same. Those
    with ids up to `until` have been judged.
    """

    shown: int
    kept: int
    until: int


def acceptance_of(
    control: Control,
    tasks: Iterable[RemoteTask],
    is_ours: Callable[[str], bool],
    before: Acceptance | None,
) -> Acceptance:
    """Judge the annotations that are new since `before`, and add them to it.

    Each is judged once, when it is first seen: the prediction that it was made from is removed
    later, and with it what the annotation says of it. Annotations that were started from scratch
    or skipped are not counted.
    """
    before = before or Acceptance(shown=0, kept=0, until=0)
    shown, kept, newest = before["shown"], before["kept"], 0
    for task in tasks:
        predictions = {each.id: each for each in task.predictions if is_ours(each.model_version)}
        for annotation in task.annotations:
            annotation_id, parent = annotation.get("id"), annotation.get("parent_prediction")
            if not isinstance(annotation_id, int):
                continue
            newest = max(newest, annotation_id)
            prediction = predictions.get(parent) if isinstance(parent, int) else None
            if prediction is None or annotation_id <= before["until"]:
                continue
            predicted = chosen(control, {"result": prediction.result})
            if predicted is None or annotation.get("was_cancelled"):
                continue
            shown += 1
            kept += chosen(control, annotation) == predicted
    # Not the larger of both: a Label Studio that was restored gives lower ids anew.
    return Acceptance(shown=shown, kept=kept, until=newest)
