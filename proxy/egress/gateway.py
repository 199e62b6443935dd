"""The gateway: the rest of the service calls it to send requests to the outside."""

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
    """The ``fetch`` section of the configuration; ``docs/configuration.md`` has the units."""

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
        network: connects to strangers' hosts.
        directory_network: connects to the operator's own directory.
        channel: its consumers send the requests.
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
        """Run the channel and ``keep_connections`` until cancelled: for a gateway by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._channel.run)
            nursery.start_soon(self.keep_connections)

    async def keep_connections(self) -> None:
        """Close connections that are idle for too long, until cancelled; then close all."""
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
        """GET ``target`` from ``origin`` within ``fetch.timeout``, with the time spent waiting.

        Cancellation closes the connection, and frees the consumer or the place in the queue.

        Args:
            max_bytes: the limit for the body.
            trusted: the operator configured this origin; redirects from it are not trusted.
            headers: further request headers, only for this origin.

        Raises:
            EgressError: see ``proxy.egress.errors``.
        """
        return await self._ask("GET", origin, target, max_bytes, trusted, headers)

    async def head(self, origin: Origin, target: str, *, method: Method = "HEAD") -> Response:
        """Ask only for the head of an answer; otherwise like ``get``.

        Args:
            method: ``GET`` for servers that refuse a HEAD. The body of a 200 is not read; of other
                answers the first bytes are.
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
    """The channel of the configuration. The caller runs it."""
    return FetchChannel(
        queue_size=fetch.queue_size, consumers=fetch.workers, per_host=fetch.per_host
    )


def standalone_gateway(
    fetch: FetchSettings, network: Network, directory_network: Network
) -> Gateway:
    """A gateway with a channel of its own. Its ``run`` runs both."""
    return Gateway(fetch, network, directory_network, fetch_channel_of(fetch))


def guarded_networks(fetch: FetchSettings) -> tuple[Network, Network]:
    """The networks for strangers' hosts and for the operator's directory."""
    return (
        GuardedNetwork(allow_private_hosts=fetch.allow_private_hosts),
        GuardedNetwork(allow_private_hosts=True),
    )


def make_client(name: str, network: Network) -> HttpClient:
    """The HTTP client with this name (``fetch.client``), over ``network``.

    Raises:
        ImportError: asks is not installed.
    """
    if name == "asks":
        # Imported late: it is not among this package's dependencies (docs/clients.md).
        from proxy.egress.asks_client import AsksClient

        return AsksClient(network)
    return Httpx2Client(network, max_idle=MAX_IDLE, idle_seconds=IDLE_SECONDS)
