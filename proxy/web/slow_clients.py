"""Bounds what clients may leave untaken, in seconds and in bytes. No I/O."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from proxy.imaging.memory_estimate import UNTAKEN

PIECE = 64 * 1024
"""Bytes that a client must take within ``SECONDS``; where fewer are left, those."""

SECONDS = 64.0


class Transfer:
    """One answer, or a part of one, on its way to a client.

    Attributes:
        scope: what is cancelled when the client takes too little.
    """

    def __init__(self, transfers: Transfers, data: bytes, *, shield: bool) -> None:
        self._transfers = transfers
        self.data = data
        self.scope = trio.CancelScope(shield=shield)
        self._taken = 0
        self._extend()

    def took(self, count: int) -> None:
        """Note that the client has taken ``count`` bytes."""
        self._taken += count
        if self._taken >= PIECE:
            self._taken = 0
            self._extend()
            self._transfers.progressed(self)

    def _extend(self) -> None:
        self.scope.deadline = trio.current_time() + SECONDS


class Transfers:
    """All transfers of a process.

    Beyond ``limit`` the transfer that made no progress for the longest time is cancelled. An answer
    that several clients wait for counts once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        # The least recent progress first.
        self._transfers: OrderedDict[Transfer, None] = OrderedDict()
        self._holders: Counter[int] = Counter()

    @property
    def is_half_full(self) -> bool:
        """Whether no original should be fetched now: its client might leave it untaken too."""
        return self.bytes > self.limit // 2

    @contextmanager
    def begin(self, data: bytes, *, shield: bool = False) -> Iterator[Transfer]:
        """Run a block in the scope of a new transfer, which ends with the block.

        Args:
            shield: keep cancellation from outside away from the block.
        """
        transfer = Transfer(self, data, shield=shield)
        self._add(transfer)
        try:
            with transfer.scope:
                yield transfer
        finally:
            self._remove(transfer)

    def progressed(self, transfer: Transfer) -> None:
        """Put ``transfer`` last in the order in which transfers are given up."""
        if transfer in self._transfers:
            self._transfers.move_to_end(transfer)

    def _add(self, transfer: Transfer) -> None:
        self._transfers[transfer] = None
        self._holders[id(transfer.data)] += 1
        if self._holders[id(transfer.data)] == 1:
            self.bytes += len(transfer.data)
        while self.bytes > self.limit and len(self._transfers) > 1:
            slowest = next(iter(self._transfers))
            self._remove(slowest)
            slowest.scope.cancel()

    def _remove(self, transfer: Transfer) -> None:
        if transfer not in self._transfers:
            return
        del self._transfers[transfer]
        self._holders[id(transfer.data)] -= 1
        if not self._holders[id(transfer.data)]:
            del self._holders[id(transfer.data)]
            self.bytes -= len(transfer.data)


TRANSFERS = Transfers(UNTAKEN)
"""Those of this process: Hypercorn makes its connections without telling them of one another."""
