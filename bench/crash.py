"""The kill loop: a server is killed (SIGKILL) under load, again and again, and its cache examined.

The load writes, evicts (the cache holds about half of all results) and purges all the time. After
each kill the committed rows of the index are read; the server starts again; then every file must
be, byte for byte, the result that was served for its key while nothing was wrong, no file may be
left half written, no committed entry may be lost, and index and files may not differ in anything.
Exits with 1 at the first thing that does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import h11
import trio
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from bench import plot, report
from bench.client import Connection, get
from bench.pictures import Size
from bench.processes import BenchError, Server, metric, run, running, until, upstream
from bench.upstream import LOOPBACK, account
from proxy.cache.files import CacheFolder
from proxy.cache.index import File, Index
from proxy.cache.layout import IMAGES, blob_of, entry_folder, entry_name
from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.urls import image_url
from tests.ports import free_port

PLOT = Path("build/bench-crash.svg")
TOKEN = "of-the-benchmark"  # noqa: S105
PRESETS = ("avatar_thumbnail", "feed_thumbnail", "feed_fullsize")
BLOBS = 40
SIZE = Size(96, 72)
"""Small, so that much is written between two kills."""

CONNECTIONS = 8
PURGE_EVERY = 0.02
LEAST_LOAD, MOST_LOAD = 0.2, 0.8
"""Seconds of load before a kill, at random between these."""


@dataclass(slots=True)
class Found:
    """What the loop saw.

    Attributes:
        answers: by status, or by how a request failed.
        files, rows, unfinished: a value for each kill: files after the restart, committed rows
            before it, and moves that the killed process had not finished.
        restarts: seconds from the start of a process to its first answer.
    """

    answers: Counter[str] = field(default_factory=Counter)
    files: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)


class Loop:
    """The server, its cache folder, and what is right.

    Attributes:
        found: what it saw.
    """

    def __init__(self, folder: Path, port: int, cids: list[str], seed: int) -> None:
        self.found = Found()
        self._cache = folder / "cache"
        self._log = folder / "server.log"
        self._upstream = port
        self._random = random.Random(seed)
        self._keys = [
            image_key(DEFAULT_PRESETS, preset, account(number), cid)
            for number, cid in enumerate(cids)
            for preset in PRESETS
        ]
        self._right: dict[ImageKey, bytes] = {}
        self._purged: BlobKey | None = None
        self._limit = 0

    async def learn(self) -> None:
        """Have every result made once, in peace, and note what it is."""
        async with self._serving(1 << 40) as server:
            await server.ready()
            total = 0
            for key in self._keys:
                answer = await get(server.port, image_url(key))
                if answer.status != 200:
                    raise BenchError(f"{image_url(key)}: {answer.status}")
                with Image.open(io.BytesIO(answer.body)) as image:
                    image.load()
                self._right[key] = hashlib.sha256(answer.body).digest()
                total += len(answer.body)
        if len(set(self._right.values())) != len(self._keys):
            raise BenchError("two results are the same: a mix-up would not be seen")
        self._limit = total // 2

    async def round(self) -> None:
        """Start, load, kill, and look."""
        began = time.perf_counter()
        async with self._serving(self._limit) as server:
            await self._first_answer(server)
            self.found.restarts.append(time.perf_counter() - began)
            if self.found.rows:
                # A purge that the last kill cut short is finished first: that is its promise.
                await until(partial(_has_no_purge, server.port), "purges to be finished")
                # Before the load changes anything: what the last kill left, as it is now.
                await trio.to_thread.run_sync(self._examine)
            self._purged = None
            async with trio.open_nursery() as nursery:
                for _ in range(CONNECTIONS):
                    nursery.start_soon(self._load, server.port, self._some_keys())
                nursery.start_soon(self._purge, server.port)
                await trio.sleep(self._random.uniform(LEAST_LOAD, MOST_LOAD))
                server.process.kill()
                await server.process.wait()
                nursery.cancel_scope.cancel()
        await trio.to_thread.run_sync(self._read_committed)

    def _some_keys(self) -> Iterator[ImageKey]:
        while True:
            yield self._random.choice(self._keys)

    def _serving(self, limit: int) -> _Serving:
        environment = {
            "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{LOOPBACK}:{self._upstream}",
            "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
            "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
            "IMAGE_PROXY_CACHE__PATH": str(self._cache),
            "IMAGE_PROXY_CACHE__MAX_GB": repr(limit / 1024**3),
            "IMAGE_PROXY_CACHE__MEMORY_MB": "0",
            "IMAGE_PROXY_SERVER__ADMIN_TOKEN": TOKEN,
            # Workers would only have begun to start when the process is killed.
            "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
        }
        return _Serving(environment, self._log)

    async def _first_answer(self, server: Server) -> None:
        with trio.fail_after(60):
            while True:
                try:
                    if (await get(server.port, "/readyz")).status == 200:
                        return
                except OSError:
                    await trio.sleep(0.01)

    async def _load(self, port: int, keys: Iterator[ImageKey]) -> None:
        connection = Connection(port)
        try:
            for key in keys:
                try:
                    answer = await connection.get(image_url(key))
                except (OSError, trio.BrokenResourceError, h11.ProtocolError):
                    self.found.answers["cut by the kill"] += 1
                    return
                self.found.answers[str(answer.status)] += 1
                digest = hashlib.sha256(answer.body).digest()
                if answer.status == 200 and digest != self._right[key]:
                    raise BenchError(f"a wrong picture was served: {image_url(key)}")
        finally:
            connection.close()

    async def _purge(self, port: int) -> None:
        while True:
            await trio.sleep(PURGE_EVERY)
            blob = self._purged = self._random.choice(self._keys).blob
            body = json.dumps({"did": blob.did, "cid": blob.cid}).encode()
            head = (
                f"POST /admin/purge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            try:
                async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                    await stream.send_all(head.encode() + body)
                    answer = b"".join([bytes(part) async for part in stream])
            except (OSError, trio.BrokenResourceError):
                return
            if not answer.startswith(b"HTTP/1.1 200 "):  # the end of its process
                return
            self._purged = None

    def _read_committed(self) -> None:
        """What the index had committed when its process was killed."""
        index = Index(self._cache, "bench")
        with index.reading() as rows:
            self._committed = {record.file: record.digest for record in rows.least_used(100_000)}
            processes = rows.moving_processes()
            moves = [m for p in processes for m in (*rows.arrivals(p), *rows.removals(p))]
        index.close()
        self.found.rows.append(len(self._committed))
        self.found.unfinished.append(len(moves))

    def _examine(self) -> None:
        """Raises BenchError for anything that does not hold."""
        images = self._cache / IMAGES
        names = {_file_of(key): digest for key, digest in self._right.items()}
        there: dict[File, bytes] = {}
        for path in images.rglob("*"):
            if path.is_dir():
                continue
            file = File(path.parent.relative_to(images).as_posix(), path.name)
            there[file] = hashlib.sha256(path.read_bytes()).digest()
            if names.get(file) != there[file]:
                raise BenchError(f"{path} is not what was served for its key")
        left = [path for path in (self._cache / "writing").rglob("*") if path.is_file()]
        if left:
            raise BenchError(f"left half written: {left}")
        for file, digest in self._committed.items():
            # What was being purged at the kill is to go.
            if there.get(file) != digest and blob_of(file.folder, file.name) != self._purged:
                raise BenchError(f"{file.path} was committed, and is lost")
        folder = CacheFolder(
            self._cache, max_bytes=1 << 40, ttl_seconds=0, may_keep=lambda key: True
        )
        wrong = [each for shard in folder.shards() for each in _verify(folder, shard)]
        folder.close()
        if wrong:
            raise BenchError(f"files and index differ: {wrong}")
        self.found.files.append(len(there))


async def _has_no_purge(port: int) -> bool:
    return await metric(port, "imageproxy_purges_pending") == 0


class _Serving:
    """``python -m proxy serve`` for the time of the block."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        port = free_port()
        bind = {"IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}"}
        self._process = running("proxy", "serve", log=log, environment=environment | bind)
        self._port, self._log = port, log

    async def __aenter__(self) -> Server:
        return Server(await self._process.__aenter__(), self._port, self._log)

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._process.__aexit__(*error)  # type: ignore[arg-type]


