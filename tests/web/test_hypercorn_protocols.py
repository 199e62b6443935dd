"""What a connection speaks, and what a client may make it do."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11
import hyperframe.frame as frames
import pytest
import structlog.testing
import trio
import trio.testing

import proxy.web.hypercorn_protocols
from proxy.web.hypercorn_protocols import (
    MAX_BLANKS,
    MAX_BODY,
    MAX_BODY_PIECES,
    MAX_CREDIT,
    MAX_HEAD,
    MAX_HEADERS,
    PARSED_AT_ONCE,
    RefusingParser,
    refusal,
)
from proxy.web.open_connections import OpenStreams
from tests.web import PATIENCE
from tests.web.connections import GET, App, Noted, Secured, Talk, app_of, talking

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""How an HTTP/2 connection begins (RFC 9113, section 3.4)."""


def get(*lines: str, version: str = "1.1") -> bytes:
    """A GET with more header lines."""
    head = [f"GET / HTTP/{version}", "Host: proxy.test", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


async def unused(_scope: dict[str, Any], _receive: Any, _send: Any) -> None:
    raise AssertionError("no request should reach the application")


async def everything(talk: Talk) -> bytes:
    """What the client receives until the server closes."""
    with trio.fail_after(PATIENCE):
        return b"".join([bytes(piece) async for piece in talk.client])


# HTTP/1

WEBSOCKET = (
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: a2V5a2V5a2V5a2V5a2U=",
)

REFUSED = {
    "HTTP/2 by prior knowledge": (PREFACE + bytes(9), 400),
    "a later HTTP": (get(version="2.0"), 400),
    "a WebSocket": (get("Connection: Upgrade", "Upgrade: websocket", *WEBSOCKET), 400),
    "a WebSocket in other words": (
        get("Connection: keep-alive, upgrade", "Upgrade: foo/1, WebSocket", *WEBSOCKET),
        400,
    ),
    "a WebSocket without a key": (get("Connection: Upgrade", "Upgrade: websocket"), 400),
    "a WebSocket and a byte": (
        get("Connection: Upgrade", "Upgrade: websocket", *WEBSOCKET) + b"x",
        400,
    ),
    "two lengths of one body": (
        get("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + GET,
        400,
    ),
    "two lengths of one body, the other way": (
        get("Transfer-Encoding: chunked", "Content-Length: 0") + b"0\r\n\r\n" + GET,
        400,
    ),
    "chunks in HTTP/1.0": (get("Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n", 400),
    "too many headers": (get(*(f"a{n}:" for n in range(MAX_HEADERS))), 431),
    "too many headers without an end": (GET[:-2] + b"a:\n" * (MAX_HEADERS + 1), 431),
    "a head of 60 KB in one read": (get("a: " + "b" * 60_000), 431),
    "blanks before a value": (get("a:" + " \t" * 500 + "\0"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_must_not_pass_gets_its_status_and_closes_the_connection(name: str) -> None:
    """Catches a tunnel, a traceback, and a second request behind a body of two lengths."""
    data, status = REFUSED[name]
    with structlog.testing.capture_logs() as lines:
        async with talking(unused) as talk:
            await talk.client.send_all(data)
            received = await everything(talk)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [str(status).encode()]
    assert b"connection: close" in received.lower()
    assert lines == []


BODY = get("Transfer-Encoding: chunked") + b"1\r\nx\r\n"
COSTLY = {
    "blanks in a chunk's header": (BODY + b"1;" + b" " * 10_000 + b"\n\r\n", 400),
    "blanks in a trailer": (BODY + b"0\r\na:" + b" " * 10_000 + b"\0\r\n\r\n", 400),
    "too many trailers": (BODY + b"0\r\n" + b"a:\n" * 5000 + b"\r\n", 431),
} | {name: of for name, of in REFUSED.items() if name.startswith(("too many", "a head", "blanks"))}


def parse(data: bytes, *, at_once: int) -> None:
    """Give ``data`` to the parser of a connection, in pieces."""
    parser = RefusingParser(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    for start in range(0, len(data), at_once):
        parser.receive_data(data[start : start + at_once])
        while parser.next_event() is not h11.NEED_DATA:
            pass


@pytest.mark.parametrize("at_once", [100, 60_000])
@pytest.mark.parametrize("name", COSTLY)
def test_what_h11_takes_long_to_parse_does_not_reach_it(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a head that is judged when h11 has parsed it: 60 KB of blanks take it six seconds."""
    data, status = COSTLY[name]
    lines: list[bytes] = []
    readers: Any = h11._readers
    validate = readers.validate

    def validated(pattern: Any, line: bytes, *arguments: Any) -> Any:
        lines.append(bytes(line))
        return validate(pattern, line, *arguments)

    monkeypatch.setattr(readers, "validate", validated)
    with pytest.raises(h11.RemoteProtocolError) as caught:
        parse(data, at_once=at_once)
    assert caught.value.error_status_hint == status
    assert len(lines) <= MAX_HEADERS + 3
    assert all(len(line) <= MAX_HEAD for line in lines)
    assert not any(b" " * (MAX_BLANKS + 1) in line.replace(b"\t", b" ") for line in lines)


def test_a_body_may_have_many_lines_and_blanks() -> None:
    """Catches bounds of a head that are held against a body."""
    body = b"\n" * 1000 + b" " * 1000
    parse(get(f"Content-Length: {len(body)}")[:-2] + b"\r\n" + body, at_once=60_000)
    parse(BODY + chunked([b"\n" * 1000]) + b"0\r\nA: b\r\n\r\n", at_once=60_000)


@pytest.mark.parametrize("token", ["h2c", "H2C", "h2c, h2", "foo/2"])
async def test_another_upgrade_is_ignored_and_the_connection_goes_on(token: str) -> None:
    """Catches HTTP/2 over cleartext: behind a reverse proxy it is a tunnel past its rules."""
    upgrade = get("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {token}", "HTTP2-Settings: ")
    async with talking(app_of(b"body")) as talk:
        for _ in range(2):
            await talk.client.send_all(upgrade)
            assert await talk.answer() == b"body"
        assert [head.status_code for head in talk.heads] == [200, 200]
        assert b"".join(talk.server.writes).count(b"HTTP/1.1 ") == 2


def test_usual_requests_are_not_refused() -> None:
    """Catches bounds that a browser behind two reverse proxies would meet."""
    lines = [(f"x-{n}", "value") for n in range(MAX_HEADERS - 2)]
    headers = [("Host", "a"), ("Transfer-Encoding", "chunked"), *lines]
    assert refusal(h11.Request(method="POST", target="/", headers=headers)) is None
    old = h11.Request(method="GET", target="/", headers=[], http_version="1.0")
    assert refusal(old) is None


@asynccontextmanager
async def reading_all(sizes: list[int]) -> AsyncIterator[Talk]:
    """An application that answers after the body, and notes how much of it came."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            sizes.append(len(message["body"]))
            if not message["more_body"]:
                await app_of(b"done")(scope, receive, send)
                return

    async with talking(app) as talk:
        yield talk


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


@pytest.mark.parametrize("size", [1, MAX_BODY // MAX_BODY_PIECES // 2])
async def test_a_body_within_its_bounds_is_read_whole(size: int) -> None:
    sizes: list[int] = []
    async with reading_all(sizes) as talk:
        body = chunked([bytes(size)] * MAX_BODY_PIECES) + b"0\r\n\r\n"
        await talk.client.send_all(get("Transfer-Encoding: chunked") + body)
        assert await talk.answer() == b"done"
    assert sum(sizes) == size * MAX_BODY_PIECES


@pytest.mark.parametrize("piece", [1, MAX_BODY // 8])
async def test_a_body_of_too_many_bytes_or_pieces_is_a_413_and_the_rest_is_not_read(
    piece: int,
) -> None:
    """Catches chunks of one byte: each costs as much as a chunk of 64 KiB."""
    sizes: list[int] = []
    with structlog.testing.capture_logs() as lines:
        async with reading_all(sizes) as talk, trio.open_nursery() as nursery:

            async def send_for_ever() -> None:
                await talk.client.send_all(get("Transfer-Encoding: chunked"))
                with suppress(trio.BrokenResourceError):  # the server closed
                    while True:
                        await talk.client.send_all(chunked([bytes(piece)]))

            nursery.start_soon(send_for_ever)
            with trio.fail_after(PATIENCE):
                assert (await talk.client.receive_some()).startswith(b"HTTP/1.1 413 ")
                await talk.ended.wait()
    assert lines == []
    assert len(sizes) <= MAX_BODY_PIECES + 1
    assert sum(sizes) <= MAX_BODY


async def test_an_application_that_ends_while_its_request_is_refused_is_no_defect() -> None:
    """Catches a traceback for a client's mistake: the application cannot know of it yet."""
    servers: list[Noted] = []

    async def app(_scope: dict[str, Any], receive: Any, _send: Any) -> None:
        for _ in range(MAX_BODY_PIECES):
            await receive()
        while not servers[0].writes:  # the refusal
            await trio.lowlevel.checkpoint()

    with structlog.testing.capture_logs() as lines:
        async with talking(app) as talk:
            servers.append(talk.server)
            body = chunked([b"x"] * (MAX_BODY_PIECES + 1))
            await talk.client.send_all(get("Transfer-Encoding: chunked") + body)
            received = await everything(talk)
            with trio.fail_after(PATIENCE):
                await talk.ended.wait()
    assert received.startswith(b"HTTP/1.1 413 ")
    assert lines == []


# HTTP/2


class Http2Client:
    """A client of HTTP/2, which may send what it should not."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def flush(self, more: bytes = b"") -> None:
        """Send what is waiting, and ``more``."""
        await self._talk.client.send_all(self.connection.data_to_send() + more)

    async def request(
        self, *, method: str = "GET", path: bytes | None = b"/", body: bytes | None = None
    ) -> int:
        """Send a request; return its stream."""
        stream = self.connection.get_next_available_stream_id()
        headers: list[tuple[str, str | bytes]] = [(":method", method), (":authority", "a")]
        if path is not None:
            headers += [(":scheme", "https"), (":path", path)]
        self.connection.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self.connection.send_data(stream, body)
        await self.flush()
        return stream

    async def until(self, kind: type[Any], stream: int | None = None) -> Any:
        """The first event of a kind, of ``stream`` if given."""
        with trio.fail_after(PATIENCE):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and stream in (
                        None,
                        getattr(event, "stream_id", None),
                    ):
                        return event
                data = await self._talk.client.receive_some()
                assert data != b"", "the server closed the connection"
                self.events += self.connection.receive_data(bytes(data))

    async def hang_up(self) -> None:
        """Close the connection, and wait until the server has closed it too."""
        await self._talk.client.aclose()
        with trio.fail_after(PATIENCE):
            await self._talk.ended.wait()

    async def closed(self) -> None:
        """Wait until the server has closed the connection."""
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            while await self._talk.client.receive_some():
                pass

    async def status(self, stream: int) -> str:
        """The status of the answer on ``stream``."""
        event = await self.until(h2.events.ResponseReceived, stream)
        headers: dict[bytes, bytes] = dict(event.headers)
        return headers[b":status"].decode()


@asynccontextmanager
async def over_http2(app: App) -> AsyncIterator[Http2Client]:
    async with talking(app, kind=Secured) as talk:
        client = Http2Client(talk)
        await client.flush()
        yield client


async def test_http2_that_tls_has_chosen_is_spoken() -> None:
    async with over_http2(app_of(b"body")) as client:
        stream = await client.request()
        assert await client.status(stream) == "200"
        assert (await client.until(h2.events.DataReceived, stream)).data == b"body"
        settings = await client.until(h2.events.RemoteSettingsChanged)
        offered = {int(code) for code in settings.changed_settings}
        assert int(frames.SettingsFrame.ENABLE_CONNECT_PROTOCOL) not in offered


ODD: dict[str, dict[str, Any]] = {
    "CONNECT": {"method": "CONNECT", "path": None, "body": b"into the tunnel"},
    "CONNECT that is over": {"method": "CONNECT", "path": None},
    "a path outside ASCII": {"path": b"/img/\xff"},
    "a path outside ASCII with a body": {"method": "POST", "path": b"/\xc3\xa9", "body": b"x"},
    "a method outside ASCII": {"method": b"G\xc9T"},
}


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_request_over_http2_costs_its_stream_and_not_its_connection(name: str) -> None:
    """Catches an exception that takes the other 99 streams of a browser with it."""
    with structlog.testing.capture_logs() as lines:
        async with over_http2(app_of(b"body")) as client:
            odd = await client.request(**ODD[name])
            good = await client.request()
            assert await client.status(good) == "200"
            answer = [e for e in client.events if getattr(e, "stream_id", None) == odd]
            kinds = {type(event) for event in answer}
            assert kinds & {h2.events.ResponseReceived, h2.events.StreamReset}
            if h2.events.ResponseReceived in kinds:
                assert await client.status(odd) == "400"
    assert lines == []


async def test_a_body_that_goes_on_after_its_answer_costs_its_stream_and_not_its_connection() -> (
    None
):
    async with over_http2(app_of(b"body")) as client:
        early = await client.request(method="POST", body=b"one")
        assert await client.status(early) == "200"
        await client.until(h2.events.StreamEnded, early)
        client.connection.send_data(early, b"two")
        await client.flush()
        assert await client.status(await client.request()) == "200"


@pytest.fixture
def open_streams(monkeypatch: pytest.MonkeyPatch) -> OpenStreams:
    made = OpenStreams(4)
    monkeypatch.setattr(proxy.web.hypercorn_protocols, "STREAMS", made)
    return made


async def test_beyond_the_limit_of_streams_a_connection_has_few_and_others_are_refused(
    open_streams: OpenStreams,
) -> None:
    """Catches streams without a bound: 14 bytes each held 17 KiB, 3 GB in all."""
    go_on = trio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await go_on.wait()
        await app_of(b"late")(scope, receive, send)

    async with over_http2(app) as greedy, over_http2(app) as other:
        held = [await greedy.request() for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        refused = []
        # Another client still has two at once.
        for client in (greedy, other):
            asked = [await client.request() for _ in range(3)]
            refused += [(client, asked[2])]
            held += asked[:2] if client is other else []
        for client, stream in refused:
            reset = await client.until(h2.events.StreamReset, stream)
            assert reset.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
        assert open_streams.count == 6
        go_on.set()
        for n, stream in enumerate(held):
            assert await (greedy if n < 4 else other).status(stream) == "200"
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_streams.count == 0
        assert await greedy.status(await greedy.request()) == "200"


async def test_streams_of_a_connection_that_has_ended_are_counted_no_more(
    open_streams: OpenStreams,
) -> None:
    """Catches a count that only grows, until every client has two streams at once."""

    async def app(_scope: dict[str, Any], receive: Any, _send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with over_http2(app) as client:
        for _ in range(4):
            await client.request()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_streams.count == 4
        await client.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_streams.count == 0


async def test_streams_that_nobody_reads_share_one_copy_of_their_answer() -> None:
    """Catches a copy for each stream: 3 connections that took nothing held 3 GB."""
    size, streams = 1024 * 1024, 50
    body = bytes(size)
    async with over_http2(app_of(body)) as client:
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        tracemalloc.start()
        asked = [await client.request() for _ in range(streams)]
        for stream in asked:
            assert await client.status(stream) == "200"
        await trio.testing.wait_all_tasks_blocked()
        held, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 2 * size
        client.connection.increment_flow_control_window(size, asked[-1])
        client.connection.increment_flow_control_window(size)
        await client.flush()
        await client.until(h2.events.StreamEnded, asked[-1])
        parts = [event for event in client.events if isinstance(event, h2.events.DataReceived)]
        received = sum(len(event.data) for event in parts if event.stream_id == asked[-1])
        assert received == size


@pytest.mark.parametrize("size", [1, 1024 * 1024])
@pytest.mark.parametrize("closes", ["the client", "the server"])
async def test_answers_that_a_client_did_not_take_end_with_its_connection(
    closes: str, size: int
) -> None:
    """Catches tasks and answers that are left for ever by clients that leave."""
    async with talking(app_of(bytes(size)), kind=Secured) as talk:
        client = Http2Client(talk)
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        assert await client.status(await client.request()) == "200"
        await trio.testing.wait_all_tasks_blocked()
        if closes == "the client":
            await talk.client.aclose()
        else:
            await talk.server.aclose()
        with trio.fail_after(PATIENCE):
            await talk.ended.wait()


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 64 * 1024 - 1])
async def test_a_body_of_any_size_arrives_whole_over_http2(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    for pieces in ([body], [body[: size // 2], body[size // 2 :]]):
        async with over_http2(app_of(*pieces)) as client:
            stream = await client.request()
            await client.until(h2.events.StreamEnded, stream)
            parts = [each for each in client.events if isinstance(each, h2.events.DataReceived)]
            assert b"".join(each.data for each in parts) == body


FLOODS: dict[str, frames.Frame] = {
    "window updates": frames.WindowUpdateFrame(0, window_increment=1),
    "settings": frames.SettingsFrame(0),
    "pings": frames.PingFrame(0, opaque_data=b"12345678"),
    "priorities": frames.PriorityFrame(1, depends_on=0, stream_weight=7),
}


def parsed_by_servers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what servers parse of HTTP/2 from now on."""
    sizes: list[int] = []
    receive_data = h2.connection.H2Connection.receive_data

    def noting(self: h2.connection.H2Connection, data: bytes) -> Any:
        if not self.config.client_side:
            sizes.append(len(data))
        return receive_data(self, data)

    monkeypatch.setattr(h2.connection.H2Connection, "receive_data", noting)
    return sizes


@pytest.mark.parametrize("name", FLOODS)
async def test_frames_that_ask_for_nothing_end_their_connection(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a connection that keeps the event loop busy and never asks for anything."""
    parsed = parsed_by_servers(monkeypatch)
    async with over_http2(unused) as client:
        flood = FLOODS[name].serialize() * (MAX_CREDIT // 2)
        with suppress(trio.BrokenResourceError):  # it closed with our bytes unread
            for _ in range(4):
                await client.flush(flood)
        await client.closed()
    assert sum(parsed) <= 2 * len(flood) + 2 * PARSED_AT_ONCE


async def test_requests_that_are_taken_back_end_their_connection() -> None:
    """Catches "rapid reset" (CVE-2023-44487): work for answers that nobody waits for."""
    began = 0

    async def app(_scope: dict[str, Any], receive: Any, _send: Any) -> None:
        nonlocal began
        began += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    async with over_http2(app) as client:
        for _ in range(MAX_CREDIT):
            stream = client.connection.get_next_available_stream_id()
            headers = [
                (":method", "GET"),
                (":path", "/"),
                (":scheme", "https"),
                (":authority", "a"),
            ]
            client.connection.send_headers(stream, headers, end_stream=True)
            client.connection.reset_stream(stream)
        with suppress(trio.BrokenResourceError):  # it closed with our bytes unread
            await client.flush()
        await client.closed()
    assert began <= MAX_CREDIT // 2


async def test_a_client_that_is_answered_may_go_on_for_ever() -> None:
    """Catches a bound on the frames of a whole connection, which a browser would meet."""
    async with over_http2(app_of(bytes(32 * 1024))) as client:
        frame = FLOODS["window updates"].serialize()
        for _ in range(20):
            stream = await client.request()
            await client.until(h2.events.StreamEnded, stream)
            client.connection.acknowledge_received_data(32 * 1024, stream)
            await client.flush(frame * 100)
            client.events.clear()


class Steps(trio.abc.Instrument):
    """Finds the most items that one step of the event loop adds to a list."""

    def __init__(self, items: list[int]) -> None:
        self._items = items
        self._before = 0
        self.most = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._before = len(self._items)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, len(self._items) - self._before)


async def test_a_long_read_of_http2_is_parsed_in_pieces_and_other_tasks_run_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches 64 KiB of tiny frames that are one step of the event loop."""
    parsed = parsed_by_servers(monkeypatch)
    steps = Steps(parsed)
    trio.lowlevel.add_instrument(steps)
    async with over_http2(unused) as client:
        ping = frames.PingFrame(0, opaque_data=b"12345678").serialize()
        await client.flush(FLOODS["window updates"].serialize() * 900 + ping)
        await client.until(h2.events.PingAckReceived)
    trio.lowlevel.remove_instrument(steps)
    assert sum(parsed) > 900 * 13
    assert max(parsed) <= PARSED_AT_ONCE
    assert steps.most == 1
