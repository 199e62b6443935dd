"""Where no request may go: plain data, and a trap that tells whether one went there.

Every destination leads to the trap when it is let through, whatever its address: the packet that
leaves is the harm, and none of these tests sends one beyond the loopback interface.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import trio

from proxy.egress.guard import GuardedNetwork

PUBLIC = "93.184.216.34"
PUBLIC_IPV6 = "2606:2800:220:1:248:1893:25c8:1946"


@dataclass(frozen=True)
class Destination:
    """One way to a place that is refused.

    Attributes:
        url: as a stranger writes it; ``{port}`` stands for the trap's port.
        host: as the guard gets it when the URL is not read first; None where the host itself is
            acceptable and only the URL around it is not.
        addresses: what ``host`` resolves to, in a resolver as lenient as any.
        why: what is wrong with it.
    """

    id: str
    url: str
    host: str | None
    addresses: tuple[str, ...]
    why: str

    def url_at(self, port: int) -> str:
        return self.url.replace("{port}", str(port))


class Trap:
    """Listeners on both loopback addresses that count who arrives. A context manager."""

    def __enter__(self) -> Self:
        while True:
            self._ipv4 = _listener(socket.AF_INET, "127.0.0.1", 0)
            self.port: int = self._ipv4.getsockname()[1]
            try:
                self._ipv6 = _listener(socket.AF_INET6, "::1", self.port)
            except OSError as error:
                self._ipv4.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue  # another process has that one of the two: another port
            return self

    def __exit__(self, *exc_info: object) -> None:
        self._ipv4.close()
        self._ipv6.close()

    async def dial(self, address: str, port: int) -> trio.abc.Stream:
        """Connects to the trap, whatever the address: the detour of a guard's ``dial``."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def network(self, destination: Destination) -> GuardedNetwork:
        """A guard in the world of ``destination``, with every way out leading here."""

        async def lookup(host: str, port: int) -> Sequence[str]:
            await trio.lowlevel.checkpoint()
            return destination.addresses

        return GuardedNetwork(lookup=lookup, dial=self.dial)

    def arrivals(self) -> int:
        """How many connections came since the last call; the kernel has queued them by now."""
        count = 0
        for listener in (self._ipv4, self._ipv6):
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    break
                count += 1
        return count