def _file_of(key: ImageKey) -> File:
    return File(entry_folder(key), entry_name(key, Format.JPEG))


def _verify(folder: CacheFolder, shard: Path) -> list[tuple[str, Path]]:
    return folder.verify_shard(shard, repair=False)


def show(console: Console, found: Found) -> None:
    """The table."""
    table = report.table(f"{len(found.files)} kills under load", ["", report.SPREAD])
    table.add_row("files that were examined after a restart", report.spread(found.files, ".0f"))
    table.add_row("entries committed before a kill", report.spread(found.rows, ".0f"))
    table.add_row("moves that a kill cut short", report.spread(found.unfinished, ".0f"))
    table.add_row("kills that cut any short", str(sum(1 for each in found.unfinished if each)))
    table.add_row("restart to ready, s", report.spread(found.restarts, ".2f"))
    for name, count in sorted(found.answers.items()):
        table.add_row(f"answers: {name}", f"{count:,}")
    console.print(table)
    console.print("wrong pictures 0, half files 0, committed entries lost 0, differences 0")


def draw(found: Found, file: Path) -> str:
    """Entries, and moves cut short, over the kills."""
    figure = plot.figure_of(10, 3.5)
    if figure is None:
        return plot.MISSING
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    left.plot(found.rows, label="committed before the kill")
    left.plot(found.files, "--", label="found right after the restart")
    left.set_xlabel("kill")
    left.set_ylabel("entries")
    left.set_ylim(bottom=0)
    left.legend()
    right.hist(found.unfinished, bins=range(max(found.unfinished) + 2), align="left")
    right.set_xlabel("moves that a kill cut short")
    return plot.save(figure, file)


async def _main(kills: int, seed: int, folder: Path | None, picture: Path) -> int:
    console = report.output()
    settings = {"kills": kills, "seed": seed, "results": f"{BLOBS} blobs x {len(PRESETS)} presets"}
    report.print_settings(console, settings)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, report.progress(kills + 2) as bar:
        place = Path(temporary)
        async with upstream(place, blobs=BLOBS, size=SIZE, latency=0, bases=BLOBS) as manifest:
            loop = Loop(place, manifest.port, manifest.cids, seed)
            await loop.learn()
            _step(bar, "learnt what is right")
            for number in range(kills + 1):  # the last start examines the last kill
                await loop.round()
                _step(bar, f"kill {number + 1}, {median(loop.found.rows):.0f} entries")
        bar.stop()
    show(console, loop.found)
    console.print(draw(loop.found, picture))
    return 0


def _step(bar: Progress, text: str) -> None:
    bar.update(bar.task_ids[0], description=text)
    bar.advance(bar.task_ids[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.crash", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 kills")
    parser.add_argument("--kills", type=int, default=0, help="default 200")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of load and kills")
    parser.add_argument("--folder", type=Path, help="where the cache is made")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"default {PLOT}")
    options = parser.parse_args()
    chosen = options.kills or (10 if options.quick else 200)
    sys.exit(run(partial(_main, chosen, options.seed, options.folder, options.plot)))
