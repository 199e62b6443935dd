"""Whole misses of the service beside those of other image servers, in one run.

    python -m bench.service            # six presets, JPEG and WebP, beside Bluesky's image server
    python -m bench.service --quick    # two presets, one round
    python -m bench.service --write    # the same as the first, into docs/benchmarks.md
    python -m bench.service --port 9100 --peer imgproxy URL PID [--peer NAME URL PID ...]

One PDS, the AT Protocol's own, holds photographs (``bench.process_inputs``); every picture that is
asked for is one that nobody asked for before. The servers take turns on each preset and format,
with 16 clients; CPU time is that of a server's whole tree of processes, from before the first
request until it is at rest again. Ratios are of the same round. Exits with 1 when an answer was no
picture, whatever the times are.

A peer that somebody has runs already, is given by the pattern of its URLs on 127.0.0.1 and its
process id, and may keep no results. In a pattern, {source} is the URL of the photograph, quoted,
{file} its name on the port of --port, a server of nothing but the photographs; {preset}, {did},
{cid}, {width}, {height} (8192 for any), {fit} (cover or contain), {resize} (the same as fill or
fit), {quality} and {format} (jpeg or webp) are what they are called. A pattern with none of {fit},
{resize} and {preset} is asked for the presets that fit within a box alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from statistics import median
from urllib.parse import quote, urlsplit

import h11
import trio
from rich.console import Console
from rich.progress import TaskID

from bench import documented, plot, process_inputs, report
from bench.client import Connection
from bench.pictures import with_comment
from bench.processes import (
    ROOT,
    BenchError,
    Server,
    cpu_at_rest,
    proxy,
    pss_bytes,
    run,
    started,
)
from bench.upstream import LOOPBACK
from proxy.model.presets import DEFAULT_PRESETS
from tests.devnet import (
    Account,
    Devnet,
    DevnetUnavailable,
    blob_cid,
    create_account,
    create_post,
    ensure_installed,
    run_devnet,
    upload_blob,
)
from tests.ports import free_port

PRESETS = ("avatar_small", "avatar", "banner", "embed_thumbnail", "content_preview", "content_full")
FORMATS = ("jpeg", "webp")
MAGIC = {"jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}

OURS = "ours"
CONSTANT = "ours, pixels a constant"
BLUESKY = "Bluesky"

ALIKE = "/img/{preset}/plain/{did}/{cid}@{format}"
"""The grammar of Bluesky's URLs, and of ours."""

PATIENT = {"IMAGE_PROXY_PROCESS__QUEUE_WAIT": "60"}
"""On a busy machine too, all clients wait for their pictures."""

ANY_HEIGHT = 8192
"""What some take no 0 for."""

CLIENTS = 16
RATES = ("avatar_small", "content_preview")
"""Presets whose misses a second are shown."""

PLOT = Path("build/bench-service.svg")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of all cells; a cell is a server, a preset and a format.
        misses: of a cell in a round.
    """

    presets: Sequence[str] = PRESETS
    rounds: int = 5
    misses: int = 48


FULL = Plan()
QUICK = Plan(RATES, rounds=1, misses=16)


@dataclass(frozen=True, slots=True)
class Source:
    """A photograph at the PDS."""

    did: str
    cid: str
    url: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """A server under load.

    Attributes:
        pattern: of its URLs; see above.
        pid: of its first process.
        presets, formats: what it is asked for.
        forget: called before each cell, so that what was asked for is not kept.
    """

    name: str
    pattern: str
    pid: int
    presets: Sequence[str] = PRESETS
    formats: Sequence[str] = FORMATS
    forget: Callable[[], None] = lambda: None

    def url(self, source: Source, name: str, format_: str) -> str:
        """Of a result."""
        preset = DEFAULT_PRESETS[name]
        return self.pattern.format(
            preset=name,
            did=source.did,
            cid=source.cid,
            source=quote(source.url, safe=""),
            file=f"{source.cid}.jpg",
            format=format_,
            height=preset.height or ANY_HEIGHT,
            resize="fill" if preset.fit == "cover" else "fit",
            **preset.model_dump(include={"width", "fit", "quality"}),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """What a server did for a preset and a format in a round.

    Attributes:
        cpu: seconds a miss, of all its processes.
        rate: misses a second.
        size: bytes of a result.
    """

    cpu: float
    rate: float
    size: float


Key = tuple[str, str, str]
"""A peer's name, a preset and a format."""


