"""The address tables, against rows written by hand and against bit arithmetic of their own."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.egress.addresses import forbidden
from tests.egress.destinations import FORBIDDEN_ADDRESSES, PUBLIC_ADDRESSES

IPV4 = st.integers(0, 2**32 - 1)
IPV6 = st.integers(0, 2**128 - 1)
PREFIX = st.integers(0x2A00 << 48, (0x2A10 << 48) - 1)

# What this service refuses although Python calls it global; first and last address.
BEYOND_PYTHON = (
    ("168.63.129.16", "168.63.129.16"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.31.196.0", "192.31.196.255"),
    ("192.52.193.0", "192.52.193.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.175.48.0", "192.175.48.255"),
    ("224.0.0.0", "239.255.255.255"),
)
SPECIAL_IN_GLOBAL_UNICAST = (
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff"),
    ("3ffe::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
)


def within(ranges: tuple[tuple[str, str], ...], number: int) -> bool:
    return any(int(ip_address(a)) <= number <= int(ip_address(b)) for a, b in ranges)


@pytest.mark.parametrize(("text", "why"), FORBIDDEN_ADDRESSES)
def test_each_forbidden_network_is_refused(text: str, why: str) -> None:
    """Catches: a table without this network lets a stranger in."""
    assert forbidden(ip_address(text)), why


@pytest.mark.parametrize("text", PUBLIC_ADDRESSES)
def test_the_public_neighbours_of_each_network_are_allowed(text: str) -> None:
    """Catches: a network written one bit too wide refuses its public neighbour."""
    assert forbidden(ip_address(text)) is None


@pytest.mark.parametrize("text", ["fe80::1%eth0", "2606:4700::1%eth0", "2606:4700::1%1"])
def test_an_address_with_a_scope_id_is_refused(text: str) -> None:
    """Catches: a check of the number alone passes a scope id."""
    assert forbidden(ip_address(text)) == "scope id (RFC 4007)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0", "unspecified"),
        ("100.100.100.200", "cloud metadata (Alibaba)"),
        ("169.254.169.254", "cloud metadata"),
        ("192.0.0.192", "cloud metadata (Oracle)"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::ffff:0:127.0.0.1", "IPv4-translated"),
        ("64:ff9b::7f00:1", "NAT64 (RFC 6052)"),
        ("64:ff9b:1::7f00:1", "NAT64, local use"),
        ("100::1", "discard"),
        ("100:0:0:1::1", "dummy prefix"),
        ("200::1", "not global unicast"),
        ("2001:0:7f00:1::", "Teredo"),
        ("2001:2::1", "benchmarking"),
        ("2001:3::1", "multicast tunnelling"),
        ("2001:4:112::1", "AS112"),
        ("2001:10::1", "ORCHID (RFC 4843)"),
        ("2001:20::1", "ORCHIDv2"),
        ("2001:30::1", "drone identifiers"),
        ("2001:1::1", "IETF protocol assignments"),
        ("2002:7f00:1::", "6to4"),
        ("5f00::1", "segment routing"),
        ("fc00::1", "unique local"),
        ("fd00:ec2::254", "cloud metadata (AWS)"),
        ("fd20:ce::254", "cloud metadata (Google)"),
        ("fe80::1", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
    ],
)
def test_a_refusal_names_the_narrowest_network(text: str, reason: str) -> None:
    """Catches: a log that names the wider network hides what was probed."""
    assert (forbidden(ip_address(text)) or "").startswith(reason)


@given(IPV4)
@example(int(IPv4Address("192.0.0.9")))
@example(int(IPv4Address("100.64.0.0")))
def test_every_ipv4_address_that_python_calls_private_is_refused(number: int) -> None:
    """Catches: a list of networks that forgets one of IPv4."""
    address = IPv4Address(number)
    public = address.is_global and not within(BEYOND_PYTHON, number)
    assert (forbidden(address) is None) == public


@given(st.one_of(IPV6, st.integers(0x2000 << 112, (0x4000 << 112) - 1)))
def test_an_ipv6_address_outside_global_unicast_is_refused(number: int) -> None:
    """Catches: a list of networks that forgets a part of the IPv6 space."""
    isatap = f"{number:032x}"[16:24] in ("00005efe", "02005efe", "01005efe", "03005efe")
    public = (
        f"{number:032x}"[0] in "23" and not within(SPECIAL_IN_GLOBAL_UNICAST, number) and not isatap
    )
    assert (forbidden(IPv6Address(number)) is None) == public


def rfc6052(prefix: int, length: int, number: int) -> int:
    """The address of RFC 6052 section 2.2: byte 8 stays zero, the IPv4 bytes flow around it."""
    octets = bytearray(prefix.to_bytes(16, "big"))
    places = [place for place in range(length // 8, 16) if place != 8][:4]
    for place, octet in zip(places, number.to_bytes(4, "big"), strict=True):
        octets[place] = octet
    return int.from_bytes(octets, "big")


@given(IPV4)
@example(int(IPv4Address("127.0.0.1")))
@example(int(IPv4Address("93.184.216.34")))
def test_an_embedded_ipv4_address_is_judged_too(number: int) -> None:
    """Catches: an embedding that is not recognised carries any IPv4 past the guard."""
    plain = IPv4Address(number)
    local = int(IPv6Address("64:ff9b:1::"))
    forms = {
        "mapped": IPv6Address(f"::ffff:{plain}"),
        "compatible": IPv6Address(f"::{plain}"),
        "translated": IPv6Address(f"::ffff:0:{plain}"),
        "NAT64": IPv6Address(f"64:ff9b::{plain}"),
        "6to4": IPv6Address((0x2002 << 112) | (number << 80) | 1),
        "Teredo server": IPv6Address((0x2001_0000 << 96) | (number << 64) | 0xA247_2927),
        "Teredo client": IPv6Address((0x2001_0000 << 96) | (number ^ 0xFFFF_FFFF)),
        **{
            f"local NAT64 /{length}": IPv6Address(rfc6052(local, length, number))
            for length in (48, 56, 64, 96)
        },
    }
    # Python's own decoders agree that these carry the address.
    assert forms["mapped"].ipv4_mapped == plain
    assert forms["6to4"].sixtofour == plain
    assert forms["Teredo server"].teredo[0] == plain  # type: ignore[index]
    assert forms["Teredo client"].teredo[1] == plain  # type: ignore[index]
    assert [name for name, form in forms.items() if forbidden(form) is None] == []


@given(PREFIX, IPV4, st.sampled_from([0x0000_5EFE, 0x0200_5EFE]))
def test_isatap_is_recognised_under_every_prefix(prefix: int, number: int, marker: int) -> None:
    """Catches: ISATAP looked for under one prefix only is missed under all others."""
    address = IPv6Address((prefix << 64) | (marker << 32) | number)
    assert forbidden(address) == "ISATAP (RFC 5214): last 32 bits"
