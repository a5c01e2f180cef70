"""Probabilities to results, in Label Studio's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.labelstudio.choices import Choice
from backend.labelstudio.config import Control

Probabilities = NDArray[np.float32]

# Of a shortlist: more than people read at a glance.
LIKELIEST = 5

# Of the same vectors two machines make probabilities that differ by less.
_ALIKE = 0.001


class Answers:
    """What a control's probabilities say of tasks that have the same choices."""

    def __init__(self, control: Control, choices: Sequence[Choice]) -> None:
        """Take the choices in the order of the probabilities."""
        self._control = control
        self._choices = choices
        self._levels = _levels([choice.path for choice in choices])
        # Of independent probabilities no sum means anything.
        self._states_levels = not control.multiple and self._levels.shape[1] > 1

    def results(self, probabilities: Probabilities) -> list[dict[str, object]]:
        """Return what to select for a row of probabilities [K], and what to show beside it."""
        chosen = chosen_by(self._control, probabilities)
        results = [self._selection(probabilities, chosen)] if chosen else []
        if self._control.shortlist is not None:
            results.append(
                {
                    "from_name": self._control.shortlist.name,
                    "to_name": self._control.shortlist.to_name,
                    "type": "textarea",
                    "value": {"text": self._shortlist(probabilities)},
                }
            )
        return results

    def _selection(self, probabilities: Probabilities, chosen: list[int]) -> dict[str, object]:
        choices = [self._choices[index] for index in chosen]
        is_flat = self._control.kind == "choices"
        selected = [each.value if is_flat else list(each.path) for each in choices]
        result: dict[str, object] = {
            "from_name": self._control.name,
            "to_name": self._control.to_name,
            "type": self._control.kind,
            "value": {self._control.kind: selected},
            "score": round(float(probabilities[chosen].min()), 6),
        }
        if self._states_levels:
            levels = self._of_levels(probabilities, chosen[0])
            result["meta"] = {"levels": [round(level, 6) for level in levels]}
        return result

    def _shortlist(self, probabilities: Probabilities) -> list[str]:
        likeliest = np.argsort(-probabilities, kind="stable")[:LIKELIEST].tolist()
        return [
            f"{self._choices[index].shown} – {self._percentages(probabilities, index)}"
            for index in likeliest
        ]

    def _percentages(self, probabilities: Probabilities, index: int) -> str:
        own = _percent(float(probabilities[index]))
        if not self._states_levels or len(self._choices[index].path) < 2:
            return own
        *above, _ = self._of_levels(probabilities, index)
        steps = zip(self._choices[index].within, above, strict=True)
        return f"{own} ({', '.join(f'{step} {_percent(level)}' for step, level in steps)})"

    def _of_levels(self, probabilities: Probabilities, index: int) -> list[float]:
        """Return how likely each step of a path is: what all choices that share it sum to."""
        depth = len(self._choices[index].path)
        shared = self._levels[:, :depth] == self._levels[index, :depth]
        return [min(1.0, float(probabilities[rows].sum())) for rows in shared.T]


def chosen_by(control: Control, probabilities: Probabilities) -> list[int]:
    """Return which choices a row of probabilities [K] stands for: the likeliest, or all likely."""
    if control.multiple:
        return np.flatnonzero(probabilities >= 0.5).tolist()
    return [int(probabilities.argmax())]


def is_alike(result: object, expected: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a result that Label Studio holds is the expected one, but for rounding.

    A shortlist is not looked at: its order is that of probabilities which may be all but equal.
    """
    if not isinstance(result, list):
        return False
    given = [item for item in result if isinstance(item, dict) and "score" in item]
    wanted = [item for item in expected if "score" in item]
    return len(given) == len(wanted) and all(map(_says_the_same, given, wanted))


def _says_the_same(item: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (
        all(item.get(key) == other[key] for key in ("from_name", "to_name", "type", "value"))
        # What people's scripts store may be anything.
        and isinstance(item["score"], int | float)
        and abs(item["score"] - other["score"]) <= _ALIKE
    )


def _levels(paths: Sequence[tuple[str, ...]]) -> NDArray[np.int32]:
    """Return a number for the beginning of each length of each path [K, levels]; -1 beyond it."""
    levels = np.full((len(paths), max(map(len, paths), default=0)), -1, dtype=np.int32)
    numbers: dict[tuple[int, str], int] = {}
    for row, path in enumerate(paths):
        before = -1
        for level, step in enumerate(path):
            before = numbers.setdefault((before, step), len(numbers))
            levels[row, level] = before
    return levels


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.005 else "under 1%"
