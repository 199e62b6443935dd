"""Finds accounts by handle or DID, and their pictures: avatar, banner, pictures of a post."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from proxy.accounts.did_documents import MAX_BYTES
from proxy.accounts.handles import HandleResolver
from proxy.accounts.record_contents import Picture, contents_of, picture_cid
from proxy.accounts.records import Records
from proxy.accounts.related_records import Related, RelatedRecords
from proxy.config import Config
from proxy.errors import BlobNotFound, NoAvatar, NoBanner, NoPdsEndpoint, RecordNotFound
from proxy.model.identifiers import Cid, Did, Handle
from proxy.model.keys import KINDS, BlobKey, Kind
from proxy.model.references import GALLERY, Reference, parse_account, parse_reference
from proxy.model.selection import Selection
from proxy.shared.lookup_cache import Lifetimes, LookupCache

PROFILE_KEY = "self"


_NONE = {"avatar": NoAvatar, "banner": NoBanner}


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A picture, its owner, and the at:// URI of its source if that is not what was asked for."""

    did: Did
    picture: Picture
    source: str


@dataclass(frozen=True, slots=True)
class AccountPictures:
    """An account, and some of its pictures.

    Attributes:
        profile_of: if the pictures are those of the profile, the account as the reference named it.
        related: what is shown beside them: quoted posts, the photos of a gallery, other profiles.
    """

    did: Did
    pictures: list[Picture]
    profile_of: Did | Handle | None = None
    related: list[Related] = field(default_factory=list)

    @property
    def shown(self) -> list[ShownPicture]:
        """All of them, each blob once."""
        found: dict[BlobKey, ShownPicture] = {}
        for did, source, pictures in (
            (self.did, "", self.pictures),
            *((each.did, each.uri, each.pictures) for each in self.related),
        ):
            for each in pictures:
                found.setdefault(BlobKey(did, each.cid), ShownPicture(did, each, source))
        return list(found.values())

    @property
    def of_owner(self) -> list[Picture]:
        """Those that are the account's own, each once."""
        return [each.picture for each in self.shown if each.did == self.did]


class Profiles:
    """Finds accounts and their pictures.

    Profiles are remembered for ``actors.ttl`` seconds.

    Args:
        nursery: owns the questions under way; concurrent questions for one profile are asked once.
        clock: returns seconds; Trio's clock by default.

    Attributes:
        own_names: see ``parse_handle``.
        records: reads the records of profiles and posts.
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
        self.own_names = config.fetch.allow_private_hosts
        self._handles = handles
        self.records = records
        self._related = RelatedRecords(records)
        identity = config.identity
        self._profiles: LookupCache[Did, dict[Kind, Cid]] = LookupCache(
            nursery,
            self._read_profile,
            Lifetimes(config.actors.ttl, identity.stale_ttl, identity.negative_ttl),
            settled=(BlobNotFound, NoPdsEndpoint),
            max_bytes=MAX_BYTES,
            clock=clock,
        )

    async def find(self, actor: str) -> Did:
        """The DID of a handle or of a link to a profile, or the DID itself.

        Raises:
            InvalidRequest: ``actor`` names no account (``parse_account``).
            ImageProxyError: see ``HandleResolver.resolve``.
        """
        return await self._did_of(parse_account(actor, own_names=self.own_names))

    async def handle_of(self, did: Did) -> Handle | None:
        """See ``HandleResolver.confirmed``."""
        return await self._handles.confirmed(did)

    async def picture(
        self, actor: Did | Handle, kind: Kind, permit: Callable[[BlobKey], Awaitable[None]]
    ) -> BlobKey:
        """The avatar or banner that the account's profile names.

        Args:
            permit: raises ``BlobNotFound`` for a blob that may not be served.

        Raises:
            AccountNotFound: there is no such account.
            NoAvatar, NoBanner: the account has no such picture, or no profile, or the picture may
                not be served: these look the same from outside.
            ImageProxyError: as for a blob.
        """
        did = await self._did_of(actor)
        cid = (await self._profile(did)).get(kind)
        if cid is None:
            raise _NONE[kind](f"{did} has no {kind}")
        blob = BlobKey(did, cid)
        try:
            await permit(blob)
        except BlobNotFound as error:
            raise _NONE[kind](f"{type(error).__name__}: {error}") from error
        return blob

    async def look_up(self, text: str) -> AccountPictures:
        """The account and the pictures that a reference leads to (``parse_reference``).

        Raises:
            ImageProxyError: as for a blob.
        """
        reference = parse_reference(text, own_names=self.own_names)
        did = await self._did_of(reference.actor)
        if reference.cid is not None:
            return AccountPictures(did, [Picture(reference.cid, "blob", medium=reference.medium)])
        if reference.record is not None:
            contents = contents_of(await self.records.get(did, *reference.record))
            related = await self._related.embedded(contents.embedded)
            if reference.record[0] == GALLERY:
                related.append(await self._related.of_gallery(did, reference.record[1]))
            return AccountPictures(did, contents.pictures, related=related)
        profile = await self._profile(did)
        pictures = [Picture(cid, kind) for kind, cid in profile.items()]
        related = await self._related.of_account(did, without=self._collections)
        return AccountPictures(did, pictures, reference.actor, related)

    async def selected_by(self, reference: Reference) -> list[Selection]:
        """What a reference selects: an account, a blob of it, or the pictures of a record.

        A gallery has its photos; what a record quotes is not its own.
        A PDS is asked only for what is in a record: that of an account may be gone.

        Raises:
            NoAvatar, NoBanner: the profile has no such picture.
            ImageProxyError: as for a blob.
        """
        did = await self._did_of(reference.actor)
        if reference.kind is not None:
            cid = (await self._profile(did)).get(reference.kind)
            if cid is None:
                raise _NONE[reference.kind](f"{did} has no {reference.kind}")
            return [Selection(did, cid)]
        if reference.record is not None:
            pictures = contents_of(await self.records.get(did, *reference.record)).pictures
            if reference.record[0] == GALLERY:
                pictures += (await self._related.of_gallery(did, reference.record[1])).pictures
            return [Selection(did, each.cid) for each in pictures]
        return [Selection(did, reference.cid)]

    async def _did_of(self, actor: str) -> Did:
        if actor.startswith("did:"):
            return Did(actor)
        return await self._handles.resolve(Handle(actor))

    async def _profile(self, did: Did) -> dict[Kind, Cid]:
        try:
            return await self._profiles.get(did)
        except RecordNotFound:  # the account has no profile
            return {}

    async def _read_profile(self, did: Did) -> dict[Kind, Cid]:
        """The picture of each kind, from the first collection that has one."""
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
