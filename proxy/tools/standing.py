"""What is known in a cache folder about an account or a picture, for whoever decides about it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import trio

from proxy.cache.disk import DiskCache
from proxy.cache.index import Totals
from proxy.config import Config
from proxy.egress.gateway import guarded_networks
from proxy.errors import PolicyUnavailable, TakenDown
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue, Pending
from proxy.moderation.configured_store import moderation_database_of, moderation_store_of
from proxy.moderation.decision_store import Block
from proxy.moderation.policy import Policy
from proxy.wiring import coordination_of

PolicyAnswer = Literal["permitted", "taken_down", "no answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets now.

    Attributes:
        status: None: it is not decided here.
        because: why, in words.
    """

    status: int | None
    because: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known about a selection.

    Attributes:
        blocks: those that cover all of it, oldest first.
        within: the number of blocks of single pictures within an account, or of a picture in
            single accounts.
        disk: its entries on the disk, by preset and fingerprint.
        pending: what the CDN has yet to forget of it.
        processes: how many processes serve from the folder.
        late: how many of them do not follow the last decision yet.
        policy: the answer of the policy service, if there is one and it was asked.
        policy_fails_open: whether the policy service's silence permits.
    """

    selection: Selection
    blocks: list[Block]
    within: int
    disk: Mapping[str, Totals]
    pending: list[Pending]
    processes: int
    late: int
    policy: PolicyAnswer | None
    policy_fails_open: bool

    @property
    def memory(self) -> Literal["none", "unknown"]:
        """Whether the memory of processes may have it. One that follows a block has dropped it."""
        is_dropped = bool(self.blocks) and not self.late
        return "none" if is_dropped or not self.processes else "unknown"

    @property
    def answer(self) -> Answer:
        """What a request gets now, as far as it is decided here."""
        if self.blocks:
            return Answer(404, f"blocked by {self.blocks[0].by}")
        if self.policy == "taken_down":
            return Answer(404, "the policy service takes it down")
        if self.policy == "no answer" and not self.policy_fails_open:
            return Answer(503, "the policy service gives no answer")
        if self.selection.did is None or self.selection.cid is None:
            return Answer(None, "not blocked: each picture gets what is decided about it")
        if self.disk:
            return Answer(200, "not blocked, and on the disk in some presets")
        return Answer(None, "not blocked: what its PDS answers")


async def standing_of(config: Config, disk: DiskCache, selection: Selection) -> Standing:
    """Find out what is known about a selection. Changes nothing.

    The policy service is asked about a picture of an account that is not blocked.

    Raises:
        sqlite3.Error, OSError: the folder cannot be read.
    """

    def read() -> tuple[list[Block], int, list[Pending], int, int]:
        replicas = coordination_of(config).replicas()
        with (
            closing(moderation_store_of(config)) as store,
            closing(CdnQueue(moderation_database_of(config))) as queue,
        ):
            try:
                return (
                    store.blocks_of(selection),
                    store.blocks_within(selection),
                    queue.of(selection) if store.is_made() else [],
                    replicas.serving(),
                    len(replicas.late(store.version())),
                )
            finally:
                replicas.leave()

    blocks, within, pending, processes, late = await trio.to_thread.run_sync(read)
    policy = None
    if config.policy.url and not blocks and selection.did and selection.cid:
        policy = await _ask_policy(config, BlobKey(selection.did, selection.cid))
    return Standing(
        selection=selection,
        blocks=blocks,
        within=within,
        disk=await disk.by_preset(selection),
        pending=pending,
        processes=processes,
        late=late,
        policy=policy,
        policy_fails_open=config.policy.fail_open,
    )


async def _ask_policy(config: Config, blob: BlobKey) -> PolicyAnswer:
    # An answer of silence is to be told, whatever follows from it.
    strict = config.policy.model_copy(update={"fail_open": False})
    asking = config.model_copy(update={"policy": strict})
    policy = Policy(asking, *guarded_networks(config.fetch))

    async def leave_cached(_blob: BlobKey) -> None:
        """A look removes nothing."""

    async with trio.open_nursery() as nursery:
        await nursery.start(policy.run, leave_cached)
        try:
            await policy.permit(blob)
            answer: PolicyAnswer = "permitted"
        except TakenDown:
            answer = "taken_down"
        except PolicyUnavailable:
            answer = "no answer"
        nursery.cancel_scope.cancel()
    return answer
