"""The blobs of a labelled record."""

from __future__ import annotations

from proxy.errors import DidNotFound, ImageProxyError, RecordNotFound
from proxy.identifiers import Cid
from proxy.moderation.feeds.labels import Record, blobs_of
from proxy.records import Records

MAX_RECORD = 2 * 1024 * 1024
"""Bytes of a record in JSON; in CBOR it may have one megabyte (atproto, Repository)."""


class RecordGone(Exception):
    """There is no such record, or only another version of it: nothing of it can be blocked."""


class RecordUnknown(Exception):
    """What the record refers to cannot be told now."""


class RecordReader:
    """Asks the owner's PDS for the record."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def blobs(self, record: Record) -> frozenset[Cid]:
        """The blobs that a record refers to.

        Raises:
            RecordGone: the record, the version of it, or its account does not exist.
            RecordUnknown: any other failure; a later question may be answered.
        """
        try:
            answer = await self._records.answer(
                record.did, record.collection, record.key, max_bytes=MAX_RECORD
            )
        except (DidNotFound, RecordNotFound) as error:
            raise RecordGone(str(error)) from error
        except ImageProxyError as error:
            raise RecordUnknown(str(error)) from error
        if record.cid is not None and answer.get("cid") != record.cid:
            raise RecordGone(f"it is now {str(answer.get('cid'))[:64]!a}, not {record.cid}")
        return blobs_of(answer.get("value"))
