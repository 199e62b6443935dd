"""Parses the URLs that strangers give us, strictly and without I/O.

This is a parser of its own, because ``urllib.parse`` accepts too much for a guard: it drops tabs
and newlines inside a URL and control characters before it, reads everything up to the last ``@``
as userinfo, leaves backslashes to the next parser, and accepts any text as a host. An attacker can
get past a filter when two parsers read one URL differently. So an unusual URL is refused, and not
repaired, but for the path and query of a redirect, where spaces and UTF-8 are common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import urlsplit

from proxy.egress.addresses import forbidden
from proxy.egress.errors import Forbidden
from proxy.egress.own_hosts import PrivateHosts, is_own

# Real endpoints are far shorter; signed URLs of object stores have a few KB. Servers and caches
# commonly accept a request line of 8 KB.
MAX_URL_LENGTH = 8192

REMEMBERED_LENGTH = 280
"""Characters of an endpoint whose origin is remembered: the longest name, and what is around it."""

_DEFAULT_PORTS = {"https": 443, "http": 80}

# Names that mean this machine or this network, whatever they resolve to (RFC 6761, 6762, 8375,
# 7686; .internal is reserved by ICANN). All other names must still pass the address check.
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain", "onion")

# Visible ASCII without the backslash, because browsers and some servers read it as a slash.
# Non-ASCII is excluded too: IDNA mapping and NFKC turn such letters into dots, slashes and digits.
_VISIBLE = re.compile(r"[!-\[\]-~]+")
_UNESCAPED = re.compile(r"[ \x80-\xff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_AFTER_SCHEME = re.compile(r"//([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([1-9][0-9]{0,4}))?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# WHATWG URL, "ends in a number": such a host is either an IPv4 address or not valid.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class Origin:
    """The origin of a URL. ``host`` is in lower case; an IPv6 literal is without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port, in the form of a ``Host`` header (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return host + port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_origin(
    text: str, *, allow_http: bool, allow_private_hosts: PrivateHosts = False
) -> Origin:
    """Parse a service endpoint: scheme, host and optional port, nothing else.

    Args:
        text: for example ``https://pds.example`` or ``https://pds.example:8443/``.
        allow_http: accept ``http`` too, and port 80.
        allow_private_hosts: accept any address literal, local name and port (development), or the
            literals and local names of the operator's own hosts.

    Raises:
        Forbidden: the text is anything else; the message gives the reason, for the log.
    """
    if len(text) > MAX_URL_LENGTH:
        raise Forbidden(f"URL of {len(text)} characters")
    parse = _parse_origin if len(text) > REMEMBERED_LENGTH else _remembered_origin
    return parse(text, allow_http, allow_private_hosts)


def _parse_origin(text: str, allow_http: bool, allow_private_hosts: PrivateHosts) -> Origin:
    origin, path, query, fragment = _split(text, allow_http, allow_private_hosts)
    if path not in ("", "/") or query is not None or fragment is not None:
        raise Forbidden(f"endpoint with more than an origin: {text[:200]!a}")
    return origin


# Most blobs are of a few large PDSes, which are asked again and again.
_remembered_origin = lru_cache(maxsize=256)(_parse_origin)


def configured_origin(url: str) -> tuple[Origin, str]:
    """The origin and the path of a URL that the operator wrote and the configuration checked."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return Origin(parts.scheme, parts.hostname or "", port), parts.path


def parse_url(
    text: str, *, allow_http: bool, allow_private_hosts: PrivateHosts = False
) -> tuple[Origin, str]:
    """The origin and the request target (path and query) of an absolute URL.

    The rules for the origin are those of ``parse_origin``. Dot segments are resolved. A fragment
    is dropped: a redirect may carry one, but it is never sent (RFC 9110 section 10.2.2).

    Raises:
        Forbidden: the text is not such a URL.
    """
    origin, path, query, _ = _split(text, allow_http, allow_private_hosts)
    return origin, _without_dots(path or "/") + (query or "")


def redirect_target(
    base: Origin,
    base_target: str,
    location: str,
    *,
    allow_http: bool,
    allow_private_hosts: PrivateHosts = False,
) -> tuple[Origin, str]:
    """Resolve the ``Location`` of an answer to ``base_target`` at ``base`` (RFC 3986 section 5).

    A relative location stays at ``base``. It is not checked again here, but at the connection.
    Spaces, and bytes beyond ASCII, are escaped where they stand in the path or the query, as
    browsers do (URL Standard, "path percent-encode set"); in a host nothing is repaired.

    Args:
        location: a character for each byte of the header field.

    Returns:
        The origin and the request target that it leads to.

    Raises:
        Forbidden: it is no such URL, it is empty or too long, it leads from https to http, or
            from a host of others to one of the operator's own, where it would choose the path.
    """
    if len(location) > MAX_URL_LENGTH:
        raise Forbidden(f"URL of {len(location)} characters")
    location = _UNESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", location.strip(" "))
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
    if is_own(allow_private_hosts, origin.host) and not is_own(allow_private_hosts, base.host):
        raise Forbidden(f"redirect to a private host from another: {location[:200]!a}")
    return origin, target


def _check_characters(text: str) -> None:
    if len(text) > 3 * MAX_URL_LENGTH:  # as long as a location whose bytes are all escaped
        raise Forbidden(f"URL of {len(text)} characters")
    if not _VISIBLE.fullmatch(text):
        raise Forbidden(f"URL is empty or has characters that are not allowed: {text[:200]!a}")


def _split(
    text: str, allow_http: bool, allow_private_hosts: PrivateHosts
) -> tuple[Origin, str, str | None, str | None]:
    """Origin, path, query with its ``?``, fragment with its ``#``; None if the part is absent."""
    _check_characters(text)
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        raise Forbidden(f"scheme is not accepted: {text[:200]!a}")
    # "https:pds.example" is opaque to RFC 3986 and a URL with a host to a browser.
    parts = _AFTER_SCHEME.fullmatch(rest)
    if parts is None:
        raise Forbidden(f"no host: {text[:200]!a}")
    # Userinfo needs no rule of its own: a host that is accepted contains neither "@" nor "%".
    authority = _AUTHORITY.fullmatch(parts[1])
    if authority is None:
        raise Forbidden(f"not a host with an optional port: {parts[1][:200]!a}")
    literal, name, digits = authority.groups()
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    _check_port(port, allow_http, allow_private_hosts)
    host = _ipv6(literal, allow_private_hosts) if literal else _name(name, allow_private_hosts)
    return Origin(scheme, host, port), parts[2], parts[3], parts[4]


def _check_port(port: int, allow_http: bool, allow_private_hosts: PrivateHosts) -> None:
    # Ports below 1024 belong to services that a GET can confuse or probe: SSH, SMTP, IMAP.
    usual = port == 443 or (port == 80 and allow_http) or port >= 1024
    if port > 65535 or not (usual or allow_private_hosts is True):
        raise Forbidden(f"port {port} is not accepted")


def _ipv6(text: str, allow_private_hosts: PrivateHosts) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise Forbidden(f"not an IPv6 address: {text[:200]!a}") from None
    _check_address(address, allow_private_hosts)
    return address.compressed


def _name(text: str, allow_private_hosts: PrivateHosts) -> str:
    host = text.lower()
    labels = host.split(".")
    # This refuses a trailing dot too (an empty label): it is a second spelling of the same name.
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Forbidden(f"not a host name: {text[:200]!a}")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(host, allow_private_hosts)
    local = len(labels) == 1 or any(f".{host}".endswith(f".{name}") for name in _LOCAL_NAMES)
    if local and not is_own(allow_private_hosts, host):
        raise Forbidden(f"local name: {host}")
    return host


def _ipv4(host: str, allow_private_hosts: PrivateHosts) -> str:
    # Resolvers read 127.1, 0x7f.1, 017700000001 and 2130706433 as 127.0.0.1. IPv4Address accepts
    # only four decimal numbers without leading zeros.
    try:
        address = IPv4Address(host)
    except AddressValueError:
        raise Forbidden(f"an IPv4 address in an unusual spelling: {host}") from None
    _check_address(address, allow_private_hosts)
    return host


def _check_address(address: IPv4Address | IPv6Address, allow_private_hosts: PrivateHosts) -> None:
    reason = None if is_own(allow_private_hosts, str(address)) else forbidden(address)
    if reason is not None:
        raise Forbidden(f"{address}: {reason}")


def _resolve(base_target: str, reference: str) -> str:
    """RFC 3986 section 5.2.2, for a reference without scheme and authority."""
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
    # A dot segment at the end means a folder: "/a/." and "/a/b/.." become "/a/".
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
