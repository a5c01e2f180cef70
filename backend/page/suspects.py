"""Labels that are probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.page.pictures import picture_of
from backend.page.services import ProjectView

# Of each control: the most suspicious; Label Studio shows the others.
MOST = 12


@dataclass(frozen=True)
class SuspectedLabel:
    """One task, what people gave, and what the other labels suggest instead, how surely."""

    id: int
    given: Sequence[str]
    suggested: Sequence[str]
    confidence: float
    picture: str | None
    link: str | None


@dataclass(frozen=True)
class ControlSuspects:
    """One control's suspects, the most suspicious first; None where labels are too few."""

    control: str
    found: int | None
    labels: list[SuspectedLabel]


def suspects(view: ProjectView) -> list[ControlSuspects]:
    """Return the labels that the last training suspects, by control."""
    project_id, links = view.project.id, view.label_studio
    found = {control: report.get("suspects") for control, report in view.latest_reports.items()}
    shown = {control: each[:MOST] for control, each in found.items() if each}
    tasks = {
        task.id: task
        for task in view.store.tasks.named(
            project_id, [suspect["task"] for each in shown.values() for suspect in each]
        )
    }
    controls = {control.name: control for control in view.controls}
    return [
        ControlSuspects(
            control,
            None if of_control is None else len(of_control),
            [
                SuspectedLabel(
                    suspect["task"],
                    suspect["given"],
                    suspect["suggested"],
                    suspect["confidence"],
                    picture_of(
                        tasks[suspect["task"]], controls.get(control, view.first_control), links
                    ),
                    links.task(project_id, suspect["task"]),
                )
                for suspect in shown.get(control, ())
                if suspect["task"] in tasks
            ],
        )
        for control, of_control in found.items()
    ]
