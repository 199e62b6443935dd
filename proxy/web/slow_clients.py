"""Bounds what clients may leave untaken, in seconds and in bytes. No I/O."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from proxy.errors import Busy

UNTAKEN = 128 * 1024**2
"""Bytes of answers that all clients together may leave untaken."""

PIECE = 64 * 1024
"""Bytes that a client must take within ``SECONDS``; where fewer are left, those."""

SECONDS = 64.0

LARGE = 1024 * 1024
"""Bytes of an answer above which it is large: none begins while half of the room is in use."""

FAST = 16 * 1024
"""Bytes a second that a client must have taken when there is no room for the answers of others."""

YOUNG = 10.0
"""Seconds in which a transfer is not cut to make room."""


class Link:
    """One connection, whose transfers share the client's link.

    What one of them takes is progress of all: a telephone on GPRS may load a page of a hundred
    pictures over one connection of HTTP/2.
    """

    def __init__(self) -> None:
        self._transfers: set[Transfer] = set()
        self._since = 0
        self.taken = 0

    def add(self, transfer: Transfer) -> None:
        """Add a transfer that begins."""
        self._transfers.add(transfer)

    def discard(self, transfer: Transfer) -> None:
        """Remove one that has ended; do nothing if it is absent."""
        self._transfers.discard(transfer)

    def took(self, count: int) -> None:
        """Note that the client has taken ``count`` bytes."""
        self.taken += count
        self._since += count
        if self._since >= PIECE:
            self._since = 0
            for transfer in self._transfers:
                transfer.extend()


class Transfer:
    """One answer, or a part of one, on its way to a client.

    Attributes:
        scope: what is cancelled when the client takes too little.
    """

    def __init__(self, transfers: Transfers, data: bytes, link: Link, *, shield: bool) -> None:
        self._transfers = transfers
        self.data = data
        self.link = link
        self.scope = trio.CancelScope(shield=shield)
        self._taken = 0
        self._began = trio.current_time()
        self._taken_before = link.taken
        self.extend()

    def took(self, count: int) -> None:
        """Note that the client has taken ``count`` bytes."""
        self.link.took(count)
        self._taken += count
        if self._taken >= PIECE:
            self._taken = 0
            self._transfers.progressed(self)

    def extend(self) -> None:
        """Give the client ``SECONDS`` from now for the next ``PIECE``."""
        self.scope.deadline = trio.current_time() + SECONDS

    def is_slow(self, now: float) -> bool:
        """Whether its client took less than ``FAST`` so far, and not only for a moment."""
        age = now - self._began
        return age >= YOUNG and self.link.taken - self._taken_before < FAST * age


class Transfers:
    """All transfers of a process.

    An answer for which there is no room is refused before it is made (``check``). Answers that were
    permitted at the same time may exceed ``limit`` all the same: then the transfer that made no
    progress for the longest time is cancelled. An answer that several clients wait for counts once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        # The least recent progress first.
        self._transfers: OrderedDict[Transfer, None] = OrderedDict()
        self._holders: Counter[int] = Counter()
        self._made_room_at = -math.inf

    def check(self, length: int, data: bytes | None = None) -> None:
        """Return if there is room for one more answer.

        Otherwise cancel the transfers of clients that are slow, so that there is room soon.

        Args:
            length: its bytes, as far as they are known.
            data: the answer itself; it needs no room where another client waits for the same one.

        Raises:
            Busy: there is no room.
        """
        if data is not None and id(data) in self._holders:
            return
        if length > LARGE:
            has_room = self.bytes <= self.limit // 2
        else:
            has_room = self.bytes + length <= self.limit
        if has_room:
            return
        now = trio.current_time()
        if now >= self._made_room_at + 1:  # to look at all of them takes a millisecond
            self._made_room_at = now
            for transfer in self._transfers:
                if transfer.is_slow(now):
                    transfer.scope.cancel()
        raise Busy(f"clients leave {self.bytes} bytes of answers untaken")

    @contextmanager
    def begin(
        self, data: bytes, link: Link | None = None, *, shield: bool = False
    ) -> Iterator[Transfer]:
        """Run a block in the scope of a new transfer, which ends with the block.

        Args:
            link: the connection, if it may have several transfers at once.
            shield: keep cancellation from outside away from the block.
        """
        transfer = Transfer(self, data, link or Link(), shield=shield)
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
        transfer.link.add(transfer)
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
        transfer.link.discard(transfer)
        self._holders[id(transfer.data)] -= 1
        if not self._holders[id(transfer.data)]:
            del self._holders[id(transfer.data)]
            self.bytes -= len(transfer.data)


TRANSFERS = Transfers(UNTAKEN)
"""Those of this process: Hypercorn makes its connections without telling them of one another."""
