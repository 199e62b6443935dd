"""Follows one stream: connects, takes messages, stores its cursor, and connects again."""

from __future__ import annotations

import math
import random
import sqlite3
from typing import Protocol

import structlog
import trio

from proxy.moderation.feeds.backoff import Backoff
from proxy.moderation.feeds.event_frames import BadFrame, CursorRefused, StreamRefused
from proxy.moderation.feeds.websocket import Server, Socket, SocketFailed, open_socket
from proxy.moderation.interface import Cursors
from proxy.observability.metrics import Metrics

SAVE_SECONDS = 5.0
"""How many seconds of a stream are taken again after a crash, and carried out again.

Storing the cursor of every message would cost a write for each, and most messages do not matter
here.
"""

log = structlog.get_logger(__name__)


class Feed(Protocol):
    """A stream that can be followed.

    Attributes:
        name: a word for metrics that says what it brings.
        stream: its name among the cursors.
        first_cursor: where to begin if it was never followed; None: with new messages.
        max_message: bytes of one message.
    """

    @property
    def name(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def first_cursor(self) -> int | None: ...
    @property
    def max_message(self) -> int: ...

    async def locate(self) -> Server:
        """Return where the stream is. Called before each connection.

        Raises:
            SocketFailed: it cannot be found now.
        """
        ...

    def target(self, cursor: int | None) -> str:
        """Return the path and query that ask for the messages after ``cursor``."""
        ...

    async def take(self, message: str | bytes) -> int | None:
        """Carry out a message; return the cursor behind it, if it has one.

        At return it is done, or kept where it survives a restart.

        Raises:
            BadFrame: not a message of this stream; the connection is dropped.
            CursorRefused, StreamRefused: the server ends the stream.
            sqlite3.Error, OSError: it could not be carried out; it has to come again.
        """
        ...


async def follow(feed: Feed, cursors: Cursors, metrics: Metrics) -> None:
    """Follow ``feed`` until cancelled, over as many connections as it takes."""
    follower = _Follower(feed, cursors, metrics)
    backoff = Backoff()
    while True:
        lasted, wait = await follower.connection()
        wait = backoff.after(lasted, random.random(), wait)  # noqa: S311
        log.info("feed is left alone", stream=feed.stream, seconds=round(wait, 1))
        await trio.sleep(wait)


class _Follower:
    def __init__(self, feed: Feed, cursors: Cursors, metrics: Metrics) -> None:
        self._feed = feed
        self._cursors = cursors
        self._metrics = metrics
        self._cursor: int | None = None
        self._saved: int | None = None
        self._begins_anew = False

    async def connection(self) -> tuple[float, float]:
        """One connection, from its begin to its end; seconds it lasted, and was asked to wait."""
        feed = self._feed
        began: float | None = None
        wait = 0.0
        try:
            cursor = await self._start()
            server = await feed.locate()
            target = feed.target(cursor)
            async with open_socket(server, target, max_message=feed.max_message) as socket:
                began = trio.current_time()
                log.info("feed connected", stream=feed.stream, cursor=cursor)
                self._metrics.feed_connections.labels(feed.name).inc()
                try:
                    await self._take_all(socket)
                finally:
                    self._metrics.feed_connections.labels(feed.name).dec()
        except SocketFailed as error:
            wait = error.retry_after
            self._lost(error.reason, error)
        except BadFrame as error:
            self._lost("bad frame", error)
        except CursorRefused as error:
            # From where one begins: what was carried out already does no harm a second time.
            self._begins_anew = True
            self._metrics.feed_events.labels(feed.name, "gap").inc()
            self._lost("cursor", error)
        except StreamRefused as error:
            self._lost("refused", error)
        except (sqlite3.Error, OSError) as error:
            self._lost("not carried out", error)
        except Exception:
            # A defect must cost this stream a pause, and the service nothing.
            log.exception("feed crashed; it starts again", stream=feed.stream)
            self._metrics.feed_disconnects.labels(feed.name, "defect").inc()
        return (0.0 if began is None else trio.current_time() - began), wait

    def _lost(self, reason: str, error: Exception) -> None:
        self._metrics.feed_disconnects.labels(self._feed.name, reason).inc()
        log.warning("feed disconnected", stream=self._feed.stream, reason=reason, error=str(error))

    async def _start(self) -> int | None:
        first = self._feed.first_cursor
        if self._begins_anew:
            self._cursor = self._saved = first
        elif self._cursor is None:
            self._cursor = self._saved = await self._cursors.cursor(self._feed.stream)
        return first if self._cursor is None else self._cursor

    async def _take_all(self, socket: Socket) -> None:
        save_at = math.inf
        try:
            while True:
                message = None
                with trio.move_on_at(save_at):
                    message = await socket.receive()
                if message is not None:
                    cursor = await self._feed.take(message)
                    # A server that goes back is followed; its older numbers are not kept.
                    if cursor is not None and (self._cursor is None or cursor > self._cursor):
                        self._cursor = cursor
                        save_at = min(save_at, trio.current_time() + SAVE_SECONDS)
                if trio.current_time() >= save_at:
                    await self._save()
                    save_at = math.inf
        except CursorRefused:
            raise
        except (SocketFailed, BadFrame, StreamRefused):
            # Everything before it was carried out.
            await self._save()
            raise

    async def _save(self) -> None:
        if self._cursor is not None and self._cursor != self._saved:
            await self._cursors.set_cursor(self._feed.stream, self._cursor)
            self._saved = self._cursor
            self._begins_anew = False
