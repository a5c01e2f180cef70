"""Documents, dashboard and alerts name the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from backend.store import Store
from tests.integration.conftest import StartApp
from tests.integration.fake_label_studio import CONFIG
from tests.integration.test_metrics import version

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "clip-backend.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
ALERT_TESTS = ROOT / "deploy" / "prometheus" / "alerts.test.yml"
DOCUMENT = ROOT / "docs" / "monitoring.md"

NAME = re.compile(r"\bclip_backend_\w+")


@pytest.fixture
def families(start_app: StartApp, store: Store) -> dict[str, Metric]:
    """Every metric of ours, by the name that it is asked for."""
    store.projects.set_up(7, label_config=CONFIG)
    store.versions.publish(version(7, {"colour": {"labels": 1}}))
    client = start_app(workers=lambda: 1).test_client()
    client.get("/health")
    found = text_string_to_metric_families(client.get("/metrics").get_data(as_text=True))
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in found
        if family.name.startswith("clip_backend_") and not family.name.endswith("_created")
    }


def askable(families: dict[str, Metric]) -> set[str]:
    return {
        name + ending
        for name, family in families.items()
        for ending in (("_bucket", "_sum", "_count") if family.type == "histogram" else ("",))
    }


def test_the_document_lists_every_metric_with_its_type_and_meaning(
    families: dict[str, Metric],
) -> None:
    rows = re.findall(r"^\| `(clip_\w+)` \| (\w+) \| .+? \| (.+) \|$", DOCUMENT.read_text(), re.M)

    assert sorted(rows) == sorted(
        (name, family.type, family.documentation) for name, family in families.items()
    )


def test_the_document_lists_every_label(families: dict[str, Metric]) -> None:
    rows = re.findall(r"^\| `(clip_\w+)` \| \w+ \| (.+?) \| .+ \|$", DOCUMENT.read_text(), re.M)
    documented = {name: {*re.findall(r"`(\w+)`", labels)} for name, labels in rows}

    seen = {
        name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for name, family in families.items()
        if family.samples
    }
    assert seen
    assert {name: documented[name] for name in seen} == seen


def test_the_dashboard_asks_for_metrics_that_there_are(families: dict[str, Metric]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = NAME.findall(" ".join(strings(dashboard)))

    assert len(asked) > 30
    assert {*asked} - askable(families) == set()
    assert metrics_in(asked) == families.keys()


def test_the_dashboards_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()

    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_the_alerts_ask_for_metrics_that_there_are_and_say_what_to_do(
    families: dict[str, Metric],
) -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]

    for rule in group["rules"]:
        assert {*NAME.findall(rule["expr"])} <= askable(families), rule["alert"]
        assert {*rule["annotations"]} == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
    assert {*NAME.findall(ALERT_TESTS.read_text())} <= askable(families)


def test_every_alert_is_made_to_fire() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    fired = re.findall(r'alertname="(\w+)"', ALERT_TESTS.read_text())

    assert sorted(alerts) == sorted(fired)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
@pytest.mark.parametrize("command", [("check", ALERTS), ("test", ALERT_TESTS)])
def test_promtool_finds_the_alerts_right(command: tuple[str, Path]) -> None:
    verb, file = command

    done = subprocess.run(
        ["promtool", verb, "rules", file], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def metrics_in(asked: list[str]) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
