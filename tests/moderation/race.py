"""A race: requests for one blob, as many at once as there are connections, against its block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import trio

from tests.processes import Client, Reply


@dataclass
class Outcome:
    """What a race brought.

    Attributes:
        call: what the block's call answered.
        before: answers to requests sent before the block's call had answered, by status.
        after: those to requests sent later, by status.
        leaked: of the latter, those with a byte of the blob, or that confirm a copy of it.
    """

    call: int = 0
    before: Counter[int] = field(default_factory=Counter)
    after: Counter[int] = field(default_factory=Counter)
    leaked: list[Reply] = field(default_factory=list)


async def race(
    port: int,
    targets: Iterator[tuple[str, tuple[tuple[str, str], ...]]],
    block: Callable[[], Awaitable[int]],
    *,
    requests: int,
    connections: int,
) -> Outcome:
    """Send half of ``requests`` before ``block`` begins, others until it returns, and half after.

    Args:
        port: of a proxy, or of what stands before it.
        targets: targets with headers, one for each request.
        block: returns when the call has answered, with its status.
        connections: kept alive, each with one request at a time.
    """
    outcome = Outcome()
    left = requests // 2
    begin, blocked = trio.Event(), trio.Event()

    async def ask() -> None:
        nonlocal left
        async with Client(port) as client:
            while left > 0:
                is_late = blocked.is_set()
                left -= is_late
                target, headers = next(targets)
                await client.send(target, *headers)
                reply = await client.reply()
                (outcome.after if is_late else outcome.before)[reply.status] += 1
                if is_late and reply.status != 404:
                    outcome.leaked.append(reply)
                if outcome.before.total() >= requests // 2:
                    begin.set()

    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(ask)
        await begin.wait()
        outcome.call = await block()
        blocked.set()
    return outcome
