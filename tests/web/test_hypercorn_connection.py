"""What is written to a client, and when: one write for an answer, nothing held back for long."""

from __future__ import annotations

import math
from typing import Any

import hypercorn.trio.run
import pytest
import trio
import trio.testing
from hypercorn.events import Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer

from proxy.config import Config, ConfigError
from proxy.serving.serve import serve
from proxy.web import hypercorn_connection
from proxy.web.hypercorn_connection import MAX_JOINED, PARTS, check_hypercorn, install
from proxy.web.hypercorn_protocols import Http1
from tests.web import PATIENCE
from tests.web.connections import GET, Talk, app_of, talking

settled = trio.testing.wait_all_tasks_blocked


async def test_an_answer_is_one_write_on_each_request_of_a_connection() -> None:
    """Catches a head that travels alone, and a write of nothing that takes its turn too."""
    async with talking(app_of(b"body")) as talk:
        for number in range(1, 4):
            await talk.client.send_all(GET)
            assert await talk.answer() == b"body"
            assert len(talk.server.writes) == number
            assert talk.server.writes[-1].endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304)])
async def test_an_answer_without_a_body_is_one_write_and_is_not_held_back(
    method: str, status: int
) -> None:
    """Catches a head that waits for a body that never comes."""
    async with talking(app_of(b"", status=status)) as talk:
        await talk.client.send_all(GET.replace(b"GET", method.encode()))
        assert await talk.answer(method) == b""
        assert talk.heads[0].status_code == status
        assert len(talk.server.writes) == 1


async def test_only_the_first_piece_of_a_body_goes_with_the_head_and_the_next_as_they_come() -> (
    None
):
    """Catches a piece that is held back until another one comes."""
    go_on = trio.Event()

    async def app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"6")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b""})

    async with talking(app) as talk:
        await talk.client.send_all(GET)
        await settled(0.01)
        first, second = talk.server.writes
        assert first.startswith(b"HTTP/1.1 200 ")
        assert first.endswith(b"\r\n\r\none")
        assert second == b"two"
        go_on.set()
        assert await talk.answer() == b"onetwo"


@pytest.mark.parametrize("size", [MAX_JOINED, MAX_JOINED + 1, 3 * MAX_JOINED])
async def test_a_body_of_any_size_arrives_whole_behind_its_head(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    async with talking(app_of(body)) as talk:
        await talk.client.send_all(GET)
        assert await talk.answer() == body
        head, rest = talk.server.writes[0].split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert bool(rest) is (size <= MAX_JOINED)


async def test_requests_that_come_together_are_answered_each_by_itself_and_in_order() -> None:
    """Catches a head that is still held when the next request begins."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app_of(scope["path"].encode())(scope, receive, send)

    paths = [b"/1", b"/2", b"/3"]
    async with talking(app) as talk:
        await talk.client.send_all(b"".join(GET.replace(b"/ ", path + b" ") for path in paths))
        assert [await talk.answer() for _ in paths] == paths


async def test_what_comes_before_an_answer_is_sent_at_once() -> None:
    """Catches a 100 (RFC 9110, section 15.2.1) that waits for the body that waits for it."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await app_of(b"done")(scope, receive, send)

    async with talking(app) as talk:
        head = GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        await talk.client.send_all(head)
        with trio.fail_after(PATIENCE):
            assert (await talk.client.receive_some()).startswith(b"HTTP/1.1 100 ")
        await talk.client.send_all(b"x")
        assert await talk.answer() == b"done"


async def test_an_application_that_fails_before_the_body_closes_and_sends_no_half_an_answer() -> (
    None
):
    async def app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with talking(app) as talk:
        await talk.client.send_all(GET)
        with trio.fail_after(PATIENCE):
            assert await talk.client.receive_some() == b""
    assert talk.server.writes == []


async def is_closed(talk: Talk) -> bool:
    """Whether the server closes, and sends nothing before."""
    with trio.fail_after(PATIENCE):
        return await talk.client.receive_some() == b""


async def stays_open(talk: Talk) -> bool:
    """Whether the server has not closed after a moment, and sends nothing."""
    with trio.move_on_after(0.1) as moment:
        await talk.client.receive_some()
    return moment.cancelled_caught


async def test_a_connection_is_closed_once_it_was_idle_for_its_time() -> None:
    """Catches idle clients that hold their connections for ever."""
    async with talking(app_of(b"body"), keep_alive=0.1) as talk:
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        assert await is_closed(talk)


async def test_a_connection_that_is_busy_for_longer_is_not_idle() -> None:
    """Catches a deadline that is not put off while an answer takes its time."""
    go_on = trio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await go_on.wait()
        await app_of(b"late")(scope, receive, send)

    async with talking(app, keep_alive=0.05) as talk:
        await talk.client.send_all(GET)
        assert await stays_open(talk)
        go_on.set()
        assert await talk.answer() == b"late"
        assert await is_closed(talk), "and idle again afterwards"


async def test_when_the_server_stops_an_idle_connection_has_a_moment_for_its_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a close that cuts a request under way, and a stop that idle clients hold up."""
    monkeypatch.setattr(hypercorn_connection, "GRACE_SECONDS", math.inf)
    async with talking(app_of(b"body")) as talk:
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        talk.context.draining.set()
        await talk.context.terminated.set()
        assert await stays_open(talk)
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        assert [dict(head.headers).get(b"connection") for head in talk.heads] == [None, b"close"]
        assert await is_closed(talk)
    monkeypatch.setattr(hypercorn_connection, "GRACE_SECONDS", 0)
    async with talking(app_of(b"body")) as talk:
        await talk.context.terminated.set()
        assert await is_closed(talk)


async def test_a_server_that_drains_lets_each_connection_end_with_its_next_answer() -> None:
    """Catches connections that a balancer keeps to a node that it takes out."""
    async with talking(app_of(b"body")) as talk:
        talk.context.draining.set()
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        assert dict(talk.heads[0].headers)[b"connection"] == b"close"
        assert await is_closed(talk)


async def test_an_answer_that_had_begun_when_the_server_stops_does_not_end_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a close after an answer that did not announce it: the next request is lost."""
    monkeypatch.setattr(hypercorn_connection, "GRACE_SECONDS", math.inf)
    go_on = trio.Event()

    async def app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"bo", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"dy"})

    async with talking(app) as talk:
        await talk.client.send_all(GET)
        await settled()
        talk.context.draining.set()
        await talk.context.terminated.set()
        go_on.set()
        assert await talk.answer() == b"body"
        assert await stays_open(talk)
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        assert await is_closed(talk)
    assert [dict(head.headers).get(b"connection") for head in talk.heads] == [None, b"close"]


