from __future__ import annotations

import pytest

from backend.api.failed_logins import OF_A_CLIENT, OF_ALL, FailedLogins, address_of
from backend.errors import TooManyRequestsError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(clock: Clock) -> FailedLogins:
    return FailedLogins(clock)


def fail(logins: FailedLogins, client: str, times: int = OF_A_CLIENT.burst) -> None:
    for _ in range(times):
        logins.judge(client, right=False)


def seconds_to_wait(logins: FailedLogins, client: str, *, right: bool = True) -> float:
    with pytest.raises(TooManyRequestsError) as refused:
        logins.judge(client, right=right)
    return refused.value.retry_after


def test_a_client_with_ten_failures_waits_even_with_the_right_password(
    logins: FailedLogins,
) -> None:
    fail(logins, "a")

    assert seconds_to_wait(logins, "a", right=False) == pytest.approx(6)
    assert seconds_to_wait(logins, "a", right=True) == pytest.approx(6)


def test_another_client_does_not_wait(logins: FailedLogins) -> None:
    fail(logins, "a")

    logins.judge("b", right=True)
    logins.judge("c", right=False)


def test_who_waits_as_long_as_told_is_let_in_and_has_one_guess(
    logins: FailedLogins, clock: Clock
) -> None:
    fail(logins, "a")

    clock.now += seconds_to_wait(logins, "a")
    logins.judge("a", right=True)
    logins.judge("a", right=False)

    assert seconds_to_wait(logins, "a") == pytest.approx(6)


def test_to_be_refused_costs_nothing(logins: FailedLogins, clock: Clock) -> None:
    fail(logins, "a")
    for _ in range(100):
        seconds_to_wait(logins, "a", right=False)

    clock.now += 6

    logins.judge("a", right=True)


def test_failures_are_forgotten_after_a_minute(logins: FailedLogins, clock: Clock) -> None:
    fail(logins, "a")

    clock.now += 60

    fail(logins, "a")


def test_right_logins_are_never_too_many(logins: FailedLogins) -> None:
    for _ in range(1000):
        logins.judge("a", right=True)


def test_guesses_from_many_addresses_are_bounded_together(
    logins: FailedLogins, clock: Clock
) -> None:
    for number in range(OF_ALL.burst):
        logins.judge(number, right=False)

    wait = seconds_to_wait(logins, "one more", right=True)

    assert wait == pytest.approx(OF_ALL.interval)
    clock.now += wait
    logins.judge("one more", right=True)


def test_guesses_from_many_addresses_do_not_lock_out_who_has_logged_in(
    logins: FailedLogins,
) -> None:
    logins.judge("Label Studio", right=True)
    for number in range(OF_ALL.burst):
        logins.judge(number, right=False)
    seconds_to_wait(logins, "a stranger")

    logins.judge("Label Studio", right=True)
    fail(logins, "Label Studio")

    seconds_to_wait(logins, "Label Studio")


def test_what_is_remembered_is_bounded(logins: FailedLogins, clock: Clock) -> None:
    for number in range(5_000):
        clock.now += OF_ALL.interval
        logins.judge(f"stranger {number}", right=False)
        logins.judge(f"known {number}", right=True)

    assert sum(len(held) for held in vars(logins).values() if hasattr(held, "__len__")) < 2_500


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.1:50123", True),
        ("192.0.2.1:50123", "192.0.2.2:50123", False),
        ("2001:db8::1", "[2001:db8::1]:50123", True),
        (None, "", True),
        ("no address", "", True),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(
    one: str | None, other: str | None, same: bool
) -> None:
    assert (address_of(one) == address_of(other)) == same
