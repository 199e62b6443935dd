"""Asks a PDS for the records of an account, and finds the pictures that they refer to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from proxy.accounts.blob_fetcher import failure_of, is_absent, mapped_errors
from proxy.accounts.did_documents import MIGRATION_AGE, Resolver
from proxy.accounts.xrpc import query, record_query
from proxy.config import Config
from proxy.egress.errors import TooLarge
from proxy.egress.gateway import Gateway
from proxy.egress.guarded_get import Response
from proxy.errors import (
    AccountNotFound,
    BlobNotFound,
    DidNotFound,
    FetchFailed,
    InvalidCid,
    RecordNotFound,
)
from proxy.model.identifiers import Cid, Did, parse_cid

MAX_ANSWER = 64 * 1024
"""The limit for one answer in JSON, in bytes: what is parsed in a millisecond, whatever it is. A
profile or post has a few thousand bytes, a page of CIDs 40,000."""

MAX_VALUES = 2048
"""The most values of a record that are looked at for pictures; a post with four has about 50."""

MAX_PICTURES = 64
"""The most pictures looked for in one record; a post has at most four, a gallery a few dozen."""

MAX_NAME = 64
"""Characters of a field's name that are kept; Lexicons have short ones."""

MAX_ALT = 4000
"""Characters of a description that are kept. The Lexicon has no limit; Bluesky's own client allows
2000 graphemes."""

PAGE = 500
"""CIDs in one page of ``com.atproto.sync.listBlobs``; this is the method's default."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A blob that a record refers to.

    Attributes:
        name: the name of the field that refers to it, such as ``avatar``.
        alt: its description, if there is one beside the reference.
    """

    cid: Cid
    name: str
    alt: str = ""


def picture_cid(value: object) -> Cid | None:
    """The CID of a blob reference if its media type is an image type. Pure, total.

    atproto, Data Model, "Blob Type", and its deprecated form without a ``$type``.
    """
    if not isinstance(value, dict):
        return None
    kind = value.get("mimeType")
    if not (isinstance(kind, str) and kind.startswith("image/")):
        return None
    if value.get("$type") == "blob":
        ref = value.get("ref")
        text = ref.get("$link") if isinstance(ref, dict) else None
    else:
        text = value.get("cid") if value.keys() == {"cid", "mimeType"} else None
    try:
        return parse_cid(text) if isinstance(text, str) else None
    except InvalidCid:
        return None


def pictures_in(record: object) -> list[Picture]:
    """The pictures of a record, each once, in the order of the record. Pure, total.

    At most ``MAX_PICTURES``, from the first ``MAX_VALUES`` values.
    """
    found: dict[Cid, Picture] = {}
    for name, alt, value in islice(_values("", "", record), MAX_VALUES):
        cid = picture_cid(value)
        if cid is not None:
            found.setdefault(cid, Picture(cid, name[:MAX_NAME], alt[:MAX_ALT]))
            if len(found) == MAX_PICTURES:
                break
    return list(found.values())


def _values(name: str, alt: str, value: object) -> Iterator[tuple[str, str, object]]:
    """``value`` and the values in it, each with the name of its field and the text beside it."""
    todo = [iter([(name, alt, value)])]
    while todo:
        for name, alt, value in todo[-1]:
            yield name, alt, value
            if inner := _inside(name, alt, value):
                todo.append(inner)
                break
        else:
            todo.pop()


def _inside(name: str, alt: str, value: object) -> Iterator[tuple[str, str, object]] | None:
    if isinstance(value, list):
        return ((name, alt, inner) for inner in value)
    if not isinstance(value, dict) or picture_cid(value) is not None:
        return None
    beside = value.get("alt")
    own = beside if isinstance(beside, str) else ""
    return ((key, own, inner) for key, inner in value.items())


class Records:
    """Asks a PDS for records, and for the list of an account's blobs."""

    def __init__(self, config: Config, gateway: Gateway, resolver: Resolver) -> None:
        self._fetch = config.fetch
        self._gateway = gateway
        self._resolver = resolver

    async def get(self, did: Did, collection: str, key: str) -> dict[str, Any]:
        """The value of a record, by ``com.atproto.repo.getRecord``.

        Raises:
            RecordNotFound, AccountNotFound: there is no such record, or no such account.
            ImageProxyError: as for a blob.
        """
        value = (await self._ask(did, *record_query(did, collection, key))).get("value")
        if not isinstance(value, dict):
            raise FetchFailed(f"{did}: the record is not an object")
        return value

    async def blobs(self, did: Did, cursor: str = "") -> tuple[list[Cid], str]:
        """One page of the list of an account's blobs, by ``com.atproto.sync.listBlobs``.

        Args:
            cursor: the cursor that the page before returned; empty for the first page.

        Returns:
            The CIDs, without those that a URL may not have, and the cursor of the next page: empty
            at the end.

        Raises:
            ImageProxyError: like ``get``.
        """
        parameters = {"did": did, "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
        page = await self._ask(did, "com.atproto.sync.listBlobs", parameters)
        listed, following = page.get("cids"), page.get("cursor", "")
        if not isinstance(listed, list) or not isinstance(following, str) or len(listed) > PAGE:
            raise FetchFailed(f"{did}: the page of blobs is not of the expected form")
        cids = []
        for text in listed:
            try:
                cids.append(parse_cid(str(text)))
            except InvalidCid:
                continue
        # Stop at a repeated cursor; otherwise such a PDS would be asked for ever.
        return cids, following if listed and following != cursor else ""

    async def _ask(self, did: Did, method: str, parameters: dict[str, str]) -> dict[str, Any]:
        pds = await self._pds_of(did)
        try:
            return await self._ask_pds(pds, method, parameters)
        except BlobNotFound:
            # Accounts migrate: an older document may name a PDS that the account has left.
            current = await self._pds_of(did, max_age=MIGRATION_AGE)
            if current == pds:
                raise
            return await self._ask_pds(current, method, parameters)

    async def _pds_of(self, did: Did, *, max_age: float | None = None) -> str:
        try:
            return await self._resolver.resolve(did, max_age=max_age)
        except DidNotFound as error:
            raise AccountNotFound(str(error)) from error

    async def _ask_pds(self, pds: str, method: str, parameters: dict[str, str]) -> dict[str, Any]:
        with mapped_errors(pds):
            try:
                answer = await query(
                    self._gateway, self._fetch, pds, method, parameters, max_bytes=MAX_ANSWER
                )
            except TooLarge as error:
                # Not ImageTooLarge: this answer is not an image that the owner chose.
                raise FetchFailed(f"{pds}: {error}") from error
        return _value_of(pds, answer)


def _value_of(pds: str, answer: Response) -> dict[str, Any]:
    parsed: Any = None
    try:
        parsed = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        if answer.status == 200:
            raise FetchFailed(f"{pds}: not JSON: {error}") from None
    if answer.status == 400 and isinstance(parsed, dict) and _says_no_record(parsed):
        raise RecordNotFound(f"{pds}: {str(parsed.get('message'))[:200]!a}")
    if is_absent(answer.status, answer.body):
        raise AccountNotFound(f"{pds}: status {answer.status}")
    if answer.status != 200 or not isinstance(parsed, dict):
        raise failure_of(pds, answer)
    return parsed


def _says_no_record(error: dict[str, Any]) -> bool:
    """Whether an XRPC error means that there is no such record.

    Older PDSes say this only in the message of an ``InvalidRequest``.
    """
    message = str(error.get("message", "")).lower()
    return error.get("error") == "RecordNotFound" or message.startswith("could not locate record")
