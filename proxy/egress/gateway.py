"""The gateway: the rest of the service calls it to send requests to the outside."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import trio
from pydantic import SecretStr

from proxy.egress.circuit import Circuits, pause_asked
from proxy.egress.conduct import Conduct
from proxy.egress.egress_proxy import EgressProxy, NamesThroughProxy
from proxy.egress.endpoint import Origin
from proxy.egress.errors import ConnectFailed, NoAnswer, TimedOut
from proxy.egress.fetch_channel import LANES, ChannelStatistics, FetchChannel, FetchChannels, Lane
from proxy.egress.guard import GuardedNetwork, OnAddress
from proxy.egress.guarded_get import NO_HEADERS, RequestRules, Response, Sink, guarded_get
from proxy.egress.http_client import MAX_IDLE, HttpClient, Method
from proxy.egress.httpx2_client import Httpx2Client
from proxy.egress.known_hosts import KnownHosts
from proxy.egress.network import Network
from proxy.egress.own_hosts import PrivateHosts

IDLE_SECONDS = 30.0

VIDEOS_AT_ONCE = 4
"""Videos that are fetched at once: each has a file of up to ``video.max_source_mb``."""


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
    def allow_private_hosts(self) -> PrivateHosts: ...
    @property
    def proxy(self) -> SecretStr: ...
    @property
    def proxy_resolves(self) -> bool: ...


class Gateway:
    """Bounded, guarded GETs and HEADs.

    Args:
        fetch: the settings.
        network: connects to strangers' hosts.
        directory_network: connects to the operator's own directory.
        channels: their consumers send the requests.
    """

    def __init__(
        self,
        fetch: FetchSettings,
        network: Network,
        directory_network: Network,
        channels: FetchChannels,
    ) -> None:
        self._fetch = fetch
        self._strangers = make_client(fetch.client, network)
        self._directory = make_client(fetch.client, directory_network)
        self._clients = (self._strangers, self._directory)
        self._circuits = Circuits()
        self._channels = channels

    def statistics(self) -> ChannelStatistics:
        """A snapshot of all channels together."""
        return self._channels.statistics()

    def known_hosts(self) -> KnownHosts:
        """What is known of hosts that take long, and which are left alone."""
        now = trio.current_time()
        return KnownHosts(self._channels.conduct.slowest(now), self._circuits.open(now))

    async def run(self) -> None:
        """Run the channels and ``keep_connections`` until cancelled: for a gateway by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._channels.run)
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
        lane: Lane = "blobs",
        headers: Mapping[str, str] = NO_HEADERS,
        sink: Sink | None = None,
        timeout: float | None = None,
    ) -> Response:
        """GET ``target`` from ``origin`` within ``fetch.timeout``, with the time spent waiting.

        Cancellation closes the connection, and frees the consumer or the place in the queue.

        Args:
            max_bytes: the limit for the body.
            lane: where the fetch waits. With ``operator`` the origin is trusted, and may have a
                private address; redirects from it are not trusted.
            headers: further request headers, only for this origin.
            sink: see ``RequestRules``.
            timeout: seconds, instead of ``fetch.timeout``.

        Raises:
            EgressError: see ``proxy.egress.errors``.
        """
        return await self._ask("GET", origin, target, max_bytes, lane, headers, sink, timeout)

    async def head(self, origin: Origin, target: str, *, method: Method = "HEAD") -> Response:
        """Ask only for the head of an answer; otherwise like ``get``.

        Args:
            method: ``GET`` for servers that refuse a HEAD. The body of a 200 is not read; of other
                answers the first bytes are.
        """
        return await self._ask(method, origin, target, None, "blobs")

    async def _ask(
        self,
        method: Method,
        origin: Origin,
        target: str,
        max_bytes: int | None,
        lane: Lane,
        headers: Mapping[str, str] = NO_HEADERS,
        sink: Sink | None = None,
        timeout: float | None = None,
    ) -> Response:
        rules = RequestRules(
            max_bytes=max_bytes,
            max_redirects=self._fetch.max_redirects,
            allow_http=self._fetch.allow_http,
            allow_private_hosts=self._fetch.allow_private_hosts,
            headers=headers,
            sink=sink,
        )
        first = self._directory if lane == "operator" else self._strangers
        left = trio.Event()
        work = partial(
            guarded_get,
            first,
            self._strangers,
            origin,
            target,
            rules,
            method=method,
            on_departure=left.set,
        )
        # A stranger's document can name the directory's host as its PDS. What comes of that is
        # not to hold up the operator's own questions.
        # Nor is a video that took too long to keep the pictures of its host from coming.
        is_apart = lane in ("operator", "videos")
        host = f"{lane} {origin.authority}" if is_apart else origin.authority
        is_probe = self._circuits.check(host, trio.current_time())
        try:
            answer = await self._channels.of(lane).submit(
                origin, work, timeout=timeout or self._fetch.timeout
            )
        except (ConnectFailed, NoAnswer, TimedOut) as error:
            if left.is_set():
                self._circuits.succeeded(host, trio.current_time())
            else:
                self._circuits.failed(host, error, trio.current_time())
            raise
        except BaseException:
            if is_probe:
                self._circuits.gave_up(host, trio.current_time())
            raise
        self._circuits.succeeded(host, trio.current_time())
        if answer.is_of_another_host:
            return answer
        if pause := pause_asked(answer.status, answer.headers, time.time()):
            self._circuits.hold(host, pause, trio.current_time())
        return answer


