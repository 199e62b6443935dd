"""The cost of blocks: hits and memory with a million and with none, a bulk, and single ones.

Two proxies serve the same images from memory, one with a million blocks and one without. They are
measured alternately, for several rounds. Then ``blocks add --file`` runs with a proxy of two
workers that follows, and single blocks, each until it is in force in both workers and purged.
Prints the spread; exits with 1 when a request failed, or a block was not kept.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from base64 import b32encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio
from rich.progress import Progress, TaskID

from bench import report
from bench.client import Result, closed_loop
from bench.pictures import Size, cid_of
from bench.processes import BenchError, Server, metric, run, running, upstream
from bench.upstream import LOOPBACK, Manifest, account
from proxy.config import Config, LogSection
from proxy.lifecycle import open_moderator
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.configured_store import folder_store_of
from proxy.moderation.store import ModerationStore
from proxy.observability.log import configure_logging
from tests.ports import free_port

PRESET = "avatar_small"
NONE, MANY = "no blocks", "blocks"

FILL = 10_000
"""Blocks that a store is filled with in one transaction."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of hits at both proxies.
        seconds: of each.
        blocks: of the proxy that has some.
        bulk: lines of the file that is added.
        singles: blocks that are timed one by one.
        connections: of the closed loops.
        hot: different images that hits go to.
    """

    rounds: int = 9
    seconds: float = 4.0
    blocks: int = 1_000_000
    bulk: int = 100_000
    singles: int = 50
    connections: int = 16
    hot: int = 32


FULL = Plan()
QUICK = Plan(rounds=2, seconds=0.5, blocks=20_000, bulk=2_000, singles=5, hot=8)


@dataclass(slots=True)
class Found:
    """What was measured.

    Attributes:
        hits: of each round, by proxy.
        resident: bytes of memory after the last round, by proxy.
        start: seconds from start to ready, by proxy.
        bulk: seconds of the whole command.
        singles: seconds of each block until its answer.
        faults: what must not happen, and did.
    """

    hits: dict[str, list[Result]] = field(default_factory=lambda: {NONE: [], MANY: []})
    resident: dict[str, int] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    bulk: float = 0.0
    singles: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Of each round, the rate without blocks over that with them: above 1 they cost."""
        pairs = zip(self.hits[NONE], self.hits[MANY], strict=True)
        return [without.rate / with_.rate for without, with_ in pairs if with_.rate]


def selections(count: int, seed: int) -> Iterator[Selection]:
    """Eight owners, a blob everywhere, and a pair, and so on; none that is ever asked for."""
    source = random.Random(seed)
    for number in range(count):
        digits = b32encode(source.randbytes(15)).decode().lower()
        did, cid = Did(f"did:plc:{digits}"), Cid(cid_of(source.randbytes(8)))
        match number % 10:
            case 8:
                yield Selection(cid=cid)
            case 9:
                yield Selection(did, cid)
            case _:
                yield Selection(did=did)


def fill(store: ModerationStore, count: int, bar: Progress) -> None:
    """Keep ``count`` blocks."""
    entries = ((each, "a reason of usual length") for each in selections(count, 1))
    while chunk := list(itertools.islice(entries, FILL)):
        recorded = store.record("block", chunk, by="bench", owner="bench")
        store.finish(recorded.purge, 0)
        bar.update(TaskID(0), advance=len(chunk) / FILL, description=f"{count:,} blocks")
    store.close()


