"""The policy service: an external service that is asked about each blob before it is served.

``policy_protocols`` has the question and its answers. What is no answer leaves the blob unserved,
unless ``policy.fail_open`` is on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

import structlog
import trio

from proxy.config import Config
from proxy.egress.endpoint import configured_origin
from proxy.egress.errors import EgressError
from proxy.egress.gateway import standalone_gateway
from proxy.egress.network import Network
from proxy.errors import PolicyUnavailable, TakenDown
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey
from proxy.model.selection import Covering
from proxy.moderation.policy_protocols import PROTOCOLS, Verdict
from proxy.observability.repeats import Repeats
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import cost_of
from proxy.shared.single_flight import Flight, SingleFlight

MAX_ANSWER = 64 * 1024
"""Maximum bytes of an answer."""

VERDICT = 1024
"""Bytes that a verdict takes, with its blob and the tags of it; the longest (a did:web) takes twice
as many."""

log = structlog.get_logger(__name__)


class Verdicts:
    """What was answered lately. Pure; time is an argument.

    Args:
        ttl: seconds that an answer counts.
        max_entries: answers remembered, the latest, of ``VERDICT`` bytes each. Fewer if many blobs
            have longer names.
    """

    def __init__(self, *, ttl: float, max_entries: int) -> None:
        self._ttl = ttl
        self._answers: ExpiringMap[BlobKey, Verdict] = ExpiringMap(
            max_entries * VERDICT, cost=_cost, tags=_tags
        )

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, blob: BlobKey, now: float) -> Verdict | None:
        """The remembered answer about ``blob``, or None."""
        return self._answers.get(blob, now)

    def put(self, blob: BlobKey, verdict: Verdict, now: float) -> None:
        """Remember an answer."""
        self._answers.put(blob, verdict, now + self._ttl)

    def forget_permissions(self, covering: Covering, now: float) -> None:
        """Forget that what is covered is permitted; what is taken down stays so for its time.

        If ``covering`` is everything, forget all.
        """
        if covering.tags is None:
            self._answers.remove_tagged(None)
            return
        for blob in self._answers.find(covering.tags):
            if self._answers.get(blob, now) is Verdict.PERMITTED:
                self._answers.remove(blob)


def _tags(blob: BlobKey) -> tuple[Did, Cid]:
    return blob.did, blob.cid


def _cost(blob: BlobKey, verdict: Verdict) -> int:
    return max(cost_of(blob, verdict), VERDICT)


class Policy:
    """Asks the policy service, once at a time for each blob, and remembers its answers.

    Args:
        config: its ``policy`` section has the URL.
        strangers, trusted: networks; the service itself is on the second, what it redirects to
            on the first.
        on_answer: called with each verdict, or with ``"failure"`` if there is no answer.
    """

    def __init__(
        self,
        config: Config,
        strangers: Network,
        trusted: Network,
        *,
        on_answer: Callable[[str], None] = lambda answer: None,
    ) -> None:
        self._settings = settings = config.policy
        self._origin, self._path = configured_origin(settings.url)
        self._protocol = PROTOCOLS[settings.protocol]
        # A way out of its own: questions wait for no blob, and one host may have every worker.
        fetch = config.fetch.model_copy(
            update={"timeout": settings.timeout, "per_host": config.fetch.workers}
        )
        self._gateway = standalone_gateway(fetch, strangers, trusted, ["operator"])
        self._purge_cached: Callable[[BlobKey], Awaitable[object]] | None = None
        self._on_answer = on_answer
        self._verdicts = Verdicts(ttl=settings.ttl, max_entries=settings.max_entries)
        self._flights: SingleFlight[BlobKey, Verdict | None] | None = None
        self._failures = Repeats()

    async def run(
        self,
        purge_cached: Callable[[BlobKey], Awaitable[object]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make ``permit`` work until cancelled; before and after, it raises ``PolicyUnavailable``.

        Args:
            purge_cached: called with each blob that an answer takes down, after the verdict is in
                force, so that nothing new is cached. ``permit`` waits for it. It may raise
                ``sqlite3.Error`` or ``OSError``.
        """
        self._purge_cached = purge_cached
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gateway.run, name="policy_gateway")
            self._flights = SingleFlight(nursery, _tags)
            task_status.started()
            await trio.sleep_forever()

    def known(self, blob: BlobKey) -> Verdict | None:
        """The remembered verdict; None: the service must be asked. Takes microseconds."""
        return self._verdicts.get(blob.content, trio.current_time())

    def forget(self, covering: Covering) -> None:
        """Ask again about what was permitted: somebody purged it, or changed a block of it.

        An answer that is on its way is older: who asks from now on does not share it.
        """
        if self._flights is not None:
            self._flights.part(covering.tags)
        self._verdicts.forget_permissions(covering, trio.current_time())

    async def permit(self, blob: BlobKey) -> None:
        """Return if ``blob`` is permitted, or if there is no answer and ``policy.fail_open`` is on.

        Cancellation ends the question, unless other callers wait for the same answer. What an
        answer takes down is purged all the same.

        Raises:
            TakenDown: the service takes it down.
            PolicyUnavailable: there is no answer, and ``policy.fail_open`` is off.
        """
        verdict = self.known(blob) or await self._ask(blob)
        if verdict is Verdict.TAKEN_DOWN:
            raise TakenDown(f"{blob.did} {blob.cid} is taken down by the policy service")
        if verdict is None and not self._settings.fail_open:
            raise PolicyUnavailable(f"{blob.did} {blob.cid}: no answer of the policy service")

    async def _ask(self, blob: BlobKey) -> Verdict | None:
        flights = self._flights
        if flights is None:
            return None

        async def ask(flight: Flight[Verdict | None]) -> Verdict | None:
            return await self._answer(blob.content, flight, flights)

        async with flights.join(blob.content, ask) as landed:
            return landed.value

    async def _answer(
        self,
        blob: BlobKey,
        flight: Flight[Verdict | None],
        flights: SingleFlight[BlobKey, Verdict | None],
    ) -> Verdict | None:
        target = self._path + self._protocol.target_of(blob)
        verdict = None
        try:
            answer = await self._gateway.get(
                self._origin, target, max_bytes=MAX_ANSWER, lane="operator"
            )
            verdict = self._protocol.verdict_of(answer.status, answer.body)
            problem = f"status {answer.status}, {len(answer.body)} bytes"
        except EgressError as error:
            problem = str(error)
        self._on_answer(verdict or "failure")
        if verdict is None:
            self._failures.write(
                self._origin.host,
                trio.current_time(),
                log.error,
                log.debug,
                "no answer of the policy service",
                did=blob.did,
                cid=blob.cid,
                cause=problem,
            )
            return None
        # A permission may be older than the purge that came while the service answered.
        if verdict is Verdict.TAKEN_DOWN or flights.is_joined(blob, flight):
            self._verdicts.put(blob, verdict, trio.current_time())
        if verdict is Verdict.TAKEN_DOWN:
            # Whoever asked may leave: nobody asks again while the verdict is remembered, and nginx
            # would go on serving the files.
            flight.commit()
            await self._purge(blob)
        return verdict

    async def _purge(self, blob: BlobKey) -> None:
        if self._purge_cached is None:
            return
        try:
            await self._purge_cached(blob)
        except (sqlite3.Error, OSError) as error:
            log.error("a blob that was taken down cannot be purged", cid=blob.cid, error=str(error))
