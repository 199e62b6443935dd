"""Warms new pictures on the network: those of the records that a Jetstream delivers.

Needs the extra ``moderation``, for its WebSockets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlencode

import trio

from proxy.accounts.record_contents import contents_of
from proxy.egress.endpoint import Origin
from proxy.egress.network import Network
from proxy.errors import InvalidDid
from proxy.model.identifiers import parse_did
from proxy.model.keys import BlobKey, VideoKey
from proxy.moderation.feeds.account_events import jetstream_event
from proxy.moderation.feeds.account_feed import MAX_MESSAGE
from proxy.moderation.feeds.follower import follow
from proxy.moderation.feeds.websocket import Server
from proxy.service import Service
from proxy.tools.warm import Bookmark, Warmer

MAX_WAITING = 1000
"""Blobs that may wait for their turn. If more come, the pace is too slow: new ones are skipped."""


def new_pictures(text: str | bytes, collections: Collection[str]) -> tuple[int, list[BlobKey]]:
    """Return an event's cursor, and the pictures of its record if in one of ``collections``.

    Videos among them are ``VideoKey``.

    Pure, total.

    Raises:
        BadFrame: see ``jetstream_event``.
    """
    event, cursor = jetstream_event(text)
    commit = event.get("commit")
    if (
        event.get("kind") != "commit"
        or not isinstance(commit, dict)
        or commit.get("operation") not in ("create", "update")
        or commit.get("collection") not in collections
    ):
        return cursor, []
    try:
        did = parse_did(str(event.get("did")))
    except InvalidDid:
        return cursor, []
    pictures = contents_of(commit.get("record")).pictures
    return cursor, [
        (VideoKey if picture.medium == "video" else BlobKey)(did, picture.cid)
        for picture in pictures
    ]


class PictureFeed:
    """The records of some collections; implements ``Feed``.

    Args:
        network: the network for the Jetstream, which the operator chose.
        on_picture: called for each picture in the records.
    """

    name = "pictures"
    first_cursor = None  # Older pictures are cached on request.
    max_message = MAX_MESSAGE

    def __init__(
        self,
        origin: Origin,
        network: Network,
        collections: Collection[str],
        on_picture: Callable[[BlobKey], None],
    ) -> None:
        self._collections = sorted(collections)
        self._server = Server(network, origin)
        self._on_picture = on_picture
        self.stream = f"pictures {origin} {' '.join(self._collections)}"

    async def locate(self) -> Server:
        """See ``Feed.locate``."""
        await trio.lowlevel.checkpoint()
        return self._server

    def target(self, cursor: int | None) -> str:
        """See ``Feed.target``."""
        query = [("wantedCollections", name) for name in self._collections]
        if cursor is not None:
            query.append(("cursor", str(cursor)))
        return f"/subscribe?{urlencode(query)}"

    async def take(self, message: str | bytes) -> int | None:
        """See ``Feed.take``; but pictures waiting for their turn do not survive a restart."""
        await trio.lowlevel.checkpoint()
        cursor, blobs = new_pictures(message, self._collections)
        for blob in blobs:
            self._on_picture(blob)
        return cursor


class BookmarkedCursors:
    """``Cursors`` that stores each cursor in its own file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def cursor(self, stream: str) -> int | None:
        """See ``Cursors.cursor``."""
        kept = await Bookmark(self._folder, stream).load()
        return int(kept) if kept.isascii() and kept.isdigit() else None

    async def set_cursor(self, stream: str, cursor: int) -> None:
        """See ``Cursors.set_cursor``."""
        await Bookmark(self._folder, stream).save(str(cursor))


async def warm_stream(
    service: Service,
    warmer: Warmer,
    origin: Origin,
    network: Network,
    collections: Collection[str],
    on_left_out: Callable[[], None] = lambda: None,
) -> None:
    """Warm the pictures of new records until cancelled; continue where the last run stopped.

    Args:
        on_left_out: called for each picture that is skipped because too many wait.
    """
    send, receive = trio.open_memory_channel[BlobKey](MAX_WAITING)

    def take(blob: BlobKey) -> None:
        try:
            send.send_nowait(blob)
        except trio.WouldBlock:
            on_left_out()

    feed = PictureFeed(origin, network, collections, take)
    cursors = BookmarkedCursors(service.config.cache.path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warmer.warm_from, receive)
        await follow(feed, cursors, service.metrics)
