"""Everything at once for some minutes; `make soak` is an hour of the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.demo.label_studio import LabelStudioServer
from tests.e2e.soak import GROWTH, Soak, assert_nothing_is_lost, connected_project, show


def test_nothing_is_lost_and_memory_is_flat(
    label_studio: LabelStudioServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    with connected_project(label_studio, tmp_path) as (backend, project):
        soak = Soak(backend, project, seconds=60 * pytestconfig.getoption("soak_minutes"))

        soak.run()

        show(soak.outcome)
        assert_nothing_is_lost(backend, project)
    assert soak.outcome.done["annotated"] > 0
    assert soak.outcome.done["worker killed"] > 0
    # The page that showed a prediction names it when it submits, and must find it.
    assert soak.outcome.lost == 0, soak.outcome.refused
    assert max(soak.outcome.growth().values()) < GROWTH, soak.outcome.memory