@dataclass(slots=True)
class Found:
    """All of it: a cell for each round, the memory of each peer after that, and what was wrong."""

    cells: dict[Key, list[Cell]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    def ratios(self, preset: str, format_: str, peer: str) -> list[float]:
        """CPU of ours over that of ``peer``, by round."""
        ours, theirs = (self.cells.get((name, preset, format_), ()) for name in (OURS, peer))
        return [a.cpu / (b.cpu or math.nan) for a, b in zip(ours, theirs, strict=False)]

    def misses(self, peer: str, misses: int) -> int:
        """How many a peer answered."""
        return misses * sum(len(found) for key, found in self.cells.items() if key[0] == peer)


async def measure(peers: Sequence[Peer], sources: Sequence[Source], plan: Plan) -> Found:
    """All cells, the servers in another order each round."""
    found = Found()
    kinds = [*itertools.product(plan.presets, FORMATS)]
    steps = plan.rounds * sum(_asks(peer, *kind) for peer in peers for kind in kinds)
    with report.progress(steps) as bar:
        for peer in peers:  # codecs, connections and the account are not what is measured
            kind = peer.presets[0], peer.formats[0]
            await _ask_all([peer.url(each, *kind) for each in sources[:CLIENTS]], Counter())
        for number in range(plan.rounds):
            first = CLIENTS + number * plan.misses
            round_ = sources[first : first + plan.misses]
            turn = number % len(peers)
            for kind in kinds:
                for peer in (*peers[turn:], *peers[:turn]):
                    if not _asks(peer, *kind):
                        continue
                    bar.update(TaskID(0), description=f"{' '.join(kind)}: {peer.name}")
                    cell = await _cell(peer, round_, *kind, found.faults)
                    found.cells.setdefault((peer.name, *kind), []).append(cell)
                    bar.advance(TaskID(0))
    found.memory = {peer.name: pss_bytes(peer.pid) for peer in peers}
    return found


def _asks(peer: Peer, preset: str, format_: str) -> bool:
    return preset in peer.presets and format_ in peer.formats


async def _cell(
    peer: Peer, sources: Sequence[Source], preset: str, format_: str, faults: Counter[str]
) -> Cell:
    peer.forget()
    urls = [peer.url(source, preset, format_) for source in sources]
    before = await cpu_at_rest(peer.pid)
    began = time.perf_counter()
    wrong: Counter[str] = Counter()
    bodies = await _ask_all(urls, wrong)
    took = time.perf_counter() - began
    cpu = await cpu_at_rest(peer.pid) - before
    wrong.update("no picture" for body in bodies if not body.startswith(MAGIC[format_]))
    faults.update({f"{peer.name}, {preset} {format_}: {why}": n for why, n in wrong.items()})
    good = [body for body in bodies if body.startswith(MAGIC[format_])]
    count = len(good) or math.nan  # what was refused is no miss
    return Cell(cpu / count, count / took, sum(map(len, good)) / count)


async def _ask_all(urls: Sequence[str], faults: Counter[str]) -> list[bytes]:
    """The bodies of the answers; each client asks for the next one that nobody asked for."""
    waiting = iter(urls)
    bodies: list[bytes] = []

    async def client() -> None:
        connection = Connection(urlsplit(urls[0]).port or 80)
        try:
            for url in waiting:
                parts = urlsplit(url)
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                answer = await connection.get(target)
                if answer.status != HTTPStatus.OK:
                    faults[f"status {answer.status}"] += 1
                bodies.append(answer.body)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError) as error:
            faults[type(error).__name__] += 1
        finally:
            connection.close()

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(client)
    return bodies


# The servers


@asynccontextmanager
async def _servers(plan: Plan, folder: Path) -> AsyncIterator[tuple[list[Peer], list[Source]]]:
    """Ours, with and without pixels, and Bluesky's, over a PDS that has the sources."""
    try:
        installed = await trio.to_thread.run_sync(ensure_installed)
        async with AsyncExitStack() as stack:
            devnet = await stack.enter_async_context(run_devnet())
            account = await create_account(devnet, "alice.test")
            sources = await _upload(devnet, account, CLIENTS + plan.rounds * plan.misses)
            peers = []
            directory = urlsplit(devnet.plc_url).port or 80
            for name, module in ((OURS, "proxy"), (CONSTANT, "bench.constant_pixels")):
                server = await stack.enter_async_context(
                    proxy(folder, name.split()[-1], directory, ROOT, module, **PATIENT)
                )
                pid = server.process.pid
                kinds = (PRESETS, FORMATS) if name == OURS else (RATES[:1], FORMATS[:1])
                peers.append(Peer(name, _at(server, ALIKE), pid, *kinds))
                await server.ready()
            cache = folder / "bluesky-cache"
            theirs = await stack.enter_async_context(
                _bluesky(installed, folder, cache, devnet, account)
            )
            forget = partial(_emptied, cache)
            peers.append(Peer(BLUESKY, _at(theirs, ALIKE), theirs.process.pid, forget=forget))
            yield peers, sources
    except DevnetUnavailable as error:
        raise BenchError(str(error)) from error


