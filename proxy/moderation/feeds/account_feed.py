"""Follows changes of accounts, from a Jetstream or a relay."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import structlog
import trio

from proxy.egress.endpoint import Origin
from proxy.egress.network import Network
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.account_events import AccountEvent, Kind, of_jetstream, of_relay
from proxy.moderation.feeds.event_frames import decode_frame, frame_header, is_gap
from proxy.moderation.feeds.websocket import Server
from proxy.moderation.interface import Decisions
from proxy.observability.metrics import Metrics

# No record has this collection. Events about accounts come in addition to those of the wanted
# collections; without any, every record of the network would come too.
JETSTREAM = "/subscribe?wantedCollections=org.example.nothing"
RELAY = "/xrpc/com.atproto.sync.subscribeRepos"

MAX_MESSAGE = 5 * 1024 * 1024
"""Bytes; a commit may bring 2 MB of blocks (com.atproto.sync.subscribeRepos), older ones more."""

# Of a thousand messages a second all but a few are commits. They are told by their first bytes,
# and not decoded; one with more in its header is decoded, and passed over then.
_COMMIT = frame_header("#commit")

AGAIN_SECONDS = 300.0
"""When it is looked again whether anything is cached of an owner of whom nothing was. What any
process was fetching, making or writing at the event is on the disk by then."""

MAX_AGAIN = 10_000
"""Owners at whom is looked again; some thousands leave the network in an hour."""

log = structlog.get_logger(__name__)


class AccountFeed:
    """The stream of account events; see ``Feed``.

    Args:
        kind: what stands at ``origin``: ``jetstream`` or ``relay``.
        is_cached: whether there are cached results of an owner.
        purge_elsewhere: purges what others may have of an owner of whom nothing is cached here.
        forget: have every process ask for the DID document of an owner anew.
    """

    name = "accounts"
    first_cursor = None  # Of who left before, revalidation finds what is cached.
    max_message = MAX_MESSAGE

    def __init__(
        self,
        kind: Kind,
        origin: Origin,
        *,
        network: Network,
        decisions: Decisions,
        is_cached: Callable[[Did], Awaitable[bool]],
        purge_elsewhere: Callable[[Did], Awaitable[None]],
        forget: Callable[[Did], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self.stream = f"accounts {kind} {origin}"
        self._is_relay = kind == "relay"
        self._server = Server(network, origin)
        self._decisions = decisions
        self._is_cached = is_cached
        self._purge_elsewhere = purge_elsewhere
        self._forget = forget
        self._metrics = metrics
        self._by = f"accounts:{origin.authority}"
        # When, whom, and why they were purged elsewhere.
        self._again: deque[tuple[float, Did, str]] = deque(maxlen=MAX_AGAIN)

    async def locate(self) -> Server:
        """See ``Feed.locate``."""
        await trio.lowlevel.checkpoint()
        return self._server

    def target(self, cursor: int | None) -> str:
        """See ``Feed.target``."""
        if self._is_relay:
            return RELAY if cursor is None else f"{RELAY}?cursor={cursor}"
        return JETSTREAM if cursor is None else f"{JETSTREAM}&cursor={cursor}"

    async def take(self, message: str | bytes) -> int | None:
        """See ``Feed.take``."""
        await self._look_again()
        event = self._of_relay(message) if self._is_relay else of_jetstream(message)
        if not isinstance(event, AccountEvent):
            return event
        if event.did is not None:
            await self._carry_out(event.did, event.inactive)
        return event.cursor

    async def _carry_out(self, did: Did, inactive: str | None) -> None:
        await self._forget(did)
        if inactive is None:
            return
        reason = f"account is {inactive or 'not active'}"
        if await self._is_cached(did):
            await self._purge(did, reason)
        else:
            await self._purge_elsewhere(did)
            self._again.append((trio.current_time() + AGAIN_SECONDS, did, reason))

    async def _look_again(self) -> None:
        while self._again and self._again[0][0] <= trio.current_time():
            _at, did, reason = self._again[0]
            if await self._is_cached(did):
                await self._purge(did, reason)
            self._again.popleft()

    async def _purge(self, did: Did, reason: str) -> None:
        removed = await self._decisions.purge(Selection(did=did), by=self._by, reason=reason)
        self._metrics.feed_events.labels(self.name, "purged").inc()
        log.info("purged an owner", did=did, reason=reason, removed=removed)

    def _of_relay(self, message: str | bytes) -> AccountEvent | int | None:
        if isinstance(message, bytes) and message.startswith(_COMMIT):
            return None
        frame = decode_frame(message)
        if frame is None:
            return None
        if is_gap(frame):
            self._metrics.feed_events.labels(self.name, "gap").inc()
            log.error("relay does not go back as far as it was followed", stream=self.stream)
        return None if frame.type == "#info" else of_relay(frame)
