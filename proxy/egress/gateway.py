"""The way out: what the rest of the service calls to ask something of the outside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import trio

from proxy.egress.circuit import Circuits, pause_asked
from proxy.egress.endpoint import Origin
from proxy.egress.errors import ConnectFailed, NoAnswer, TimedOut
from proxy.egress.fetch_channel import ChannelStatistics, FetchChannel
from proxy.egress.guard import GuardedNetwork
from proxy.egress.guarded_get import NO_HEADERS, RequestRules, Response, guarded_get
from proxy.egress.http_client import MAX_IDLE, HttpClient, Method
from proxy.egress.httpx2_client import Httpx2Client
from proxy.egress.network import Network

IDLE_SECONDS = 30.0


class FetchSettings(Protocol):
    """What the ``fetch`` section of the configuration says; ``docs/configuration.md`` has units."""

    @property
    def client(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def queue_size(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def per_host(self) -> int: ...
    @property
    def max_redirects(self) -> int: ...
    @property
    def allow_http(self) -> bool: ...
    @property
    def allow_private_hosts(self) -> bool: ...


class Gateway:
    """Bounded, guarded GETs and HEADs.

    Args:
        fetch: the settings.
        network: what strangers' hosts are reached over.
        directory_network: what the operator's own directory is reached over.
        channel: whose consumers carry the requests out.
    """

    def __init__(
        self,
        fetch: FetchSettings,
        network: Network,
        directory_network: Network,
        channel: FetchChannel,
    ) -> None:
        self._fetch = fetch
        self._strangers = make_client(fetch.client, network)
        self._directory = make_client(fetch.client, directory_network)
        self._clients = (self._strangers, self._directory)
        self._circuits = Circuits()
        self._channel = channel

    def statistics(self) -> ChannelStatistics:
        """A snapshot of the channel."""
        return self._channel.statistics()

    async def run(self) -> None:
        """Run the channel and look after the connections, until cancelled: a gateway by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._channel.run)
            nursery.start_soon(self.keep_connections)

    async def keep_connections(self) -> None:
        """Close connections that were idle for too long, until cancelled; then all of them."""
        try:
            while True:
                await trio.sleep(IDLE_SECONDS / 2)
                for client in self._clients:
                    await client.close_expired()
        finally:
            with trio.CancelScope(shield=True):
                for client in self._clients:
                    await client.aclose()

    async def get(
        self,
        origin: Origin,
        target: str,
        *,
        max_bytes: int,
        trusted: bool = False,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        """GET ``target`` from ``origin`` within ``fetch.timeout``, waiting included.

        Cancellation leaves no connection, worker or place in the queue behind.

        Args:
            max_bytes: of the body.
            trusted: the operator configured this origin; redirects from it are not trusted.
            headers: more of the request, for this origin alone.

        Raises:
            EgressError: see ``proxy.egress.errors``.
        """
        return await self._ask("GET", origin, target, max_bytes, trusted, headers)

    async def head(self, origin: Origin, target: str, *, method: Method = "HEAD") -> Response:
        """Ask for the head of an answer alone; otherwise as ``get``.

        Args:
            method: ``GET`` for servers that refuse a HEAD: the body of a 200 is left unread, of
                other answers the first bytes come along.
        """
        return await self._ask(method, origin, target, None, False)

    async def _ask(
        self,
        method: Method,
        origin: Origin,
        target: str,
        max_bytes: int | None,
        trusted: bool,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        rules = RequestRules(
            max_bytes=max_bytes,
            max_redirects=self._fetch.max_redirects,
            allow_http=self._fetch.allow_http,
            allow_private_hosts=self._fetch.allow_private_hosts,
            headers=headers,
        )
        first = self._directory if trusted else self._strangers
        work = partial(guarded_get, first, self._strangers, origin, target, rules, method=method)
        host = origin.authority
        is_probe = self._circuits.check(host, trio.current_time())
        try:
            answer = await self._channel.submit(
                origin.host, work, timeout=self._fetch.timeout, is_shared=trusted
            )
        except (ConnectFailed, NoAnswer, TimedOut) as error:
            self._circuits.failed(host, error, trio.current_time())
            raise
        except BaseException:
            if is_probe:
                self._circuits.gave_up(host, trio.current_time())
            raise
        self._circuits.succeeded(host, trio.current_time())
        if pause := pause_asked(answer.status, answer.headers, time.time()):
            self._circuits.hold(host, pause, trio.current_time())
        return answer


def fetch_channel_of(fetch: FetchSettings) -> FetchChannel:
    """The configured channel, to be run."""
    return FetchChannel(queue_size=fetch.queue_size, workers=fetch.workers, per_host=fetch.per_host)


def standalone_gateway(
    fetch: FetchSettings, network: Network, directory_network: Network
) -> Gateway:
    """A gateway with a channel of its own: its ``run`` serves both."""
    return Gateway(fetch, network, directory_network, fetch_channel_of(fetch))


def guarded_networks(fetch: FetchSettings) -> tuple[Network, Network]:
    """The networks for strangers' hosts and for the operator's directory."""
    return (
        GuardedNetwork(allow_private_hosts=fetch.allow_private_hosts),
        GuardedNetwork(allow_private_hosts=True),
    )


def make_client(name: str, network: Network) -> HttpClient:
    """The HTTP client of that name (``fetch.client``) over ``network``.

    Raises:
        ImportError: asks is not installed.
    """
    if name == "asks":
        # Imported late: it is not among this package's dependencies (docs/clients.md).
        from proxy.egress.asks_client import AsksClient

        return AsksClient(network)
    return Httpx2Client(network, max_idle=MAX_IDLE, idle_seconds=IDLE_SECONDS)
