"""How many labels each choice has."""

from __future__ import annotations

from dataclasses import dataclass

from backend.page.charts import Chart, bars
from backend.page.services import ProjectView


@dataclass(frozen=True)
class ControlBalance:
    """One control's choices; `without` counts those that nobody has chosen yet."""

    control: str
    labels: int
    choices: int
    without: int
    chart: Chart


def class_balance(view: ProjectView) -> list[ControlBalance]:
    """Return the labels per choice as the last training found them, by control."""
    return [
        _balance(control, report["per_choice"])
        for control, report in view.latest_reports.items()
        if "per_choice" in report
    ]


def _balance(control: str, per_choice: dict[str, int]) -> ControlBalance:
    labels = sum(per_choice.values())
    without = sum(count == 0 for count in per_choice.values())
    chart = bars(f"Labels of each choice of {control}", "choice", per_choice, "labels")
    return ControlBalance(control, labels, len(per_choice), without, chart)
