"""Clients that ask, mostly for what everybody asks for; a moderator who blocks and lifts."""

from __future__ import annotations

import hashlib
import itertools
import random
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import trio

from bench.client import Connection
from bench.cluster.faults import CUT_OFF, decide
from bench.cluster.ledger import State
from bench.soak.answers import NO_ANSWER, Given, Target, Truth

CLIENTS = 6
PAUSE = 0.02
"""Seconds between two requests of a client, on average."""

STRANGERS = 2
"""Clients that ask for what fakes have, and for nothing else: they wait for long."""

KNOWN_SHARE = 0.15
"""Of the requests for what was seen before: those that send its ETag."""

BEHIND_SHARE = 0.25
"""Requests to the proxy itself, past nginx."""

BLOCKED_SHARE = 0.05
"""Requests for one of the pictures that a moderator decides on."""

DECIDE_EVERY = 1.5
REQUEST_SECONDS = 60.0

ZIPF = 1.0
"""The exponent: the second is asked for half as often as the first, the third a third as often."""


def popularity(count: int) -> list[float]:
    """Running sums of how often each of so many is asked for, the most popular first."""
    return [*itertools.accumulate(1 / rank**ZIPF for rank in range(1, count + 1))]


@dataclass(slots=True)
class Counted:
    """What the clients saw.

    Attributes:
        answers: by the second of the day and what came: a status, for a 200 with its X-Cache.
        wrong: what must not be: path, status, and in words.
        compared: bodies, byte for byte.
        decided, undecided: calls of the moderator that answered, and that failed.
    """

    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)
    compared: int = 0
    decided: int = 0
    undecided: int = 0

    def totals(self) -> Counter[str]:
        """Answers by what came."""
        found: Counter[str] = Counter()
        for (_, what), count in self.answers.items():
            found[what] += count
        return found


class Load:
    """The traffic on a server.

    Args:
        real: what the real PDS has, the most popular first.
        fakes: what fakes fail to give.
        decided: numbers of the pictures that the moderator decides on.
        ports: of nginx, and of the proxy itself.
    """

    def __init__(
        self,
        truth: Truth,
        real: Sequence[Target],
        fakes: Sequence[Target],
        decided: Sequence[int],
        ports: tuple[int, int],
        seed: int,
    ) -> None:
        self.counted = Counted()
        self._truth = truth
        self._real, self._fakes = real, fakes
        self._decided = decided
        self._of_decided = [target for target in real if target.number in set(decided)]
        self._front, self._behind = ports
        self._sums = popularity(len(real))
        self._seed = seed
        self.began = trio.current_time()
        self._tags: dict[str, str] = {}
        self._calls = 0

    async def run(self, over: trio.Event) -> None:
        """Ask and decide until it is over; every request has ended then."""
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS + STRANGERS):
                own = random.Random(f"{self._seed} {number}")
                some = self._some if number < CLIENTS else self._some_fake
                nursery.start_soon(self._ask, own, some, over)
            nursery.start_soon(self._moderate, random.Random(self._seed), over)

    async def ask(self, target: Target, port: int) -> Given:
        """One request, judged."""
        return await self._request(target, port, "")

    async def _ask(
        self, own: random.Random, some: Callable[[random.Random], Target], over: trio.Event
    ) -> None:
        while not over.is_set():
            await trio.sleep(own.uniform(0.5, 1.5) * PAUSE)
            port = self._behind if own.random() < BEHIND_SHARE else self._front
            target = some(own)
            known = self._tags.get(target.path, "") if own.random() < KNOWN_SHARE else ""
            await self._request(target, port, known)

    def _some(self, own: random.Random) -> Target:
        if own.random() < BLOCKED_SHARE:
            return own.choice(self._of_decided)
        return self._real[bisect(self._sums, own.random() * self._sums[-1])]

    def _some_fake(self, own: random.Random) -> Target:
        return own.choice(self._fakes)

    async def _request(self, target: Target, port: int, known: str) -> Given:
        headers = [("If-None-Match", known)] if known else []
        began = trio.current_time()
        status, digest, what = NO_ANSWER, b"", "no answer"
        connection = Connection(port)
        try:
            with trio.fail_after(REQUEST_SECONDS):
                answer = await connection.send("GET", target.path, b"", headers)
            status, what = answer.status, str(answer.status)
            if status == 200:
                digest = hashlib.sha256(answer.body).digest()
                what = f"200 {answer.headers.get('x-cache', '')}"
                self._tags[target.path] = answer.headers.get("etag", "")
                self.counted.compared += 1
        except CUT_OFF:
            pass
        finally:
            connection.close()
        now = trio.current_time()
        given = Given(target, began, now, status, digest, known, port == self._front)
        self.counted.answers[int(now - self.began), what] += 1
        if fault := self._truth.fault(given):
            where = "nginx" if given.by_front else "the proxy"
            at = began - self.began
            text = f"{at:.1f} s: {what} of {target.path} from {where}: {fault}"
            self.counted.wrong.append((unquote(unquote(target.path)), status, text))
        return given

    async def _moderate(self, own: random.Random, over: trio.Event) -> None:
        while not over.is_set():
            await trio.sleep(own.uniform(0.5, 1.5) * DECIDE_EVERY)
            await self._decide(own.choice(self._decided))

    async def settle(self) -> None:
        """Lift what is blocked, and decide again where a call failed."""
        for number in self._decided:
            while self._truth.ledger.entries[number].state is not State.OPEN:
                await self._decide(number)

    async def _decide(self, number: int) -> None:
        ledger = self._truth.ledger
        blocks = ledger.begin(number)
        self._calls += 1
        reason, done = f"call {self._calls}", False
        selected = ledger.entries[number].selected
        try:
            answer = await decide(self._behind, selected, reason, blocks=blocks)
            done = answer.status == 200
        except CUT_OFF:
            pass
        now = trio.current_time()
        ledger.end(number, blocks=blocks, reason=reason, done=done, now=now)
        if not done:
            self.counted.undecided += 1
            return
        self.counted.decided += 1
        if not blocks:
            self._truth.lifted[number] = now
