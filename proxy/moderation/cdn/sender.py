"""Sends the public URLs of the queued blobs to the CDN until it has purged them."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog
import trio

from proxy.config import Config
from proxy.coordination.leader import Leadership, as_leader
from proxy.egress.errors import EgressError
from proxy.egress.guarded_get import USER_AGENT, first_bytes
from proxy.egress.httpx2_client import Httpx2Client
from proxy.egress.network import Network
from proxy.model.keys import BlobKey
from proxy.moderation.cdn.apis import ApiResponse, CdnApi, Failure
from proxy.moderation.cdn.queue import CdnQueue, Pending
from proxy.urls import public_urls

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Seconds between looks for new blobs; other processes queue blobs too."""

GROUP = 50
"""Blobs that are sent together. A blob that failed is sent alone: it may be the cause."""

DEADLINE = 30.0
"""Seconds that one answer may take."""

MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read."""

FIRST_PAUSE, MAX_PAUSE = 1.0, 300.0
"""Seconds until a failed request is repeated: the first pause, and the longest; each is doubled."""

log = structlog.get_logger(__name__)


def pause_after(failures: int, wait: float, chance: float) -> float:
    """Seconds to wait after a number of consecutive failures. Pure.

    Args:
        wait: the least number of seconds that the CDN asks for.
        chance: a random number from 0 to 1; it spreads processes that failed at the same time.
    """
    backoff = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 30), MAX_PAUSE)
    return max(wait, backoff * (0.5 + chance / 2))


class CdnSender:
    """Queues blobs that the CDN must purge, and sends them to it.

    Args:
        config: its presets and public URLs.
        api: the API of the CDN; None: no CDN is configured, and nothing is queued.
        network: the network for requests to the CDN.
        leadership: one process at a time sends.
        on_request: called with ``"ok"`` or ``"failed"`` for each request to the CDN.

    Attributes:
        pending: the number of queued blobs at the last look; 0 while another process sends.
    """

    def __init__(
        self,
        config: Config,
        queue: CdnQueue,
        api: CdnApi | None,
        network: Network,
        leadership: Leadership,
        *,
        on_request: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._presets = config.presets
        self._base = config.server.cdn_url or config.server.base_url
        self._queue = queue
        self._api = api
        self._client = Httpx2Client(network, max_idle=1, idle_seconds=30)
        self._leadership = leadership
        self._on_request = on_request
        self._limiter = trio.CapacityLimiter(1)
        self.pending = 0

    async def invalidate(self, blobs: Sequence[BlobKey]) -> None:
        """Queue the URLs of ``blobs`` durably; they are sent soon after.

        Raises:
            sqlite3.Error, OSError: they could not be queued.
        """
        if self._api is not None and blobs:
            await self._in_thread(partial(self._queue.add, blobs))

    async def run(self) -> None:
        """Send until cancelled, while this process is the leader. Returns at once without a CDN.

        On cancellation, blobs that the CDN has not confirmed stay in the queue and are sent again.
        """
        if self._api is None:
            return
        api = self._api
        try:
            await as_leader(self._leadership, partial(self._keep_sending, api))
        finally:
            with trio.CancelScope(shield=True):
                await self._client.aclose()

    async def aclose(self) -> None:
        """Close the queue, also when cancelled. The next call opens it again."""
        with trio.CancelScope(shield=True):
            await self._in_thread(self._queue.close)

    async def _keep_sending(self, api: CdnApi) -> None:
        refusals = 0
        while True:
            try:
                group = await self._next_group()
                if not group:
                    await trio.sleep(POLL_SECONDS)
                elif await self._send(api, group):
                    refusals = 0
                else:
                    refusals += 1
                    pause = pause_after(refusals, 0, random.random())  # noqa: S311
                    await self._pause_unless_there_are_others(pause)
            except (sqlite3.Error, OSError) as error:
                log.error("the CDN's queue cannot be used", error=str(error))
                await trio.sleep(POLL_SECONDS)

    async def _next_group(self) -> list[Pending]:
        group, self.pending = await self._in_thread(
            lambda: (self._queue.first(GROUP), self._queue.count())
        )
        if group and group[0].failures:
            return group[:1]
        return [pending for pending in group if not pending.failures]

    async def _send(self, api: CdnApi, group: Sequence[Pending]) -> bool:
        """Return whether the CDN purged all URLs of the group.

        A group that the CDN refuses goes to the end of the queue. A failure that any other URL
        would have too is tried again here, without an end.
        """
        urls = [
            url for pending in group for url in public_urls(self._presets, pending.blob, self._base)
        ]
        for start in range(0, len(urls), api.batch):
            failures = 0
            while failure := await self._post(api, urls[start : start + api.batch]):
                failures += 1
                log.error("the CDN was not purged", error=failure.reason, blobs=len(group))
                await self._in_thread(partial(self._queue.failed, group, failure.reason))
                if failure.is_refusal:
                    return False
                await trio.sleep(pause_after(failures, failure.wait, random.random()))  # noqa: S311
        await self._in_thread(partial(self._queue.purged, group))
        log.info("the CDN was purged", blobs=len(group), urls=len(urls))
        return True

    async def _post(self, api: CdnApi, urls: Sequence[str]) -> Failure | None:
        failure = await self._try_to_post(api, urls)
        self._on_request("ok" if failure is None else "failed")
        return failure

    async def _try_to_post(self, api: CdnApi, urls: Sequence[str]) -> Failure | None:
        post = api.post(urls)
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json", **post.headers}
        try:
            with trio.fail_after(DEADLINE):
                async with self._client.request(
                    "POST", api.origin, post.target, headers, post.content
                ) as reply:
                    body = await first_bytes(reply.body, MAX_ANSWER)
        except trio.TooSlowError:
            return Failure(f"no answer within {DEADLINE:g} s")
        except EgressError as error:
            return Failure(str(error))
        return api.failure(ApiResponse(reply.status, reply.headers, body), time.time())

    async def _pause_unless_there_are_others(self, seconds: float) -> None:
        """Wait, but not while there are blobs that have not failed: a refusal is of one blob."""
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(POLL_SECONDS)
                first = await self._in_thread(partial(self._queue.first, 1))
                if first and not first[0].failures:
                    return

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
