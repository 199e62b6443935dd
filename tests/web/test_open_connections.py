"""A client that opens connections and sends nothing takes no room from others."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing

import proxy.web.hypercorn_connection
from proxy.web.open_connections import CONNECTIONS, OpenConnections
from tests.web import PATIENCE
from tests.web.connections import GET, app_of, talking

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


async def test_a_busy_connection_is_not_ended_for_a_new_one(
    open_connections: OpenConnections,
) -> None:
    """Catches an answer under way that a stranger's connection cuts."""
    go_on = trio.Event()
    began, begins = trio.open_memory_channel[None](3)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        began.send_nowait(None)
        await go_on.wait()
        await app_of(b"late")(scope, receive, send)

    async with AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(talking(app)) for _ in range(3)]
        for talk in busy:
            await talk.client.send_all(GET)
            await begins.receive()
        async with talking(app) as new:
            with trio.fail_after(PATIENCE):
                await new.ended.wait()
                assert await new.client.receive_some() == b""
        go_on.set()
        for talk in busy:
            assert await talk.answer() == b"late"
        await settled(0.01)  # each is marked as idle after its answer
        # Idle again: one of them goes.
        async with talking(app_of(b"body")) as new:
            await new.client.send_all(GET)
            assert await new.answer() == b"body"
            await settled(0.01)
            assert [talk.ended.is_set() for talk in busy].count(True) == 1


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
