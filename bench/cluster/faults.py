"""Faults at random, one after the other, while clients ask and moderators decide.

A picture's bytes are those that one node without a cluster gives. An answer with a body that is
whole after its picture's block had answered before the request began is a fault of the service;
so is a wrong byte, and a decision that answered and is not in PostgreSQL or in force at the end.
A request that fails is none: it is counted.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h11
import trio

from bench.client import Answer, Connection, get
from bench.cluster import disks, engines
from bench.cluster.ground import Node
from bench.cluster.hosts import Cable, are_permitted, open_world
from bench.cluster.ledger import Entry, Ledger, State
from bench.cluster.members import (
    LEASE,
    TOKEN,
    VERSIONS,
    Cluster,
    Member,
    node_environment,
    open_cluster,
)
from bench.cluster.relay import Mode, Relay
from bench.pictures import Size
from bench.processes import BenchError, metrics, until, upstream
from bench.upstream import LOOPBACK, account

NODES = 3
PICTURES = 24
PRESETS = ("avatar_small", "avatar_thumbnail", "feed_thumbnail")
SIZE = Size(480, 360)
CLIENTS = 6
PAUSE = 0.08
"""Seconds between two requests of a client: a steady load that two cores carry."""

RECENT, RECENT_SHARE = 3, 0.5
"""So many requests are for one of so many pictures that were blocked last."""

DECIDERS = 2
DECIDE_EVERY = 0.4
LEAST, MOST = 0.3, 3.5 * LEASE
"""Seconds of a fault, at random between these: shorter and longer than a lease."""

LONG_EVERY = 100
"""Of so many faults one is ``LONG``."""

LONG_SECONDS = 30.0
LONG = f"PostgreSQL killed for {LONG_SECONDS:g} s"

LONGEST_SECONDS = 600.0
LONGEST = f"PostgreSQL killed for {LONGEST_SECONDS:g} s"
"""Only where it is asked for."""

CALM = 0.3
"""Seconds of load between two faults."""

CUT_OFF = (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError)

REQUEST_SECONDS = 20.0

REFILL_SECONDS = 0.1

Fault = Callable[[Cluster, random.Random, float], Awaitable[None]]
"""Happens to a cluster for so many seconds, and is over when it returns."""

ADMIN = [("Authorization", f"Bearer {TOKEN}")]


@dataclass(slots=True)
class Kind:
    """What happened during the faults of one kind.

    Attributes:
        answers: by status, or by how a request failed.
        recovery: seconds from the end of each fault until every node was ready.
    """

    answers: Counter[str] = field(default_factory=Counter)
    recovery: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """What a run saw.

    Attributes:
        kinds: by the name of the fault; "none" between two of them.
        healthy, faulty: seconds of each block that answered, without a fault and during one.
        failed: decisions whose call failed.
        wrong: what must not be.
        checked: answers with a body that were compared.
        refused: requests for what was blocked for certain, without a body.
        decided: calls that answered.
        store: requests of the nodes to the store, of each process, by operation and outcome.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    healthy: list[float] = field(default_factory=list)
    faulty: list[float] = field(default_factory=list)
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    refused: int = 0
    decided: int = 0
    store: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


