"""What happens in a day, one thing after the other, while clients ask."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import trio

from bench.client import get
from bench.cluster import disks
from bench.cluster.faults import CUT_OFF
from bench.cluster.ledger import Entry, Ledger
from bench.cluster.relay import Mode
from bench.pictures import Size
from bench.processes import BenchError, until
from bench.soak import watch
from bench.soak.answers import NO_ANSWER, Result, Target, Trouble, Truth
from bench.soak.fakes import open_fakes
from bench.soak.ground import (
    CHANGED,
    NO_FAKETIME,
    NO_SMALL_DISK,
    QUALITIES,
    Ground,
    Uploaded,
    all_show,
    alone,
    open_devnet,
    open_ground,
    upload,
)
from bench.soak.load import Counted, Load
from bench.soak.watch import Taken

SIZE = Size(1200, 900)
PRESETS = (CHANGED, "avatar_thumbnail", "content_preview", "feed_thumbnail")
FORMATS = ("", "@webp")
LEARNERS = 4

BUSY = (503,)
DAYS_AHEAD = 40
"""More than ``cache.ttl_days``."""

RESTS = 60.0
"""Seconds for a server without requests to give back what it takes no more."""

SHOWN = 12
"""Answers in a row after which all processes are taken to have a preset."""

RECOVERY_SECONDS = 90.0
REFILL_SECONDS = 1.0
"""Between two times that others take what room there is, also what the server made for a block."""

SAID_WITHIN = 60.0
"""Seconds until /readyz names a full disk: the server notices it when it next writes."""

DECIDED = 4
ERROR_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much.

    Attributes:
        cycles: of everything that happens.
        warm: seconds of traffic before the start is measured.
        calm: seconds between two events.
        away, full, ahead: seconds without a directory, with a full disk, with a wrong clock.
        accounts: that have the pictures in turn.
        look_every: seconds between two looks at what the server takes.
        fetch_seconds: after which a fetch is given up, as those of hosts that hang all are.
    """

    cycles: int = 2
    warm: float = 30
    calm: float = 12
    away: float = 60
    full: float = 30
    ahead: float = 30
    pictures: int = 60
    accounts: int = 20
    presets: Sequence[str] = PRESETS
    formats: Sequence[str] = FORMATS
    size: Size = SIZE
    look_every: float = 1.0
    fetch_seconds: float = 15