def resident(pid: int) -> int:
    """Bytes of memory that a process has (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"the memory of process {pid} is not told")


class Bench:
    """The proxies, and the measurements.

    Args:
        bar: advanced by each.
    """

    def __init__(self, plan: Plan, folder: Path, manifest: Manifest, bar: Progress) -> None:
        self._plan = plan
        self._folder = folder
        self._manifest = manifest
        self._bar = bar
        self.found = Found()

    async def hits(self) -> None:
        """Hits at a proxy without blocks and at one with them, and their memory."""
        with closing(folder_store_of(self._config(MANY))) as store:
            store.make()
            await trio.to_thread.run_sync(fill, store, self._plan.blocks, self._bar)
        paths = [
            f"/img/{PRESET}/plain/{account(number)}/{self._manifest.cids[number]}"
            for number in range(self._plan.hot)
        ]
        async with self._proxy(NONE) as none, self._proxy(MANY) as many:
            servers = {NONE: none, MANY: many}
            if await metric(many.port, "imageproxy_blocks") != self._plan.blocks:
                self.found.faults.append("not all blocks are in force")
            for server in servers.values():
                await closed_loop(server.port, iter(paths), connections=self._plan.connections)
            for number in range(self._plan.rounds):
                for name in (NONE, MANY) if number % 2 else (MANY, NONE):
                    result = await closed_loop(
                        servers[name].port,
                        itertools.cycle(paths),
                        connections=self._plan.connections,
                        seconds=self._plan.seconds,
                        state="hit",
                    )
                    self.found.hits[name].append(result)
                    self.found.faults += [f"{name}: {why}" for why in result.errors]
                    self._note(f"round {number + 1}: {name}")
            for name, server in servers.items():
                self.found.resident[name] = resident(server.process.pid)

    async def decisions(self) -> None:
        """A bulk, and single blocks, while a proxy of two workers follows."""
        config = self._config("workers")
        before = list(selections(self._plan.bulk, 2))
        file = self._folder / "bulk"
        lines = (f"{each.did or ''} {each.cid or ''} # a reason" for each in before)
        file.write_text("\n".join(lines))
        async with self._proxy("workers", "--workers", "2") as server:
            began = time.monotonic()
            await self._add(file, config)
            self.found.bulk = time.monotonic() - began
            self._note("bulk")
            if await metric(server.port, "imageproxy_blocks") != self._plan.bulk:
                self.found.faults.append("not all of the bulk is in force")
            async with open_moderator(config) as moderator:
                for selection in selections(self._plan.singles, 3):
                    began = time.monotonic()
                    await moderator.block(selection, by="bench")
                    self.found.singles.append(time.monotonic() - began)
            self._note("single blocks")

    async def _add(self, file: Path, config: Config) -> None:
        log = self._folder / "add.log"
        environment = {"IMAGE_PROXY_CACHE__PATH": str(config.cache.path)}
        command = ("blocks", "add", "--file", str(file))
        async with running("proxy", *command, log=log, environment=environment) as process:
            if await process.wait() != 0:
                raise BenchError(f"blocks add failed\n{log.read_text()}")

    @asynccontextmanager
    async def _proxy(self, name: str, *arguments: str) -> AsyncIterator[Server]:
        port = free_port()
        log = self._folder / f"{name}.log"
        environment = {
            "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}",
            "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{LOOPBACK}:{self._manifest.port}",
            "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
            "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
            "IMAGE_PROXY_CACHE__PATH": str(self._config(name).cache.path),
        }
        began = time.monotonic()
        async with running(
            "proxy", "serve", *arguments, log=log, environment=environment
        ) as process:
            server = Server(process, port, log)
            await server.ready()
            self.found.start[name] = time.monotonic() - began
            yield server

    def _config(self, name: str) -> Config:
        return Config.model_validate({"cache": {"path": self._folder / f"{name}-cache"}})

    def _note(self, what: str) -> None:
        self._bar.update(TaskID(0), advance=1, description=what)


async def _measure(plan: Plan) -> Found:
    steps = -(-plan.blocks // FILL) + plan.rounds * 2 + 2
    with report.progress(steps) as bar, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with upstream(folder, blobs=plan.hot, size=Size(800, 600), latency=0) as manifest:
            bench = Bench(plan, folder, manifest, bar)
            await bench.hits()
            await bench.decisions()
    return bench.found


def _print(plan: Plan, found: Found) -> None:
    console = report.output()
    report.print_settings(
        console,
        {
            "rounds": plan.rounds,
            "load": f"closed loop, {plan.connections} kept-alive connections, "
            f"{plan.seconds:g} s a round, {plan.hot} images in memory",
            "blocks": f"{plan.blocks:,}: 8 of 10 owners, 1 a blob, 1 a pair",
            "decisions": f"a file of {plan.bulk:,} lines, then {plan.singles} single blocks, "
            "two workers, each with them",
        },
    )
    columns = ("", "hits/s", "p50 ms", "p99 ms", "memory MB", "s to ready")
    table = report.table(f"Hits: {report.SPREAD} of the rounds", columns)
    for name, label in ((NONE, "no blocks"), (MANY, f"{plan.blocks:,} blocks")):
        results = found.hits[name]
        table.add_row(
            label,
            report.spread((each.rate for each in results), ".0f"),
            report.milliseconds(each.percentile(0.5) for each in results),
            report.milliseconds(each.percentile(0.99) for each in results),
            f"{found.resident[name] / 1e6:.0f}",
            f"{found.start[name]:.1f}",
        )
    console.print(table)
    console.print(f"hits/s, no blocks / {plan.blocks:,}: {report.spread(found.ratios, '.3f')}")
    cost = (found.resident[MANY] - found.resident[NONE]) / 1e6
    console.print(f"memory of {plan.blocks:,} blocks: {cost:.0f} MB in a process")
    console.print(f"blocks add --file of {plan.bulk:,}: {found.bulk:.1f} s, the whole command")
    console.print(f"a block, until in force everywhere: {report.milliseconds(found.singles)} ms")


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.blocks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    configure_logging(LogSection(level="warning"))  # this process decides, too
    found = await _measure(replace(plan, rounds=given.rounds or plan.rounds))
    _print(plan, found)
    for fault in found.faults:
        print(f"FAILED {fault}")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(run(_main))
