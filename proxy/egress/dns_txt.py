"""Asks the operator's DNS servers for TXT records, with limits on time and number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from socket import SOCK_STREAM
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.nameserver
import dns.resolver
import dns.version
import trio

from proxy.egress.errors import ConnectFailed, Saturated, TimedOut
from proxy.egress.neighbours import registered_domain
from proxy.shared.fair_turns import FairTurns

LOOKUP_SECONDS = 5.0
"""For one name, with the time spent waiting. A recursive server that has to ask others needs one
or two seconds."""

TRY_SECONDS = 2.0
"""For one server, before the next one is asked."""

MAX_AT_ONCE = 32
"""Questions under way, each with a socket of its own."""

MAX_WAITING = 256

MAX_OF_DOMAIN = 8
"""Questions under way for names below one registered domain. Its DNS servers may keep silent, and
then each question takes its five seconds."""

MAX_WAITING_OF_DOMAIN = 64

MAX_ANSWER = 2048
"""The limit for an answer over TCP, in bytes. Parsing takes up to 23 microseconds for each of its
records, and the name's owner decides how many there are; an account needs one, of 60 bytes. Over
UDP a server sends at most 512 bytes (RFC 1035, section 4.2.1)."""


try:
    # At import: if dnspython does not support this Trio, the start fails, and not each look-up.
    _BACKEND = dns.asyncbackend.get_backend("trio")
except ImportError as error:
    raise ImportError(
        f"dnspython {dns.version.version} does not support Trio {trio.__version__};"
        ' install "dnspython[trio]"'
    ) from error


class TxtRecords:
    """Asks for TXT records over Trio's sockets.

    Strangers choose the names, but never the servers: this class does not connect to any host that
    an answer names.

    Args:
        nameservers: addresses and ports. If empty, the system's servers are used; their addresses
            are read at the first question.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]] = ()) -> None:
        self._nameservers = nameservers
        self._resolver: dns.asyncresolver.Resolver | None = None
        # By registered domain.
        self._turns = FairTurns(
            MAX_AT_ONCE,
            MAX_OF_DOMAIN,
            waiting=MAX_WAITING,
            waiting_of_group=MAX_WAITING_OF_DOMAIN,
            refusal=lambda text: Saturated(f"DNS questions: {text}"),
        )

    async def lookup(self, name: str) -> list[bytes]:
        """The TXT values of a host name, each with its strings joined; empty if it has none.

        Cancellation leaves no socket behind.

        Raises:
            TimedOut, ConnectFailed: no server answered, or no server gave a usable answer.
            Saturated: too many questions are waiting, of all names or of this domain.
        """
        try:
            absolute = dns.name.from_text(name, dns.name.root)
        except dns.name.NameTooLong:
            return []
        with trio.move_on_after(LOOKUP_SECONDS):
            async with self._turns.turn(registered_domain(name)):
                return await self._ask(absolute)
        raise TimedOut(f"{name}: no DNS answer within {LOOKUP_SECONDS:g} s")

    async def _ask(self, name: dns.name.Name) -> list[bytes]:
        try:
            if self._resolver is None:
                self._resolver = await trio.to_thread.run_sync(
                    partial(_configured, self._nameservers)
                )
            answer = await self._resolver.resolve(name, "TXT", search=False, backend=_BACKEND)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except dns.exception.Timeout as error:
            raise TimedOut(f"{name}: {error}") from error
        except (dns.exception.DNSException, OSError) as error:
            raise ConnectFailed(f"{name}: {error}") from error
        return [b"".join(record.strings) for record in answer]


class _Nameserver(dns.nameserver.Do53Nameserver):
    """A server whose answers over TCP have at most ``MAX_ANSWER`` bytes."""

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Ask over TCP if ``max_size``, else over UDP.

        Raises:
            OSError: the answer is too long. The resolver asks the next server then.
        """
        if not max_size:
            return await super().async_query(
                request,
                timeout,
                source,
                source_port,
                max_size,
                backend,
                one_rr_per_rrset,
                ignore_trailing,
            )
        family = dns.inet.af_for_address(self.address)
        where = (self.address, self.port)
        async with await backend.make_socket(
            family, SOCK_STREAM, destination=where, timeout=timeout
        ) as opened:
            stream: Any = _ShortMessages(opened)
            return await dns.asyncquery.tcp(request, self.address, timeout, sock=stream)


class _ShortMessages:
    """The part of dnspython's ``StreamSocket`` that its queries use.

    It relies on how they read: first a message's length, and then as many bytes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sendall = stream.sendall
        self.getpeername = stream.getpeername

    async def recv(self, size: int, timeout: float | None) -> bytes:
        if size > MAX_ANSWER:
            raise OSError(f"an answer of {size} bytes")
        data: bytes = await self._stream.recv(size, timeout)
        return data


def _configured(nameservers: Sequence[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=not nameservers)
    servers = nameservers or [(str(address), resolver.port) for address in resolver.nameservers]
    resolver.nameservers = [_Nameserver(address, port) for address, port in servers]
    resolver.timeout = TRY_SECONDS
    resolver.lifetime = LOOKUP_SECONDS
    return resolver
