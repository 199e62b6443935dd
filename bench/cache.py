"""The disk cache at a thousand, a hundred thousand and a million entries, in one run.

For each size: how long a server on that folder takes from its start to its first answer, and its
resident memory; what a hit from disk, an eviction, and a purge of an owner and of a blob cost; and
how far a storm of writes at the limit exceeds it. The folders take turns, round by round.

The entries are small files in memory where there is room for them (/dev/shm): what is measured is
the index, not the disk (``--folder`` for one). Exits with 1 when an answer is wrong or the limit
does not hold, whatever the times are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import trio
from libipld import encode_cid
from rich.console import Console
from rich.progress import Progress

from bench import plot, report
from bench.client import get
from bench.processes import BenchError, Server, run, running
from bench.upstream import LOOPBACK
from proxy.cache.files import CacheFolder
from proxy.cache.index import FILE_NAME, File, Index, IndexEntry, Rows
from proxy.cache.interface import Entry
from proxy.cache.layout import IMAGES, entry_folder, entry_name
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.store import FILE_NAME as STORE
from proxy.moderation.store import ModerationStore
from proxy.urls import image_url
from tests.ports import free_port

PER_OWNER = 10
"""Entries of each owner: as many blobs, each in one preset."""

SHARED = 10
"""Owners that have one and the same blob, among those that are purged by blob."""

ENTRY = b"\xff\xd8\xff" + bytes(1021)
"""What a file holds: a JPEG by its first bytes."""

BYTES_EACH = 8_000
"""Of memory or disk, for a file, its folders, and its row."""

PLOT = Path("build/bench-cache.svg")

GOALS = "start < 1 s, RSS < 250 MB, hit <= 1.2x, storm <= 2 % over"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: entries of each folder, the smallest first.
        rounds: of all measurements.
        hits: timed in a round, over as many different keys.
        evictions: entries that a round evicts.
        purges: owners, and blobs, that a round purges.
        storm: writes of a storm.
    """

    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    rounds: int = 5
    hits: int = 500
    evictions: int = 50
    purges: int = 5
    storm: int = 300

    @property
    def steps(self) -> int:
        """Of the progress bar."""
        return sum(self.sizes) // FILL_STEP + len(self.sizes) * (self.rounds + 1)


FULL = Plan()
QUICK = Plan(sizes=(1_000, 20_000), rounds=2, hits=200, evictions=20, purges=3, storm=50)
FILL_STEP = 1000


@dataclass(slots=True)
class Figures:
    """What was measured of one folder, a value for each round; seconds, bytes or shares."""

    start: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    hit: list[float] = field(default_factory=list)
    evict: list[float] = field(default_factory=list)
    purge_owner: list[float] = field(default_factory=list)
    purge_blob: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)


