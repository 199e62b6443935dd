"""Decides what may be served: the only place that asks the blocks and the policy service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.errors import BlobBlocked, TakenDown
from proxy.model.keys import BlobKey
from proxy.moderation.policy import Policy, Verdict


class Blocked(Protocol):
    """Tells what the operator blocked, from memory: ``moderation.blocks`` does."""

    def check(self, blob: BlobKey) -> None:
        """Raise ``BlobBlocked`` for what is blocked."""
        ...

    def is_blocked(self, blob: BlobKey) -> bool:
        """Whether ``blob`` is blocked."""
        ...


class Gate:
    """Blocks first; what they leave, the policy service decides, where there is one.

    Args:
        on_refused: called for each request that is refused as blocked or taken down.
    """

    def __init__(
        self, blocks: Blocked, policy: Policy | None, on_refused: Callable[[], None] = lambda: None
    ) -> None:
        self._blocks = blocks
        self._policy = policy
        self._on_refused = on_refused

    def check(self, blob: BlobKey) -> bool:
        """Raise for what is known to be refused. Microseconds; asks memory.

        Returns:
            Whether it may be served; False: nobody knows, ``permit`` asks.

        Raises:
            BlobBlocked, TakenDown: it may not.
        """
        try:
            self._blocks.check(blob)
            if self._policy is None:
                return True
            verdict = self._policy.known(blob)
            if verdict is Verdict.TAKEN_DOWN:
                raise TakenDown(f"{blob.did} {blob.cid} is taken down by the policy service")
        except (BlobBlocked, TakenDown):
            self._on_refused()
            raise
        return verdict is not None

    async def permit(self, blob: BlobKey) -> None:
        """Return once ``blob`` may be served, at once where that is known.

        Raises:
            BlobBlocked, TakenDown: it may not.
            PolicyUnavailable: the policy service does not say, and must.
        """
        if self.check(blob) or self._policy is None:
            return
        try:
            await self._policy.permit(blob)
        except TakenDown:
            self._on_refused()
            raise
        # It may have been blocked while the service was asked.
        self.check(blob)

    def refuses(self, blob: BlobKey) -> bool:
        """Whether ``blob`` is known to be refused: such a result is not kept either."""
        return self._blocks.is_blocked(blob) or (
            self._policy is not None and self._policy.known(blob) is Verdict.TAKEN_DOWN
        )
