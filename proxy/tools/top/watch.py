"""Watches a running server until it is enough, and hands on what is new every few seconds."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from proxy.tools.top.figures import Figures, Scrape, figures_of
from proxy.tools.top.server import NoAnswer, RunningServer

REFRESH_SECONDS = 2.0

Show = Callable[[Figures | str], object]
"""Takes figures, or what kept them from coming."""


async def watch(server: RunningServer, show: Show, *, at_once: bool, times: int | None) -> None:
    """Show the figures of a server every ``REFRESH_SECONDS``.

    Args:
        at_once: show what there is before there are rates.
        times: how often; None: until cancelled.

    Raises:
        Refused: see ``RunningServer``.
        NoAnswer: at the first time, or when ``times`` is given; later that is shown.
    """
    before = await server.scrape()
    state = await server.state()
    if at_once:
        show(figures_of(None, before, state))
    shown, due = 0, trio.current_time()
    while times is None or shown < times:
        due = max(due + REFRESH_SECONDS, trio.current_time())
        await trio.sleep_until(due)
        now: Scrape | None = None
        try:
            now = await server.scrape()
            show(figures_of(before, now, await server.state()))
        except NoAnswer as error:
            if times is not None:
                raise
            show(str(error))
        before = now or before
        shown += 1


async def until_told(
    work: Callable[[], Awaitable[None]], told: Callable[[], Awaitable[None]]
) -> bool:
    """Run ``work`` until it ends, ``told`` does, or SIGINT or SIGTERM comes.

    Returns:
        Whether ``work`` ended by itself.
    """
    ended = False

    async def end_by_signal() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            listening.set()
            async for _ in signals:
                nursery.cancel_scope.cancel()

    async def end_when_told() -> None:
        await told()
        nursery.cancel_scope.cancel()

    listening = trio.Event()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_by_signal)
        nursery.start_soon(end_when_told)
        await listening.wait()
        try:
            await work()
            ended = True
        except Exception as error:
            # Raised below, outside the nursery, which would wrap it in an exception group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return ended
