"""Which hosts pictures may be fetched from: a pure rule on names, ports and IP addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's special-purpose registries. `ipaddress.is_global` knows them too, but differs between
# releases of Python and takes multicast for global.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "2001::/23",  # protocol assignments
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
_UNICAST_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
# Where a network translates them, packets end up at the IPv4 address at their end (RFC 8215, 4291,
# 7915).
_PERHAPS_V4 = tuple(map(IPv6Network, ("64:ff9b:1::/96", "::/96", "::ffff:0:0:0/96")))

# Where clouds tell a machine its own credentials; 168.63.129.16 is a public address.
_METADATA = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.169.253",
            "169.254.0.23",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
        ),
    )
)
# No server has such an address, so a name that stands for one is a trick or a mistake.
_NO_SERVERS = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "::/128",
            "fe80::/10",
            "ff00::/8",
        ),
    )
)

_ENTRY = re.compile(
    r"(?:\[(?P<bracketed>[^\[\]]*:[^\[\]]*)\]|(?P<plain>[^:\[\]]+))(?::(?P<port>\d{1,5}))?"
)
_NAME = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}")
# What ends in a number is read as an address, also in octal and hexadecimal.
_NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts, networks and ports that IMAGE_HOSTS lists; a port of None is any port.

    A name that starts with a dot stands for everything below it.
    """

    names: tuple[tuple[str, int | None], ...] = ()
    networks: tuple[tuple[Network, int | None], ...] = ()
    public: tuple[int | None, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AllowedHosts:
        """Read a comma-separated list of names, `*.` names, addresses, networks and `public`.

        Each may have a port (`minio:9000`, `10.0.0.0/8:9000`, `[fd00::1]:9000`). Raises
        ValueError with a sentence that names the entry that is none of these.
        """
        names: list[tuple[str, int | None]] = []
        networks: list[tuple[Network, int | None]] = []
        public: list[int | None] = []
        for entry in text.split(","):
            target, port = _split(entry.strip().lower())
            if target == "public":
                public.append(port)
            elif _NAME.fullmatch(target) and not _NUMERIC.fullmatch(target):
                names.append((target.removeprefix("*"), port))
            else:
                networks.append((_network(target), port))
        return cls(tuple(names), tuple(networks), tuple(public))

    def names_host(self, host: str, port: int) -> bool:
        """Tell whether the host is listed by its name, so that it may be a private one."""
        host = host.lower().removesuffix(".")
        return any(
            (host.endswith(name) if name.startswith(".") else host == name)
            and listed_port in (None, port)
            for name, listed_port in self.names
        )

    def allows_unresolved(self, host: str, port: int) -> bool:
        """Tell whether a name that is not known here may be left to a proxy, which may know it."""
        if self.names_host(host, port):
            return True
        # Another program may take for an address what this machine does not.
        is_name = not _NUMERIC.fullmatch(host.lower().removesuffix("."))
        return is_name and self._allows_public(port)

    def allows(self, host: str, port: int, address: Address) -> bool:
        """Tell whether to connect to an address that the host's name stands for.

        A listed network allows its addresses under any name, a listed name what is private too.
        Metadata services are allowed where their very address is listed.
        """
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return False
        address = _embedded(address)
        listed = [
            network
            for network, listed_port in self.networks
            if address in network and listed_port in (None, port)
        ]
        if _may_be_metadata(address):
            return any(network.num_addresses == 1 for network in listed)
        if listed:
            return True
        if self.names_host(host, port):
            return not any(address in network for network in _NO_SERVERS)
        return is_public(address) and self._allows_public(port)

    def _allows_public(self, port: int) -> bool:
        return None in self.public or port in self.public


def is_public(address: Address) -> bool:
    """Tell whether an address is anybody's on the internet, and not one for a special purpose."""
    address = _embedded(address)
    if isinstance(address, IPv6Address) and address not in _UNICAST_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC) and address not in _METADATA


def _embedded(address: Address) -> Address:
    """Return the IPv4 address that packets to an IPv6 address end up at, if there is one."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return _last_v4(address)
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return address


def _may_be_metadata(address: Address) -> bool:
    if isinstance(address, IPv6Address) and any(address in network for network in _PERHAPS_V4):
        return _last_v4(address) in _METADATA
    return address in _METADATA


def _last_v4(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def _split(entry: str) -> tuple[str, int | None]:
    if entry.count(":") > 1 and not entry.startswith("["):
        return entry, None
    parts = _ENTRY.fullmatch(entry)
    if parts is None:
        raise ValueError(_invalid(entry))
    port = None if parts["port"] is None else int(parts["port"])
    if port is not None and not 0 < port < 65_536:
        raise ValueError(_invalid(entry))
    return parts["bracketed"] or parts["plain"], port


def _network(target: str) -> Network:
    try:
        return ip_network(target)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"{target} is no network: write {ip_network(target, False)}") from None
        raise ValueError(_invalid(target)) from None


def _invalid(entry: str) -> str:
    return (
        f"{entry!r} is no host: list names, *.example.com, IP addresses, networks such as "
        "10.0.0.0/8 and the word public, each with a port or without (minio.internal:9000), "
        "separated by commas"
    )
