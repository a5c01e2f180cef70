"""What stays of versions that are gone, and what was found out for people to look at."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import sqlalchemy as sa

from backend.errors import DatabaseError
from backend.store import Store
from backend.store.findings import FindingKind
from backend.store.history import Figures
from backend.store.schema import versions
from backend.store.versions import KEPT
from tests.integration.test_upgrade import FIRST_RELEASE, run
from tests.integration.test_versions import HOSTILE, PROJECT, version

REPORT = {
    "labels": 40,
    "out_of_fold": {"labels": 40, "top1": 0.75, "top5": 1.0},
    "pool_accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
    "acceptance": {"shown": 10, "kept": 7, "until": 99},
    "suspects": [],
}
FIGURES = Figures(labels=40, accuracy=0.75, pool_accuracy=(0.8, 0.7, 0.9), shown=10, kept=7)


@pytest.fixture(autouse=True)
def project(request: pytest.FixtureRequest) -> None:
    if "store" in request.fixturenames:
        request.getfixturevalue("store").projects.set_up(PROJECT)


def test_a_published_version_is_in_the_history_with_its_figures(store: Store) -> None:
    published = store.versions.publish(version(report={"kind": REPORT, "new": {"labels": 0}}))

    (entry,) = store.history.of(PROJECT)

    assert (entry.number, entry.name, entry.created_at) == (
        published.number,
        published.name,
        published.created_at,
    )
    assert entry.figures == {"kind": FIGURES, "new": Figures(labels=0)}


def test_the_history_outlives_the_versions(store: Store) -> None:
    for number in range(KEPT + 3):
        store.versions.publish(version(report={"kind": {"labels": number}}))

    entries = store.history.of(PROJECT)

    assert len(store.versions.names(PROJECT)) == KEPT
    assert [entry.figures["kind"].labels for entry in entries] == [*range(KEPT + 3)]
    assert [entry.number for entry in entries] == [*range(1, KEPT + 4)]


def test_what_is_added_to_a_report_is_added_to_the_history(store: Store) -> None:
    store.versions.publish(version(report={"kind": {"labels": 40}}))
    latest = store.versions.latest(PROJECT)
    assert latest is not None

    store.versions.amend(latest, {"kind": {"acceptance": {"shown": 4, "kept": 3, "until": 8}}})

    (entry,) = store.history.of(PROJECT)
    assert entry.figures == {"kind": Figures(labels=40, shown=4, kept=3)}


def test_controls_may_be_called_anything(store: Store) -> None:
    store.versions.publish(version(report={name: {"labels": 1} for name in HOSTILE}))

    (entry,) = store.history.of(PROJECT)

    assert [*entry.figures] == [*HOSTILE]


def test_a_version_that_is_not_published_leaves_no_trace(store: Store) -> None:
    store.versions.publish(version(), {FindingKind.LABELS: b"first"})
    with pytest.raises((TypeError, sa.exc.StatementError, DatabaseError)):
        store.versions.publish(version(), {FindingKind.LABELS: object()})  # type: ignore[dict-item]

    assert len(store.versions.names(PROJECT)) == 1
    assert len(store.history.of(PROJECT)) == 1
    found = store.findings.get(PROJECT, FindingKind.LABELS)
    assert found is not None
    assert found.content == b"first"


def test_findings_are_of_the_last_version_that_had_some(store: Store) -> None:
    first = store.versions.publish(
        version(), {FindingKind.CONFUSION: b"1", FindingKind.LABELS: b"2"}
    )
    second = store.versions.publish(version(), {FindingKind.LABELS: b"\x00\xff"})

    confusion = store.findings.get(PROJECT, FindingKind.CONFUSION)
    labels = store.findings.get(PROJECT, FindingKind.LABELS)
    assert confusion is not None
    assert labels is not None
    assert (confusion.model_version, confusion.content) == (first.name, b"1")
    assert (labels.model_version, labels.content) == (second.name, b"\x00\xff")
    assert labels.created_at <= time.time()
    assert store.findings.model_version(PROJECT, FindingKind.LABELS) == second.name
    assert store.findings.get(PROJECT, FindingKind.MAP) is None
    assert store.findings.model_version(PROJECT, FindingKind.MAP) is None


def test_a_project_that_is_forgotten_takes_its_history_along(store: Store) -> None:
    store.projects.set_up(8)
    store.versions.publish(version(), {FindingKind.LABELS: b"1"})
    other = store.versions.publish(version(8), {FindingKind.LABELS: b"2"})

    store.forget(PROJECT)

    assert store.history.of(PROJECT) == []
    assert store.findings.get(PROJECT, FindingKind.LABELS) is None
    assert [entry.name for entry in store.history.of(8)] == [other.name]
    assert store.findings.get(8, FindingKind.LABELS) is not None
    # Its numbers begin anew.
    store.projects.set_up(PROJECT)
    assert store.versions.publish(version()).number == 1


def test_what_was_found_out_while_a_project_was_forgotten_is_dropped_later(store: Store) -> None:
    store.forget(PROJECT)
    store.findings.keep(PROJECT, "clip-backend-1-01234567", {FindingKind.MAP: b"late"})

    store.forget_leftovers()

    assert store.findings.get(PROJECT, FindingKind.MAP) is None


def test_an_upgrade_begins_the_history_with_the_versions_that_are_stored(
    database_url: str,
) -> None:
    run(database_url, FIRST_RELEASE)
    engine = sa.create_engine(database_url)

    def row(project_id: int, number: int, report: dict[str, Any]) -> dict[str, Any]:
        return {
            "project_id": project_id,
            "number": number,
            "name": f"clip-backend-{number}-01234567",
            "fingerprint": "0" * 64,
            "encoder": "tiny",
            "query_strategy": "margin",
            "score": "confidence",
            "heads": b"",
            "annotations": 3,
            "report": report,
            "created_at": 1000.5 + number,
        }

    with engine.begin() as connection:
        connection.execute(
            sa.insert(versions),
            [
                *(row(PROJECT, number, {"kind": REPORT}) for number in range(1, 103)),
                row(8, 1, {"\ud800": {"labels": 3}, "b": {}}),
            ],
        )
    engine.dispose()

    store = Store.open(database_url)

    entries = store.history.of(PROJECT)
    assert [entry.number for entry in entries] == [*range(1, 103)]
    assert entries[-1].figures == {"kind": FIGURES}
    assert entries[-1].created_at == 1102.5
    (other,) = store.history.of(8)
    assert json.dumps([*other.figures]) == '["\\ud800", "b"]'
    assert other.figures["b"] == Figures()
    store.close()
