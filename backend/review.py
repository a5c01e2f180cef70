"""`review`: the labels that are probably wrong, and how far annotators agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from backend.errors import SettingsError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.views import MOST_IN_VIEW, remove_view, show_tasks
from backend.store import Store

if TYPE_CHECKING:
    from backend.labelstudio.agreement import Agreement
    from backend.learning.label_errors import Suspect

VIEW_TITLE = "Suspected label errors"


def review(store: Store, client: LabelStudio, project_id: int, *, limit: int) -> None:
    """Print what the latest version's report says of the labels, and keep a view of the suspects.

    Raises SettingsError for a project without a version.
    """
    version = store.versions.latest(project_id)
    if version is None:
        raise SettingsError(
            f"Project {project_id} has no model version yet: "
            f"run `clip-backend train --project {project_id}`"
        )
    console = Console()
    suspects: dict[str, list[Suspect]] = {}
    for control in version.heads:
        found = version.report.get(control, {}).get("suspects")
        if found is None:
            console.print(f"{escape(control)}: too few labels to judge each by the others")
            continue
        suspects[control] = found
        if found:
            console.print(_suspects_table(control, found[:limit]))
        else:
            console.print(f"{escape(control)}: no label is suspected")
        if len(found) > limit:
            console.print(f"and {len(found) - limit} more: see --limit", highlight=False)

    agreements: dict[str, Agreement] = {
        control: agreement
        for control in version.heads
        if (agreement := version.report.get(control, {}).get("agreement")) and agreement["tasks"]
    }
    if agreements:
        emails = client.emails()
        for control, agreement in agreements.items():
            console.print(_agreement_table(control, agreement, emails))

    _show_view(console, store, client, project_id, most_suspicious(list(suspects.values())))


def most_suspicious(suspects: Sequence[Sequence[Suspect]]) -> list[int]:
    """Return the suspected tasks of several controls, each in turn with its most suspicious."""
    by_rank = chain.from_iterable(zip_longest(*suspects))
    return list(dict.fromkeys(suspect["task"] for suspect in by_rank if suspect is not None))


def _show_view(
    console: Console, store: Store, client: LabelStudio, project_id: int, task_ids: list[int]
) -> None:
    if not task_ids:
        if remove_view(client, project_id, VIEW_TITLE):
            console.print(f'removed the view "{VIEW_TITLE}"')
        return
    shown = task_ids[:MOST_IN_VIEW]
    view = show_tasks(client, project_id, VIEW_TITLE, shown)
    store.projects.remember_view(project_id, VIEW_TITLE, view.id)
    console.print(
        f'view "{VIEW_TITLE}" of {len(shown)} task{"s"[: len(shown) != 1]}'
        + (", the most suspicious ones" if len(task_ids) > MOST_IN_VIEW else "")
        + f": {view.address}",
        highlight=False,
        soft_wrap=True,
    )


def _suspects_table(control: str, suspects: Sequence[Suspect]) -> Table:
    table = Table(
        Column("task", justify="right"),
        "given",
        "suggested",
        Column("confidence", justify="right"),
        title=f"{escape(control)}: suspected label errors",
    )
    for suspect in suspects:
        table.add_row(
            str(suspect["task"]),
            _choices(suspect["given"]),
            _choices(suspect["suggested"]),
            f"{suspect['confidence']:.0%}",
        )
    return table


def _agreement_table(control: str, agreement: Agreement, emails: Mapping[int, str]) -> Table:
    table = Table(
        "annotator",
        Column("tasks", justify="right"),
        Column("compared", justify="right"),
        Column("agreement with the others", justify="right"),
        title=f"{escape(control)}: agreement of annotators",
        caption=f"{agreement['tasks']} tasks with several annotators, pairwise agreement "
        f"{_share(agreement['pairwise'])}, Krippendorff's alpha {_number(agreement['alpha'])}",
    )
    for each in agreement["annotators"]:
        table.add_row(
            escape(emails.get(each["annotator"], f"user {each['annotator']}")),
            str(each["tasks"]),
            str(each["compared"]),
            _share(each["agreement"]),
        )
    return table


def _choices(values: Sequence[str]) -> str:
    return escape(", ".join(values)) or "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
