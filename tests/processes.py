"""The program in processes of its own, and an upstream on loopback sockets for it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import h11
import trio

from proxy.model.identifiers import Cid, Did
from tests.fakes.network import Request, Site
from tests.fakes.sites import FakePds, FakePlc, document, new_plc_did, pds_service

ROOT = Path(__file__).resolve().parents[1]

PATIENCE = 60.0
"""Seconds after which a process that does not start or end fails a test; a second is usual."""

T = TypeVar("T")
R = TypeVar("R")


def cache_folder() -> Path:
    """Where tests and benchmarks keep what they install: ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atproto-imageproxy"


class Held:
    """Answers that wait.

    Attributes:
        seen: set when a request is there.
        released: set it, and they go on.
        abandoned: set when the proxy has closed a connection that waited.
    """

    def __init__(self) -> None:
        self.seen = trio.Event()
        self.released = trio.Event()
        self.abandoned = trio.Event()


class Upstream:
    """A PLC directory and a PDS on loopback, and the environment of a proxy that asks them."""

    def __init__(self) -> None:
        self.plc = FakePlc("127.0.0.1", scheme="http")
        self.pds = FakePds("127.0.0.1", scheme="http")
        self.blobs_asked_for = 0
        self._held: Held | None = None

    def add_blob(self, data: bytes, mime: str = "image/jpeg") -> tuple[Did, Cid]:
        """A blob of a new account."""
        did = new_plc_did()
        self.pds.add_account(did)
        self.plc.documents[did] = document(did, pds_service(self.pds.url))
        return did, self.pds.add_blob(did, data, mime)

    def hold_blobs(self) -> Held:
        """Have every answer with a blob wait from now on."""
        self._held = Held()
        return self._held

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Variables by their names after ``IMAGE_PROXY_``, as in ``FETCH__WORKERS="1"``."""
        own = {
            "IDENTITY__PLC_URL": self.plc.url,
            "FETCH__ALLOW_HTTP": "true",
            "FETCH__ALLOW_PRIVATE_HOSTS": "true",
            "CACHE__PATH": str(cache),
            **more,
        }
        return {f"IMAGE_PROXY_{name}": value for name, value in own.items()}

    async def serve(self, site: Site, nursery: trio.Nursery) -> None:
        """Have ``site`` listen on a free port, which becomes its own."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        site.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, partial(self._converse, site), listeners)

    async def _converse(self, site: Site, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            async for data in stream:
                connection.receive_data(bytes(data))
                event = connection.next_event()
                if isinstance(event, h11.Request):
                    # Without a body, so this was all of it.
                    await self._answer(site, event.target.decode(), stream)
                    return
        except trio.BrokenResourceError:
            return

    async def _answer(self, site: Site, target: str, stream: trio.SocketStream) -> None:
        if site is self.pds:
            self.blobs_asked_for += 1
            if self._held is not None and not await _passed(self._held, stream):
                return
        response = site.answer(Request(target, {}))
        await stream.send_all(response.head(("Connection", "close")) + response.body)


async def _passed(held: Held, stream: trio.SocketStream) -> bool:
    """Whether the answer may go on; not where nobody waits for it any more."""
    held.seen.set()

    async def watch() -> None:
        assert await stream.receive_some() == b""
        held.abandoned.set()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await held.released.wait()
        nursery.cancel_scope.cancel()
    return not held.abandoned.is_set()


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Runs an upstream on free ports while the block runs."""
    async with trio.open_nursery() as nursery:
        made = Upstream()
        await made.serve(made.plc, nursery)
        await made.serve(made.pds, nursery)
        yield made
        nursery.cancel_scope.cancel()


class Process:
    """A process under way.

    Attributes:
        lines: what it has written, standard output and error in one.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._news = trio.Event()
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def read(self) -> None:
        """Take in what it writes, until it ends."""
        assert self._process.stdout is not None
        rest = b""
        async for chunk in self._process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._news.set()
            self._news = trio.Event()
        self.lines += [rest.decode()] if rest else []

    async def line_with(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first line that ``pattern`` is found in, after so many of them, once there is one."""
        with trio.fail_after(PATIENCE):
            while True:
                found = [each for line in self.lines if (each := re.search(pattern, line))]
                if len(found) > after:
                    return found[after]
                await self._news.wait()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it, and it alone, a signal."""
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for its end; all that it wrote is then among ``lines``."""
        with trio.fail_after(PATIENCE):
            code = await self._process.wait()
            # Not until the end of the pipe: a child of its own may have it open.
            while self._unread():
                await self._news.wait()
        return code

    def _unread(self) -> bool:
        """Whether there is something in the pipe."""
        assert isinstance(self._process.stdout, trio.lowlevel.FdStream)
        waiting = fcntl.ioctl(self._process.stdout.fileno(), termios.FIONREAD, bytes(4))
        return any(waiting)


class Server(Process):
    """A proxy that serves.

    Attributes:
        port: on 127.0.0.1.
    """

    port = 0

    async def started(self, workers: int) -> None:
        """Wait until every worker serves."""
        found = await self.line_with(r"Running on https?://127\.0\.0\.1:(\d+)")
        self.port = int(found[1])
        with trio.fail_after(PATIENCE):
            while len(self.workers) < workers:
                await self._news.wait()

    @property
    def workers(self) -> set[int]:
        """The ids of the processes that said that they serve."""
        # Our own line, and that of Hypercorn's own command.
        pattern = r'(?:"pid":|^\S+ \S+ \S+ \[)(\d+)\b.*Running on'
        return {int(pid) for pid in re.findall(pattern, self.text, re.MULTILINE)}

    async def get(
        self, target: str, *headers: tuple[str, str], method: str = "GET", body: bytes = b""
    ) -> Reply:
        """One request over a connection of its own."""
        async with Client(self.port) as client:
            await client.send(target, *headers, method=method, body=body)
            return await client.reply()


@asynccontextmanager
async def run(arguments: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """``python`` with ``arguments``, ended with the block together with its own children."""
    async with _opened([sys.executable, *arguments], environment, Process) as process:
        yield process


@asynccontextmanager
async def serve(
    arguments: Sequence[str], environment: Mapping[str, str], *, workers: int = 1
) -> AsyncIterator[Server]:
    """``python`` with ``arguments`` that make a server of it, once it serves."""
    command = [sys.executable, *arguments]
    async with started(command, environment, workers=workers) as server:
        yield server


@asynccontextmanager
async def started(
    command: Sequence[str], environment: Mapping[str, str], *, workers: int = 1
) -> AsyncIterator[Server]:
    """A command that makes a server of ours, once it serves."""
    async with _opened(command, environment, Server) as server:
        await server.started(workers)
        yield server


@asynccontextmanager
async def listening(command: Sequence[str], port: int) -> AsyncIterator[Server]:
    """A server that is not ours, once it listens on ``port``."""
    async with _opened(command, {}, Server) as server:
        server.port = port
        await until_accepted(port)
        yield server


def imageproxy(*arguments: str) -> list[str]:
    """The arguments of ``python`` that run this command of ours."""
    return ["-m", "proxy", *arguments]


SERVE = imageproxy("serve", "--bind", "127.0.0.1:0")


def own_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the settings of a proxy, and with ``more``."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("IMAGE_PROXY_")}
    return inherited | dict(more) | {"PYTHONUNBUFFERED": "1"}


def what_cannot_start(folder: Path) -> dict[str, str]:
    """Variables of a server whose application fails when it starts, and not before.

    It finds a release of OpenTelemetry of another age: its modules, and not what is wanted of them.
    """
    for name in ("sdk/trace", "exporter/otlp/proto/http/trace_exporter"):
        package = folder / "opentelemetry" / name
        package.mkdir(parents=True)
        for each in (package, *package.parents):
            if each == folder:
                break
            (each / "__init__.py").touch()
    endpoint = "http://127.0.0.1:9/v1/traces"
    return {"PYTHONPATH": str(folder), "IMAGE_PROXY_TRACE__ENDPOINT": endpoint}


P = TypeVar("P", bound=Process)


@asynccontextmanager
async def _opened(
    command: Sequence[str], environment: Mapping[str, str], kind: Callable[[trio.Process], P]
) -> AsyncIterator[P]:
    process = await trio.lowlevel.open_process(
        command,
        cwd=ROOT,
        env=own_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Its id is then also that of the group that its own children belong to.
        start_new_session=True,
    )
    try:
        async with trio.open_nursery() as nursery:
            running = kind(process)
            nursery.start_soon(running.read)
            yield running
            nursery.cancel_scope.cancel()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


@dataclass(frozen=True)
class Reply:
    """An answer; ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A connection to a port on 127.0.0.1.

    Args:
        receive_buffer: bytes; a small one makes a client that soon stops taking.

    Raises:
        OSError: nobody listens there.
    """

    stream: trio.SocketStream

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self._port = port
        self._receive_buffer = receive_buffer
        self._connection = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Self:
        socket = trio.socket.socket()
        if self._receive_buffer is not None:
            # Before the connection: it decides how much the other side may send ahead.
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, self._receive_buffer)
        try:
            await socket.connect(("127.0.0.1", self._port))
        except BaseException:
            socket.close()
            raise
        self.stream = trio.SocketStream(socket)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    @property
    def is_kept(self) -> bool:
        """Whether it takes a further request: not once an answer has said ``Connection: close``."""
        return self._connection.our_state in (h11.IDLE, h11.DONE)

    async def send(
        self, target: str, *headers: tuple[str, str], method: str = "GET", body: bytes = b""
    ) -> None:
        """Send a request."""
        length = [("Content-Length", str(len(body)))] if body else []
        lines = [("Host", "proxy.test"), *length, *headers]
        request = h11.Request(
            method=method,
            target=target,
            headers=[(name.encode(), value.encode("latin-1")) for name, value in lines],
        )
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
        data = b""
        for event in (request, h11.Data(body), h11.EndOfMessage()):
            data += self._connection.send(event) or b""
        await self.stream.send_all(data)

    async def reply(self) -> Reply:
        """The answer, whole.

        Raises:
            h11.RemoteProtocolError: the connection ended before it.
        """
        with trio.fail_after(PATIENCE):
            response: h11.Response | None = None
            body = b""
            while True:
                match self._connection.next_event():
                    case h11.Response() as response:
                        pass
                    case h11.Data() as data:
                        body += data.data
                    case h11.EndOfMessage():
                        break
                    case h11.NEED_DATA:
                        self._connection.receive_data(await self._receive())
                    case event:
                        raise AssertionError(f"no answer: {event}")
        assert response is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        assert len(headers) == len(response.headers), f"a header came twice: {response.headers}"
        return Reply(response.status_code, headers, body)

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""


def files_in(cache: Path) -> list[Path]:
    """The results that a cache folder has, also while folders come and go: ``rglob`` fails then."""
    found = os.walk(cache / "images")
    return [Path(folder, name) for folder, _, names in found for name in names]


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what tells nobody when it happens: files, threads, other processes."""
    with trio.fail_after(PATIENCE):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await trio.sleep(0.005)


async def until_accepted(port: int) -> None:
    """Wait until somebody listens there."""

    async def accepted() -> bool:
        try:
            async with Client(port):
                return True
        except ConnectionRefusedError:
            return False

    await until(accepted)


async def until_refused(port: int) -> None:
    """Wait until nobody listens there any more."""

    async def refused() -> bool:
        try:
            async with Client(port):
                return False
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the listener closed with this one in its queue
            return False

    await until(refused)


class Background(Generic[T]):
    """A Trio of its own on a thread, which holds a context manager open."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def run(self, work: Callable[..., Awaitable[R]], *arguments: Any) -> R:
        """Run ``work`` there, and wait for it."""
        return trio.from_thread.run(work, *arguments, trio_token=self._token)

    def _main(self, manager: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        try:
            trio.run(self._hold, manager)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _hold(self, manager: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._finished = trio.Event()
        async with manager() as self.value:
            self._ready.set()
            await self._finished.wait()


@contextmanager
def in_background(
    manager: Callable[[], AbstractAsyncContextManager[T]],
) -> Iterator[Background[T]]:
    """Hold ``manager`` open for longer than one test: its value is the block's ``value``.

    Raises:
        Exception: what entering or leaving ``manager`` raised.
    """
    background = Background[T]()
    thread = threading.Thread(target=background._main, args=(manager,))
    thread.start()
    background._ready.wait()
    try:
        if background._failure is None:
            yield background
    finally:
        if background._failure is None:
            background._token.run_sync_soon(background._finished.set)
        thread.join()
        if background._failure is not None:
            raise background._failure
