"""The ground of the day: a server of two workers, nginx before it, PDS and directory behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trio

from bench.client import get
from bench.cluster.disks import small_disk
from bench.cluster.ground import Node
from bench.cluster.members import TOKEN
from bench.cluster.relay import Relay
from bench.nginx import block_of, with_block, write_block
from bench.pictures import Pictures, Size
from bench.processes import (
    BenchError,
    Server,
    children,
    inherited,
    metric,
    started,
    until,
)
from bench.soak.log_files import LogFiles
from bench.soak.watch import Taken, taken, tasks_of
from bench.upstream import LOOPBACK
from proxy.model.presets import DEFAULT_PRESETS
from tests.devnet import (
    Devnet,
    DevnetUnavailable,
    blob_cid,
    create_account,
    create_post,
    run_devnet,
    upload_blob,
)
from tests.ports import free_port

WORKERS = 2
INSIDE = Path(__file__).with_name("inside")

CHANGED = "avatar_small"
"""The preset that the day changes, between these qualities."""
QUALITIES = (80, 60)

STOP_SECONDS = 60.0


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
NO_FAKETIME = "no libfaketime here; on Debian: apt install libfaketime"
NO_SMALL_DISK = "a small disk needs root"


@dataclass(slots=True)
class Ground:
    """Everything that runs.

    Attributes:
        folder: of this run.
        server: the first process of the server.
        front: nginx.
        directory: a relay before the PLC directory.
        log: the server's.
        has_small_disk: the cache is on one that can be filled.
        clock: the file that says what the server's clock is ahead by, where that can be said.
        version: of the configuration, in ``QUALITIES``.
    """

    folder: Path
    server: Server
    front: Server
    directory: Relay
    log: LogFiles
    has_small_disk: bool
    clock: Path | None
    version: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def workers(self) -> list[int]:
        """The processes that answer requests."""
        return [pid for pid in children(self.pid) if _is_worker(pid)]

    async def rest(self) -> Taken:
        """What the server takes; for a moment without requests."""
        pids = [self.pid, *self.workers()]
        tasks = await tasks_of(pids, self.folder / "tasks")
        return await trio.to_thread.run_sync(taken, self.pid, tasks)

    def change_preset(self, version: int) -> None:
        """Put another version in force."""
        self.version = version
        write_configuration(self.folder / "config.toml", version)
        self.server.process.send_signal(signal.SIGHUP)

    async def print_block(self) -> None:
        """Make nginx's block anew, and have nginx read it."""
        block = await _block(self.folder, self.server)
        write_block(self.folder / "nginx", block, self.front.port)
        self.front.process.send_signal(signal.SIGHUP)

    async def has_workers(self, gone: int) -> bool:
        """Whether there are as many as there should be, without one that was killed."""
        found = self.workers()
        return len(found) == WORKERS and gone not in found and await self.server.is_ready()

    def set_clock(self, days: int) -> None:
        """Put the server's clock ahead by some days."""
        assert self.clock is not None
        self.clock.write_text(f"+{days}d\n")

    def files(self) -> Counter[str]:
        """How many files are in the cache folder beside results: by name, or by their folder."""
        found = (path.relative_to(self.cache) for path in self.cache.rglob("*") if path.is_file())
        return Counter(path.parts[0] for path in found if path.parts[0] != "images")

    async def stop(self) -> int:
        """End the server; its exit code."""
        self.server.process.terminate()
        with trio.fail_after(STOP_SECONDS):
            return await self.server.process.wait()

    async def verify(self) -> str:
        """What ``cache verify`` finds wrong in the folder of a server that has stopped."""
        done = await trio.run_process(
            [sys.executable, "-m", "proxy", "cache", "verify"],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            env={**inherited(), "IMAGE_PROXY_CACHE__PATH": str(self.cache)},
        )
        return done.stdout.decode() if done.returncode else ""

    def leftovers(self) -> list[str]:
        """Files for a time that a server which has stopped left behind."""
        return sorted(each.name for each in (self.folder / "temporary").iterdir())

    async def entries(self) -> tuple[float, float]:
        """Entries and bytes of the cache."""
        names = ("imageproxy_cache_entries", "imageproxy_cache_bytes")
        entries, size = [await metric(self.server.port, name) for name in names]
        return entries, size


def _is_worker(pid: int) -> bool:
    try:
        return b"worker_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def write_configuration(file: Path, version: int) -> None:
    """A configuration of that version; all else is in the environment."""
    preset = DEFAULT_PRESETS[CHANGED].model_copy(update={"quality": QUALITIES[version]})
    given = preset.model_dump(include={"width", "height", "fit", "quality"})
    lines = (f"{name} = {value!r}" for name, value in given.items())
    unfinished = file.with_suffix(".new")
    unfinished.write_text("\n".join((f"[presets.{CHANGED}]", *lines, "")))
    unfinished.rename(file)