class FaultRun:
    """The load, the decisions, the faults and the checker over one cluster.

    Attributes:
        found: what it saw.
    """

    def __init__(
        self,
        cluster: Cluster,
        paths: list[list[str]],
        right: list[dict[str, bytes]],
        entries: list[Entry],
        seed: int,
    ) -> None:
        self.found = Found()
        self._cluster = cluster
        self._paths = paths
        self._right = right
        self._ledger = Ledger(entries)
        self._random = random.Random(seed)
        self._now = "none"
        self._calls = 0

    async def run(self, count: int, note: Callable[[str], None], *, is_long: bool) -> None:
        """Let ``count`` faults happen, and look at what is left.

        Args:
            is_long: the first of them is ``LONGEST``.
        """
        began = trio.current_time()
        order = self._order(count)
        if is_long:
            order[0] = LONGEST
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(self._ask, random.Random(self._random.random()), number == 0)
            for number in range(DECIDERS):
                own = random.Random(self._random.random())
                nursery.start_soon(self._decide, own, range(number, PICTURES, DECIDERS))
            for name in order:
                await trio.sleep(CALM)
                await self._fault(name)
                note(f"{name}: {len(self.found.wrong)} wrong")
            await trio.sleep(CALM)
            nursery.cancel_scope.cancel()
        self.found.seconds = trio.current_time() - began
        await self._settle()
        await self._look()

    def _order(self, count: int) -> list[str]:
        possible = [
            name for name in FAULTS if name not in OF_HOSTS or self._cluster.members[0].host
        ]
        order: list[str] = []
        rounds = 0
        while len(order) < count:
            names = [name for name in possible if name != SLOW or rounds % SLOW_ROUNDS == 0]
            self._random.shuffle(names)  # each as often as the others
            order += names
            rounds += 1
        order = order[:count]
        order[LONG_EVERY - 1 :: LONG_EVERY] = [LONG] * (count // LONG_EVERY)
        return order

    async def _fault(self, name: str) -> None:
        kind = self._kind(name)
        seconds = self._random.uniform(LEAST, MOST)
        self._now = name
        fault, seconds = OUTAGES.get(name) or (FAULTS[name], seconds)
        await fault(self._cluster, self._random, seconds)
        ended = trio.current_time()
        await self._cluster.ready()
        kind.recovery.append(trio.current_time() - ended)
        await self._count_store()
        self._now = "none"

    async def _count_store(self) -> None:
        for member in self._cluster.members:
            server = member.node.server
            assert server is not None
            series = await metrics(server.port, "imageproxy_store_requests_total")
            self.found.store[server.process.pid] = series

    def _kind(self, name: str) -> Kind:
        return self.found.kinds.setdefault(name, Kind())

    async def _ask(self, own: random.Random, by_front: bool) -> None:
        while True:
            await trio.sleep(PAUSE)
            number = self._some_picture(own)
            member = own.choice(self._cluster.members)
            port = self._cluster.front.port if by_front else member.node.port
            asked = self._cluster.members if by_front else [member]
            await self._check(own, number, port, asked)

    def _some_picture(self, own: random.Random) -> int:
        """Any, or one that was blocked of late: a node that missed it would show it now."""
        late = self._ledger.blocked_of_late(RECENT)
        return own.choice(late) if late and own.random() < RECENT_SHARE else own.randrange(PICTURES)

    async def _check(self, own: random.Random, number: int, port: int, asked: list[Member]) -> None:
        path = own.choice(self._paths[number])
        kind, began = self._kind(self._now), trio.current_time()
        versions = {each.version for each in asked}
        certain = self._ledger.entries[number].since is not None
        try:
            with trio.fail_after(REQUEST_SECONDS):
                answer = await get(port, path)
        except CUT_OFF:
            kind.answers["no answer"] += 1
            return
        kind.answers[str(answer.status)] += 1
        versions |= {each.version for each in asked}
        right = {self._right[version][path] for version in versions}
        digest = hashlib.sha256(answer.body).digest()
        if answer.status == 200:
            self.found.checked += 1
        elif certain:
            self.found.refused += 1
        fault = self._ledger.fault(
            number, began=began, status=answer.status, digest=digest, right=right
        )
        if fault:
            self.found.wrong.append(f"{fault} during {self._now}: {path} at port {port}")

    async def _decide(self, own: random.Random, numbers: range) -> None:
        while True:
            await trio.sleep(own.uniform(0.5, 1.5) * DECIDE_EVERY)
            await self._decide_on(own.choice(numbers), own.choice(self._cluster.members).node.port)

    async def _decide_on(self, number: int, port: int) -> bool:
        """Block or lift; return whether the call answered."""
        blocks = self._ledger.begin(number)
        self._calls += 1
        reason = f"call {self._calls}"
        healthy, began, done = self._now == "none", trio.current_time(), False
        try:
            selected = self._ledger.entries[number].selected
            answer = await decide(port, selected, reason, blocks=blocks)
            done = answer.status == 200
        except CUT_OFF:
            pass
        finally:
            now = trio.current_time()
            self._ledger.end(number, blocks=blocks, reason=reason, done=done, now=now)
        if not done:
            self.found.failed += 1
            return False
        self.found.decided += 1
        if blocks:
            healthy = healthy and self._now == "none"
            (self.found.healthy if healthy else self.found.faulty).append(now - began)
        return True

    async def _settle(self) -> None:
        """Decide again where a call failed, until it answers."""
        port = self._cluster.members[0].node.port
        for number, entry in enumerate(self._ledger.entries):
            with trio.move_on_after(60):
                while entry.state is State.UNKNOWN:
                    if not await self._decide_on(number, port):
                        await trio.sleep(0.2)
            if entry.state is State.UNKNOWN:
                self.found.wrong.append(f"no decision on {entry.selected} answers any more")

    async def _look(self) -> None:
        """Compare the database and every node with what was decided."""
        blocks, reasons = await trio.to_thread.run_sync(engines.kept, self._cluster.postgres)
        self.found.wrong += self._ledger.kept_faults(blocks, reasons)
        for member in self._cluster.members:
            for number, entry in enumerate(self._ledger.entries):
                for path in self._paths[number]:
                    answer = await get(member.node.port, path)
                    digest = hashlib.sha256(answer.body).digest()
                    is_right = (
                        answer.status == 404
                        if entry.state is State.BLOCKED
                        else answer.status == 200 and digest == self._right[member.version][path]
                    )
                    if not is_right:
                        self.found.wrong.append(
                            f"at the end: {answer.status} of {path} at {member.node.name},"
                            f" {entry.state.value}"
                        )


async def decide(port: int, selected: tuple[str, str], reason: str, *, blocks: bool) -> Answer:
    """Block, or lift a block; raises as ``Connection.get``."""
    did, cid = selected
    given = {"did": did, "cid": cid, "reason": reason}
    body = json.dumps({name: value for name, value in given.items() if value}).encode()
    connection = Connection(port)
    try:
        method = "POST" if blocks else "DELETE"
        return await connection.send(method, "/admin/blocks", body, ADMIN)
    finally:
        connection.close()


async def _kill_node(cluster: Cluster, own: random.Random, seconds: float) -> None:
    member = own.choice(cluster.members)
    await member.node.kill()
    await trio.sleep(seconds)
    await member.start()


async def _pause_node(cluster: Cluster, own: random.Random, seconds: float) -> None:
    server = own.choice(cluster.members).node.server
    assert server is not None
    server.process.send_signal(signal.SIGSTOP)
    await trio.sleep(seconds)
    server.process.send_signal(signal.SIGCONT)


async def _kill_store(cluster: Cluster, own: random.Random, seconds: float) -> None:
    await cluster.store.kill()
    await trio.sleep(seconds)
    await cluster.store.start()


async def _pause_store(cluster: Cluster, own: random.Random, seconds: float) -> None:
    cluster.store.pause()
    await trio.sleep(seconds)
    cluster.store.resume()


async def _kill_postgres(cluster: Cluster, own: random.Random, seconds: float) -> None:
    await trio.to_thread.run_sync(cluster.postgres.kill)
    await trio.sleep(seconds)
    await trio.to_thread.run_sync(cluster.postgres.start)


async def _roll(cluster: Cluster, own: random.Random, seconds: float) -> None:
    version = (cluster.members[0].version + 1) % len(VERSIONS)
    for member in cluster.members:
        await member.node.close()
        member.version = version
        await member.start()
        await member.node.ready()


async def _upgrade(cluster: Cluster, own: random.Random, seconds: float) -> None:
    """Node by node; one of the release before that is started meanwhile has to serve nothing."""
    release = cluster.members[0].release + 1
    first, last = cluster.members[0], cluster.members[-1]
    for member in cluster.members:
        await member.node.close()
        member.release = release
        await member.start()
        await member.node.ready()
        if member is first:
            await last.node.close()
            await last.start()
            await until(partial(_is_outdated, last), "the release before to refuse the schema")


async def _is_outdated(member: Member) -> bool:
    try:
        answer = await get(member.node.port, "/readyz")
    except CUT_OFF:
        return False
    return answer.status == 503 and b"a newer release has changed them" in answer.body


async def _fill_disk(cluster: Cluster, own: random.Random, seconds: float) -> None:
    folder = own.choice(cluster.members).node.cache
    with trio.move_on_after(seconds):
        while True:
            # Again and again: what the node removes makes room.
            await trio.to_thread.run_sync(disks.fill, folder)
            await trio.sleep(REFILL_SECONDS)
    await trio.to_thread.run_sync(disks.empty, folder)


def _cut(*cables: Cable) -> Fault:
    """End the connections of a node, and let it make no new ones."""

    async def cut(cluster: Cluster, own: random.Random, seconds: float) -> None:
        member = own.choice(cluster.members)
        await _changed_relays(_relays(member, cables), Mode.CUT, seconds)

    return cut


def _silence(*cables: Cable) -> Fault:
    """Let nothing through between a node and others, with a word to nobody."""

    async def silence(cluster: Cluster, own: random.Random, seconds: float) -> None:
        member = own.choice(cluster.members)
        if member.host is None:
            await _changed_relays(_relays(member, cables), Mode.HELD, seconds)
            return
        await member.host.pull(*cables)
        await trio.sleep(seconds)
        await member.host.plug(*cables)

    return silence


async def _lie(cluster: Cluster, own: random.Random, seconds: float) -> None:
    await _changed_relays([member.store for member in cluster.members], Mode.LIES, seconds)


def _relays(member: Member, cables: Sequence[Cable]) -> list[Relay]:
    of_cable = {Cable.DATABASE: member.database, Cable.STORE: member.store}
    return [of_cable[cable] for cable in cables]


async def _changed_relays(relays: Sequence[Relay], mode: Mode, seconds: float) -> None:
    for relay in relays:
        relay.set(mode)
    await trio.sleep(seconds)
    for relay in relays:
        relay.set(Mode.WHOLE)


SLOW = "the store killed"
SLOW_ROUNDS = 3
"""Rounds of all faults in one of which it is: SeaweedFS takes 20 s to take objects again, during
which the next faults happen."""

FAULTS: dict[str, Fault] = {
    "a node killed": _kill_node,
    "a node stopped and continued": _pause_node,
    SLOW: _kill_store,
    "the store stopped and continued": _pause_store,
    "PostgreSQL killed": _kill_postgres,
    "a node cut off from PostgreSQL": _cut(Cable.DATABASE),
    "a node that PostgreSQL is silent to": _silence(Cable.DATABASE),
    "a node cut off from the store": _cut(Cable.STORE),
    "a node that the store is silent to": _silence(Cable.STORE),
    "a node cut off from both": _cut(Cable.DATABASE, Cable.STORE),
    "a node that both are silent to": _silence(Cable.DATABASE, Cable.STORE),
    "a node without any network": _silence(*Cable),
    "a disk that fills": _fill_disk,
    "a store that lies": _lie,
    "a preset changed, node by node": _roll,
    "a release with another schema, node by node": _upgrade,
}

OF_HOSTS = ("a node without any network", "a disk that fills")
"""Only where namespaces and mounts are permitted."""

OUTAGES = {
    LONG: (_kill_postgres, LONG_SECONDS),
    LONGEST: (_kill_postgres, LONGEST_SECONDS),
}


async def run_faults(
    folder: Path, count: int, seed: int, note: Callable[[str], None], *, is_long: bool
) -> Found:
    """Let ``count`` faults happen to a new cluster.

    Args:
        is_long: the first of them is ``LONGEST``.
    """
    async with AsyncExitStack() as stack:
        has_hosts = are_permitted()
        world = await stack.enter_async_context(open_world()) if has_hosts else LOOPBACK
        given = upstream(folder, blobs=PICTURES, size=SIZE, latency=0, bases=PICTURES, host=world)
        manifest = await stack.enter_async_context(given)
        if has_hosts:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            await nursery.start(Relay(manifest.port, host=world, port=manifest.port).run)
        dids = [account(number) for number in range(PICTURES)]
        pairs = list(zip(dids, manifest.cids, strict=True))
        paths = [[f"/img/{p}/plain/{did}/{cid}" for p in PRESETS] for did, cid in pairs]
        environment = node_environment(manifest, world)
        learnt = [
            await _learn(folder, environment | changed, f"alone{number}", paths)
            for number, changed in enumerate(VERSIONS)
        ]
        note("learnt what is right")
        right = [digests for digests, _ in learnt]
        # A quarter of the results fits a node: the store and the PDS are always asked.
        extra = {
            "IMAGE_PROXY_CACHE__MAX_GB": repr(learnt[0][1] / 4 / 1024**3),
            "IMAGE_PROXY_CACHE__MEMORY_MB": "0",
        }
        # Owners, blobs and pairs in turn.
        entries = [
            Entry(((did, ""), ("", cid), (did, cid))[number % 3])
            for number, (did, cid) in enumerate(pairs)
        ]
        at = world if has_hosts else None
        cluster = await stack.enter_async_context(open_cluster(folder, manifest, NODES, extra, at))
        run = FaultRun(cluster, paths, right, entries, seed)
        await run.run(count, note, is_long=is_long)
        return run.found


async def _learn(
    folder: Path, environment: dict[str, str], name: str, paths: list[list[str]]
) -> tuple[dict[str, bytes], int]:
    """What one node gives for each path, and the bytes of all of it."""
    node = Node(name, folder, environment)
    try:
        await node.start()
        await node.ready()
        digests, total = {}, 0
        for path in (path for each in paths for path in each):
            answer = await get(node.port, path)
            if answer.status != 200:
                raise BenchError(f"{path}: {answer.status}")
            digests[path] = hashlib.sha256(answer.body).digest()
            total += len(answer.body)
    finally:
        await node.close()
    if len(set(digests.values())) != len(digests):
        raise BenchError("two results are the same: a mix-up would not be seen")
    return digests, total
