"""What clients leave untaken is bounded: by time for each, by bytes for all together."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import h2.events
import h2.settings
import pytest
import trio
import trio.testing

import proxy.web.hypercorn_connection
import proxy.web.hypercorn_protocols
import proxy.web.responder
from proxy.errors import Busy
from proxy.web.slow_clients import FAST, LARGE, PIECE, SECONDS, TRANSFERS, UNTAKEN, YOUNG, Transfers
from tests.fakes.world import World
from tests.web import PATIENCE, img, serving
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


async def test_streams_that_share_a_slow_link_make_progress_together(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Catches a page of pictures on a slow link that is cut: each of them has a small share."""
    streams, size = 20, 2 * PIECE
    async with asked(Secured, bytes(size)) as (talk, (client, first)):
        others = [await client.request() for _ in range(streams - 1)]
        for stream in others:
            assert await client.status(stream) == "200"
        client.connection.increment_flow_control_window(streams * size)
        share = PIECE // streams + 1
        taken = 0
        for step in range(1, size // share + 1):
            await settled(0.01)
            mock_clock.jump(SECONDS * 0.9)
            for stream in (first, *others):
                client.connection.increment_flow_control_window(share, stream)
            await client.flush()
            while taken < step * share * streams:
                data = await talk.client.receive_some(PIECE)
                assert data, "the server closed the connection"
                taken += len(data)


def filled(transfers: Transfers, stack: ExitStack, size: int) -> int:
    """Begin transfers of ``size`` bytes until one is refused; return their number."""
    for count in range(1000):
        data = bytes(bytearray(size))
        try:
            transfers.check(size, data)
        except Busy:
            return count
        stack.enter_context(transfers.begin(data))
    raise AssertionError("there is always room")


async def test_large_answers_leave_half_of_the_room_to_small_ones() -> None:
    """Catches ten originals that shut out thumbnails, and room that is given twice."""
    transfers = Transfers(16 * LARGE)
    with ExitStack() as stack:
        assert filled(transfers, stack, 2 * LARGE) == 5
        assert filled(transfers, stack, LARGE // 4) == 24
        assert transfers.bytes == transfers.limit
        transfers.check(0)
    assert transfers.bytes == 0
    transfers.check(100 * LARGE)  # the only one is sent


async def test_who_is_slow_makes_room_when_there_is_none(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Catches a room that a few trickling clients keep full for as long as they like."""
    transfers = Transfers(4 * LARGE)
    with ExitStack() as stack:
        slow = stack.enter_context(transfers.begin(bytes(LARGE)))
        fast = stack.enter_context(transfers.begin(bytes(LARGE)))
        mock_clock.jump(YOUNG)
        slow.took(PIECE)
        fast.took(int(FAST * YOUNG))
        young = stack.enter_context(transfers.begin(bytes(2 * LARGE)))
        with pytest.raises(Busy):
            transfers.check(1)
        assert slow.scope.cancel_called
        assert not fast.scope.cancel_called
        assert not young.scope.cancel_called


async def test_without_room_an_answer_is_busy_and_nothing_is_fetched_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches 10 MB that are fetched for an answer without room, and a 503 that nobody counts."""
    transfers = Transfers(4 * LARGE)
    monkeypatch.setattr(proxy.web.responder, "TRANSFERS", transfers)
    did, cid = world.add_blob()
    targets = (img(did, cid), f"/blob/{did}/{cid}")
    async with serving(world) as client:
        with transfers.begin(bytes(4 * LARGE)):
            for target in targets:
                reply = await client.get(target)
                assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        assert world.pds.blob_requests == 0
        assert await client.metric('imageproxy_rejected_total{stage="send"}') == 2
        for target in targets:
            assert (await client.get(target)).status == 200


async def test_the_system_keeps_little_that_was_not_sent() -> None:
    """Catches progress that shows only after megabytes: slow clients would seem to make none."""
    async with talking(app_of(b"")) as talk:
        await settled(0.01)
        option = (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert talk.server.socket.getsockopt(*option) == PIECE
