"""From a PDS to the verified bytes of a blob."""

from __future__ import annotations

import json
from typing import Protocol
from urllib.parse import quote

from proxy.config import Config
from proxy.egress.endpoint import parse_origin
from proxy.egress.errors import EgressError, Forbidden, Saturated, TimedOut, TooLarge
from proxy.egress.gateway import Gateway
from proxy.egress.get import Answer
from proxy.errors import (
    BlobNotFound,
    Busy,
    CidMismatch,
    FetchFailed,
    ForbiddenDestination,
    ImageTooLarge,
    UpstreamTimeout,
)
from proxy.identifiers import cid_digest
from proxy.urls import BlobKey

ABSENT = frozenset(
    {"BlobNotFound", "RepoNotFound", "RepoTakendown", "RepoSuspended", "RepoDeactivated"}
)
"""XRPC error names of ``com.atproto.sync.getBlob`` that mean: not here."""

ABSENT_MESSAGES = ("blob not found", "could not find repo")
"""Older PDSes say it only in the message of an ``InvalidRequest``."""


class Fetcher(Protocol):
    """Gets blobs."""

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """The bytes of ``blob`` from the PDS at the URL ``pds``, verified against its CID.

        Raises:
            BlobNotFound: the PDS does not have the blob or the account.
            ImageTooLarge: longer than ``fetch.max_source_mb``.
            CidMismatch: other bytes than the CID names.
            FetchFailed: refused, reset, forbidden, or a bad answer.
            UpstreamTimeout, Busy: no answer in time, or no room to ask.
        """
        ...


class PdsFetcher:
    """Gets blobs by ``com.atproto.sync.getBlob``."""

    def __init__(self, config: Config, gateway: Gateway) -> None:
        self._settings = config.fetch
        self._gateway = gateway

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """See ``Fetcher.fetch``."""
        try:
            answer = await self._get(pds, blob)
        except Saturated as error:
            raise Busy(str(error)) from error
        except TimedOut as error:
            raise UpstreamTimeout(str(error)) from error
        except TooLarge as error:
            raise ImageTooLarge(str(error)) from error
        except Forbidden as error:
            raise ForbiddenDestination(str(error)) from error
        except EgressError as error:
            raise FetchFailed(f"{pds}: {error}") from error
        if is_absent(answer.status, answer.body):
            raise BlobNotFound(f"{pds}: status {answer.status}")
        if answer.status != 200:
            raise FetchFailed(f"{pds}: status {answer.status}")
        if answer.sha256 != cid_digest(blob.cid):
            raise CidMismatch(f"{pds}: sha-256 {answer.sha256.hex()}")
        return answer.body

    async def _get(self, pds: str, blob: BlobKey) -> Answer:
        origin = parse_origin(
            pds,
            allow_http=self._settings.allow_http,
            allow_private_hosts=self._settings.allow_private_hosts,
        )
        did = quote(blob.did, safe=":")
        target = f"/xrpc/com.atproto.sync.getBlob?did={did}&cid={blob.cid}"
        return await self._gateway.get(origin, target, max_bytes=self._settings.max_source_bytes)


def is_absent(status: int, body: bytes) -> bool:
    """Whether an answer means that the PDS has no such blob or account. Pure, total."""
    if status == 404:
        return True
    if status != 400:
        return False
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(error, dict):
        return False
    message = str(error.get("message", "")).lower()
    return str(error.get("error")) in ABSENT or message.startswith(ABSENT_MESSAGES)
