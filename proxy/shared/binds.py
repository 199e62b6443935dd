"""Addresses to listen on, as ``server.bind`` names them. Pure.

One parser for all that reads one: the configuration, ``serve``, and what is printed for fronts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

FORM = "must be HOST:PORT, [IPV6]:PORT or unix:/PATH"

MAX_UNIX_PATH = 107
"""Bytes: ``sun_path`` with its last zero, on Linux (unix(7))."""

_TCP = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)"
    r":(?P<port>[0-9]{1,5})"
)

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared with)
"""For an address that stands for all of its kind, one of them."""


@dataclass(frozen=True)
class TcpBind:
    """A port of a host.

    Attributes:
        host: a name or an address, without brackets.
    """

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    def takes(self, other: Bind) -> bool:
        """Whether ``other`` is a port of one of all the addresses that this one stands for."""
        return (
            self.host in _LOOPBACK
            and isinstance(other, TcpBind)
            and other != self
            and (other.port, other.is_ipv6) == (self.port, self.is_ipv6)
            and self.port > 0  # it is another one each time
        )

    @property
    def fits_fronts(self) -> bool:
        """Whether a front can be told it: it has a port, and no zone, which nginx does not take."""
        return self.port > 0 and "%" not in self.host

    @property
    def reached_at(self) -> str:
        """The address to connect to from this machine, as in a URL."""
        return _as_in_url(_LOOPBACK.get(self.host, self.host), self.port)

    def __str__(self) -> str:
        return _as_in_url(self.host, self.port)


@dataclass(frozen=True)
class UnixBind:
    """A socket in the file system.

    Attributes:
        path: absolute.
    """

    path: str

    @property
    def fits_fronts(self) -> bool:
        """See ``TcpBind``."""
        return True

    @property
    def reached_at(self) -> str:
        """What nginx connects to."""
        return str(self)

    def __str__(self) -> str:
        return f"unix:{self.path}"


Bind = TcpBind | UnixBind


def parse_bind(text: str) -> Bind:
    """Parse one address.

    Raises:
        ValueError: for a person: it is none of the forms.
    """
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    found = _TCP.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ValueError(FORM)
    host = found["host"]
    try:
        if host.startswith("["):
            host = str(IPv6Address(host[1:-1]))  # one spelling of each
        elif host.rpartition(".")[2].isdecimal():  # no name ends so
            IPv4Address(host)
    except AddressValueError:
        raise ValueError(FORM) from None
    return TcpBind(host, int(found["port"]))


def _unix(path: str) -> UnixBind:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError("must be unix: and an absolute path")
    # nginx ends an address at a colon, and a list is split at commas.
    if re.search(r"[\s:,\"'\\;{}$]|[^ -~]", path):
        raise ValueError("must be unix: and a path without blanks and punctuation of lists")
    if len(path) > MAX_UNIX_PATH:
        raise ValueError(f"must have a path of at most {MAX_UNIX_PATH} bytes")
    return UnixBind(path)


def _as_in_url(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