def peer_of(name: str, pattern: str, pid: int) -> Peer:
    """One that somebody has."""
    crops = any(word in pattern for word in ("{fit}", "{resize}", "{preset}"))
    able = [each for each in PRESETS if crops or DEFAULT_PRESETS[each].fit == "contain"]
    return Peer(name, pattern, pid, able)


def _at(server: Server, pattern: str) -> str:
    return f"http://{LOOPBACK}:{server.port}{pattern}"


def _emptied(folder: Path) -> None:
    # Its keys do not have the format.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


async def _upload(devnet: Devnet, account: Account, count: int) -> list[Source]:
    """Photographs that differ by a comment alone, so that each is a blob of its own."""
    files, _ = await trio.to_thread.run_sync(process_inputs.photographs)
    sources, blobs = [], []
    for number in range(count):
        data = with_comment(files[number % len(files)].read_bytes(), f"photograph {number}")
        blob = await upload_blob(devnet, account, data, "image/jpeg")
        cid = blob_cid(blob)
        url = f"{devnet.pds_url}/xrpc/com.atproto.sync.getBlob?did={account.did}&cid={cid}"
        sources.append(Source(account.did, cid, url, data))
        blobs.append(blob)
    await create_post(devnet, account, blobs)
    return sources


@asynccontextmanager
async def _bluesky(
    installed: Path, folder: Path, cache: Path, devnet: Devnet, account: Account
) -> AsyncIterator[Server]:
    """Bluesky's image server with our presets."""
    port, log = free_port(), folder / "bluesky.log"
    presets = {
        name: (preset.width, preset.height, preset.fit, preset.quality)
        for name, preset in DEFAULT_PRESETS.items()
        if name in PRESETS
    }
    settings = {
        "port": port,
        "cache": str(cache),
        "did": account.did,
        "pds": devnet.pds_url,
        "presets": presets,
    }
    node = shutil.which("node")
    assert node is not None  # the PDS runs with it
    command = [node, str(Path(__file__).with_name("bluesky.mjs")), json.dumps(settings)]
    async with started(command, log=log, folder=installed) as process:
        server = Server(process, port, log)
        await server.ready()
        yield server


@asynccontextmanager
async def _files(sources: Sequence[Source], port: int | None) -> AsyncIterator[None]:
    """A server of the photographs by name, for peers that fetch from nowhere else."""
    if port is None:
        yield
        return
    by_path = {f"/{source.cid}.jpg": source.data for source in sources}

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = bytearray()
            async for received in stream:
                head += received
                while (end := head.find(b"\r\n\r\n")) >= 0:
                    data = by_path.get(head.split(b" ", 2)[1].decode(), b"")
                    del head[: end + 4]
                    status = "200 OK" if data else "404 Not Found"
                    lines = f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n"
                    await stream.send_all(
                        lines.encode() + b"Content-Type: image/jpeg\r\n\r\n" + data
                    )

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve, port, host=LOOPBACK))
        yield
        nursery.cancel_scope.cancel()


# What is shown


def _names(found: Found) -> list[str]:
    return [name for name in dict.fromkeys(key[0] for key in found.cells) if name != CONSTANT]


def cpu_rows(found: Found) -> Iterator[list[str]]:
    """CPU ms a miss of each server, and ours over each of the others."""
    names = _names(found)
    for preset, format_ in dict.fromkeys(key[1:] for key in found.cells):
        row = [f"`{preset}` {format_}"]
        for name in names:
            cells = found.cells.get((name, preset, format_), ())
            row.append(report.spread(cell.cpu * 1000 for cell in cells))
        row += [
            report.spread(found.ratios(preset, format_, name), ".2f")
            for name in names
            if name != OURS
        ]
        yield row


