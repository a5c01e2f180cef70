"""How often credentials can be guessed."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from backend.errors import TooManyRequestsError

_WITH_PORT = re.compile(r"(?:\[([^]]+)\]|([^:]+)):[0-9]+")

# Clients that have logged in and are remembered for it.
_REMEMBERED = 1000


class Bound(NamedTuple):
    """So many failures at once, and one more after every `interval` seconds."""

    burst: int
    interval: float


OF_A_CLIENT = Bound(burst=10, interval=6.0)
OF_ALL = Bound(burst=100, interval=0.6)


class FailedLogins:
    """Bounds the wrong credentials of a client, and those of all clients together.

    A client that has logged in is no longer held to the bound of all, so that guesses from many
    addresses lock out nobody who knows the password.

    The bounds are kept by the generic cell rate algorithm (ITU-T I.371): of each client only the
    time is known at which its failures will be forgotten.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._forgotten_at: dict[Hashable, float] = {}
        self._all_forgotten_at = 0.0
        self._known: OrderedDict[Hashable, None] = OrderedDict()

    def judge(self, client: Hashable, *, right: bool) -> None:
        """Count a login; raises TooManyRequestsError, right or not, past a bound."""
        with self._lock:
            now = self._clock()
            forgotten_at = max(now, self._forgotten_at.get(client, now))
            all_forgotten_at = max(now, self._all_forgotten_at)
            wait = _wait(OF_A_CLIENT, forgotten_at - now)
            if client not in self._known:
                wait = max(wait, _wait(OF_ALL, all_forgotten_at - now))
            if wait > 0:
                raise TooManyRequestsError(
                    f"too many wrong passwords or secrets: try again in {math.ceil(wait)} s",
                    retry_after=wait,
                )
            if right:
                self._remember(client)
                return
            self._all_forgotten_at = all_forgotten_at + OF_ALL.interval
            self._forget(now)
            self._forgotten_at[client] = forgotten_at + OF_A_CLIENT.interval

    def _remember(self, client: Hashable) -> None:
        self._known[client] = None
        self._known.move_to_end(client)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _forget(self, now: float) -> None:
        # The bound of all keeps the others few.
        if len(self._forgotten_at) >= _REMEMBERED:
            self._forgotten_at = {
                client: at for client, at in self._forgotten_at.items() if at > now
            }


def address_of(remote: str | None) -> str:
    """Return what tells clients apart: an address, of IPv6 the network that one client has."""
    address = _parsed(remote or "")
    if address is None:  # a Unix socket has none
        return ""
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or int(address) >> 64)
    return str(address)


def _parsed(remote: str) -> IPv4Address | IPv6Address | None:
    # Some proxies pass the port on.
    with_port = _WITH_PORT.fullmatch(remote)
    try:
        return ip_address((with_port[1] or with_port[2]) if with_port else remote)
    except ValueError:
        return None


def _wait(bound: Bound, ahead: float) -> float:
    return ahead - (bound.burst - 1) * bound.interval
