from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.addresses import AllowedHosts, is_public

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
NOT_PUBLIC_V6 = [
    "::",
    "::1",
    "::8.8.8.8",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:db8::1",
    "2001:10::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]

v4 = st.ip_addresses(v=4).map(IPv4Address)


def embedding(address: IPv4Address) -> list[IPv6Address]:
    """Return the IPv6 addresses by which packets get to an IPv4 address."""
    number = int(address)
    return [
        IPv6Address(f"::ffff:{address}"),
        IPv6Address(f"64:ff9b::{address}"),
        IPv6Address((0x2002 << 112) | (number << 80) | 1),
        IPv6Address((0x2001_0000 << 96) | (number ^ 0xFFFF_FFFF)),
    ]


def allows(listed: str, address: str, host: str = "host.example", port: int = 443) -> bool:
    return AllowedHosts.parse(listed).allows(host, port, ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC + NOT_PUBLIC_V6)
def test_public_leaves_out_what_is_for_a_special_purpose(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not allows("public", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_is_everything_else(address: str) -> None:
    assert allows("public", address)
    assert not allows("host.other", address)


@given(v4)
def test_an_ipv6_address_that_embeds_an_ipv4_address_counts_as_that(address: IPv4Address) -> None:
    for other in embedding(address):
        assert is_public(other) is is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_way_of_embedding_makes_an_address_public(address: str) -> None:
    for other in embedding(IPv4Address(address)):
        assert not allows("public", str(other))


@given(st.one_of(v4, st.ip_addresses(v=6)))
def test_what_python_knows_to_be_special_is_not_public(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    # Those that embed an IPv4 address count as that, which is what the tests above are about.
    assert not (special and is_public(address)) or any(
        address in ip_network(embedding)
        for embedding in ("::/32", "64:ff9b::/96", "2001::/32", "2002::/16")
    )


@pytest.mark.parametrize(
    ("listed", "host", "port", "is_listed"),
    [
        ("minio", "minio", 9000, True),
        ("minio", "MINIO.", 9000, True),
        ("minio:9000", "minio", 9000, True),
        ("minio:9000", "minio", 9001, False),
        ("a.example, b.example", "b.example", 80, True),
        ("example.com", "www.example.com", 80, False),
        ("*.example.com", "www.example.com", 80, True),
        ("*.example.com", "a.b.example.com", 80, True),
        ("*.example.com", "example.com", 80, False),
        ("*.example.com", "evilexample.com", 80, False),
        ("*.example.com", "www.example.com.evil.org", 80, False),
        ("my_bucket", "my_bucket", 80, True),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", 80, True),
    ],
)
def test_hosts_are_listed_by_name(listed: str, host: str, port: int, is_listed: bool) -> None:
    assert AllowedHosts.parse(listed).names_host(host, port) is is_listed


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "100.64.0.1", "fd00::1", "8.8.8.8"])
def test_a_listed_name_may_be_a_private_host(address: str) -> None:
    assert allows("minio", address, host="minio")
    assert not allows("minio", address, host="other")


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fd00:ec2::254", "168.63.129.16", "0.0.0.0", "fe80::1", "224.0.0.1", "::"],
)
def test_a_listed_name_is_no_way_to_where_no_server_is(address: str) -> None:
    assert not allows("minio,public", address, host="minio")


@pytest.mark.parametrize(
    ("listed", "address", "port", "allowed"),
    [
        ("10.0.0.5", "10.0.0.5", 80, True),
        ("10.0.0.5", "10.0.0.6", 80, False),
        ("10.0.0.5", "::ffff:10.0.0.5", 80, True),
        ("10.0.0.5:9000", "10.0.0.5", 9000, True),
        ("10.0.0.5:9000", "10.0.0.5", 80, False),
        ("10.0.0.0/8", "10.200.0.1", 80, True),
        ("10.0.0.0/8:9000", "10.200.0.1", 80, False),
        ("10.0.0.0/8", "8.8.8.8", 80, False),
        ("10.0.0.0/8, public", "8.8.8.8", 80, True),
        ("public:443", "8.8.8.8", 443, True),
        ("public:443", "8.8.8.8", 22, False),
        ("::1", "::1", 80, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:9000", "::1", 9000, True),
        ("[::1]:9000", "::1", 9001, False),
        ("fd00::/8", "fd00::1", 80, True),
        ("[fd00::/8]:9000", "fd00::1", 80, False),
    ],
)
def test_addresses_and_networks_are_listed_whatever_the_name(
    listed: str, address: str, port: int, allowed: bool
) -> None:
    assert allows(listed, address, port=port) is allowed


@pytest.mark.parametrize(
    "address",
    [
        "169.254.170.23",
        "169.254.169.253",
        "fd00:42::42",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b:1::a9fe:a9fe",
    ],
)
def test_no_network_that_is_listed_has_a_metadata_service(address: str) -> None:
    assert not allows("0.0.0.0/0,::/0", address)
    assert not allows("example.org", address, host="example.org")


def test_a_metadata_service_must_be_listed_by_its_very_address() -> None:
    assert not allows("169.254.0.0/16", "169.254.169.254")
    assert not allows("fd00::/8", "fd00:ec2::254")
    assert allows("169.254.0.0/16", "169.254.1.1")
    assert allows("169.254.169.254", "169.254.169.254")


def test_an_address_of_one_network_card_is_refused() -> None:
    assert not allows("public,fe80::/10", "fe80::1%eth0")


@pytest.mark.parametrize(
    ("listed", "host", "allowed"),
    [
        ("public", "unknown.example", True),
        ("public", "127.0.0.1.", False),
        ("public", "0177.1", False),
        ("public", "0x7f.1", False),
        ("public", "example.0x7f000001", False),
        ("public:80", "unknown.example", False),
        ("10.0.0.0/8", "unknown.example", False),
        ("unknown.example", "unknown.example", True),
    ],
)
def test_names_that_only_a_proxy_may_know_are_left_to_it_where_they_can_be_public(
    listed: str, host: str, allowed: bool
) -> None:
    assert AllowedHosts.parse(listed).allows_unresolved(host, 443) is allowed


@pytest.mark.parametrize(
    "listed",
    [
        "",
        ",",
        "public,",
        "http://minio",
        "minio/bucket",
        "user@minio",
        "minio:",
        "minio:0",
        "minio:65536",
        "minio:http",
        "*",
        "*.",
        "a.*.example",
        "*minio",
        "-minio.example",
        "minio..internal",
        "minio.",
        "a" * 64,
        "bücher.example",
        "10.0.0.300",
        "10.0.0",
        "0x7f000001",
        "2130706433",
        "10.0.0.0/33",
        "[::1",
        "::1]",
        "[minio]:9000",
        "fe80::1::2",
    ],
)
def test_what_is_no_host_is_refused_with_what_can_be_listed(listed: str) -> None:
    with pytest.raises(ValueError, match=r"no host.*minio\.internal:9000"):
        AllowedHosts.parse(listed)


def test_a_network_with_a_hosts_address_is_refused_with_the_network() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.5/8 is no network: write 10\.0\.0\.0/8"):
        AllowedHosts.parse("10.0.0.5/8")


@given(st.text(alphabet="abcx0123456789.:*/[]-,% _", max_size=30))
def test_any_list_is_read_or_refused_with_one_error(text: str) -> None:
    try:
        allowed = AllowedHosts.parse(text)
    except ValueError:
        return
    assert allowed.names or allowed.networks or allowed.public
