"""The URLs strangers hand us, read strictly and without I/O.

Written out instead of using ``urllib.parse``, which is lenient where a guard must not be: it drops
tabs and newlines inside a URL and controls before it, reads everything up to the last ``@`` as
userinfo, leaves backslashes to the next reader, and takes any text as a host. Two readers of one
URL that disagree are how a filter is walked around, so what is odd is refused rather than repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import urlsplit

from proxy.egress.addresses import forbidden
from proxy.egress.errors import Forbidden

# No honest endpoint comes near; what servers and caches commonly accept as a request line is 8 KB.
MAX_URL_LENGTH = 4096

_DEFAULT_PORTS = {"https": 443, "http": 80}

# Names that mean this machine or this network wherever they resolve to (RFC 6761, 6762, 8375,
# 7686; .internal is reserved by ICANN). The address check still has the last word.
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain", "onion")

# Visible ASCII without the backslash, which browsers and some servers read as a slash. This also
# excludes non-ASCII: IDNA mapping and NFKC turn such letters into dots, slashes and digits.
_VISIBLE = re.compile(r"[!-\[\]-~]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_AFTER_SCHEME = re.compile(r"//([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([1-9][0-9]{0,4}))?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# WHATWG URL, "ends in a number": such a host is an IPv4 address to every resolver or to none.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class Origin:
    """Where a URL leads: ``host`` in lower case, an IPv6 literal without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a ``Host`` header has them (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return host + port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_origin(text: str, *, allow_http: bool, allow_private_hosts: bool = False) -> Origin:
    """The origin a service endpoint names: scheme, host and optional port, nothing else.

    Args:
        text: for example ``https://pds.example`` or ``https://pds.example:8443/``.
        allow_http: accept ``http`` too, and port 80.
        allow_private_hosts: accept any address literal, local name and port (development).

    Raises:
        Forbidden: anything else; the text gives the reason, for the log.
    """
    origin, path, query, fragment = _split(text, allow_http, allow_private_hosts)
    if path not in ("", "/") or query is not None or fragment is not None:
        raise Forbidden(f"endpoint with more than an origin: {text[:200]!a}")
    return origin


def configured_origin(url: str) -> tuple[Origin, str]:
    """The origin and the path of a URL that the operator wrote, which the configuration checked."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return Origin(parts.scheme, parts.hostname or "", port), parts.path


def parse_url(
    text: str, *, allow_http: bool, allow_private_hosts: bool = False
) -> tuple[Origin, str]:
    """The origin and the request target (path and query) of an absolute URL.

    The rules for the origin are those of ``parse_origin``. Dot segments are resolved; a fragment
    is dropped, as it is never sent and a redirect may carry one (RFC 9110 section 10.2.2).

    Raises:
        Forbidden: not such a URL.
    """
    origin, path, query, _ = _split(text, allow_http, allow_private_hosts)
    return origin, _without_dots(path or "/") + (query or "")


def redirect_target(
    base: Origin,
    base_target: str,
    location: str,
    *,
    allow_http: bool,
    allow_private_hosts: bool = False,
) -> tuple[Origin, str]:
    """Where ``location`` leads, in an answer to ``base_target`` at ``base`` (RFC 3986 section 5).

    A relative one stays at ``base``, which is not checked anew here but at the connection.

    Raises:
        Forbidden: not a URL of ``parse_url``, empty, or from https to http.
    """
    _check_characters(location)
    if _SCHEME.match(location):
        url = location
    elif location.startswith("//"):
        url = f"{base.scheme}:{location}"
    else:
        return base, _resolve(base_target, location)
    origin, target = parse_url(url, allow_http=allow_http, allow_private_hosts=allow_private_hosts)
    if base.scheme == "https" and origin.scheme != "https":
        raise Forbidden(f"redirect from https to http: {location[:200]!a}")
    return origin, target


def _check_characters(text: str) -> None:
    if len(text) > MAX_URL_LENGTH:
        raise Forbidden(f"URL of {len(text)} characters")
    if not _VISIBLE.fullmatch(text):
        raise Forbidden(f"URL empty or with characters that no URL has: {text[:200]!a}")


def _split(
    text: str, allow_http: bool, allow_private_hosts: bool
) -> tuple[Origin, str, str | None, str | None]:
    """Origin, path, query with its ``?``, fragment with its ``#``; None where one is absent."""
    _check_characters(text)
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        raise Forbidden(f"scheme is not accepted: {text[:200]!a}")
    # "https:pds.example" is opaque to RFC 3986 and a URL with a host to a browser.
    parts = _AFTER_SCHEME.fullmatch(rest)
    if parts is None:
        raise Forbidden(f"no host: {text[:200]!a}")
    # Userinfo needs no rule of its own: neither "@" nor "%" is in any host this accepts.
    authority = _AUTHORITY.fullmatch(parts[1])
    if authority is None:
        raise Forbidden(f"not a host with an optional port: {parts[1][:200]!a}")
    literal, name, digits = authority.groups()
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    _check_port(port, allow_http, allow_private_hosts)
    host = _ipv6(literal, allow_private_hosts) if literal else _name(name, allow_private_hosts)
    return Origin(scheme, host, port), parts[2], parts[3], parts[4]


def _check_port(port: int, allow_http: bool, allow_private_hosts: bool) -> None:
    # Below 1024 live the services a GET can confuse or probe: SSH, SMTP, IMAP and their like.
    usual = port == 443 or (port == 80 and allow_http) or port >= 1024
    if port > 65535 or not (usual or allow_private_hosts):
        raise Forbidden(f"port {port} is not accepted")


def _ipv6(text: str, allow_private_hosts: bool) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise Forbidden(f"not an IPv6 address: {text[:200]!a}") from None
    _check_address(address, allow_private_hosts)
    return address.compressed


def _name(text: str, allow_private_hosts: bool) -> str:
    host = text.lower()
    labels = host.split(".")
    # An empty label is also the trailing dot, a second spelling of the same name.
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Forbidden(f"not a host name: {text[:200]!a}")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(host, allow_private_hosts)
    local = len(labels) == 1 or any(f".{host}".endswith(f".{name}") for name in _LOCAL_NAMES)
    if local and not allow_private_hosts:
        raise Forbidden(f"local name: {host}")
    return host


def _ipv4(host: str, allow_private_hosts: bool) -> str:
    # Resolvers read 127.1, 0x7f.1, 017700000001 and 2130706433 as 127.0.0.1; IPv4Address takes
    # four decimal numbers without leading zeros, and nothing else.
    try:
        address = IPv4Address(host)
    except AddressValueError:
        raise Forbidden(f"an IPv4 address in an odd spelling: {host}") from None
    _check_address(address, allow_private_hosts)
    return host


def _check_address(address: IPv4Address | IPv6Address, allow_private_hosts: bool) -> None:
    reason = None if allow_private_hosts else forbidden(address)
    if reason is not None:
        raise Forbidden(f"{address}: {reason}")


def _resolve(base_target: str, reference: str) -> str:
    """RFC 3986 section 5.2.2 for a reference that has neither scheme nor authority."""
    reference = reference.partition("#")[0]
    if not reference:
        raise Forbidden("redirect to the same URL")
    path, mark, query = reference.partition("?")
    base_path = base_target.partition("?")[0]
    if not path:
        return base_path + mark + query
    if not path.startswith("/"):
        path = base_path.rpartition("/")[0] + "/" + path
    return _without_dots(path) + mark + query


def _without_dots(path: str) -> str:
    """RFC 3986 section 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    # A dot segment at the end names a folder: "/a/." and "/a/b/.." are "/a/".
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
