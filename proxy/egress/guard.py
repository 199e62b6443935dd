"""The guard at the connection: the addresses that were checked are the ones connected to."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from ipaddress import ip_address
from itertools import chain, zip_longest
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

import trio

from proxy.egress.addresses import Address, forbidden
from proxy.egress.errors import ConnectFailed, Forbidden

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
Dial = Callable[[str, int], Awaitable[trio.abc.Stream]]

# RFC 8305 section 5: how long an attempt has the field to itself.
STAGGER_SECONDS = 0.25
# Strangers write these DNS records: without a bound one fetch could be spread over hundreds of
# hosts. Six are three of each family; big sites publish no more than that.
MAX_ATTEMPTS = 6
# Threads that wait for the system's resolver, apart from Trio's own 40: an abandoned look-up keeps
# its thread until the resolver gives up, and must not keep one from whoever else needs it.
MAX_LOOKUPS = 128


class GuardedNetwork:
    """A ``Network`` that connects to public addresses only.

    Args:
        allow_private_hosts: connect to any address (development, and the operator's own servers).
        lookup: ``(host, port)`` to address strings, scope id included; OSError when there are
            none. If not specified, the system's resolver.
        dial: ``(address, port)`` to a stream, or OSError; on cancellation it leaves no socket. If
            not specified, ``trio.open_tcp_stream``, which looks nothing up for a literal.
        ssl_context: if not specified, the system's trust store, with HTTP/1.1 by ALPN.
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool = False,
        lookup: Lookup | None = None,
        dial: Dial = trio.open_tcp_stream,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._lookup_limiter = trio.CapacityLimiter(MAX_LOOKUPS)
        self._lookup = lookup or self._system_lookup
        self._dial = dial
        self._ssl_context = ssl_context or _default_ssl_context()

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """As ``Network.connect``: looked up once, every address checked, the first to answer wins.

        Cancellation leaves no socket behind; a look-up under way is abandoned to its thread.
        """
        addresses = self._checked(host, await self._resolve(host, port))
        return await self._first_to_answer(host, addresses, port)

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """As ``Network.start_tls``; returns once the handshake is done.

        On any exception, cancellation included, ``stream`` is closed.
        """
        try:
            tls = trio.SSLStream(
                stream, self._ssl_context, server_hostname=host, https_compatible=True
            )
            await tls.do_handshake()
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            # ValueError: a host that can be no server name, such as an empty one.
            if isinstance(error, (trio.BrokenResourceError, OSError, ValueError)):
                reason = error.__cause__ or error
                raise ConnectFailed(f"TLS with {host} failed: {reason}") from error
            raise
        return tls

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        try:
            ip_address(host)
        except ValueError:
            pass
        else:
            return [host]
        try:
            answers = await self._lookup(host, port)
        except (OSError, ValueError) as error:
            raise ConnectFailed(f"{host} does not resolve: {error}") from error
        if not answers:
            raise ConnectFailed(f"{host} does not resolve: no addresses")
        return answers

    async def _system_lookup(self, host: str, port: int) -> Sequence[str]:
        # Bytes, so that Python applies no IDNA mapping of its own on the way.
        found = await trio.to_thread.run_sync(
            lambda: getaddrinfo(host.encode("ascii"), port, type=SOCK_STREAM),
            abandon_on_cancel=True,
            limiter=self._lookup_limiter,
        )
        # (address, port) or (address, port, flow, scope): the text itself is without its scope id.
        ends: list[tuple[Any, ...]] = [entry[4] for entry in found]
        return [f"{end[0]}%{end[3]}" if len(end) == 4 and end[3] else end[0] for end in ends]

    def _checked(self, host: str, answers: Iterable[str]) -> list[Address]:
        """The addresses of ``answers``; one bad among good refuses the name."""
        addresses = []
        for text in answers:
            try:
                address = ip_address(text)
            except ValueError:
                raise Forbidden(f"{host} resolves to {text[:100]!a}, which is no address") from None
            reason = None if self._allow_private_hosts else forbidden(address)
            if reason is not None:
                raise Forbidden(f"{host} leads to {address}: {reason}")
            addresses.append(address)
        return addresses

    async def _first_to_answer(
        self, host: str, addresses: Sequence[Address], port: int
    ) -> trio.abc.Stream:
        """Dials in turn, each a moment after the one before or as soon as that failed."""
        won: list[trio.abc.Stream] = []
        failures: list[OSError] = []

        async def attempt(address: Address, failed: trio.Event) -> None:
            try:
                stream = await self._dial(str(address), port)
            except OSError as error:
                failures.append(error)
                failed.set()
                return
            if won:  # two answered in one tick of the loop
                await trio.aclose_forcefully(stream)
            else:
                won.append(stream)
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for address in _attempt_order(addresses):
                    failed = trio.Event()
                    nursery.start_soon(attempt, address, failed)
                    with trio.move_on_after(STAGGER_SECONDS):
                        await failed.wait()
        except BaseException:
            for stream in won:
                await trio.aclose_forcefully(stream)
            raise
        if not won:
            raise ConnectFailed(f"{host} port {port}: {failures[-1]}") from failures[-1]
        return won[0]


def _attempt_order(addresses: Iterable[Address]) -> list[Address]:
    """The families in alternation (RFC 8305 section 4), so that the bound cuts neither off."""
    unique = list(dict.fromkeys(addresses))
    first = [address for address in unique if address.version == unique[0].version]
    second = [address for address in unique if address.version != unique[0].version]
    merged = chain.from_iterable(zip_longest(first, second))
    return [address for address in merged if address is not None][:MAX_ATTEMPTS]


@cache
def _default_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
