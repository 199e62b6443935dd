"""The load: GETs over kept-alive loopback connections, few moving parts, so that it costs little.

Every answer is checked; what is wrong with one is counted by its reason, and its latency is not.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import h11
import trio

from bench.upstream import LOOPBACK

RECEIVE = 64 * 1024

REQUEST_TIMEOUT = 60.0
"""Seconds; more than any timeout of the proxy, so that its own answer is what is counted."""

CONNECTING_AT_ONCE = 64
"""A storm opens its connections before it starts; this keeps them below any listen backlog."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Result:
    """What a load brought.

    Attributes:
        latencies: seconds, of the requests that were answered well.
        errors: how many were not, by reason.
        states: answers by their ``X-Cache``.
        seconds: from the first request to the last answer.
        client_cpu: share of a CPU that this process used meanwhile.
    """

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    client_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Seconds; see ``percentile``."""
        return percentile(self.latencies, share)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that ``share`` of ``values`` do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


class Connection:
    """A connection to a port of this machine, opened again whenever the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._host = f"{LOOPBACK}:{port}"
        self._stream: trio.SocketStream | None = None
        self._protocol = h11.Connection(h11.CLIENT)

    async def open(self) -> trio.SocketStream:
        """Connect, unless connected. OSError where nobody listens."""
        if self._stream is None:
            self._stream = await trio.open_tcp_stream(LOOPBACK, self._port)
            self._protocol = h11.Connection(h11.CLIENT)
        return self._stream

    def close(self) -> None:
        """Disconnect."""
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def get(self, path: str) -> Answer:
        """GET ``path``; as ``send``."""
        return await self.send("GET", path)

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        """Send a request. On any exception, cancellation included, the connection is closed.

        Raises:
            OSError, trio.BrokenResourceError, h11.ProtocolError: no whole answer.
            trio.TooSlowError: none within ``REQUEST_TIMEOUT``.
        """
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                stream = await self.open()
                await self._send_request(stream, method, path, body, headers)
                answer = await self._receive_answer(stream)
        except BaseException:
            self.close()
            raise
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        else:
            self.close()  # the server announced that it closes
        return answer

    async def _send_request(
        self,
        stream: trio.SocketStream,
        method: str,
        path: str,
        body: bytes,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        lines = [("Host", self._host), *headers]
        events: list[h11.Event] = [h11.EndOfMessage()]
        if body:
            lines.append(("Content-Length", str(len(body))))
            events.insert(0, h11.Data(data=body))
        events.insert(0, h11.Request(method=method, target=path, headers=lines))
        await stream.send_all(b"".join(self._protocol.send(event) or b"" for event in events))

    async def _receive_answer(self, stream: trio.SocketStream) -> Answer:
        status, headers, body = 0, dict[str, str](), bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                self._protocol.receive_data(await stream.receive_some(RECEIVE))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, bytes(body))
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("closed before an answer")


async def get(port: int, path: str) -> Answer:
    """One GET over a connection of its own; raises as ``Connection.get``."""
    connection = Connection(port)
    try:
        return await connection.get(path)
    finally:
        connection.close()


async def closed_loop(
    port: int,
    paths: Iterator[str],
    *,
    connections: int,
    seconds: float = math.inf,
    state: str | None = None,
) -> Result:
    """Requests for ``paths``, one at a time on each connection, until they or the time run out.

    Args:
        paths: shared by the connections; must end, or ``seconds`` must be given.
        state: the ``X-Cache`` that every answer must have, if given.
    """
    result = Result()
    deadline = trio.current_time() + seconds

    async def ask() -> None:
        connection = Connection(port)
        try:
            for path in paths:
                await _ask(connection, path, result, trio.current_time(), state)
                if trio.current_time() >= deadline:
                    return
        finally:
            connection.close()

    with _Timed(result):
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(ask)
    return result


async def storm(port: int, paths: Sequence[str]) -> Result:
    """Requests for all paths at the same moment, each on a connection opened before.

    Latencies count from that moment, so the largest is the time to the last answer.
    """
    result = Result()
    connections = [Connection(port) for _ in paths]
    limit = trio.CapacityLimiter(CONNECTING_AT_ONCE)

    async def connect(connection: Connection) -> None:
        async with limit:
            await connection.open()

    try:
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connect, connection)
        with _Timed(result):
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for connection, path in zip(connections, paths, strict=True):
                    nursery.start_soon(_ask, connection, path, result, start, None)
    finally:
        for connection in connections:
            connection.close()
    return result


async def _ask(
    connection: Connection, path: str, result: Result, start: float, state: str | None
) -> None:
    try:
        answer = await connection.get(path)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError) as error:
        result.errors[type(error).__name__] += 1
        return
    latency = trio.current_time() - start
    fault = _fault(answer, state)
    if fault is not None:
        result.errors[fault] += 1
        return
    result.latencies.append(latency)
    result.states[answer.headers.get("x-cache", "")] += 1


def _fault(answer: Answer, state: str | None) -> str | None:
    """What is wrong with an answer, or None. h11 has checked its length."""
    if answer.status != 200:
        return f"status {answer.status}"
    if not answer.body.startswith(b"\xff\xd8\xff"):
        return "no JPEG"
    found = answer.headers.get("x-cache")
    if state is not None and found != state:
        return f"X-Cache {found} instead of {state}"
    return None


class _Timed:
    """Fills in how long the block took, and how much of a CPU this process used."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def __exit__(self, *_error: object) -> None:
        self._result.seconds = time.perf_counter() - self._began
        self._result.client_cpu = (time.process_time() - self._cpu_began) / self._result.seconds
