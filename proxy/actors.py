"""Accounts by handle or DID, and their pictures: avatar, banner, those of a post."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import trio

from proxy.config import Config
from proxy.errors import BlobNotFound, NoPdsEndpoint, RecordNotFound
from proxy.handles import HandleResolver
from proxy.identifiers import Cid, Did, Handle
from proxy.records import Picture, Records, picture_cid, pictures_in
from proxy.references import parse_actor, parse_reference
from proxy.remember import Remembered, Times
from proxy.urls import BlobKey

Kind = Literal["avatar", "banner"]
KINDS: tuple[Kind, ...] = ("avatar", "banner")

MAX_PROFILES = 100_000
"""Profiles remembered; about 40 MB when full."""

PROFILE_KEY = "self"


@dataclass(frozen=True, slots=True)
class Found:
    """An account, and pictures of it."""

    did: Did
    pictures: list[Picture]


class Actors:
    """Finds accounts and their pictures.

    Profiles are remembered for ``actors.ttl`` seconds.

    Args:
        nursery: owns the questions under way; concurrent ones for a profile are asked once.
        clock: seconds; Trio's by default.

    Attributes:
        records: what profiles are read with.
    """

    def __init__(
        self,
        config: Config,
        handles: HandleResolver,
        records: Records,
        nursery: trio.Nursery,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._collections = config.actors.collections
        # .test is for development; so are private hosts.
        self._allow_test = config.fetch.allow_private_hosts
        self._handles = handles
        self.records = records
        identity = config.identity
        self._profiles: Remembered[Did, dict[Kind, Cid]] = Remembered(
            nursery,
            self._read_profile,
            Times(config.actors.ttl, identity.stale_ttl, identity.negative_ttl),
            settled=(BlobNotFound, NoPdsEndpoint),
            max_entries=MAX_PROFILES,
            clock=clock,
        )

    async def find(self, actor: str) -> Did:
        """The DID of a handle, or the DID itself.

        Raises:
            InvalidDid, InvalidHandle: it is neither.
            ImageProxyError: see ``HandleResolver.resolve``.
        """
        name = parse_actor(actor, allow_test=self._allow_test)
        return await self._did_of(name)

    async def picture(self, did: Did, kind: Kind) -> BlobKey:
        """The avatar or banner of an account, by its profile.

        Raises:
            BlobNotFound: it has none, or no profile.
            ImageProxyError: as for a blob.
        """
        cid = (await self._profiles.get(did)).get(kind)
        if cid is None:
            raise BlobNotFound(f"{did} has no {kind}")
        return BlobKey(did, cid)

    async def look_up(self, text: str) -> Found:
        """The account and the pictures that a reference leads to (``parse_reference``).

        Raises:
            ImageProxyError: as for a blob.
        """
        reference = parse_reference(text, allow_test=self._allow_test)
        did = await self._did_of(reference.actor)
        if reference.cid is not None:
            return Found(did, [Picture(reference.cid, "blob")])
        if reference.record is not None:
            return Found(did, pictures_in(await self.records.get(did, *reference.record)))
        profile = await self._profiles.get(did)
        return Found(did, [Picture(cid, kind) for kind, cid in profile.items()])

    async def _did_of(self, actor: str) -> Did:
        if actor.startswith("did:"):
            return Did(actor)
        return await self._handles.resolve(Handle(actor))

    async def _read_profile(self, did: Did) -> dict[Kind, Cid]:
        """What the first of the collections that has it says of each kind."""
        found: dict[Kind, Cid] = {}
        missing: RecordNotFound | None = None
        for collection in self._collections:
            try:
                record = await self.records.get(did, collection, PROFILE_KEY)
            except RecordNotFound as error:
                missing = error
                continue
            for kind in KINDS:
                cid = picture_cid(record.get(kind))
                if cid is not None:
                    found.setdefault(kind, cid)
            if len(found) == len(KINDS):
                break
        if not found and missing is not None:
            raise missing
        return {kind: found[kind] for kind in KINDS if kind in found}