FULL = Plan()
QUICK = Plan(
    cycles=1,
    warm=4,
    calm=0.7,
    away=3,
    full=2.5,
    ahead=3.5,
    pictures=24,
    accounts=8,
    presets=PRESETS[:3],
    formats=FORMATS[:1],
    size=Size(400, 300),
    look_every=0.5,
    fetch_seconds=8,
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a server took at a moment of the day, and what its cache had."""

    at: float
    taken: Taken
    entries: float
    size: float


@dataclass(slots=True)
class Found:
    """What the day brought.

    Attributes:
        start, end: what the server took without requests, before the first event and after the
            last.
        marks: the second at which each event began, and its name.
        events: how often each happened, in their order, or why it could not.
        recovered: seconds from the return of the directory until new accounts were found again.
        wrong: everything that must not be.
        errors: the events of the log that are errors: their number, and the first of them.
        lines: of the log.
    """

    counted: Counted = field(default_factory=Counted)
    looks: list[Look] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    events: dict[str, int | str] = field(default_factory=dict)
    recovered: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    start: Taken | None = None
    end: Taken | None = None
    began: float = 0.0
    seconds: float = 0.0
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    lines: int = 0


class Day:
    """Events on a server under load."""

    def __init__(
        self,
        plan: Plan,
        ground: Ground,
        truth: Truth,
        load: Load,
        fresh: list[Target],
        seed: int,
        note: Callable[[str], None],
    ) -> None:
        self.found = Found(counted=load.counted, troubles=truth.troubles, began=load.began)
        self._plan, self._ground, self._truth, self._load = plan, ground, truth, load
        self._fresh = fresh
        self._random = random.Random(seed)
        self._note = note
        self._shown = next(iter(truth.right[0]))

    async def run(self) -> None:
        """All of it; the server is at rest at the end, and nothing is blocked or broken."""
        await self._for_a_while(self._plan.warm)
        self.found.start = await self._rest(None)
        files = self._ground.files()
        began = trio.current_time()
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            async with trio.open_nursery() as traffic:
                traffic.start_soon(self._load.run, over)
                async with trio.open_nursery() as recoveries:
                    for _ in range(self._plan.cycles):
                        for name, happens in EVENTS.items():
                            await trio.sleep(self._plan.calm)
                            await self._event(name, happens, recoveries)
                await trio.sleep(self._plan.calm)
                over.set()
            nursery.cancel_scope.cancel()
        self.found.seconds = trio.current_time() - began
        with trio.fail_after(RESTS):
            await self._load.settle()
        self.found.end = await self._rest(self.found.start)
        self.found.wrong += watch.beyond(self.found.start, self.found.end)
        more = self._ground.files() - files
        more.pop("backups", None)  # one of each day that the clock showed
        self.found.wrong += (f"left in the cache folder: {more[each]} of {each}" for each in more)

    async def _for_a_while(self, seconds: float) -> None:
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load.run, over)
            await trio.sleep(seconds)
            over.set()

    async def _rest(self, start: Taken | None) -> Taken:
        """What the server takes without requests, when it is no more than at the start; or now."""
        least = await self._ground.rest()
        with trio.move_on_after(RESTS if start else self._plan.calm):
            while start is None or [*watch.beyond(start, least)]:
                await trio.sleep(1)
                least = await self._ground.rest()
        return least

    async def _look(self) -> None:
        while True:
            now = trio.current_time()
            taken = await trio.to_thread.run_sync(watch.taken, self._ground.pid)
            try:
                entries, size = await self._ground.entries()
            except CUT_OFF:  # of the worker that is killed
                entries = size = math.nan
            self.found.looks.append(Look(now - self.found.began, taken, entries, size))
            await trio.sleep_until(now + self._plan.look_every)

    async def _event(self, name: str, happens: Event, recoveries: trio.Nursery) -> None:
        self._note(name)
        self.found.marks.append((trio.current_time() - self.found.began, name))
        reason = await happens(self, recoveries)
        before = self.found.events.get(name, 0)
        self.found.events[name] = reason or (before if isinstance(before, int) else 0) + 1

    def _breaks(self, name: str, *statuses: int, of_fakes: bool = True) -> Trouble:
        return self._truth.breaks(name, statuses, trio.current_time(), of_fakes=of_fakes)

    # Each returns why it could not happen, or nothing.

    async def move_log(self, recoveries: trio.Nursery) -> str:
        """As a supervisor does that writes the server's lines into files."""
        await self._ground.log.move()
        return ""

    async def truncate_log(self, recoveries: trio.Nursery) -> str:
        """As logrotate does with copytruncate."""
        await self._ground.log.copy_and_truncate()
        return ""

    async def change_preset(self, recoveries: trio.Nursery) -> str:
        """By SIGHUP; then nginx's block is made anew. No request may fail for it."""
        version = (self._ground.version + 1) % len(QUALITIES)
        etag = self._truth.right[version][self._shown].etag
        self._truth.begin_change(version, trio.current_time())
        self._ground.change_preset(version)
        await all_show(self._ground.server.port, self._shown, etag, SHOWN)
        await self._ground.print_block()
        await all_show(self._ground.front.port, self._shown, etag, SHOWN)
        self._truth.end_change(trio.current_time())
        return ""

    async def kill_worker(self, recoveries: trio.Nursery) -> str:
        """One of two; its requests have no answer, or nginx's 503."""
        trouble = self._breaks("a worker killed", NO_ANSWER, *BUSY)
        pid = self._random.choice(self._ground.workers())
        os.kill(pid, signal.SIGKILL)
        await until(partial(self._ground.has_workers, pid), "another worker")
        trouble.until = trio.current_time()
        return ""

    async def cut_directory(self, recoveries: trio.Nursery) -> str:
        """Accounts that are not remembered are not found."""
        trouble = self._breaks("no directory", 502, of_fakes=False)
        self._ground.directory.set(Mode.CUT)
        new = [self._fresh.pop(), self._fresh.pop()]
        with trio.move_on_after(self._plan.away):
            while True:
                for target in new:
                    given = await self._load.ask(target, self._ground.front.port)
                    if given.status == 200:
                        self.found.wrong.append("the directory was asked while it was away")
                await trio.sleep(1)
        self._ground.directory.set(Mode.WHOLE)
        recoveries.start_soon(self._recover, trouble, new)
        return ""

    async def _recover(self, trouble: Trouble, new: Sequence[Target]) -> None:
        began = first = trio.current_time()
        seen = 0
        with trio.move_on_after(RECOVERY_SECONDS):
            while seen < SHOWN:
                asked = trio.current_time()
                found = [await self._load.ask(each, self._ground.server.port) for each in new]
                if not all(given.status == 200 for given in found):
                    seen = 0
                    await trio.sleep(0.2)
                    continue
                first = first if seen else asked
                seen += 1
        if seen < SHOWN:
            self.found.wrong.append(f"no accounts {RECOVERY_SECONDS:.0f} s after the directory")
        trouble.until = trio.current_time()
        self.found.recovered.append(first - began)

    async def fill_disk(self, recoveries: trio.Nursery) -> str:
        """Pictures are served on; what the server makes room with for a block is filled again."""
        if not self._ground.has_small_disk:
            return NO_SMALL_DISK
        trouble = self._breaks("a full disk")
        began, was_said = trio.current_time(), False
        while trio.current_time() < began + (self._plan.full if was_said else SAID_WITHIN):
            await trio.to_thread.run_sync(disks.fill, self._ground.cache)
            answer = await get(self._ground.server.port, "/readyz")
            if answer.status != 200:
                self.found.wrong.append(f"/readyz says {answer.status} on a full disk")
            was_said = was_said or b"degraded" in answer.body
            await trio.sleep(REFILL_SECONDS)
        await trio.to_thread.run_sync(disks.empty, self._ground.cache)
        trouble.until = trio.current_time()
        if not was_said:
            self.found.wrong.append("/readyz says nothing of a full disk")
        return ""

    async def move_clock(self, recoveries: trio.Nursery) -> str:
        """Ahead by more than a result may be old, and back."""
        if self._ground.clock is None:
            return NO_FAKETIME
        trouble = self._breaks("a wrong clock")
        self._ground.set_clock(DAYS_AHEAD)
        await trio.sleep(self._plan.ahead)
        self._ground.set_clock(0)
        trouble.until = trio.current_time()
        return ""


Event = Callable[[Day, trio.Nursery], Awaitable[str]]

EVENTS: dict[str, Event] = {
    "the log moved": Day.move_log,
    "a preset changed": Day.change_preset,
    "no directory": Day.cut_directory,
    "a worker killed": Day.kill_worker,
    "a full disk": Day.fill_disk,
    "the log truncated": Day.truncate_log,
    "a wrong clock": Day.move_clock,
}


async def learn(
    folder: Path, directory: int, targets: Sequence[Target], version: int, fetch_seconds: float
) -> dict[str, Result]:
    """What one process, without anything before it and in peace, gives for each path."""
    found: dict[str, Result] = {}
    waiting = iter(targets)
    async with alone(folder, directory, version, fetch_seconds) as server:

        async def ask() -> None:
            for target in waiting:
                answer = await get(server.port, target.path)
                if answer.status != 200:
                    raise BenchError(f"{target.path}: {answer.status}")
                digest = hashlib.sha256(answer.body).digest()
                found[target.path] = Result(digest, answer.headers["etag"], len(answer.body))

        async with trio.open_nursery() as nursery:
            for _ in range(LEARNERS):
                nursery.start_soon(ask)
    if len({result.digest for result in found.values()}) != len(found):
        raise BenchError("two results are the same: a mix-up would not be seen")
    return found


async def run_day(folder: Path, plan: Plan, seed: int, note: Callable[[str], None]) -> Found:
    """A whole day on new folders.

    Raises:
        BenchError: it cannot begin, or the server does not come back from something.
    """
    async with open_devnet() as (devnet, directory), trio.open_nursery() as nursery:
        note("the PDS is filled")
        uploaded = await upload(devnet, plan.pictures, plan.accounts, plan.size)
        fakes = await nursery.start(open_fakes, plan.presets[0])
        of_fresh = {each.did for each in uploaded[: 2 * plan.cycles]}
        real, fresh = targets_of(uploaded, plan, of_fresh)
        random.Random(seed).shuffle(real)
        note("what is right is learnt")
        every = [*real, *fresh]
        first = await learn(folder, directory, every, 0, plan.fetch_seconds)
        changed = [each for each in every if each.path.startswith(f"/img/{CHANGED}/")]
        second = first | await learn(folder, directory, changed, 1, plan.fetch_seconds)
        ledger = Ledger([Entry((each.did, each.cid)) for each in uploaded])
        truth = Truth([first, second], ledger)
        # Half of it at most is kept: results are evicted and made again all day.
        cache_bytes = sum(result.size for result in first.values()) // 2
        note("the server and nginx start")
        async with open_ground(folder, directory, cache_bytes, plan.fetch_seconds) as ground:
            ports = ground.front.port, ground.server.port
            decided = sorted({each.number for each in real if each.number is not None})[:DECIDED]
            load = Load(truth, real, fakes, decided, ports, seed)
            day = Day(plan, ground, truth, load, fresh, seed, note)
            await day.run()
            found = day.found
            note("the server stops")
            if code := await ground.stop():
                found.wrong.append(f"the server ended with {code}")
            if faults := await ground.verify():
                found.wrong.append(f"the cache is not what it should be: {faults}")
            found.wrong += (f"left behind: {name}" for name in ground.leftovers())
            causes = _read_log(ground, found)
        nursery.cancel_scope.cancel()
    found.wrong += (
        f"{text}{causes.get((path, status), '')}" for path, status, text in load.counted.wrong
    )
    return found


def targets_of(
    uploaded: Sequence[Uploaded], plan: Plan, of_fresh: Collection[str]
) -> tuple[list[Target], list[Target]]:
    """What is asked for all day; and one of each account that nobody asks for before its time."""
    real: list[Target] = []
    fresh: dict[str, Target] = {}
    for number, each in enumerate(uploaded):
        for preset in plan.presets:
            for form in plan.formats:
                path = f"/img/{preset}/plain/{each.did}/{each.cid}{form}"
                target = Target(path, frozenset({200}), number)
                if each.did in of_fresh:
                    fresh.setdefault(each.did, target)
                else:
                    real.append(target)
    return real, [*fresh.values()]


def _read_log(ground: Ground, found: Found) -> dict[tuple[str, int], str]:
    """Every line has to be whole, and none of a defect; why requests failed, by path and status."""
    causes: dict[tuple[str, int], str] = {}
    ahead = datetime.now(UTC) + timedelta(days=DAYS_AHEAD / 2)
    was_ahead = False
    first: dict[str, str] = {}
    errors: Counter[str] = Counter()
    try:
        for line in ground.log.lines():
            found.lines += 1
            was_ahead = was_ahead or datetime.fromisoformat(str(line["timestamp"])) > ahead
            if line["event"] == "request" and "cause" in line:
                key = unquote(unquote(str(line["path"]))), int(str(line["status"]))
                causes[key] = f"; {line['ms']} ms: {line['cause']}"
            if line["level"] in ("error", "critical"):
                event = str(line["event"])
                errors[event] += 1
                first.setdefault(event, json.dumps(line)[:ERROR_CHARACTERS])
    except ValueError as error:
        found.wrong.append(f"a line of the log is none: {error}")
    found.errors = {event: (errors[event], line) for event, line in first.items()}
    if errors["defect"]:
        found.wrong.append(f"{errors['defect']} defects in the log")
    if isinstance(found.events.get("a wrong clock"), int) and not was_ahead:
        found.wrong.append("no line of the log is of the wrong clock")
    return causes
