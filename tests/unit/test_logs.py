"""A line is an event, whatever strangers have sent."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator

import pytest

from backend.logs import at_hand, configure_logging

log = logging.getLogger("backend.test")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("backend")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


Capture = pytest.CaptureFixture[str]

HOSTILE = 'x" \n2026-01-01T00:00:00 INFO backend: request=forged \x1b[31m\u2028\x00 {"a": 1}'


def test_ids_stand_before_the_message_and_end_with_the_request(capsys: Capture) -> None:
    configure_logging("INFO")

    with at_hand(request="abc"), at_hand(job="train-7-0"):
        log.info("published project=%d", 7)
    log.info("afterwards")

    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO backend.test: request=abc job=train-7-0 published project=7")
    assert second.endswith("INFO backend.test: afterwards")


def test_ids_of_one_thread_are_not_anothers(capsys: Capture) -> None:
    configure_logging("INFO")

    with at_hand(request="abc"):
        thread = threading.Thread(target=lambda: log.info("elsewhere"))
        thread.start()
        thread.join()

    assert "request=" not in capsys.readouterr().err


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_strangers_send_stays_in_its_line(capsys: Capture, style: str) -> None:
    configure_logging("INFO", style)

    log.info("webhook project=%d action=%s", 7, HOSTILE)

    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert written.rstrip("\n").isprintable()


def test_json_has_time_level_logger_message_ids_and_the_values_that_the_template_names(
    capsys: Capture,
) -> None:
    configure_logging("INFO", "json")

    with at_hand(job="train-7-0"):
        log.info("100%% of %s project=%d part=%d seconds=%.2f: %s", "all", 7, 0, 1.5, HOSTILE)

    event = json.loads(capsys.readouterr().err)
    time = event.pop("time")
    assert time.endswith("Z")
    assert event == {
        "level": "INFO",
        "logger": "backend.test",
        "message": f"100% of all project=7 part=0 seconds=1.50: {HOSTILE}",
        "job": "train-7-0",
        "project": 7,
        "part": 0,
        "seconds": 1.5,
    }


def test_a_value_cannot_take_the_place_of_an_id_or_of_the_message(capsys: Capture) -> None:
    configure_logging("INFO", "json")

    with at_hand(request="abc"):
        log.info("request=%s message=%s level=%s job=%s", "forged", "forged", "forged", "forged")

    event = json.loads(capsys.readouterr().err)
    assert (event["request"], event["level"], event["job"]) == ("abc", "INFO", "forged")
    assert event["message"].startswith("request=forged")


def test_json_carries_the_traceback_and_numbers_that_json_does_not_have(capsys: Capture) -> None:
    configure_logging("INFO", "json")

    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("broke share=%f", float("nan"))

    event = json.loads(capsys.readouterr().err, parse_constant=pytest.fail)
    assert "ValueError" in event["exception"]
    assert event["share"] == "nan"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_line_is_bounded(capsys: Capture, style: str) -> None:
    configure_logging("INFO", style)

    log.info("action=%s", "x" * 1_000_000)

    assert len(capsys.readouterr().err) < 10_000


def test_what_is_logged_without_arguments_or_with_a_mapping_is_told(capsys: Capture) -> None:
    configure_logging("INFO", "json")

    log.info("share=%(share)s", {"share": 1})
    log.info("50% done")

    messages = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert messages == ["share=1", "50% done"]
