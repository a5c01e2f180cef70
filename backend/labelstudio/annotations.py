from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.labelstudio.config import Control

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Labels:
    """The labelled set of one control.

    `values` maps a task's id to its choices: exactly one for a single control, maybe none for a
    multiple one. `ties` counts tasks left out because annotators disagree evenly, `unknown`
    counts labels left out because the labeling config no longer has the choice, `several`
    annotations left out because they give a single control several choices.
    """

    values: Mapping[int, frozenset[str]]
    ties: int
    unknown: int
    several: int = 0


def labels_of(
    control: Control, annotations: Mapping[int, Sequence[Mapping[str, object]]]
) -> Labels:
    """Reduce the annotations of each task, as Label Studio's API gives them, to its labels.

    Each annotation that was not cancelled is one vote; where a task has ground-truth annotations
    only they vote. A single control takes the most frequent choice, a multiple control every
    choice that more than half of the votes have. What cannot be read is no vote.
    """
    known = frozenset(control.values)
    decide = _majority_per_label if control.multiple else _most_frequent
    values: dict[int, frozenset[str]] = {}
    ties = unknown = several = 0
    for task_id, of_task in annotations.items():
        votes: list[frozenset[str]] = []
        for annotation in _counting(of_task):
            answer = chosen(control, annotation)
            if answer is None:
                continue
            unknown += len(answer - known)
            # Left from a config that once was multiple, or several paths of a taxonomy.
            several += not control.multiple and len(answer) > 1
            if control.multiple or (len(answer) == 1 and answer <= known):
                votes.append(answer & known)
        if not votes:
            continue
        label = decide(votes)
        if label is None:
            ties += 1
        else:
            values[task_id] = label
    return Labels(values=values, ties=ties, unknown=unknown, several=several)


def targets_of(control: Control, labels: Sequence[frozenset[str]]) -> torch.Tensor:
    """Return labels as numbers: the index [N] int64 of each choice, or [N, K] of 0 and 1."""
    import torch

    column = {value: index for index, value in enumerate(control.values)}
    if not control.multiple:
        return torch.tensor([column[next(iter(label))] for label in labels], dtype=torch.int64)
    targets = torch.zeros(len(labels), len(column))
    for row, label in enumerate(labels):
        for value in label:
            targets[row, column[value]] = 1
    return targets


def _counting(annotations: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    finished = [each for each in annotations if not each.get("was_cancelled")]
    return [each for each in finished if each.get("ground_truth")] or finished


def chosen(control: Control, annotation: Mapping[str, object]) -> frozenset[str] | None:
    """Return a control's choices in an annotation or a prediction; None where it has no answer."""
    result = annotation.get("result")
    if not isinstance(result, list):
        return None
    found: set[str] = set()
    answered = False
    for item in result:
        if not isinstance(item, Mapping) or item.get("from_name") != control.name:
            continue
        if item.get("to_name", control.to_name) != control.to_name:
            continue
        value = item.get("value")
        selected = value.get(control.kind) if isinstance(value, Mapping) else None
        if item.get("type") != control.kind or not isinstance(selected, list):
            return None
        choices = [_choice(control, each) for each in selected]
        if None in choices:
            return None
        found.update(choice for choice in choices if choice is not None)
        answered = True
    # Label Studio writes no result at all when nothing was selected.
    if not answered and (not control.multiple or control.conditional):
        return None
    return frozenset(found)


def _choice(control: Control, selected: object) -> str | None:
    """Return what one selected choice is called; None where it cannot be read."""
    if control.kind == "choices":
        return selected if isinstance(selected, str) else None
    if not isinstance(selected, list) or not all(isinstance(step, str) for step in selected):
        return None
    return control.value_of(selected) if selected else None


def _most_frequent(votes: Sequence[frozenset[str]]) -> frozenset[str] | None:
    (first, count), *others = Counter(votes).most_common(2)
    return None if others and others[0][1] == count else first


def _majority_per_label(votes: Sequence[frozenset[str]]) -> frozenset[str] | None:
    counts = Counter(choice for vote in votes for choice in vote)
    if any(2 * count == len(votes) for count in counts.values()):
        return None
    return frozenset(choice for choice, count in counts.items() if 2 * count > len(votes))
