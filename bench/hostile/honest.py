"""Honest clients: hits and misses that come when they are due, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import trio

from bench.client import Connection, percentile
from bench.images import PRESET
from bench.upstream import account

ACCOUNTS = 16
"""Of the honest PDS. Each is resolved before the load begins: people look at more than one picture
of an account."""


@dataclass(slots=True)
class Answers:
    """What requests of one kind brought.

    Attributes:
        latencies: seconds from when a request was due, so that one sent late counts as slow; of a
            request that was not answered well too, or was given up.
        failed: those that were not answered well, by reason.
    """

    latencies: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def p50(self) -> float:
        """Seconds."""
        return percentile(self.latencies, 0.5)

    @property
    def p99(self) -> float:
        """Seconds."""
        return percentile(self.latencies, 0.99)

    @property
    def answered(self) -> float:
        """The share that was answered well."""
        return 1 - self.failed.total() / len(self.latencies)


@dataclass(slots=True)
class Load:
    """Hits, and misses of accounts that are resolved."""

    hits: Answers = field(default_factory=Answers)
    misses: Answers = field(default_factory=Answers)


@dataclass(frozen=True, slots=True)
class Rates:
    """How much honest clients ask.

    Attributes:
        hits, misses: a second.
        patience: seconds until a client gives a request up.
    """

    hits: float = 50.0
    misses: float = 5.0
    patience: float = 15.0


class Honest:
    """Honest clients of a server.

    Args:
        cids: of the pictures at the honest PDS; each miss takes one.
    """

    def __init__(self, port: int, cids: list[str], rates: Rates) -> None:
        self._port = port
        self._rates = rates
        paths = (self._path(number, cid) for number, cid in enumerate(cids))
        self.hot = [next(paths) for _ in range(ACCOUNTS)]
        self._cold = paths
        self._idle: list[Connection] = []

    @staticmethod
    def _path(number: int, cid: str) -> str:
        return f"/img/{PRESET}/plain/{account(number % ACCOUNTS)}/{cid}"

    async def warm(self) -> Counter[str]:
        """Make the hot pictures hits; what failed, by reason."""
        found = Answers()
        for path in self.hot:
            await self._ask(path, found, trio.current_time())
        return found.failed

    async def ask(self, seconds: float) -> Load:
        """Ask for as long, and wait for the answers."""
        load = Load()
        hits = (self.hot[number % ACCOUNTS] for number in range(int(seconds * self._rates.hits)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_when_due, hits, self._rates.hits, load.hits)
            misses = (next(self._cold) for _ in range(int(seconds * self._rates.misses)))
            nursery.start_soon(self._ask_when_due, misses, self._rates.misses, load.misses)
        return load

    def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.close()

    async def _ask_when_due(self, paths: Iterator[str], rate: float, found: Answers) -> None:
        async with trio.open_nursery() as nursery:
            due = trio.current_time()
            for path in paths:
                await trio.sleep_until(due)
                nursery.start_soon(self._ask, path, found, due)
                due += 1 / rate

    async def _ask(self, path: str, found: Answers, due: float) -> None:
        connection = self._idle.pop() if self._idle else Connection(self._port)
        failed = "given up"
        with trio.move_on_at(due + self._rates.patience):
            failed = await _failure(connection, path)
        found.latencies.append(trio.current_time() - due)
        if failed:
            found.failed[failed] += 1
        self._idle.append(connection)


async def _failure(connection: Connection, path: str) -> str:
    try:
        answer = await connection.get(path)
    except (OSError, trio.BrokenResourceError, h11.ProtocolError) as error:
        return type(error).__name__
    if answer.status != 200:
        return f"status {answer.status}"
    return "" if answer.body.startswith(b"\xff\xd8\xff") else "no JPEG"
