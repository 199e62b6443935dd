"""TXT records, asked of the operator's DNS servers, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
import dns.version
import trio

from proxy.egress.errors import ConnectFailed, Saturated, TimedOut

LOOKUP_SECONDS = 5.0
"""For one name, waiting included; a recursive server that has to ask around needs one or two."""

TRY_SECONDS = 2.0
"""For one server, before the next is asked."""

MAX_AT_ONCE = 32
"""Questions under way, each with a socket of its own."""

MAX_WAITING = 256


try:
    # Asked for here: a Trio that dnspython does not support ends the start, not each look-up.
    _BACKEND = dns.asyncbackend.get_backend("trio")
except ImportError as error:
    raise ImportError(
        f"dnspython {dns.version.version} does not support Trio {trio.__version__};"
        ' install "dnspython[trio]"'
    ) from error


class TxtRecords:
    """Asks for TXT records over Trio's sockets.

    Strangers choose the names, never the servers: nothing is connected to that an answer names.

    Args:
        nameservers: addresses and ports; none: those of the system, read at the first question.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]] = ()) -> None:
        self._nameservers = nameservers
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._turns = trio.CapacityLimiter(MAX_AT_ONCE)

    async def lookup(self, name: str) -> list[bytes]:
        """The values at a host name, their strings joined; none where there is no such record.

        Cancellation leaves no socket behind.

        Raises:
            TimedOut, ConnectFailed: no server answered, or none with an answer.
            Saturated: too many questions wait.
        """
        try:
            absolute = dns.name.from_text(name, dns.name.root)
        except dns.name.NameTooLong:
            return []
        if self._turns.statistics().tasks_waiting >= MAX_WAITING:
            raise Saturated(f"{MAX_WAITING} DNS questions wait")
        with trio.move_on_after(LOOKUP_SECONDS):
            async with self._turns:
                return await self._ask(absolute)
        raise TimedOut(f"{name}: no answer of DNS within {LOOKUP_SECONDS:g} s")

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


def _configured(nameservers: Sequence[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=not nameservers)
    if nameservers:
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(address, port) for address, port in nameservers
        ]
    resolver.timeout = TRY_SECONDS
    resolver.lifetime = LOOKUP_SECONDS
    return resolver
