"""The way of a request: the files and functions of ``proxy/`` that it passes.

The application runs in this process, with an upstream on loopback, and gets its requests over ASGI:
Hypercorn and its connections are not part of the count. Each function counts once if it is called
between the request and its answer, in any task or thread; for a miss, until the result is on disk.

- A comprehension counts where Python runs it as a function. Python 3.12 and later do so for fewer
  of them, so compare figures of one Python version.
- Chores do not count: the recorder watches the idle service first to learn which tasks do them, and
  drops what is not called for every one of a few requests of a kind.
- The sandboxed worker processes do not count, only what talks to them.
- Requests of each kind come before those that count, so that imports, connections and parsed paths
  are there.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import trio
from quart_trio import QuartTrio
from rich.console import Console

import proxy
from bench import report
from bench.pictures import Pictures, Size
from bench.upstream import LOOPBACK, Upstream, account

PROXY = Path(proxy.__file__).parent

PRESET = "avatar"
SIZE = Size(400, 300)
WARM = 3
"""Requests of each kind before those that count."""

COUNTED = 3
"""Requests of each kind: a chore that runs every few seconds does not meet all of them."""

IDLE_SECONDS = 1.0
"""Long enough for every chore that may meet all of them."""

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Function:
    """A function, or what Python runs as one.

    Attributes:
        file: within ``proxy/``.
        line: tells functions of one name apart.
    """

    file: str
    name: str
    line: int


class Recorder:
    """Notes calls of the proxy's functions, in threads started after it too."""

    def __init__(self) -> None:
        self._found: dict[Function, None] | None = None
        self._is_learning = False
        # Set in the context of a task, and with it in the threads where the task has work done.
        self._is_chore = ContextVar("is_chore", default=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be called at each call, for the time of the block."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    async def learn_chores(self) -> None:
        """Find the tasks that run while there is no request: what they call never counts."""
        self._is_learning = True
        await trio.sleep(IDLE_SECONDS)
        self._is_learning = False

    @contextmanager
    def recording(self) -> Iterator[dict[Function, None]]:
        """Note the calls of the block, each function once, in the order of the first calls."""
        found: dict[Function, None] = {}
        self._found = found
        try:
            yield found
        finally:
            self._found = None

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or not (self._is_learning or self._found is not None):
            return
        code = frame.f_code
        file = Path(code.co_filename)
        if not file.is_relative_to(PROXY) or code.co_name == "<module>":
            return
        if self._is_learning:
            # Python calls this in the context of what it interrupts.
            self._is_chore.set(True)
        elif self._found is not None and not self._is_chore.get():
            name = str(file.relative_to(PROXY))
            self._found.setdefault(Function(name, code.co_qualname, code.co_firstlineno))


@dataclass(frozen=True, slots=True)
class Upstreams:
    """What there is to ask for, and the configuration of a proxy that can."""

    config: proxy.Config
    paths: list[str]


@asynccontextmanager
async def _upstream(folder: Path) -> AsyncIterator[Upstreams]:
    pictures = Pictures(WARM + COUNTED, SIZE)
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    url = f"http://{LOOPBACK}:{listeners[0].socket.getsockname()[1]}"
    upstream = Upstream(pictures, 0, lambda did: url)
    config = proxy.Config.model_validate(
        {
            "identity": {"plc_url": url},
            "fetch": {"allow_http": True, "allow_private_hosts": True},
            "cache": {"path": folder},
        }
    )
    paths = [
        f"/img/{PRESET}/plain/{account(number)}/{cid}" for number, cid in enumerate(pictures.cids)
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, upstream.serve, listeners))
        yield Upstreams(config, paths)
        nursery.cancel_scope.cancel()


async def _ask(app: QuartTrio, path: str) -> str:
    """GET, over ASGI: the ``X-Cache`` of the answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return await trio.sleep_forever()

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"accept", b"image/*")],
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    headers: dict[bytes, bytes] = dict(sent[0]["headers"])
    return headers.get(b"x-cache", b"%d" % sent[0]["status"]).decode()


async def _until_written(folder: Path, count: int) -> None:
    def written() -> int:
        files = (folder / "images").rglob("*@*")
        return sum(not each.name.startswith(".") for each in files)

    with trio.fail_after(PATIENCE):
        while written() < count:  # noqa: ASYNC110  # a file tells nobody that it appears
            await trio.sleep(0.01)
    # What follows the file: the index hears of it.
    await trio.sleep(IDLE_SECONDS / 4)


async def _expect(app: QuartTrio, path: str, state: str) -> None:
    found = await _ask(app, path)
    if found != state:
        raise SystemExit(f"{path} was to be a {state}, and is: {found}")


async def ways(folder: Path, recorder: Recorder) -> dict[str, list[Function]]:
    """The way of a request of each kind."""
    misses, memory_hits, disk_hits = [], [], []
    async with _upstream(folder) as upstream:
        path = upstream.paths[-1]
        app = proxy.create_app(upstream.config)
        async with app.test_app():
            for number, each in enumerate(upstream.paths):
                if number == WARM:
                    await recorder.learn_chores()
                with recorder.recording() as found:
                    await _expect(app, each, "miss")
                    await _until_written(folder, number + 1)
                misses.append(found)
            for _ in range(WARM + COUNTED):
                with recorder.recording() as found:
                    await _expect(app, path, "hit")
                memory_hits.append(found)
        cache = upstream.config.cache.model_copy(update={"memory_mb": 0})
        app = proxy.create_app(upstream.config.model_copy(update={"cache": cache}))
        async with app.test_app():
            await recorder.learn_chores()
            for _ in range(WARM + COUNTED):
                with recorder.recording() as found:
                    await _expect(app, path, "hit")
                disk_hits.append(found)
    kinds = {"memory hit": memory_hits, "disk hit": disk_hits, "miss": misses}
    return {kind: _common(records[WARM:]) for kind, records in kinds.items()}


def _common(records: Sequence[Collection[Function]]) -> list[Function]:
    """What is in each of them, in the order of the first."""
    return [each for each in records[0] if all(each in other for other in records)]


def files_of(way: Iterable[Function]) -> set[str]:
    """The files that a way passes."""
    return {each.file for each in way}


def _print(console: Console, found: dict[str, list[Function]], *, in_full: bool) -> None:
    table = report.table("The way of a request through proxy/", ("", "files", "functions"))
    for kind, way in found.items():
        table.add_row(kind, str(len(files_of(way))), str(len(way)))
    console.print(table)
    if not in_full:
        return
    for kind, way in found.items():
        console.print(f"\n{kind}\n", style="bold")
        for file, functions in groupby(way, lambda each: each.file):
            console.print(f"{file}", markup=False)
            for each in functions:
                console.print(f"    {each.name}", markup=False)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.way", description=__doc__)
    parser.add_argument("--list", action="store_true", help="each file and function, in order")
    parser.add_argument("--of", type=Path, metavar="FOLDER", help="another checkout, in its place")
    given = parser.parse_args()
    if given.of is not None:
        # The same program, with the packages of that checkout: this folder is not on its path.
        command = [sys.executable, "-P", __file__, *(["--list"] if given.list else [])]
        environment = {**os.environ, "PYTHONPATH": str(given.of.resolve())}
        return subprocess.run(command, env=environment, check=False).returncode
    recorder = Recorder()
    # Log lines are a part of the way, but nothing to read here.
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stderr(io.StringIO()),
        recorder.installed(),
    ):
        found = trio.run(ways, Path(folder), recorder)
    _print(report.output(), found, in_full=given.list)
    return 0


if __name__ == "__main__":
    sys.exit(main())
