"""What a CDN still shows after a block, and what a block costs there.

A service of this process stands behind a model of each CDN, which keeps answers by their full URL
and the headers of its key, as their caching headers and tags allow. Each picture is asked for in
seven spellings: with a query, an ``Origin``, ``%3A``, another preset, another format, as the
original, and by name. Some are blocked one at a time, the rest in a bulk; then each spelling is
asked for again. By tag, the service has evicted a part of them before. The models' rate limits are
lifted: calls are counted. Exits with 1 if a picture is still shown, if a copy is left, or if a
block by tag takes more than one call.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from rich.progress import TaskID

from bench import report
from bench.processes import run
from proxy.moderation.cdn.sender import POLL_SECONDS
from tests.fakes.cdns import BASE, CDNS, SETTINGS, FakeCdn
from tests.fakes.visitors import ORIGIN, Picture, Visitors
from tests.fakes.world import World
from tests.processes import files_in
from tests.web import Client, serving

PURGES = ("tags", "urls")

PATIENCE = 120.0
"""Seconds after which copies that are left count as left."""


QUIET = 1.5 * POLL_SECONDS
"""Seconds without a call after which a purge is over."""

SMALL_CACHE = 150 / 1024**3
"""Gigabytes for each picture: about half of its three results."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        pictures: of each CDN and way, each of an owner of its own.
        singles: of them, blocked one at a time.
    """

    pictures: int = 200
    singles: int = 20


FULL = Plan()
QUICK = Plan(pictures=6, singles=3)


@dataclass(slots=True)
class Found:
    """What was found at one CDN.

    Attributes:
        kept: copies before the blocks, of all spellings of all pictures.
        cached: results that the service itself has then.
        calls: of each single block.
        seconds: from each single block's call to the last copy's end.
        bulk: calls of the rest together.
        left: copies after the blocks.
        shown: spellings that still show a picture.
    """

    kind: str
    purge: str
    kept: int = 0
    cached: int = 0
    calls: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bulk: int = 0
    left: int = 0
    shown: int = 0

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        found = []
        if self.left or self.shown:
            found.append(f"{self.left} copies are left, {self.shown} spellings show a picture")
        if self.purge == "tags" and max(self.calls) > 1:
            found.append(f"a block takes {max(self.calls)} calls")
        return [f"{self.kind} by {self.purge}: {fault}" for fault in found]


class Bench:
    """One CDN, purged in one way."""

    def __init__(
        self, found: Found, plan: Plan, client: Client, cdn: FakeCdn, world: World
    ) -> None:
        self._world = world
        self._found = found
        self._plan = plan
        self._client = client
        self._cdn = cdn
        self._visitors = Visitors(world, cdn)

    async def run(self, note: Callable[[], None]) -> None:
        """Fill the CDN, block everything, and look again."""
        pictures = self._visitors.add_pictures(self._plan.pictures)
        for picture in pictures:
            await self._visitors.look_at(picture)
            note()
        self._found.kept = len(self._visitors.copies(pictures))
        self._found.cached = await self._cached()
        singles, rest = pictures[: self._plan.singles], pictures[self._plan.singles :]
        for number, picture in enumerate(singles):
            await self._block(picture, number)
        await self._block_all(rest)
        self._found.left = len(self._visitors.copies(pictures))
        for picture in pictures:
            self._found.shown += len(await self._visitors.look_at(picture))
            note()

    async def _cached(self) -> int:
        """Return the number of results on disk, when no more are written."""
        before = -1
        while True:
            found = len(await trio.to_thread.run_sync(files_in, self._world.cache_path))
            if found == before:
                return found
            before = found
            await trio.sleep(0.5)

    async def _block(self, picture: Picture, number: int) -> None:
        before, began = len(self._cdn.requests), trio.current_time()
        selection = picture.selections[number % len(picture.selections)]
        await self._client.service.moderator.block(selection, by="bench")
        self._found.seconds.append(await self._gone([picture]) - began)
        self._found.calls.append(len(self._cdn.requests) - before)

    async def _block_all(self, pictures: Sequence[Picture]) -> None:
        before = len(self._cdn.requests)
        entries = [
            (picture.selections[number % len(picture.selections)], "a reason")
            for number, picture in enumerate(pictures)
        ]
        await self._client.service.moderator.block_all(entries, by="bench")
        await self._gone(pictures)
        self._found.bulk = len(self._cdn.requests) - before

    async def _gone(self, pictures: Sequence[Picture]) -> float:
        """Wait until no copy is left and no call is made any more; return the time of the first.

        Calls go on after the last copy is gone: a purge by URL names what nobody asked for, too.
        """
        gone = math.inf
        with trio.move_on_after(PATIENCE):
            while self._visitors.copies(pictures):  # noqa: ASYNC110 (a model tells no event)
                await trio.sleep(0.01)
            gone = trio.current_time()
            calls = -1
            while calls != len(self._cdn.requests):
                calls = len(self._cdn.requests)
                await trio.sleep(QUIET)
        return gone


async def _measure(plan: Plan) -> list[Found]:
    every = [Found(kind, purge) for kind in CDNS for purge in PURGES]
    with report.progress(len(every) * plan.pictures * 2) as bar:
        for found in every:
            what = f"{found.kind} by {found.purge}"
            note = functools.partial(bar.update, TaskID(0), advance=1, description=what)
            with tempfile.TemporaryDirectory() as folder:
                async with trio.open_nursery() as nursery:
                    world = World(nursery, Path(folder))
                    cdn = CDNS[found.kind]()
                    cdn.lift_limits()
                    world.directory_network.add(cdn)
                    section = {**SETTINGS[found.kind], "purge": found.purge, "origins": [ORIGIN]}
                    small = {"max_gb": plan.pictures * SMALL_CACHE}
                    config = world.config(
                        cdn=section,
                        server={"cdn_url": BASE},
                        cache=small if found.purge == "tags" else {},
                        log={"level": "error"},
                    )
                    async with serving(world, config) as client:
                        cdn.ask = client.ask
                        await Bench(found, plan, client, cdn, world).run(note)
                    nursery.cancel_scope.cancel()
    return every


def _print(plan: Plan, every: Sequence[Found]) -> None:
    console = report.output()
    report.print_settings(
        console,
        {
            "pictures": f"{plan.pictures} for each row, each of its own owner, in 7 spellings",
            "blocks": f"{plan.singles} one at a time, {plan.pictures - plan.singles} in a bulk; "
            "of an owner, of bytes, and of a pair in turn",
        },
    )
    columns = (
        "CDN",
        "by",
        "cached here",
        "copies",
        "left",
        "shown",
        "calls of a block",
        "in a bulk",
        "s to the last copy",
    )
    table = report.table(f"After the blocks; {report.SPREAD}", columns)
    for found in every:
        rest = max(plan.pictures - plan.singles, 1)
        table.add_row(
            found.kind,
            found.purge,
            str(found.cached),
            str(found.kept),
            str(found.left),
            str(found.shown),
            report.spread(found.calls, ".0f"),
            f"{found.bulk / rest:.2f}",
            report.spread(found.seconds),
        )
    console.print(table)


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cdn", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--pictures", type=int, help=f"default {FULL.pictures}")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    if given.pictures:
        plan = Plan(given.pictures, min(given.pictures, plan.singles))
    every = await _measure(plan)
    _print(plan, every)
    faults = [fault for found in every for fault in found.faults]
    for fault in faults:
        print(f"FAILED {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run(_main))
