"""How far the annotators agree."""

from __future__ import annotations

from dataclasses import dataclass

from backend.labelstudio.agreement import Agreement
from backend.page.services import ProjectView


@dataclass(frozen=True)
class Annotator:
    """One annotator, by name; `agreement` is with the consensus of the others."""

    name: str
    tasks: int
    compared: int
    agreement: float | None


@dataclass(frozen=True)
class ControlAgreement:
    """One control's annotators; None where nothing can be compared."""

    control: str
    tasks: int
    pairwise: float | None
    alpha: float | None
    annotators: list[Annotator]


def agreement(view: ProjectView) -> list[ControlAgreement]:
    """Return the agreement as the last training found it, by control."""
    found: dict[str, Agreement] = {
        control: report["agreement"]
        for control, report in view.latest_reports.items()
        if report.get("agreement") and report["agreement"]["tasks"]
    }
    emails = (view.services.emails() or {}) if found else {}
    return [
        ControlAgreement(
            control,
            each["tasks"],
            each["pairwise"],
            each["alpha"],
            [
                Annotator(
                    emails.get(one["annotator"], f"user {one['annotator']}"),
                    one["tasks"],
                    one["compared"],
                    one["agreement"],
                )
                for one in each["annotators"]
            ],
        )
        for control, each in found.items()
    ]
