from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

from backend.errors import LabelStudioError
from backend.page.remembered import Remembered

# Only what hangs takes this long.
PATIENCE = 300.0


def test_a_look_that_takes_long_keeps_nobody_waiting_and_is_shown_when_it_is_there() -> None:
    may_end = threading.Event()

    def look() -> str:
        assert may_end.wait(PATIENCE)
        return "found"

    remembered = Remembered("a server", look, seconds=1000, patience=0.0)

    assert remembered.read() is None
    may_end.set()
    while remembered.read() != "found":
        pass


def test_a_server_is_not_asked_again_while_its_answer_is_fresh() -> None:
    now, asked = [0.0], count(1)
    remembered = Remembered(
        "a server",
        lambda: next(asked),
        seconds=10,
        patience=PATIENCE,
        clock=lambda: now[0],
    )

    assert [remembered.read() for _ in range(3)] == [1, 1, 1]
    now[0] = 11.0
    assert remembered.read() == 2


def test_what_was_found_stays_while_the_server_fails() -> None:
    now = [0.0]
    answers: Iterator[str] = iter(["found"])

    def look() -> str:
        for answer in answers:
            return answer
        raise LabelStudioError("away")

    remembered = Remembered("a server", look, seconds=10, patience=PATIENCE, clock=lambda: now[0])
    assert remembered.read() == "found"

    now[0] = 11.0

    assert remembered.read() == "found"