def environment_of(directory: int, fetch_seconds: float) -> dict[str, str]:
    """What the server has, and those that say what is right."""
    settings = {
        "IDENTITY__PLC_URL": f"http://{LOOPBACK}:{directory}",
        # Asked again and again, and failures soon forgotten: a day is short here.
        "IDENTITY__TTL": "5",
        "IDENTITY__NEGATIVE_TTL": "2",
        "FETCH__ALLOW_HTTP": "true",
        "FETCH__ALLOW_PRIVATE_HOSTS": "true",
        "FETCH__TIMEOUT": repr(fetch_seconds),
        "PROCESS__QUEUE_WAIT": "60",
        "SERVER__ADMIN_TOKEN": TOKEN,
        "LOG__FORMAT": "json",
    }
    return {f"IMAGE_PROXY_{name}": value for name, value in settings.items()}


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A picture at the PDS."""

    did: str
    cid: str


async def upload(devnet: Devnet, count: int, accounts: int, size: Size) -> list[Uploaded]:
    """Pictures that look different, in turn of so many new accounts."""
    pictures = await trio.to_thread.run_sync(Pictures, count, size, count)
    owners = [await create_account(devnet, f"someone{number}.test") for number in range(accounts)]
    blobs: list[list[dict[str, object]]] = [[] for _ in owners]
    found = []
    for number, cid in enumerate(pictures.cids):
        owner = number % accounts
        data = pictures.get(cid)
        assert data is not None
        blob = await upload_blob(devnet, owners[owner], data, "image/jpeg")
        blobs[owner].append(blob)
        found.append(Uploaded(owners[owner].did, blob_cid(blob)))
    for account, own in zip(owners, blobs, strict=True):
        await create_post(devnet, account, own)
    return found


@asynccontextmanager
async def open_devnet() -> AsyncIterator[tuple[Devnet, int]]:
    """The AT Protocol's own directory and PDS, and the port of the directory."""
    try:
        async with run_devnet() as devnet:
            yield devnet, urlsplit(devnet.plc_url).port or 80
    except DevnetUnavailable as error:
        raise BenchError(str(error)) from error


@asynccontextmanager
async def alone(
    folder: Path, directory: int, version: int, fetch_seconds: float
) -> AsyncIterator[Server]:
    """A server of one process without anything before it, of that version, to learn from."""
    name = f"alone{version}"
    file = folder / f"{name}.toml"
    write_configuration(file, version)
    environment = {**environment_of(directory, fetch_seconds), "IMAGE_PROXY_CONFIG": str(file)}
    node = Node(name, folder, environment)
    try:
        await node.start()
        await node.ready()
        assert node.server is not None
        yield node.server
    finally:
        await node.close()


@asynccontextmanager
async def open_ground(
    folder: Path, directory: int, cache_bytes: int, fetch_seconds: float
) -> AsyncIterator[Ground]:
    """All of it, ready, for the time of the block.

    Args:
        cache_bytes: the limit of the cache.
        fetch_seconds: after which a fetch is given up.
    """
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relay = Relay(directory)
        await nursery.start(relay.run)
        for name in ("tasks", "temporary"):
            (folder / name).mkdir()
        has_small_disk = os.geteuid() == 0
        if has_small_disk:
            await stack.enter_async_context(small_disk(folder / "cache"))
        config = folder / "config.toml"
        write_configuration(config, 0)
        port = free_port()
        environment = {
            **environment_of(relay.port, fetch_seconds),
            "IMAGE_PROXY_CONFIG": str(config),
            "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}",
            "IMAGE_PROXY_SERVER__WORKERS": str(WORKERS),
            "IMAGE_PROXY_CACHE__PATH": str(folder / "cache"),
            "IMAGE_PROXY_CACHE__MAX_GB": repr(cache_bytes / 1024**3),
            "IMAGE_PROXY_CACHE__MEMORY_MB": "1",
            "IMAGE_PROXY_CACHE__CLEANUP_INTERVAL_MINUTES": "1",
            "PYTHONPATH": str(INSIDE),
            "SOAK_TASKS": str(folder / "tasks"),
            "TMPDIR": str(folder / "temporary"),
        }
        clock = folder / "clock" if FAKETIME else None
        if clock is not None:
            clock.write_text("+0\n")
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_CACHE_DURATION": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        log = LogFiles(folder / "log")
        command = [sys.executable, "-m", "proxy", "serve"]
        process = await stack.enter_async_context(
            started(
                command,
                log=folder / "stdout",
                stderr=subprocess.PIPE,
                environment=environment,
            )
        )
        assert process.stderr is not None
        nursery.start_soon(log.write_from, process.stderr)
        server = Server(process, port, folder / "log/current")
        await server.ready()
        (folder / "nginx").mkdir()
        front = await stack.enter_async_context(
            with_block(folder / "nginx", await _block(folder, server))
        )
        await front.ready()
        yield Ground(folder, server, front, relay, log, has_small_disk, clock, 0, environment)


async def _block(folder: Path, server: Server) -> str:
    return await block_of(folder / "cache", server, IMAGE_PROXY_CONFIG=str(folder / "config.toml"))


async def all_show(port: int, path: str, etag: str, times: int) -> None:
    """Wait until so many answers in a row have an ETag."""
    seen = 0

    async def shown() -> bool:
        nonlocal seen
        answer = await get(port, path)
        seen = seen + 1 if answer.headers.get("etag") == etag else 0
        return seen >= times

    await until(shown, f"the new preset at port {port}")