def cpu_columns(found: Found) -> list[str]:
    """Of ``cpu_rows``."""
    names = _names(found)
    return ["CPU ms a miss", *names, *(f"{OURS} / {name}" for name in names if name != OURS)]


def service_rows(found: Found, plan: Plan) -> Iterator[list[str]]:
    """Misses a second, and memory, of each server."""
    for name in (*_names(found), CONSTANT):
        cells = (found.cells.get((name, preset, "jpeg"), ()) for preset in RATES)
        rates = [report.spread((cell.rate for cell in each), ".0f") for each in cells]
        memory = f"{found.memory[name] / 1e6:.0f} ({found.misses(name, plan.misses)})"
        yield [name, *rates, memory]


SERVICE_COLUMNS = ["", *(f"`{name}` JPEG, misses/s" for name in RATES), "PSS MB (after misses)"]


def of_pixels(found: Found) -> str:
    """The rate over that without pixels, in a sentence."""
    ours, bare = (found.cells[name, RATES[0], "jpeg"] for name in (OURS, CONSTANT))
    share = report.spread(
        (a.rate / (b.rate or math.nan) for a, b in zip(ours, bare, strict=True)), ".2f"
    )
    return (
        f"One process, `{RATES[0]}`: misses a second over those with pixels replaced by a "
        f"constant: {share}; the main process and its workers then take "
        f"{median(cell.cpu for cell in bare) * 1000:.1f} ms of CPU a miss."
    )


def markdown(found: Found, plan: Plan) -> str:
    """The figures as they are in the document."""
    return "\n\n".join(
        (
            f"{report.machine()}; {plan.rounds} rounds of {plan.misses} misses a cell, "
            f"{CLIENTS} clients: {report.SPREAD} of the rounds.",
            documented.table(cpu_columns(found), cpu_rows(found)),
            documented.table(SERVICE_COLUMNS, service_rows(found, plan)),
            of_pixels(found),
        )
    )


def _print(console: Console, found: Found, plan: Plan) -> None:
    costs, every = 1 + len(_names(found)), [*cpu_rows(found)]
    first, *rest = cpu_columns(found)
    for title, columns, rows in (
        (
            f"Whole misses: {report.SPREAD} of the rounds",
            [first, *rest[: costs - 1]],
            (row[:costs] for row in every),
        ),
        (
            "Over the peer in the same round",
            ["CPU", *rest[costs - 1 :]],
            ([row[0], *row[costs:]] for row in every),
        ),
        ("The services", SERVICE_COLUMNS, service_rows(found, plan)),
    ):
        table = report.table(title, columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(of_pixels(found))


def _draw(file: Path, found: Found) -> str:
    kinds = [*dict.fromkeys(key[1:] for key in found.cells)]
    groups: dict[str, Mapping[str, Sequence[float]]] = {
        f"CPU of a miss over that of {name}": {
            " ".join(kind): found.ratios(*kind, name)
            for kind in kinds
            if (name, *kind) in found.cells
        }
        for name in _names(found)
        if name != OURS
    }
    return plot.draw_groups(file, groups)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two presets, one round")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument("--misses", type=int, help=f"of a cell; default {FULL.misses}")
    parser.add_argument("--write", action="store_true", help="the figures into the document")
    parser.add_argument(
        "--peer", nargs=3, action="append", default=[], metavar=("NAME", "URLPATTERN", "PID")
    )
    parser.add_argument("--port", type=int, help="serve the photographs as /FILE there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"default {PLOT}, quick none")
    return parser.parse_args()


async def _main() -> int:
    given = _arguments()
    plan = QUICK if given.quick else FULL
    plan = Plan(plan.presets, given.rounds or plan.rounds, given.misses or plan.misses)
    console = report.output()
    with tempfile.TemporaryDirectory() as name:
        async with _servers(plan, Path(name)) as (peers, sources), _files(sources, given.port):
            others = [peer_of(name, pattern, int(pid)) for name, pattern, pid in given.peer]
            found = await measure([*peers, *others], sources, plan)
    report.print_settings(console, {"rounds": plan.rounds, "misses of a cell": plan.misses})
    _print(console, found, plan)
    if given.plot or not given.quick:
        console.print(_draw(given.plot or PLOT, found))
    if given.write:
        console.print(documented.write("service", markdown(found, plan)))
    return report.verdict(console, [f"{fault} ({n} times)" for fault, n in found.faults.items()])


if __name__ == "__main__":
    sys.exit(run(_main))