@pytest.mark.parametrize("closes", ["the client", "the client, over its answer", "the server"])
async def test_nothing_is_left_of_a_connection_that_was_closed(closes: str) -> None:
    """Catches a timer that outlives every connection: memory grows, and each stop waits for it."""
    go_on = trio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if closes == "the client, over its answer":
            await go_on.wait()
        await app_of(b"body")(scope, receive, send)

    async with talking(app) as talk:
        if closes == "the server":
            await talk.client.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert b"".join([piece async for piece in talk.client]).endswith(b"body")
        elif closes == "the client":
            await talk.client.send_all(GET)
            assert await talk.answer() == b"body"
            await talk.client.aclose()
        else:
            await talk.client.send_all(GET)
            await settled()
            await talk.client.aclose()
            go_on.set()
        with trio.fail_after(PATIENCE):
            await talk.ended.wait()


async def test_a_client_that_leaves_just_as_its_answer_ends_is_no_failure_of_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a traceback in the log: the client's end is read while that of the answer waits."""
    failures: list[Exception] = []
    close = Http1._close_stream

    async def close_slowly(self: Http1) -> None:
        monkeypatch.setattr(Http1, "_close_stream", close)
        await talk.client.send_eof()
        await settled()
        await close(self)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        try:
            await app_of(b"body")(scope, receive, send)
        except Exception as failure:
            failures.append(failure)

    monkeypatch.setattr(Http1, "_close_stream", close_slowly)
    async with talking(app) as talk:
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        with trio.fail_after(PATIENCE):
            await talk.ended.wait()
    assert failures == []


async def test_a_connection_closes_although_its_application_is_cancelled_over_it() -> None:
    """Catches a client that waits minutes for the end that it asked for: Quart ends like this."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await app_of(b"body")(scope, receive, send)
                nursery.cancel_scope.cancel()

            nursery.start_soon(answer)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

    async with talking(app) as talk:
        await talk.client.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with trio.fail_after(PATIENCE):
            received = b""
            while not received.endswith(b"body"):
                received += await talk.client.receive_some()
        assert await is_closed(talk)


def test_the_hypercorn_that_is_installed_has_every_part_that_is_built_on() -> None:
    """Catches a list of parts that no release has."""
    check_hypercorn()
    assert all(any(part.endswith(f".{name}") for part in PARTS) for name in ("run", "spawn"))


@pytest.mark.parametrize(
    ("owner", "name", "found"),
    [
        (hypercorn.trio.run, "worker_serve", lambda app, config: None),
        (TCPServer, "__init__", lambda self, app, config, context, stream: None),
        (TCPServer, "_read_data", None),
        (TaskGroup, "spawn", lambda self, func: None),
        (H11Protocol, "__init__", lambda self, app: None),
        (Updated, "__init__", lambda self, is_idle: None),
    ],
    ids=lambda part: part if isinstance(part, str) else getattr(part, "__name__", "no"),
)
def test_with_another_hypercorn_the_start_fails_with_a_line_that_says_so(
    owner: object,
    name: str,
    found: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a release that is built otherwise: connections that hang, or end the server."""
    if found is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, found)
    with pytest.raises(ConfigError, match=name):
        install()
    assert serve(Config(), None, {}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imageproxy: hypercorn 0.18")
    assert name in line