def fetch_channels_of(fetch: FetchSettings, lanes: Sequence[Lane] = LANES) -> FetchChannels:
    """The channels of the configuration. The caller runs them."""
    conduct = Conduct()
    channels = {
        lane: FetchChannel(
            queue_size=fetch.queue_size,
            consumers=consumers_of(fetch, lane),
            per_host=fetch.per_host,
            conduct={"operator": None, "videos": Conduct()}.get(lane, conduct),
        )
        for lane in lanes
    }
    return FetchChannels(channels, conduct)


def consumers_of(fetch: FetchSettings, lane: Lane) -> int:
    """How many fetches of ``lane`` run at once. The operator's server is a single host."""
    if lane == "videos":
        return min(VIDEOS_AT_ONCE, fetch.workers)
    return min(fetch.per_host, fetch.workers) if lane == "operator" else fetch.workers


def fetches_at_once(fetch: FetchSettings) -> int:
    """How many fetches run at once, over all lanes: each has a socket."""
    return sum(consumers_of(fetch, lane) for lane in LANES)


def standalone_gateway(
    fetch: FetchSettings,
    network: Network,
    directory_network: Network,
    lanes: Sequence[Lane] = LANES,
) -> Gateway:
    """A gateway with channels of its own. Its ``run`` runs all of it."""
    return Gateway(fetch, network, directory_network, fetch_channels_of(fetch, lanes))


def guarded_networks(
    fetch: FetchSettings, on_address: OnAddress = lambda host, address: None
) -> tuple[Network, Network]:
    """The networks for strangers' hosts and for the operator's directory.

    ``on_address`` is told of strangers' hosts alone, as by ``GuardedNetwork``.
    """
    allowed = fetch.allow_private_hosts
    if not (url := fetch.proxy.get_secret_value()):
        strangers = GuardedNetwork(allow_private_hosts=allowed, on_address=on_address)
        return strangers, GuardedNetwork(allow_private_hosts=True)
    proxy = EgressProxy(url)
    strangers = GuardedNetwork(
        allow_private_hosts=allowed, on_address=on_address, dial=proxy.dial_public
    )
    trusted = GuardedNetwork(allow_private_hosts=True, dial=proxy.dial_public)
    if not fetch.proxy_resolves:
        return strangers, trusted
    own = allowed if isinstance(allowed, tuple) else ()
    return NamesThroughProxy(strangers, proxy, own), NamesThroughProxy(trusted, proxy, own)


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
