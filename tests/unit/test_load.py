from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.api.load import PredictSlots
from backend.errors import TooManyRequestsError


def test_a_request_in_hand_waits_for_its_turn() -> None:
    slots = PredictSlots(2, at_work=1)

    def work() -> None:
        with slots.take():
            pass

    with ThreadPoolExecutor(1) as clients:
        with slots.take():
            second = clients.submit(work)
        second.result()


def test_a_request_beyond_those_in_hand_is_refused() -> None:
    slots = PredictSlots(1, at_work=1)

    with slots.take(), pytest.raises(TooManyRequestsError, match="PREDICT_THREADS"), slots.take():
        pass

    with slots.take():
        pass


def test_a_request_that_has_waited_long_enough_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.api.load.LONGEST_WAIT", 0.0)
    slots = PredictSlots(2, at_work=1)

    with slots.take():
        with pytest.raises(TooManyRequestsError, match="fewer tasks at once"), slots.take():
            pass
        with pytest.raises(TooManyRequestsError, match="fewer tasks at once"), slots.take():
            pass

    with slots.take():
        pass
