"""Which of a head's choices each task has: all of them, or those that its own data list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backend.embedding import Found
from backend.errors import TaskError
from backend.labelstudio.choices import MAX_OPTIONS, Choice
from backend.labelstudio.config import Control, LabelingConfig
from backend.labelstudio.task_data import TaskChoices
from backend.store.tasks import Task
from backend.store.versions import ControlHead

if TYPE_CHECKING:
    from backend.learning.head import Head


@dataclass(frozen=True)
class Offer:
    """Usable tasks, by row, that have the same choices.

    `columns` tell where the head has these; None where it has them as they are.
    """

    rows: list[int]
    choices: tuple[Choice, ...]
    columns: list[int] | None = None

    def of(self, head: Head) -> Head:
        """Return the head of these choices alone."""
        if self.columns is None:
            return head
        return replace(head, weights=head.weights[self.columns], bias=head.bias[self.columns])


def offers_of(
    tasks: Sequence[Task],
    found: Found,
    config: LabelingConfig,
    heads: Mapping[str, ControlHead],
) -> tuple[Found, list[list[Offer]]]:
    """Return the tasks that have choices which the heads know, and these choices, by control.

    Why the others have none is among the errors of what is returned.
    """
    offering = [_Offering(control, heads[control.name].values) for control in config.controls]
    if not any(each.is_by_task for each in offering):
        rows = [*range(len(found.usable))]
        return found, [each.offers(rows) for each in offering]
    kept: list[int] = []
    errors = [*found.errors]
    for row, index in enumerate(found.usable):
        try:
            of_task = [each.known(tasks[index]) for each in offering]
        except TaskError as error:
            errors[index] = error
            continue
        for offer in of_task:
            offer.rows.append(len(kept))
        kept.append(row)
    usable = [found.usable[row] for row in kept]
    vectors = [of_control[kept] for of_control in found.vectors]
    rows = [*range(len(usable))]
    return Found(usable, vectors, errors), [each.offers(rows) for each in offering]


class _Offering:
    """The choices of one control, as its head has them."""

    def __init__(self, control: Control, values: Sequence[str]) -> None:
        self.is_by_task = control.options is not None
        self._columns = {value: column for column, value in enumerate(values)}
        self._all = Offer(
            [], tuple(each for each in control.choices if each.value in self._columns)
        )
        self._of_tasks = TaskChoices(control)
        # By the identity of what tasks list, which is kept with it.
        self._offers: dict[int, tuple[tuple[Choice, ...], Offer | TaskError]] = {}

    def known(self, task: Task) -> Offer:
        """Return what a task has; raises TaskError where the head does not know all of it."""
        if not self.is_by_task:
            return self._all
        own = self._of_tasks.of(task.data)
        if id(own) not in self._offers:
            self._offers[id(own)] = own, self._offer(own)
        _, offer = self._offers[id(own)]
        if isinstance(offer, TaskError):
            raise offer
        return offer

    def offers(self, rows: list[int]) -> list[Offer]:
        """Return what the tasks that were added have; all of them have the same unless by task."""
        if not self.is_by_task:
            return [replace(self._all, rows=rows)]
        return [
            offer for _, offer in self._offers.values() if isinstance(offer, Offer) and offer.rows
        ]

    def _offer(self, own: tuple[Choice, ...]) -> Offer | TaskError:
        known = tuple(each for each in own if each.value in self._columns)
        # Others than leaves are known once they were chosen.
        if not known or sum(each.is_leaf for each in own) > sum(each.is_leaf for each in known):
            return TaskError(
                "the task has choices that are new here: the next training learns them, up to "
                f"{MAX_OPTIONS} in a project"
            )
        return Offer([], known, [self._columns[each.value] for each in known])
