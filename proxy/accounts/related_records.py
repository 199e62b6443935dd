"""Finds records whose pictures are shown with those of another record, or of an account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from proxy.accounts.record_contents import MAX_PICTURES, Picture, contents_of
from proxy.accounts.records import Record, Records
from proxy.errors import ImageProxyError, UpstreamTimeout
from proxy.model.identifiers import Did
from proxy.model.references import GALLERY, Reference

GALLERY_ITEM = "social.grain.gallery.item"
PHOTO = "social.grain.photo"

PLACES = {
    "sh.tangled.actor.profile": 1,
    "social.grain.actor.profile": 1,
    "pub.leaflet.publication": 3,
    "site.standard.publication": 3,
    "site.standard.document": 3,
    PHOTO: 6,
}
"""Collections in which an account has pictures beside its profile, and how many of their newest
records are looked through. What is named here is in the authorities' published Lexicons."""

MAX_PAGES = 10
"""Pages of a collection that are read for one gallery: its newest 500 records."""

PATIENCE = 6.0
"""Seconds for what is shown beside the rest: the rest waits for it."""


@dataclass(frozen=True, slots=True)
class Related:
    """A record, or a collection, whose pictures are shown too.

    Attributes:
        uri: its at:// URI.
        problem: why its pictures are not known, as a public message; empty where they are.
    """

    uri: str
    did: Did
    pictures: list[Picture]
    problem: str = ""


class RelatedRecords:
    """Asks PDSes for what belongs to a record or an account, each with a problem of its own.

    Nothing here raises for what a PDS does, and all of it ends within ``PATIENCE`` seconds.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    async def embedded(self, references: Collection[Reference]) -> list[Related]:
        """The pictures of the records that a record embeds, and not those that these embed."""

        async def read(did: Did, collection: str, key: str) -> list[Picture]:
            return contents_of(await self._records.get(did, collection, key)).pictures

        asked = []
        for reference in references:
            if reference.record is not None:
                did, (collection, key) = Did(reference.actor), reference.record
                uri = f"at://{did}/{collection}/{key}"
                asked.append((uri, did, partial(read, did, collection, key)))
        return await _together(asked)

    async def of_account(self, did: Did, without: Collection[str]) -> list[Related]:
        """The newest pictures of an account in the ``PLACES`` that it has.

        Args:
            without: collections that have been read.
        """
        there: frozenset[str] = frozenset()
        deadline = trio.current_time() + PATIENCE
        try:
            with trio.move_on_at(deadline):
                there = await self._records.collections(did)
        except ImageProxyError:  # a PDS need not list them
            return []

        async def newest(collection: str, limit: int) -> list[Picture]:
            page, _ = await self._records.page(did, collection, limit=limit)
            return _pictures_of(page)

        return await _together(
            [
                (f"at://{did}/{collection}", did, partial(newest, collection, limit))
                for collection, limit in PLACES.items()
                if collection in there and collection not in without
            ],
            deadline,
        )

    async def of_gallery(self, did: Did, key: str) -> Related:
        """The photos of a gallery of Grain, in its order: records of their own name them."""
        uri = f"at://{did}/{GALLERY}/{key}"

        async def photos() -> list[Picture]:
            items = await self._all(
                did, GALLERY_ITEM, lambda each: each.value.get("gallery") == uri
            )
            items.sort(key=_position)
            wanted = [str(item.value.get("item")) for item in items][:MAX_PICTURES]
            found = await self._all(did, PHOTO, lambda each: each.uri in wanted, most=len(wanted))
            return _pictures_of(sorted(found, key=lambda each: wanted.index(each.uri)))

        (related,) = await _together([(uri, did, photos)])
        return related

    async def _all(
        self,
        did: Did,
        collection: str,
        is_wanted: Callable[[Record], bool],
        most: int = MAX_PAGES * MAX_PICTURES,
    ) -> list[Record]:
        found: list[Record] = []
        cursor = ""
        for _ in range(MAX_PAGES):
            if len(found) >= most:
                break
            page, cursor = await self._records.page(did, collection, cursor=cursor)
            found += filter(is_wanted, page)
            if not cursor:
                break
        return found


async def _together(
    asked: Sequence[tuple[str, Did, Callable[[], Awaitable[list[Picture]]]]],
    deadline: float | None = None,
) -> list[Related]:
    """Ask for the pictures of each URI at the same time; in order.

    Args:
        deadline: by Trio's clock; None: in ``PATIENCE`` seconds.
    """
    end = trio.current_time() + PATIENCE if deadline is None else deadline
    found: dict[str, Related] = {}

    async def ask(uri: str, did: Did, read: Callable[[], Awaitable[list[Picture]]]) -> None:
        problem = UpstreamTimeout("").public_message
        pictures: list[Picture] = []
        try:
            with trio.move_on_at(end):
                pictures, problem = await read(), ""
        except ImageProxyError as error:
            problem = error.public_message
        found[uri] = Related(uri, did, pictures, problem)

    async with trio.open_nursery() as nursery:
        for uri, did, read in asked:
            nursery.start_soon(ask, uri, did, read)
    return [found[uri] for uri, _, _ in asked]


def _position(item: Record) -> int:
    position = item.value.get("position")
    return position if isinstance(position, int) else 0


def _pictures_of(page: list[Record]) -> list[Picture]:
    """The pictures of records, each once."""
    return contents_of([each.value for each in page]).pictures
