"""What other prompts would do to zero-shot predictions, on what people have labelled already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from backend.embedding import Embedder
from backend.labelstudio.annotations import labels_of, targets_of
from backend.labelstudio.client import RemoteTask
from backend.labelstudio.config import Control
from backend.prediction import learnable, prompts_of, zero_shot_head
from backend.settings import LearningSettings
from backend.store.tasks import Task

if TYPE_CHECKING:
    import torch

    from backend.learning.estimation import Estimate
    from backend.learning.head import Head

# Bounds the memory of one pass over thousands of choices.
_PICTURES_AT_ONCE = 1000


@dataclass(frozen=True)
class ChoiceEffect:
    """How many of a choice's `labels` are predicted so; of a multiple one, rightly or not at all.

    Of a choice that may be one of several, `labels` are all pictures, and right is a picture that
    has it where it should and only there.
    """

    value: str
    labels: int
    before: int
    after: int


@dataclass(frozen=True)
class Effect:
    """What other prompts do for one control.

    `before` and `after` are the shares of decisions that zero-shot gets right, each label counted
    as what it stands for in the pool; `difference` is theirs with its 95 % interval. `choices` are
    those whose prompts are others, and those that lose or win by it.
    """

    control: str
    labels: int
    before: float
    after: float
    difference: Estimate
    choices: list[ChoiceEffect]

    @property
    def better(self) -> bool:
        """Whether it is better, beyond what so many labels show by chance."""
        return self.difference.low > 0

    @property
    def worse(self) -> bool:
        """Whether it is worse, beyond what so many labels show by chance."""
        return self.difference.high < 0


def prompt_effect(
    embedder: Embedder,
    control: Control,
    annotated: Sequence[RemoteTask],
    sample: Sequence[Task],
    before: LearningSettings,
    after: LearningSettings,
) -> Effect | None:
    """Compare the prompts of two settings; None without a label whose picture is embedded.

    Labels are read of the annotations as a training reads them. `sample` shows what the pool is
    like: labels were picked where a model was unsure, where any other would look better.
    """
    from backend.learning.head import LabelledSet
    from backend.learning.paired import paired_difference

    labels = labels_of(control, {task.id: task.annotations for task in annotated}).values
    control = learnable(control, frozenset(chain.from_iterable(labels.values())))
    tasks = [Task(task.id, task.data) for task in annotated if task.id in labels]
    ids, vectors = embedder.vectors_of(tasks, control, fetch=False)
    if not ids:
        return None
    targets = targets_of(control, [labels[task_id] for task_id in ids])
    head = zero_shot_head(embedder.encoder, control, before).head
    other = _with_prompts(embedder, control, head, before, after)
    _, pool = embedder.vectors_of(sample, control, fetch=False)
    labelled = LabelledSet(vectors, targets, head)
    weights = labelled.stands_for(pool if len(pool) else None)
    vectors, targets = vectors[labelled.order], targets[labelled.order]
    right = _right(head, vectors, targets)
    right_then = _right(other, vectors, targets)
    share = weights / weights.sum()
    return Effect(
        control.name,
        len(ids),
        before=(share * _of_picture(right)).sum().item(),
        after=(share * _of_picture(right_then)).sum().item(),
        difference=paired_difference(_of_picture(right), _of_picture(right_then), weights),
        choices=_by_choice(control, targets, right, right_then, _changed(control, before, after)),
    )


def _changed(control: Control, before: LearningSettings, after: LearningSettings) -> list[int]:
    pairs = zip(prompts_of(control, before), prompts_of(control, after), strict=True)
    return [index for index, (one, other) in enumerate(pairs) if one != other]


def _with_prompts(
    embedder: Embedder,
    control: Control,
    head: Head,
    before: LearningSettings,
    after: LearningSettings,
) -> Head:
    """Return the zero-shot head of other prompts; only these are encoded."""
    changed = _changed(control, before, after)
    if not changed:
        return head
    some = replace(control, choices=tuple(control.choices[index] for index in changed))
    wordings = prompts_of(control, after)
    spelled_out = {control.choices[index].value: wordings[index] for index in changed}
    learning = after.model_copy(update={"prompts": spelled_out})
    weights = head.weights.clone()
    weights[changed] = zero_shot_head(embedder.encoder, some, learning).head.weights
    return replace(head, weights=weights)


def _right(head: Head, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return which decisions are right: [N] bool, or [N, K] of independent choices."""
    import torch

    parts = []
    for start in range(0, len(vectors), _PICTURES_AT_ONCE):
        some = slice(start, start + _PICTURES_AT_ONCE)
        probabilities = head.probabilities(vectors[some])
        if head.multiple:
            parts.append((probabilities >= 0.5) == targets[some].bool())
        else:
            parts.append(probabilities.argmax(dim=1) == targets[some])
    return torch.cat(parts)


def _of_picture(right: torch.Tensor) -> torch.Tensor:
    share: torch.Tensor = right.double() if right.ndim == 1 else right.double().mean(dim=1)
    return share


def _by_choice(
    control: Control,
    targets: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    changed: Sequence[int],
) -> list[ChoiceEffect]:
    found = []
    for index, value in enumerate(control.values):
        if control.multiple:
            one, other = before[:, index], after[:, index]
        else:
            one, other = before[targets == index], after[targets == index]
        effect = ChoiceEffect(value, len(one), int(one.sum()), int(other.sum()))
        if index in changed or effect.before != effect.after:
            found.append(effect)
    return found
