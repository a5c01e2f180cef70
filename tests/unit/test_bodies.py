from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO

import pytest
from flask import Flask, request
from werkzeug.exceptions import BadRequest

from backend.api.load import Bodies
from backend.errors import TooLargeError, TooManyRequestsError

MEMORY = 1000


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(MEMORY)


@contextmanager
def read(bodies: Bodies, body: bytes) -> Iterator[object]:
    """Hold a parsed body as a request does until it is answered."""
    with Flask(__name__).test_request_context("/", method="POST", data=body):
        try:
            yield bodies.json(request)
        finally:
            bodies.release()


def text(size: int) -> bytes:
    return b'"' + b"x" * (size - 2) + b'"'


def test_bodies_share_their_memory_until_they_are_answered(bodies: Bodies) -> None:
    with read(bodies, text(600)):
        with pytest.raises(TooManyRequestsError) as refused, read(bodies, text(600)):
            pass
        with read(bodies, text(400)) as fits:
            assert fits == "x" * 398

    with read(bodies, text(MEMORY)) as whole:
        assert whole == "x" * (MEMORY - 2)
    assert refused.value.retry_after > 0


def test_what_is_announced_but_does_not_come_takes_no_memory(bodies: Bodies) -> None:
    class Stalled(BytesIO):
        def readinto(self, _: object) -> int:
            with read(bodies, text(MEMORY)) as meanwhile:
                answered.append(meanwhile)
            return 0

    answered: list[object] = []
    environ = {"CONTENT_LENGTH": str(MEMORY), "wsgi.input": BufferedReader(Stalled())}
    with Flask(__name__).test_request_context("/", method="POST", environ_overrides=environ):
        with pytest.raises(BadRequest):
            bodies.json(request)
        bodies.release()

    assert answered == ["x" * (MEMORY - 2)]


def test_a_body_that_never_fits_is_not_asked_for_again(bodies: Bodies) -> None:
    with pytest.raises(TooLargeError), read(bodies, text(MEMORY + 1)):
        pass
    with pytest.raises(TooLargeError), read(bodies, b"[" + b"1," * 20 + b"1]"):
        pass

    with read(bodies, text(MEMORY)):
        pass


def test_objects_are_counted_for_what_they_take() -> None:
    chain = b'{"":' * 100 + b"0" + b"}" * 100
    bodies = Bodies(100 * sys.getsizeof({"": 0}))

    with pytest.raises(TooLargeError), read(bodies, chain):
        pass