def _listener(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.bind((address, port))
    except BaseException:
        listener.close()
        raise
    listener.listen()
    listener.setblocking(False)
    return listener


FORBIDDEN_ADDRESSES: tuple[tuple[str, str], ...] = (
    ("0.0.0.0", "unspecified"),
    ("0.0.0.1", "this network"),
    ("0.255.255.255", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "carrier-grade NAT"),
    ("100.127.255.255", "carrier-grade NAT"),
    ("100.100.100.200", "metadata of Alibaba Cloud"),
    ("127.0.0.1", "loopback"),
    ("127.0.0.53", "loopback, the usual local resolver"),
    ("127.255.255.255", "loopback"),
    ("168.63.129.16", "Azure's host agent, on a public address"),
    ("169.254.0.1", "link-local"),
    ("169.254.169.254", "cloud metadata"),
    ("169.254.170.2", "credentials of container tasks"),
    ("169.254.255.255", "link-local"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.1", "IETF protocol assignments"),
    ("192.0.0.170", "NAT64 discovery"),
    ("192.0.0.192", "metadata of Oracle Cloud"),
    ("192.0.2.1", "documentation"),
    ("192.31.196.1", "AS112"),
    ("192.52.193.1", "multicast tunnelling"),
    ("192.88.99.1", "6to4 relay"),
    ("192.168.0.0", "private"),
    ("192.168.255.255", "private"),
    ("192.175.48.1", "AS112"),
    ("198.18.0.0", "benchmarking"),
    ("198.19.255.255", "benchmarking"),
    ("198.51.100.1", "documentation"),
    ("203.0.113.255", "documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.254", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::2", "IPv4-compatible range"),
    ("::127.0.0.1", "IPv4-compatible loopback"),
    ("::93.184.216.34", "IPv4-compatible public"),
    ("::ffff:127.0.0.1", "IPv4-mapped loopback"),
    ("::ffff:10.0.0.1", "IPv4-mapped private"),
    ("::ffff:169.254.169.254", "IPv4-mapped metadata"),
    ("::ffff:93.184.216.34", "IPv4-mapped public"),
    ("::ffff:0:127.0.0.1", "IPv4-translated loopback"),
    ("64:ff9b::7f00:1", "NAT64 of loopback"),
    ("64:ff9b::a9fe:a9fe", "NAT64 of metadata"),
    ("64:ff9b::5db8:d822", "NAT64 of a public address"),
    ("64:ff9b:1::7f00:1", "local NAT64, /96"),
    ("64:ff9b:1:7f00:0:100::", "local NAT64, /48"),
    ("64:ff9b:1:7f:0:1::", "local NAT64, /56"),
    ("64:ff9b:1::7f:0:100:0", "local NAT64, /64"),
    ("100::1", "discard"),
    ("100:0:0:1::1", "dummy prefix"),
    ("200::1", "not global unicast"),
    ("2001::1", "Teredo"),
    ("2001:0:7f00:1::", "Teredo with a loopback server"),
    ("2001:0:5db8:d822:0:0:80ff:fffe", "Teredo with a loopback client, inverted"),
    ("2001:1::1", "IETF anycast"),
    ("2001:2::1", "benchmarking"),
    ("2001:3::1", "multicast tunnelling"),
    ("2001:4:112::1", "AS112"),
    ("2001:10::1", "ORCHID"),
    ("2001:20::1", "ORCHIDv2"),
    ("2001:30::1", "drone identifiers"),
    ("2001:1ff:ffff::1", "IETF protocol assignments"),
    ("2001:db8::1", "documentation"),
    ("2002:7f00:1::", "6to4 of loopback"),
    ("2002:a9fe:a9fe::1", "6to4 of metadata"),
    ("2002:5db8:d822::1", "6to4 of a public address"),
    ("2620:4f:8000::1", "AS112"),
    ("2606:2800:220:1:0:5efe:127.0.0.1", "ISATAP of loopback"),
    ("2606:2800:220:1:200:5efe:10.0.0.1", "ISATAP of a private address, u bit set"),
    ("2606:2800:220:1:200:5efe:93.184.216.34", "ISATAP of a public address"),
    ("3ffe::1", "6bone"),
    ("3fff::1", "documentation"),
    ("4000::1", "not global unicast"),
    ("5f00::1", "segment routing"),
    ("fc00::1", "unique local"),
    ("fd00:ec2::254", "metadata of AWS"),
    ("fd20:ce::254", "metadata of Google Cloud"),
    ("fdff:ffff::1", "unique local"),
    ("fe80::1", "link-local"),
    ("fe80::5efe:192.168.0.1", "link-local ISATAP"),
    ("febf:ffff::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("ff0e::1", "multicast of global scope"),
)


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


_NAMES = tuple(
    Destination(f"a name that leads to {address}", "https://pds.example:{port}", "pds.example",
                (address,), why)
    for address, why in FORBIDDEN_ADDRESSES
)  # fmt: skip

_LITERALS = tuple(
    Destination(f"the literal {address}", f"https://{_literal(address)}:{{port}}", address,
                (address,), why)
    for address, why in FORBIDDEN_ADDRESSES
)  # fmt: skip

_MIXES = tuple(
    Destination(f"a name with {what}", "https://pds.example:{port}", "pds.example", addresses, why)
    for what, addresses, why in (
        ("loopback after public", (PUBLIC, "127.0.0.1"), "only the first was checked"),
        ("loopback before public", ("127.0.0.1", PUBLIC), "only the last was checked"),
        ("IPv6 loopback after public", (PUBLIC, "::1"), "only one family was checked"),
        ("IPv4 loopback after IPv6", (PUBLIC_IPV6, "127.0.0.1"), "only one family was checked"),
        ("a private one among many", (*(f"93.184.216.{n}" for n in range(1, 40)), "10.0.0.1"),
         "only those that would be tried were checked"),
        ("a mapped one after public", (PUBLIC, "::ffff:127.0.0.1"), "mapped forms were skipped"),
        ("metadata twice", ("169.254.169.254", "169.254.169.254"), "link-local"),
        ("a link-local scope", ("fe80::1%eth0",), "scope id"),
        ("a numeric scope", ("fe80::1%2",), "scope id"),
        ("a scope on a global address", (f"{PUBLIC_IPV6}%1",), "scope id"),
        ("a scope after public", (PUBLIC, "fe80::1%lo"), "scope id"),
        ("an answer that is no address", ("127.1",), "passed on unchecked"),
        ("an answer in octal", ("0177.0.0.1",), "passed on unchecked"),
    )
)  # fmt: skip

_SPELLINGS = tuple(
    Destination(f"spelling {host}", f"https://{_literal(host)}:{{port}}", host, (leads_to,), why)
    for host, leads_to, why in (
        ("127.1", "127.0.0.1", "short form"),
        ("127.0.1", "127.0.0.1", "short form"),
        ("2130706433", "127.0.0.1", "decimal"),
        ("017700000001", "127.0.0.1", "octal"),
        ("0x7f000001", "127.0.0.1", "hexadecimal"),
        ("0x7F000001", "127.0.0.1", "hexadecimal, upper case"),
        ("0x7f.0.0.1", "127.0.0.1", "hexadecimal first label"),
        ("0x7f.1", "127.0.0.1", "hexadecimal and short"),
        ("0177.0.0.1", "127.0.0.1", "octal first label"),
        ("127.0.0.01", "127.0.0.1", "leading zero"),
        ("127.0.0.0x1", "127.0.0.1", "hexadecimal last label"),
        ("0", "0.0.0.0", "short form of the unspecified address"),
        ("0x", "0.0.0.0", "hexadecimal without digits"),
        ("10.1", "10.0.0.1", "short form of a private address"),
        ("192.168.257", "192.168.1.1", "short form of a private address"),
        ("2852039166", "169.254.169.254", "decimal metadata"),
        ("0xa9fea9fe", "169.254.169.254", "hexadecimal metadata"),
        ("127.0.0.1.", "127.0.0.1", "trailing dot"),
        ("4294967296", "0.0.0.0", "overflow"),
        ("256.0.0.1", "0.0.0.1", "overflow of a label"),
        ("1.2.3.4.5", "127.0.0.1", "five labels that end in a number"),
        ("pds.example.1", "127.0.0.1", "a name that ends in a number"),
        ("pds.0x7f", "127.0.0.1", "a name that ends in a hexadecimal number"),
        ("0:0:0:0:0:0:0:1", "::1", "long form"),
        ("0000::0001", "::1", "leading zeros"),
        ("::FFFF:7F00:1", "::ffff:127.0.0.1", "mapped, in hexadecimal and upper case"),
        ("0:0:0:0:0:ffff:127.0.0.1", "::ffff:127.0.0.1", "mapped, long form"),
        ("::1%lo", "::1", "scope id"),
        ("::1%25lo", "::1", "scope id as RFC 6874 writes it"),
        ("fe80::1%eth0", "fe80::1", "scope id"),
        ("localhost", "127.0.0.1", "local name"),
        ("LOCALHOST", "127.0.0.1", "local name, upper case"),
        ("localhost.", "127.0.0.1", "local name, trailing dot"),
        ("pds.localhost", "127.0.0.1", "below localhost"),
        ("localhost.localdomain", "127.0.0.1", "local domain"),
        ("printer.local", "192.168.1.9", "multicast DNS"),
        ("metadata.google.internal", "169.254.169.254", "internal name"),
        ("home.arpa", "192.168.1.1", "home network"),
        ("pds.onion", "10.0.0.1", "a name of an overlay network"),
        ("pds.0x", "127.0.0.1", "a name that ends in a hexadecimal number without digits"),
        ("nas.home.arpa", "192.168.1.9", "home network"),
        ("metadata", "169.254.169.254", "single label"),
        ("1\u30022\u30023\u30024", "127.0.0.1", "ideographic dots"),
        ("\u2460\u2461\u2466.0.0.1", "127.0.0.1", "circled digits"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1", "full-width digits"),
        ("loc\u00adalhost", "127.0.0.1", "soft hyphen"),
    )
)

_URLS = tuple(
    Destination(f"URL {url!a}", url, None, (PUBLIC,), why)
    for url, why in (
        ("https://user@pds.example:{port}", "userinfo"),
        ("https://user:secret@pds.example:{port}", "userinfo"),
        ("https://@pds.example:{port}", "empty userinfo"),
        ("https://127.0.0.1@pds.example:{port}", "userinfo like a host"),
        ("https://pds.example@127.0.0.1:{port}", "userinfo like a host"),
        ("https://pds.example:443@127.0.0.1:{port}", "userinfo like a host with a port"),
        ("https://a@b@pds.example:{port}", "two at signs"),
        ("https://127.0.0.1:{port}\\@pds.example/", "backslash before an at sign"),
        ("https:\\\\pds.example:{port}", "backslashes for slashes"),
        ("https://pds.example\\.evil:{port}", "backslash in the host"),
        ("https://pds.example:{port}/a\\b", "backslash in the path"),
        ("https:pds.example:{port}", "no slashes"),
        ("https:/pds.example:{port}", "one slash"),
        ("https:///pds.example:{port}", "empty host before the path"),
        ("https://", "empty host"),
        ("https://:{port}", "empty host with a port"),
        ("https://?pds.example", "empty host before a query"),
        ("//pds.example:{port}", "no scheme"),
        ("pds.example:{port}", "no scheme"),
        ("", "empty"),
        ("http://pds.example:{port}", "http where only https is allowed"),
        ("HTTP://pds.example:{port}", "http in upper case"),
        ("ftp://pds.example:{port}", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://pds.example:{port}/_x", "scheme"),
        ("ws://pds.example:{port}", "scheme"),
        ("unix:///run/control.sock", "scheme"),
        ("data:image/png;base64,AAAA", "opaque"),
        ("javascript:alert(1)", "opaque"),
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "opaque"),
        ("https+unix://pds.example:{port}", "scheme that begins like https"),
        ("httpss://pds.example:{port}", "scheme that begins like https"),
        (" https://pds.example:{port}", "leading space"),
        ("https://pds.example:{port} ", "trailing space"),
        ("\thttps://pds.example:{port}", "leading tab"),
        ("\x00https://pds.example:{port}", "leading NUL"),
        ("ht\ntps://pds.example:{port}", "newline in the scheme"),
        ("https://pds.example:{port}\n", "trailing newline"),
        ("https://pds.example\r\nX-Injected: 1", "header injection"),
        ("https://pds.exa\tmple:{port}", "tab in the host"),
        ("https://pds.example:{port}/a b", "space in the path"),
        ("https://pds.example:{port}/\x7f", "DEL in the path"),
        ("https://pds.ex%61mple:{port}", "percent-escape in the host"),
        ("https://127%2e0%2e0%2e1:{port}", "percent-escaped dots"),
        ("https://pds.example%00.evil:{port}", "escaped NUL in the host"),
        ("https://pds.example%2f@evil.example:{port}", "escaped slash in the userinfo"),
        ("https://b\u00fccher.example:{port}", "an IDN not in its ASCII form"),
        ("https://pds.example\u2044.evil:{port}", "a fraction slash, which NFKC makes a slash"),
        ("https://pds.example:{port}/\u00e9", "non-ASCII in the path"),
        ("https://pds.example.:{port}", "trailing dot"),
        ("https://pds..example:{port}", "empty label"),
        ("https://.pds.example:{port}", "leading dot"),
        ("https://-pds.example:{port}", "label with a leading hyphen"),
        ("https://pds-.example:{port}", "label with a trailing hyphen"),
        ("https://p_ds.example:{port}", "underscore"),
        ("https://*.example:{port}", "wildcard"),
        ("https://pds.example,evil.example:{port}", "comma"),
        ("https://" + "a" * 64 + ".example:{port}", "label of 64 letters"),
        ("https://" + "a." * 126 + "example:{port}", "name of 259 letters"),
        ("https://pds.example:{port}/" + "a" * 25_000, "longer than any URL here"),
        ("https://2606:2800:220:1:248:1893:25c8:1946", "IPv6 without brackets"),
        ("https://[2606:2800:220:1:248:1893:25c8:1946", "bracket not closed"),
        ("https://[2606:2800::1]evil.example:{port}", "text after the bracket"),
        ("https://evil.example[2606:2800::1]:{port}", "text before the bracket"),
        ("https://[2606:2800:220:1:248:1893:25c8:1946%251]:{port}", "scope id"),
        ("https://[pds.example]:{port}", "a name in brackets"),
        ("https://[93.184.216.34]:{port}", "IPv4 in brackets"),
        ("https://[v1.fe]:{port}", "a future address form"),
        ("https://[]:{port}", "empty brackets"),
        ("https://[::ffff:93.184.216.034]:{port}", "leading zero inside IPv6"),
        ("https://1.1:{port}", "short form of a public address"),
        ("https://134744072:{port}", "decimal form of a public address"),
        ("https://93.184.216.034:{port}", "leading zero in a public address"),
        ("https://pds.example:0", "port 0"),
        ("https://pds.example:22", "SSH"),
        ("https://pds.example:25", "SMTP"),
        ("https://pds.example:80", "http's port where only https is allowed"),
        ("https://pds.example:442", "below 1024"),
        ("https://pds.example:1023", "below 1024"),
        ("https://pds.example:65536", "beyond the last port"),
        ("https://pds.example:65979", "443 modulo 65536"),
        ("https://pds.example:99999999999999999999", "a port of twenty digits"),
        ("https://pds.example:", "empty port"),
        ("https://pds.example:0443", "leading zero in the port"),
        ("https://pds.example:+443", "sign in the port"),
        ("https://pds.example:-443", "sign in the port"),
        ("https://pds.example:0x1bb", "hexadecimal port"),
        ("https://pds.example:4_43", "underscore in the port"),
        ("https://pds.example:\u0664\u0664\u0663", "Arabic digits in the port"),
        ("https://pds.example:443:{port}", "two ports"),
        ("https://pds.example:https", "a port by name"),
    )
)

BY_ADDRESS: tuple[Destination, ...] = (*_NAMES, *_MIXES)
"""Ordinary URLs, refused for what their host resolves to."""

BY_URL: tuple[Destination, ...] = (*_LITERALS, *_SPELLINGS, *_URLS)
"""Refused by reading the URL; by the guard too, where it is the host that is wrong."""

DESTINATIONS: tuple[Destination, ...] = (*BY_ADDRESS, *BY_URL)
"""Refused as a service endpoint and as a redirect's Location."""

ENDPOINTS_ONLY: tuple[Destination, ...] = tuple(
    Destination(f"endpoint {url}", url, None, (PUBLIC,), why)
    for url, why in (
        ("https://pds.example:{port}/xrpc", "path"),
        ("https://pds.example:{port}//", "path of two slashes"),
        ("https://pds.example:{port}/.", "path of a dot"),
        ("https://pds.example:{port}/%2e", "path of an escaped dot"),
        ("https://pds.example:{port}/?a=b", "query"),
        ("https://pds.example:{port}?a=b", "query without a path"),
        ("https://pds.example:{port}?", "empty query"),
        ("https://pds.example:{port}?@127.0.0.1/", "query with an at sign"),
        ("https://pds.example:{port}#", "empty fragment"),
        ("https://pds.example:{port}/#a", "fragment"),
        ("https://pds.example:{port}#@127.0.0.1/", "fragment with an at sign"),
        ("https://pds.example:{port}/;a", "path parameters"),
    )
)
"""Refused as a service endpoint, but as a redirect's Location an ordinary URL."""

ACCEPTED: tuple[tuple[str, str], ...] = (
    ("https://pds.example", "https://pds.example"),
    ("https://pds.example/", "https://pds.example"),
    ("https://pds.example:443", "https://pds.example"),
    ("https://pds.example:443/", "https://pds.example"),
    ("https://pds.example:1024", "https://pds.example:1024"),
    ("https://pds.example:8443", "https://pds.example:8443"),
    ("https://pds.example:65535", "https://pds.example:65535"),
    ("HTTPS://PDS.Example", "https://pds.example"),
    ("https://a.b-c.d0.example", "https://a.b-c.d0.example"),
    ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ("https://r3---sn-x.example", "https://r3---sn-x.example"),
    ("https://1.pds.example", "https://1.pds.example"),
    ("https://0x7f.example", "https://0x7f.example"),
    ("https://127.0.0.1.nip.example", "https://127.0.0.1.nip.example"),
    ("https://pds.1password", "https://pds.1password"),
    ("https://notlocalhost.example", "https://notlocalhost.example"),
    ("https://localhost.example", "https://localhost.example"),
    ("https://pds.notlocal", "https://pds.notlocal"),
    ("https://" + "a" * 63 + ".example", "https://" + "a" * 63 + ".example"),
    ("https://93.184.216.34", "https://93.184.216.34"),
    ("https://93.184.216.34:8443", "https://93.184.216.34:8443"),
    ("https://[2606:2800:220:1:248:1893:25C8:1946]/",
     "https://[2606:2800:220:1:248:1893:25c8:1946]"),
    ("https://[2606:2800:0:0::1]:8443", "https://[2606:2800::1]:8443"),
)  # fmt: skip
"""Ordinary endpoints, and the canonical origin each names."""

PUBLIC_ADDRESSES: tuple[str, ...] = (
    "1.0.0.0",
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "44.0.0.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2001:db7:ffff::1",
    "2001:db9::1",
    "2003::1",
    "2400:cb00:2048:1::c629:d7a2",
    "2606:2800:220:1:248:1893:25c8:1946",
    "2606:4700::6810:84e5",
    "2606:4700::7f00:1",
    "2a00:1450:4001:82f::200e",
    "2a01:4f8:0:5eff:1::5efe",
    "2c0f:fb50:4002::1",
    "3ffd:ffff::1",
    "3fff:1000::1",
)
"""Just outside the tables, or plainly somebody's server."""
