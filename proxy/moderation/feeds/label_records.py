"""The blobs of a record, asked of its owner's PDS."""

from __future__ import annotations

import json

import trio

from proxy.accounts.did_documents import Resolver
from proxy.accounts.xrpc import query, record_query
from proxy.config import Config
from proxy.egress.errors import EgressError
from proxy.egress.gateway import Gateway
from proxy.errors import DidNotFound, ImageProxyError
from proxy.model.identifiers import Cid
from proxy.moderation.feeds.labels import LabelledRecord, blobs_of

MAX_RECORD = 2 * 1024 * 1024
"""Bytes of a record in JSON; in CBOR it may have one megabyte (atproto, Repository)."""

GONE = frozenset({"RecordNotFound", "RepoNotFound"})
"""XRPC error names of ``com.atproto.repo.getRecord`` that no later question would change."""


class RecordGone(Exception):
    """There is no such record, or only another version of it: nothing of it can be blocked."""


class RecordUnknown(Exception):
    """What the record refers to cannot be told now."""


class RecordReader:
    """Asks ``com.atproto.repo.getRecord``.

    Answers are read in one thread of its own: the largest record takes half a second.
    """

    def __init__(self, config: Config, gateway: Gateway, resolver: Resolver) -> None:
        self._fetch = config.fetch
        self._gateway = gateway
        self._resolver = resolver
        self._limiter = trio.CapacityLimiter(1)

    async def blobs(self, record: LabelledRecord) -> frozenset[Cid]:
        """The blobs that a record refers to.

        Raises:
            RecordGone: the record, the version of it, or its account does not exist.
            RecordUnknown: any other failure; a later question may be answered.
        """
        try:
            pds = await self._resolver.resolve(record.did)
        except DidNotFound as error:
            raise RecordGone(str(error)) from error
        except ImageProxyError as error:
            raise RecordUnknown(str(error)) from error
        method, parameters = record_query(record.did, record.collection, record.key)
        try:
            answer = await query(
                self._gateway, self._fetch, pds, method, parameters, max_bytes=MAX_RECORD
            )
        except EgressError as error:
            raise RecordUnknown(f"{pds}: {error}") from error
        return await trio.to_thread.run_sync(
            blobs_in, record, answer.status, answer.body, limiter=self._limiter
        )


def blobs_in(record: LabelledRecord, status: int, body: bytes) -> frozenset[Cid]:
    """What an answer of ``com.atproto.repo.getRecord`` says: pure, total.

    Raises:
        RecordGone, RecordUnknown: see ``RecordReader.blobs``.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RecordUnknown(f"status {status}, not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise RecordUnknown(f"status {status}, no object")
    if status == 400 and answer.get("error") in GONE:
        raise RecordGone(str(answer["error"]))
    if status != 200:
        raise RecordUnknown(f"status {status} {str(answer.get('error'))[:64]!a}")
    if record.cid is not None and answer.get("cid") != record.cid:
        raise RecordGone(f"it is now {str(answer.get('cid'))[:64]!a}, not {record.cid}")
    return blobs_of(answer.get("value"))
