"""Which names are one registrant's, and which addresses are one block."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from publicsuffixlist import PSLFILE, PublicSuffixList

from proxy.egress.neighbours import block_of, groups_by_name, registered_domain


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.evil.example", "evil.example"),
        ("evil.example", "evil.example"),
        ("a.example.co.uk", "example.co.uk"),
        ("morel.us-east.host.bsky.network", "bsky.network"),
        # The private section: these are of two registrants.
        ("one.fly.dev", "one.fly.dev"),
        ("a.two.fly.dev", "two.fly.dev"),
        ("a.xn--55qx5d.cn", "a.xn--55qx5d.cn"),
        # No registrant.
        ("fly.dev", "fly.dev"),
        ("com", "com"),
        ("localhost", "localhost"),
    ],
)
def test_the_registered_domain_is_by_the_public_suffix_list(host: str, domain: str) -> None:
    """Catches the last two labels, and a list without its private section."""
    assert registered_domain(host) == domain


def test_every_rule_is_read_as_the_package_reads_it() -> None:
    """Catches a rule that is lost, or kept in one of its two spellings only."""
    suffixes = PublicSuffixList()
    lines = Path(PSLFILE).read_text(encoding="utf-8").splitlines()
    rules = [line.lstrip("!*.") for line in lines if line and not line.startswith("//")]
    rules += [rule.encode("idna").decode() for rule in rules if not rule.isascii()]
    for rule in rules:
        host = f"one.two.{rule}"
        assert registered_domain(host) == suffixes.privatesuffix(host)


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::1", "::/48"),
        ("fe80::1%eth0", "fe80::/48"),
    ],
)
def test_a_block_is_a_24_of_ipv4_and_a_48_of_ipv6(address: str, block: str) -> None:
    """Catches single addresses, of which one IPv6 network has any number."""
    assert block_of(ip_address(address)) == block


@pytest.mark.parametrize("host", ["203.0.113.77", "2001:db8:1:2::3"])
def test_an_address_literal_is_of_its_block_and_of_no_domain(host: str) -> None:
    """Catches ``113.77``, the last two labels of an address."""
    assert groups_by_name(host) == (block_of(ip_address(host)),)
