"""Decides which blobs may be served. No other module asks the blocks or the policy service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from proxy.errors import BlobBlocked, TakenDown
from proxy.model.keys import BlobKey
from proxy.model.selection import Covering
from proxy.moderation.policy_protocols import Verdict

if TYPE_CHECKING:
    from proxy.moderation.policy import Policy


class Blocked(Protocol):
    """The blocks in memory; ``moderation.blocks`` implements it."""

    def check(self, blob: BlobKey) -> None:
        """Raise ``BlobBlocked`` if ``blob`` is blocked."""
        ...

    def is_blocked(self, blob: BlobKey) -> bool:
        """Whether ``blob`` is blocked."""
        ...


class Gate:
    """Checks a blob against the blocks, and then against the policy service if there is one.

    Args:
        on_refused: called for each request for a blob that is blocked or taken down.
    """

    def __init__(
        self, blocks: Blocked, policy: Policy | None, on_refused: Callable[[], None] = lambda: None
    ) -> None:
        self._blocks = blocks
        self._policy = policy
        self._on_refused = on_refused

    def check(self, blob: BlobKey) -> bool:
        """Check ``blob`` by what this process knows. Reads only memory, in microseconds.

        Returns:
            True: it may be served. False: the policy service must be asked; see ``permit``.

        Raises:
            BlobBlocked, TakenDown: it may not be served.
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
        """Return when it is known that ``blob`` may be served.

        Raises:
            BlobBlocked, TakenDown: it may not be served.
            PolicyUnavailable: the policy service did not answer, and its answer is needed.
        """
        if self.check(blob) or self._policy is None:
            return
        try:
            await self._policy.permit(blob)
        except TakenDown:
            self._on_refused()
            raise
        # It may have been blocked while the service answered.
        self.check(blob)

    def forget(self, covering: Covering) -> None:
        """Have the policy service be asked again about what it permitted of ``covering``."""
        if self._policy is not None:
            self._policy.forget(covering)

    def refuses(self, blob: BlobKey) -> bool:
        """Whether ``blob`` is known to be refused. Results of such blobs are not stored either."""
        return self._blocks.is_blocked(blob) or (
            self._policy is not None and self._policy.known(blob) is Verdict.TAKEN_DOWN
        )
