from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask, request

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


def test_a_body_that_never_fits_is_not_asked_for_again(bodies: Bodies) -> None:
    with pytest.raises(TooLargeError), read(bodies, text(MEMORY + 1)):
        pass
    with pytest.raises(TooLargeError), read(bodies, b"[" + b"1," * 20 + b"1]"):
        pass

    with read(bodies, text(MEMORY)):
        pass
