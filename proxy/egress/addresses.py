"""Decides which addresses a stranger may make this service connect to. Pure, total, no I/O.

Everything in the IANA special-purpose registries is refused. The tables are written out here,
because the result of ``ipaddress.is_global`` differs between Python releases. An IPv6 address is
accepted only if it is global unicast (2000::/3) and outside the tables.

Every IPv6 form that carries an IPv4 address is refused, even if that address is public. No server
needs such an address: it can be reached by its plain IPv4 address. A mistake in decoding one would
open a way in. The price: a host without IPv4, behind DNS64 and NAT64, does not reach servers
without IPv6. The tables cannot contain an operator's own prefixes in public space (NAT64 by RFC
6052 section 2.2, 6rd by RFC 5969): such a network must filter at its translator.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

# The first match gives the reason, so single addresses come before the networks that hold them.
_IPV4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "cloud metadata"),
        ("100.100.100.200/32", "cloud metadata (Alibaba)"),
        ("192.0.0.192/32", "cloud metadata (Oracle)"),
        ("168.63.129.16/32", "cloud metadata (Azure; a public address by the registry)"),
        ("0.0.0.0/32", "unspecified (RFC 1122)"),
        ("0.0.0.0/8", "this network (RFC 791)"),
        ("10.0.0.0/8", "private (RFC 1918)"),
        ("100.64.0.0/10", "carrier-grade NAT (RFC 6598)"),
        ("127.0.0.0/8", "loopback (RFC 1122)"),
        ("169.254.0.0/16", "link-local (RFC 3927)"),
        ("172.16.0.0/12", "private (RFC 1918)"),
        ("192.0.0.0/24", "IETF protocol assignments (RFC 6890)"),
        ("192.0.2.0/24", "documentation (RFC 5737)"),
        ("192.31.196.0/24", "AS112 (RFC 7535)"),
        ("192.52.193.0/24", "multicast tunnelling (RFC 7450)"),
        ("192.88.99.0/24", "6to4 relay (RFC 7526)"),
        ("192.168.0.0/16", "private (RFC 1918)"),
        ("192.175.48.0/24", "AS112 (RFC 7534)"),
        ("198.18.0.0/15", "benchmarking (RFC 2544)"),
        ("198.51.100.0/24", "documentation (RFC 5737)"),
        ("203.0.113.0/24", "documentation (RFC 5737)"),
        ("224.0.0.0/4", "multicast (RFC 5771)"),
        ("255.255.255.255/32", "broadcast (RFC 8190)"),
        ("240.0.0.0/4", "reserved (RFC 1112)"),
    )
)

# Prefixes whose addresses carry an IPv4 address, and its position in them. ISATAP has no prefix:
# see _ISATAP below.
_EMBEDDINGS = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::ffff:0:0/96", "IPv4-mapped (RFC 4291): last 32 bits"),
        ("::ffff:0:0:0/96", "IPv4-translated (RFC 2765): last 32 bits"),
        ("64:ff9b::/96", "NAT64 (RFC 6052): last 32 bits"),
        # The prefix lengths 48, 56, 64 and 96 of RFC 6052 section 2.2 all fit here. In each of
        # them the IPv4 address has another position.
        ("64:ff9b:1::/48", "NAT64, local use (RFC 8215): by its prefix length"),
        ("2001::/32", "Teredo (RFC 4380): server in bits 32-63, client inverted in the last 32"),
        ("2002::/16", "6to4 (RFC 3056): bits 16-47"),
    )
)

_IPV6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("fd00:ec2::254/128", "cloud metadata (AWS)"),
        ("fd20:ce::254/128", "cloud metadata (Google)"),
        ("::/128", "unspecified (RFC 4291)"),
        ("::1/128", "loopback (RFC 4291)"),
        # Carries an IPv4 address too, but contains the two networks above.
        ("::/96", "IPv4-compatible (RFC 4291): last 32 bits"),
        ("100::/64", "discard (RFC 6666)"),
        ("100:0:0:1::/64", "dummy prefix (RFC 9780)"),
        ("2001:2::/48", "benchmarking (RFC 5180)"),
        ("2001:3::/32", "multicast tunnelling (RFC 7450)"),
        ("2001:4:112::/48", "AS112 (RFC 7535)"),
        ("2001:10::/28", "ORCHID (RFC 4843)"),
        ("2001:20::/28", "ORCHIDv2 (RFC 7343)"),
        ("2001:30::/28", "drone identifiers (RFC 9374)"),
        ("2001::/23", "IETF protocol assignments (RFC 2928)"),
        ("2001:db8::/32", "documentation (RFC 3849)"),
        ("2620:4f:8000::/48", "AS112 (RFC 7534)"),
        ("3ffe::/16", "6bone, returned (RFC 3701)"),
        ("3fff::/20", "documentation (RFC 9637)"),
        ("5f00::/16", "segment routing (RFC 9602)"),
        ("fc00::/7", "unique local (RFC 4193)"),
        ("fe80::/10", "link-local (RFC 4291)"),
        ("fec0::/10", "site-local (RFC 3879)"),
        ("ff00::/8", "multicast (RFC 4291)"),
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")

# RFC 5214 section 6.1: the interface identifier is 0000:5efe:a.b.c.d, or 0200:5efe when the IPv4
# address is globally unique. RFC 4291 calls the two masked bits u and g; both are ignored here.
_ISATAP = 0x0000_5EFE
_ISATAP_MASK = 0xFCFF_FFFF


def forbidden(address: Address) -> str | None:
    """The reason why ``address`` is refused, for the log; None when it is accepted."""
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _IPV4 if address in network), None)
    if address.scope_id is not None:
        return "scope id (RFC 4007)"
    for network, reason in (*_EMBEDDINGS, *_IPV6):
        if address in network:
            return reason
    if address not in _GLOBAL_UNICAST:
        return "not global unicast (RFC 4291)"
    if int(address) >> 32 & _ISATAP_MASK == _ISATAP:
        return "ISATAP (RFC 5214): last 32 bits"
    return None