class Stock:
    """A folder of so many entries, and the keys in it. Keys follow from their numbers."""

    def __init__(self, path: Path, entries: int) -> None:
        self.path = path
        self.entries = entries
        self.figures = Figures()
        self._next = entries

    def fill(self, on_step: Callable[[], None]) -> None:
        """Make the files, and the index as writing them would have made it."""
        index = Index(self.path, "bench")
        digest = hashlib.sha256(ENTRY).digest()
        now = time.time()
        images = self.path / IMAGES
        self._drop_orders(index)
        # In the order of their folders: a table grows at its end ten times as fast as within.
        owners = sorted(range(-(-self.entries // PER_OWNER)), key=_folder_of)
        for first in range(0, len(owners), FILL_STEP // PER_OWNER):
            with index.writing() as rows:
                for owner in owners[first : first + FILL_STEP // PER_OWNER]:
                    folder = _folder_of(owner)
                    (images / folder).mkdir(parents=True)
                    for number in self._of_owner(owner):
                        file = File(folder, entry_name(key_of(number), Format.JPEG))
                        path = f"{images}/{file.path}"
                        # Read in another order than they were written in.
                        used = now - 3600 - (number * 7919) % self.entries / 1000
                        with open(path, "xb", buffering=0) as opened:
                            opened.write(ENTRY)
                            os.utime(opened.fileno(), (used, used))
                        rows.add(IndexEntry(file, len(ENTRY), digest, used, used))
            on_step()
        index.close()
        index = Index(self.path, "bench")  # which makes them again
        with index.writing() as rows:
            rows.end_doubt(rows.doubt())
        index.close()

    def _of_owner(self, owner: int) -> range:
        return range(owner * PER_OWNER, min((owner + 1) * PER_OWNER, self.entries))

    def _drop_orders(self, index: Index) -> None:
        """Drop what the index is sorted by beside its files, which is quicker made at the end."""
        with index.writing():
            pass  # so that it is there
        with closing(sqlite3.connect(self.path / FILE_NAME)) as connection:
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall()
            for (name,) in names:
                connection.execute(f"DROP INDEX {name}")

    def folder(self, room: int = 0) -> CacheFolder:
        """The cache over it, whose limit is what is there now less ``room`` bytes."""
        with self.rows() as rows:
            size = rows.totals().bytes
        return CacheFolder(
            self.path, max_bytes=size - room, ttl_seconds=0, may_keep=lambda key: True
        )

    def some(self, count: int) -> list[ImageKey]:
        """Keys that are there, chosen once for all rounds."""
        numbers = random.Random(1).sample(range(min(self.entries, 1000)), count)
        return [key_of(number) for number in numbers]

    def new(self, count: int) -> list[ImageKey]:
        """Keys that are not there yet."""
        first, self._next = self._next, self._next + count
        return [key_of(number) for number in range(first, self._next)]

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        index = Index(self.path, "bench")
        with index.reading() as rows:
            yield rows
        index.close()


def key_of(number: int) -> ImageKey:
    """The key of an entry by its number."""
    return _key(number // PER_OWNER, _cid(number))


def shared_key(owner: int, blob: int) -> ImageKey:
    """The key of a blob that several owners have."""
    return _key(owner, _cid(-1 - blob))


def _key(owner: int, cid: Cid) -> ImageKey:
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    value = int.from_bytes(hashlib.sha256(b"owner %d" % owner).digest(), "big")
    did = Did("did:plc:" + "".join(digits[value >> 5 * at & 31] for at in range(24)))
    return image_key(DEFAULT_PRESETS, "avatar_thumbnail", did, cid)


def _folder_of(owner: int) -> str:
    return file_of(key_of(owner * PER_OWNER)).folder


def _cid(number: int) -> Cid:
    return Cid(encode_cid(b"\x01\x55\x12\x20" + hashlib.sha256(b"blob %d" % number).digest()))


def file_of(key: ImageKey) -> File:
    """Where a key's entry lies."""
    return File(entry_folder(key), entry_name(key, Format.JPEG))


def measure_round(stock: Stock, plan: Plan) -> None:
    """Everything but the start of a server, once."""
    figures = stock.figures
    figures.hit.append(_hit(stock, plan))
    figures.evict.append(_evict(stock, plan))
    owner, blob = _purge(stock, plan)
    figures.purge_owner.append(owner)
    figures.purge_blob.append(blob)
    figures.over.append(_storm(stock, plan))


def _hit(stock: Stock, plan: Plan) -> float:
    """Median of single hits."""
    folder = stock.folder()
    keys = stock.some(plan.hits)
    for key in keys:  # storms evict from the smallest folder what others keep
        if folder.get(key) is None:
            folder.put(key, Entry(ENTRY, Format.JPEG))
    times = []
    for key in keys:
        began = time.perf_counter()
        found = folder.get(key)
        times.append(time.perf_counter() - began)
        if found is None or found[0].data != ENTRY:
            raise BenchError(f"{key} is no hit")
    folder.close()
    return median(times)


def _evict(stock: Stock, plan: Plan) -> float:
    """Of each entry."""
    folder = stock.folder(room=plan.evictions * len(ENTRY))
    began = time.perf_counter()
    evicted = folder.cleanup().for_size
    took = time.perf_counter() - began
    folder.close()
    if evicted != plan.evictions:
        raise BenchError(f"{evicted} entries were evicted, not {plan.evictions}")
    return took / evicted


def _purge(stock: Stock, plan: Plan) -> tuple[float, float]:
    """Of an owner, and of a blob that several owners have; each has ten entries."""
    roomy = CacheFolder(stock.path, max_bytes=1 << 40, ttl_seconds=0, may_keep=lambda key: True)
    owners = []
    for _ in range(plan.purges):
        keys = stock.new(PER_OWNER)
        for key in keys:
            roomy.put(key, Entry(ENTRY, Format.JPEG))
        owners.append(Selection(did=keys[0].blob.did))
    blobs = []
    for number in range(plan.purges):
        for owner in range(SHARED):
            key = shared_key(10**9 + owner, number)
            roomy.put(key, Entry(ENTRY, Format.JPEG))
        blobs.append(Selection(cid=key.blob.cid))
    found = []
    for selections, expected in ((owners, PER_OWNER), (blobs, SHARED)):
        times = []
        for selection in selections:
            began = time.perf_counter()
            purged = roomy.purge([selection])
            times.append(time.perf_counter() - began)
            if purged != expected:
                raise BenchError(f"{purged} entries were purged, not {expected}")
        found.append(median(times))
    roomy.close()
    return found[0], found[1]


def _storm(stock: Stock, plan: Plan) -> float:
    """The highest share by which what is kept exceeded the limit."""
    folder = stock.folder()
    with stock.rows() as rows:
        limit = rows.totals().bytes
    highest = 0
    for key in stock.new(plan.storm):
        folder.put(key, Entry(ENTRY, Format.JPEG))
        highest = max(highest, folder.totals.bytes)
    folder.close()
    return highest / limit - 1


async def measure_server(stock: Stock, log: Path) -> None:
    """From the start of a process to its first answer, and what it holds after some hits."""
    port = free_port()
    environment = {
        "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}",
        "IMAGE_PROXY_CACHE__PATH": str(stock.path),
        "IMAGE_PROXY_CACHE__MAX_GB": "1000",
    }
    paths = [image_url(key) for key in stock.some(20)]
    # Beside results, a server makes none.
    with closing(ModerationStore(stock.path / STORE)) as store:
        store.make()
    began = time.perf_counter()
    async with running("proxy", "serve", log=log, environment=environment) as process:
        server = Server(process, port, log)
        first = await _first_answer(server, paths[0])
        stock.figures.start.append(time.perf_counter() - began)
        for path in paths:
            answer = await get(port, path)
            if (first, answer.status, answer.body) != (200, 200, ENTRY):
                raise BenchError(f"{path}: {answer.status}")
        stock.figures.memory.append(_resident(process.pid))


async def _first_answer(server: Server, path: str) -> int:
    with trio.fail_after(60):
        while True:
            try:
                return (await get(server.port, path)).status
            except OSError:
                await trio.sleep(0.002)


def _resident(pid: int) -> int:
    """Bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def measure(plan: Plan, folder: Path, bar: Progress) -> list[Stock]:
    """Fill the folders, and measure them in turn."""
    task = bar.task_ids[0]
    stocks = [Stock(folder / str(size), size) for size in plan.sizes]
    for stock in stocks:
        bar.update(task, description=f"filling {stock.entries:,}")
        await trio.to_thread.run_sync(stock.fill, lambda: bar.advance(task))
    # What was just written goes to the disk now, not during the measurements.
    await trio.to_thread.run_sync(os.sync)
    for stock in stocks:
        bar.update(task, description=f"starting on {stock.entries:,}")
        for _ in range(plan.rounds):
            await measure_server(stock, folder / "server.log")
        bar.advance(task)
    for number in range(plan.rounds):
        order = stocks if number % 2 else stocks[::-1]
        for stock in order:
            bar.update(task, description=f"round {number + 1}: {stock.entries:,}")
            await trio.to_thread.run_sync(measure_round, stock, plan)
            bar.advance(task)
    return stocks


def show(console: Console, stocks: list[Stock]) -> None:
    """The table."""
    columns = [f"{stock.entries:,}" for stock in stocks]
    table = report.table(f"Disk cache by entries: {report.SPREAD}", ["", *columns])
    rows: list[tuple[str, str, float, str]] = [
        ("start to first answer, s", "start", 1, ".2f"),
        ("resident memory of the server, MB", "memory", 1e-6, ".0f"),
        ("hit from disk, µs", "hit", 1e6, ".0f"),
        ("evict, µs an entry", "evict", 1e6, ".0f"),
        (f"purge an owner of {PER_OWNER} entries, ms", "purge_owner", 1e3, ".2f"),
        (f"purge a blob of {SHARED} owners, ms", "purge_blob", 1e3, ".2f"),
        ("over the limit in a write storm, %", "over", 100, ".2f"),
    ]
    for title, name, factor, form in rows:
        values = [[v * factor for v in getattr(stock.figures, name)] for stock in stocks]
        table.add_row(title, *(report.spread(each, form) for each in values))
    table.add_section()
    base = stocks[0].figures
    for name, title in (("hit", "hit"), ("evict", "evict"), ("purge_owner", "purge")):
        ratios = [
            [a / b for a, b in zip(getattr(stock.figures, name), getattr(base, name), strict=True)]
            for stock in stocks
        ]
        label = f"{title}: ratio to {stocks[0].entries:,}, by round"
        table.add_row(label, *(report.spread(each, ".2f") for each in ratios))
    sizes = [(stock.path / FILE_NAME).stat().st_size / 1e6 for stock in stocks]
    table.add_row("the index file, MB", *(f"{size:.0f}" for size in sizes))
    console.print(table)
    console.print(f"goals at the largest: {GOALS}")


def draw(stocks: list[Stock], file: Path) -> str:
    """Each figure over the number of entries."""
    figure = plot.figure_of(10, 3.2)
    if figure is None:
        return plot.MISSING
    panels = (
        ("start", 1.0, "start to first answer, s"),
        ("hit", 1e6, "hit from disk, µs"),
        ("evict", 1e6, "evict an entry, µs"),
        ("purge_owner", 1e3, "purge an owner, ms"),
    )
    for axes, (name, factor, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        values = [[v * factor for v in getattr(stock.figures, name)] for stock in stocks]
        middles = [median(each) for each in values]
        below = [middle - min(each) for middle, each in zip(middles, values, strict=True)]
        above = [max(each) - middle for middle, each in zip(middles, values, strict=True)]
        sizes = [stock.entries for stock in stocks]
        axes.errorbar(sizes, middles, yerr=[below, above], marker="o", capsize=4)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("entries")
    return plot.save(figure, file)


def in_memory(sizes: Sequence[int]) -> Path | None:
    """A file system in memory with room for folders of so many entries, if there is one."""
    memory = Path("/dev/shm")  # noqa: S108  (a folder of its own is made in it)
    if not memory.is_dir():
        return None
    found = os.statvfs(memory)
    return memory if found.f_bavail * found.f_frsize > sum(sizes) * BYTES_EACH else None


async def _main(plan: Plan, folder: Path | None, picture: Path) -> int:
    console = report.output()
    settings = {
        "entries": ", ".join(f"{size:,}" for size in plan.sizes),
        "rounds": str(plan.rounds),
    }
    folder = folder or in_memory(plan.sizes)
    settings["folder"] = str(folder or tempfile.gettempdir())
    report.print_settings(console, settings)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, report.progress(plan.steps) as bar:
        stocks = await measure(plan, Path(temporary), bar)
        bar.stop()
        show(console, stocks)
        console.print(draw(stocks, picture))
    worst = max(over for stock in stocks for over in stock.figures.over)
    if worst > 0.02:
        console.print(f"failed: {worst:.1%} over the limit")
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 and 20,000 entries")
    parser.add_argument("--folder", type=Path, help="where the caches are made (5 GB)")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"default {PLOT}")
    options = parser.parse_args()
    chosen = QUICK if options.quick else FULL
    sys.exit(run(lambda: _main(chosen, options.folder, options.plot)))
