"""The guard at the connection: connects only to addresses that it has checked itself."""

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
from proxy.egress.own_hosts import PrivateHosts, is_own
from proxy.shared.expiring_map import ExpiringMap

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
Dial = Callable[[str, int], Awaitable[trio.abc.Stream]]
OnAddress = Callable[[str, Address], object]

# RFC 8305 section 5: the time between the start of one attempt and the start of the next.
STAGGER_SECONDS = 0.25
# Strangers write these DNS records. Without a limit, one fetch could connect to hundreds of hosts.
# Six are three of each family; big sites publish no more than that.
MAX_ATTEMPTS = 6
# The addresses of a name that are looked at; the others are not dialled either. One DNS answer can
# have four thousand, and to check them takes 24 ms.
MAX_ADDRESSES = 64
# Threads that wait for the system's resolver, separate from Trio's own 40. An abandoned look-up
# keeps its thread until the resolver gives up; other work must not wait for such a thread. Nor must
# names that resolved before wait for those of strangers whose DNS servers do not answer.
MAX_LOOKUPS = 96
MAX_LOOKUPS_OF_KNOWN = 32
# Bytes of names that resolved before, with 256 for what the map needs for each of them.
KNOWN_BYTES = 4 * 1024**2


class GuardedNetwork:
    """A ``Network`` that connects to public addresses only.

    Args:
        allow_private_hosts: connect to any address (development, and the operator's own servers),
            or to any of the hosts that it lists.
        lookup: from ``(host, port)`` to address strings with their scope id; raises OSError when
            there are none. If not specified, the system's resolver.
        dial: from ``(address, port)`` to a stream; raises OSError. On cancellation it leaves no
            socket open. If not specified, ``trio.open_tcp_stream``, which makes no look-up for an
            address literal.
        on_address: called with a host and the address that is dialled first, and again with the
            address that answered.
        ssl_context: if not specified, the system's trust store, with HTTP/1.1 by ALPN.
    """

    def __init__(
        self,
        *,
        allow_private_hosts: PrivateHosts = False,
        lookup: Lookup | None = None,
        dial: Dial = trio.open_tcp_stream,
        on_address: OnAddress = lambda host, address: None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)
        self._lookups_of_known = trio.CapacityLimiter(MAX_LOOKUPS_OF_KNOWN)
        self._known: ExpiringMap[str, bool] = ExpiringMap(
            KNOWN_BYTES, cost=lambda host, _: 256 + len(host)
        )
        self._lookup = lookup or self._system_lookup
        self._dial = dial
        self._on_address = on_address
        self._ssl_context = ssl_context or _default_ssl_context()

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """See ``Network.connect``.

        The name is looked up once and every address is checked; the first address that answers is
        used. Cancellation leaves no socket open; a look-up under way goes on in its thread, and its
        result is dropped.
        """
        addresses = self._checked(host, await self._resolve(host, port))
        self._on_address(host, addresses[0])
        return await self._first_to_answer(host, addresses, port)

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """See ``Network.start_tls``. Returns when the handshake is done.

        On any exception and on cancellation ``stream`` is closed.
        """
        try:
            tls = trio.SSLStream(
                stream, self._ssl_context, server_hostname=host, https_compatible=True
            )
            await tls.do_handshake()
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            # ValueError: a host that is not valid as a server name, such as an empty one.
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
        known = self._known.get(host, trio.current_time())
        # Until this look-up ends well: a name may resolve once, and then hang.
        self._known.remove(host)
        # Pass bytes, so that Python does not apply an IDNA mapping of its own.
        found = await trio.to_thread.run_sync(
            lambda: getaddrinfo(host.encode("ascii"), port, type=SOCK_STREAM),
            abandon_on_cancel=True,
            limiter=self._lookups_of_known if known else self._lookups,
        )
        self._known.put(host, True)
        # (address, port) or (address, port, flow, scope): the address text has no scope id.
        ends: list[tuple[Any, ...]] = [entry[4] for entry in found[:MAX_ADDRESSES]]
        return [f"{end[0]}%{end[3]}" if len(end) == 4 and end[3] else end[0] for end in ends]

    def _checked(self, host: str, answers: Sequence[str]) -> list[Address]:
        """The first addresses of ``answers``. A forbidden one is enough to refuse the name."""
        addresses = []
        own = is_own(self._allow_private_hosts, host)
        for text in answers[:MAX_ADDRESSES]:
            try:
                address = ip_address(text)
            except ValueError:
                raise Forbidden(f"{host} resolves to {text[:100]!a}, not an address") from None
            reason = None if own else forbidden(address)
            if reason is not None:
                raise Forbidden(f"{host} resolves to {address}: {reason}")
            addresses.append(address)
        return addresses

    async def _first_to_answer(
        self, host: str, addresses: Sequence[Address], port: int
    ) -> trio.abc.Stream:
        """Dial one address after another, and return the first stream.

        Each attempt begins ``STAGGER_SECONDS`` after the one before, or as soon as that one fails.
        """
        won: list[trio.abc.Stream] = []
        failures: list[OSError] = []

        async def attempt(address: Address, failed: trio.Event) -> None:
            try:
                stream = await self._dial(str(address), port)
            except OSError as error:
                failures.append(error)
                failed.set()
                return
            if won:  # two addresses answered in the same step of the event loop
                await trio.aclose_forcefully(stream)
            else:
                won.append(stream)
                self._on_address(host, address)
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
    """The addresses with their families in alternation (RFC 8305 section 4), at most
    ``MAX_ATTEMPTS``, so that the limit does not cut off a whole family."""
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
