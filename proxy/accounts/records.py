"""Asks a PDS for the records of an account, and for the list of its blobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from proxy.accounts.availability import settled_verdict
from proxy.accounts.blob_fetcher import failure_of, mapped_errors
from proxy.accounts.did_documents import Resolver
from proxy.accounts.pds_answers import Verdict, parsed, xrpc_error
from proxy.accounts.whereabouts import ask_pds
from proxy.accounts.xrpc import query, record_query
from proxy.config import Config
from proxy.egress.errors import TooLarge
from proxy.egress.gateway import Gateway
from proxy.errors import (
    AccountNotFound,
    DidNotFound,
    FetchFailed,
    InvalidCid,
    RecordNotFound,
)
from proxy.model.identifiers import Cid, Did, parse_cid

MAX_ANSWER = 64 * 1024
"""The limit for one answer in JSON, in bytes: what is parsed in a millisecond, whatever it is. A
profile or post has a few thousand bytes, a page of CIDs 40,000."""

PAGE = 500
"""CIDs in one page of ``com.atproto.sync.listBlobs``; this is the method's default."""


RECORDS_PAGE = 50
"""Records in one page of ``com.atproto.repo.listRecords``: a photo's has 700 bytes, or 4,000 with a
long description, and a page may have ``MAX_ANSWER``."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record, with where it is."""

    uri: str
    value: dict[str, Any]


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

    async def page(
        self, did: Did, collection: str, *, limit: int = RECORDS_PAGE, cursor: str = ""
    ) -> tuple[list[Record], str]:
        """One page of a collection, by ``com.atproto.repo.listRecords``: the newest come first.

        Args:
            cursor: the cursor that the page before returned; empty for the first page.

        Returns:
            The records that are objects, and the cursor of the next page: empty at the end.

        Raises:
            ImageProxyError: like ``get``.
        """
        parameters = {"repo": did, "collection": collection, "limit": str(limit)}
        parameters |= {"cursor": cursor} if cursor else {}
        page = await self._ask(did, "com.atproto.repo.listRecords", parameters)
        listed, following = page.get("records"), page.get("cursor", "")
        if not isinstance(listed, list) or not isinstance(following, str):
            raise FetchFailed(f"{did}: the page of records is not of the expected form")
        records = [
            Record(each["uri"], each["value"])
            for each in listed[:limit]
            if isinstance(each, dict)
            and isinstance(each.get("uri"), str)
            and isinstance(each.get("value"), dict)
        ]
        return records, following if listed and following != cursor else ""

    async def collections(self, did: Did) -> frozenset[str]:
        """The names of the collections of an account, by ``com.atproto.repo.describeRepo``.

        Raises:
            ImageProxyError: like ``get``.
        """
        listed = (await self._ask(did, "com.atproto.repo.describeRepo", {"repo": did})).get(
            "collections"
        )
        return (
            frozenset(each for each in listed if isinstance(each, str))
            if isinstance(listed, list)
            else frozenset()
        )

    async def _ask(self, did: Did, method: str, parameters: dict[str, str]) -> dict[str, Any]:
        question = partial(self._ask_pds, did=did, method=method, parameters=parameters)
        timeout = self._fetch.timeout
        try:
            pds = await self._resolver.resolve(did)
            return (await ask_pds(self._resolver, did, pds, question, timeout=timeout)).value
        except DidNotFound as error:
            raise AccountNotFound(str(error)) from error

    async def _ask_pds(
        self, pds: str, *, did: Did, method: str, parameters: dict[str, str]
    ) -> dict[str, Any]:
        began = trio.current_time()
        with mapped_errors(pds):
            try:
                answer = await query(
                    self._gateway, self._fetch, pds, method, parameters, max_bytes=MAX_ANSWER
                )
            except TooLarge as error:
                # Not ImageTooLarge: this answer is not an image that the owner chose.
                raise FetchFailed(f"{pds}: {error}") from error
        if answer.status == 200:
            value = parsed(answer.body)
            if value is None:
                raise FetchFailed(f"{pds}: not a JSON object")
            return value
        match await settled_verdict(self._gateway, self._fetch, pds, did, answer, began=began):
            case Verdict.NO_RECORD:
                message = xrpc_error(answer.body).message
                raise RecordNotFound(f"{pds}: {message[:200]!a}")
            case Verdict.ABSENT:
                raise AccountNotFound(f"{pds}: status {answer.status}")
            case _:
                raise failure_of(pds, answer)
