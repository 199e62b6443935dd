"""A client that opens connections and sends nothing takes no room from others."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing

import proxy.web.hypercorn_connection
from proxy.web.open_connections import CONNECTIONS, OpenConnections
from tests.web import PATIENCE
from tests.web.connections import GET, Talk, app_of, talking

settled = trio.testing.wait_all_tasks_blocked


@pytest.fixture
def open_connections(monkeypatch: pytest.MonkeyPatch) -> OpenConnections:
    made = OpenConnections(3)
    monkeypatch.setattr(proxy.web.hypercorn_connection, "CONNECTIONS", made)
    return made


@pytest.mark.parametrize("sent", [b"", GET[:-2]])
async def test_beyond_the_limit_the_connection_that_was_idle_for_the_longest_time_ends(
    sent: bytes, open_connections: OpenConnections
) -> None:
    """Catches memory and descriptors that grow with each connection."""
    async with AsyncExitStack() as stack:
        idle = []
        for _ in range(3):
            talk = await stack.enter_async_context(talking(app_of(b"body")))
            await talk.client.send_all(sent)
            await settled(0.01)
            idle.append(talk)
        async with talking(app_of(b"body")) as new:
            with trio.fail_after(PATIENCE):
                await idle[0].ended.wait()
            await new.client.send_all(GET)
            assert await new.answer() == b"body"
            assert not idle[1].ended.is_set()
            assert len(open_connections) == 3


class Held:
    """An application whose answers wait.

    Attributes:
        go_on: set it, and they go on.
    """

    def __init__(self) -> None:
        self.go_on = trio.Event()
        self._began, self._begins = trio.open_memory_channel[None](math.inf)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self._began.send_nowait(None)
        await self.go_on.wait()
        await app_of(b"late")(scope, receive, send)

    async def ask(self, talk: Talk) -> None:
        """Send a request, and wait until the application has it."""
        await talk.client.send_all(GET)
        with trio.fail_after(PATIENCE):
            await self._begins.receive()


async def test_a_busy_connection_is_not_ended_while_others_are_idle(
    open_connections: OpenConnections,
) -> None:
    """Catches an answer under way that a stranger's connection cuts."""
    app = Held()
    async with AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(talking(app)) for _ in range(2)]
        for talk in busy:
            await app.ask(talk)
        for _ in range(3):
            await stack.enter_async_context(talking(app_of(b"body")))
            await settled(0.01)
        app.go_on.set()
        for talk in busy:
            assert await talk.answer() == b"late"
        assert len(open_connections) == 3


async def test_where_nearly_all_are_busy_the_oldest_request_gives_way_to_a_new_connection(
    open_connections: OpenConnections,
) -> None:
    """Catches clients that wait for a slow server, and keep everybody else out."""
    app = Held()
    async with AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(talking(app)) for _ in range(3)]
        for talk in busy:
            await app.ask(talk)
        async with talking(app_of(b"body")) as new:
            with trio.fail_after(PATIENCE):
                await busy[0].ended.wait()
            await new.client.send_all(GET)
            assert await new.answer() == b"body"
            assert len(open_connections) == 3
        app.go_on.set()
        for talk in busy[1:]:
            assert await talk.answer() == b"late"


class Recorded:
    """A connection that notes whether it was closed."""

    is_closed = False

    def close_soon(self) -> None:
        self.is_closed = True


def test_an_eighth_of_the_connections_is_left_to_those_that_have_asked_for_nothing_yet() -> None:
    """Catches new clients that are closed by the next one, before their request has arrived."""
    connections = OpenConnections(16)
    busy, idle = ([Recorded() for _ in range(count)] for count in (16, 2))
    for connection in busy:
        connections.add(connection)
        connections.mark(connection, is_idle=False)
    for connection in idle:
        connections.add(connection)
    assert [each.is_closed for each in busy] == [True] * 2 + [False] * 14
    assert not any(each.is_closed for each in idle)
    connections.add(Recorded())
    assert idle[0].is_closed
    assert len(connections) == 16


def test_a_connection_with_a_new_request_is_not_the_one_with_the_oldest() -> None:
    """Catches a busy CDN's HTTP/2 connection that is closed because it was never idle."""
    connections = OpenConnections(2)
    first, second = Recorded(), Recorded()
    for connection in (first, second):
        connections.add(connection)
        connections.mark(connection, is_idle=False)
    connections.mark(first, is_idle=False)
    connections.add(Recorded())
    assert (first.is_closed, second.is_closed) == (False, True)


async def test_a_connection_that_has_ended_is_counted_no_more() -> None:
    """Catches a count that only grows, until no client is served."""
    before = len(CONNECTIONS)
    async with talking(app_of(b"body")) as talk:
        await talk.client.send_all(GET)
        assert await talk.answer() == b"body"
        assert len(CONNECTIONS) == before + 1
        await talk.client.aclose()
        await talk.ended.wait()
        assert len(CONNECTIONS) == before
