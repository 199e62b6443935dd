"""What clients leave untaken is bounded: by time for each, by bytes for all together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import h2.settings
import pytest
import trio
import trio.testing

import proxy.web.hypercorn_connection
import proxy.web.hypercorn_protocols
from proxy.imaging.memory_estimate import UNTAKEN
from proxy.web.slow_clients import PIECE, SECONDS, TRANSFERS, Transfers
from tests.web import PATIENCE
from tests.web.connections import GET, Noted, Secured, Talk, app_of, talking
from tests.web.test_hypercorn_protocols import Http2Client

BODY = bytes(16 * 1024 * 1024)
"""More than the buffers of both ends hold."""

settled = trio.testing.wait_all_tasks_blocked


@asynccontextmanager
async def asked(kind: type[Noted], body: bytes = BODY) -> AsyncIterator[tuple[Talk, Any]]:
    """A client that asks for ``body``, and takes nothing of it so far."""
    async with talking(app_of(body), kind=kind, keep_alive=10**6) as talk:
        if kind is Noted:
            await talk.client.send_all(GET)
            yield talk, None
        else:
            client = Http2Client(talk)
            client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
            stream = await client.request()
            assert await client.status(stream) == "200"
            yield talk, (client, stream)


@pytest.mark.parametrize("kind", [Noted, Secured])
async def test_a_client_that_takes_nothing_is_disconnected(
    kind: type[Noted], mock_clock: trio.testing.MockClock
) -> None:
    """Catches an answer that is kept for as long as its client likes."""
    async with asked(kind) as (talk, _):
        await settled(0.05)
        mock_clock.jump(SECONDS - 1)
        await settled(0.01)
        assert not talk.ended.is_set()
        mock_clock.jump(2)
        await talk.ended.wait()
    assert TRANSFERS.bytes == 0


async def test_a_client_that_takes_a_byte_now_and_then_is_disconnected_over_http2(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Catches progress that is counted in windows and not in bytes."""
    async with asked(Secured) as (talk, (client, stream)):
        for _ in range(int(SECONDS)):
            client.connection.increment_flow_control_window(1, stream)
            await client.flush()
            await settled(0.001)
            mock_clock.jump(1)
        await settled(0.01)
        mock_clock.jump(1)
        await talk.ended.wait()


@pytest.mark.parametrize(
    # The windows of TCP on loopback open by large parts of its buffers.
    ("kind", "step"),
    [(Noted, 32 * PIECE), (Secured, PIECE)],
)
async def test_a_client_that_takes_its_piece_in_time_may_take_long(
    kind: type[Noted], step: int, mock_clock: trio.testing.MockClock
) -> None:
    """Catches a time limit for a whole answer, which large ones on slow links exceed."""
    body = bytes(20 * step)
    async with asked(kind, body) as (talk, http2):
        taken = 0
        while taken < len(body):
            await settled(0.01)
            mock_clock.jump(SECONDS / 2)
            if http2 is not None:
                client, stream = http2
                client.connection.increment_flow_control_window(PIECE, stream)
                client.connection.increment_flow_control_window(PIECE)
                await client.flush()
            goal = min(taken + step, len(body))
            while taken < goal:
                data = await talk.client.receive_some(PIECE)
                assert data, "the server closed the connection"
                taken += len(data)
        assert mock_clock.current_time() > 9 * SECONDS


async def test_beyond_the_limit_the_client_that_makes_no_progress_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches memory that grows with each connection, and a limit that honest clients meet."""
    transfers = Transfers(3 * len(BODY))
    for module in (proxy.web.hypercorn_connection, proxy.web.hypercorn_protocols):
        monkeypatch.setattr(module, "TRANSFERS", transfers)
    async with AsyncExitStack() as stack:
        slow = []
        for kind in (Noted, Secured, Noted):
            talk, _ = await stack.enter_async_context(asked(kind, bytes(len(BODY))))
            slow.append(talk)
            await settled(0.01)
        async with talking(app_of(bytes(1024 * 1024))) as honest:
            await honest.client.send_all(GET)
            assert len(await honest.answer()) == 1024 * 1024
            with trio.fail_after(PATIENCE):
                await slow[0].ended.wait()
        assert not slow[2].ended.is_set()
        assert transfers.bytes <= transfers.limit


async def test_an_answer_that_many_wait_for_counts_once() -> None:
    """Catches a popular picture that looks like many."""
    transfers = Transfers(UNTAKEN)
    data, other = bytes(UNTAKEN), bytes(1)
    with ExitStack() as stack:
        shared = [stack.enter_context(transfers.begin(data)) for _ in range(10)]
        assert transfers.bytes == UNTAKEN
        assert not any(each.scope.cancel_called for each in shared)
        last = stack.enter_context(transfers.begin(other))
        # All ten hold it: none less helps.
        assert all(each.scope.cancel_called for each in shared)
        assert not last.scope.cancel_called
        assert transfers.bytes == 1
    assert transfers.bytes == 0


async def test_the_transfer_without_progress_for_the_longest_time_goes_first() -> None:
    transfers = Transfers(3)
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(transfers.begin(bytes([number]))) for number in range(1, 4)
        )
        first.took(PIECE - 1)
        second.took(PIECE)
        first.took(1)
        stack.enter_context(transfers.begin(b"4"))
        assert third.scope.cancel_called
        stack.enter_context(transfers.begin(b"5"))
        assert second.scope.cancel_called
        assert not first.scope.cancel_called


async def test_an_answer_larger_than_the_limit_is_sent_where_it_is_alone() -> None:
    transfers = Transfers(3)
    with transfers.begin(b"1234") as transfer:
        assert not transfer.scope.cancel_called
