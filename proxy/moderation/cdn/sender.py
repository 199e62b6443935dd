"""Sends what is queued to the CDN until it has purged its copies."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog
import trio

from proxy.coordination.interface import Leadership
from proxy.coordination.leader import as_leader
from proxy.egress.errors import EgressError
from proxy.egress.guarded_get import USER_AGENT, first_bytes
from proxy.egress.httpx2_client import Httpx2Client
from proxy.egress.network import Network
from proxy.model.selection import Selection
from proxy.moderation.cdn.interface import ApiRequest, ApiResponse, CdnApi, Failure, Post
from proxy.moderation.cdn.queue import CdnQueue, Pending

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Seconds between looks for what was queued; other processes queue too."""

GROUP = 100
"""Selections that are sent together. One that was refused is sent alone: it may be the cause."""

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
    """Queues what the CDN must purge, and sends it.

    Args:
        api: the API of the CDN; None: no CDN is configured, and nothing is queued.
        network: the network for requests to the CDN.
        leadership: one process at a time sends.
        on_request: called with ``"ok"`` or ``"failed"`` for each request to the CDN.

    Attributes:
        pending: the number of queued selections at the last look; 0 while another process sends.
    """

    def __init__(
        self,
        queue: CdnQueue,
        api: CdnApi | None,
        network: Network,
        leadership: Leadership,
        *,
        on_request: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._queue = queue
        self._api = api
        self._client = Httpx2Client(network, max_idle=1, idle_seconds=30)
        self._leadership = leadership
        self._on_request = on_request
        self._limiter = trio.CapacityLimiter(1)
        self.pending = 0

    async def invalidate(self, selections: Sequence[Selection]) -> None:
        """Queue ``selections`` durably; they are sent soon after.

        Raises:
            sqlite3.Error, OSError: they could not be queued.
        """
        if self._api is not None and selections:
            await self._in_thread(partial(self._queue.add, selections))

    async def run(self) -> None:
        """Send until cancelled, while this process is the leader. Returns at once without a CDN.

        On cancellation, what the CDN has not confirmed stays in the queue and is sent again.
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
        """Return whether the CDN purged all copies of the group.

        A group that the CDN refuses goes to the end of the queue. A failure that anything else
        would have too is tried again here, without an end.
        """
        posts = api.posts([pending.selection for pending in group])
        for post in posts:
            failures = 0
            while failure := await self._post(api, post):
                failures += 1
                log.error("the CDN was not purged", error=failure.reason, selections=len(group))
                record = partial(self._queue.failed, is_refusal=failure.is_refusal)
                await self._in_thread(partial(record, group, failure.reason))
                if failure.is_refusal:
                    return False
                await trio.sleep(pause_after(failures, failure.wait, random.random()))  # noqa: S311
        await self._in_thread(partial(self._queue.purged, group))
        log.info("the CDN was purged", selections=len(group), requests=len(posts))
        return True

    async def _post(self, api: CdnApi, post: Post) -> Failure | None:
        failure = await self._try_to_post(api, post(time.time()))
        self._on_request("ok" if failure is None else "failed")
        return failure

    async def _try_to_post(self, api: CdnApi, post: ApiRequest) -> Failure | None:
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", **post.headers}
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
        """Wait, but not while there is what has not failed: a refusal is of one selection."""
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(POLL_SECONDS)
                first = await self._in_thread(partial(self._queue.first, 1))
                if first and not first[0].failures:
                    return

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
