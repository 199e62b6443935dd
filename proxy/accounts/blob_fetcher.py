"""Fetches blobs from a PDS, and verifies their bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import quote

from proxy.config import Config
from proxy.egress.circuit import pause_asked
from proxy.egress.endpoint import Origin, parse_origin
from proxy.egress.errors import AskedToWait, EgressError, Forbidden, Saturated, TimedOut, TooLarge
from proxy.egress.gateway import Gateway
from proxy.egress.guarded_get import Response
from proxy.errors import (
    BlobNotFound,
    Busy,
    CidMismatch,
    FetchFailed,
    ForbiddenDestination,
    ImageTooLarge,
    RateLimited,
    UpstreamTimeout,
)
from proxy.model.identifiers import cid_digest
from proxy.model.keys import BlobKey

ABSENT = frozenset(
    {"BlobNotFound", "RepoNotFound", "RepoTakendown", "RepoSuspended", "RepoDeactivated"}
)
"""XRPC error names of ``com.atproto.sync.getBlob``: the PDS does not have the blob or account."""

ABSENT_MESSAGES = ("blob not found", "could not find repo")
"""Older PDSes say this only in the message of an ``InvalidRequest``."""


class Fetcher(Protocol):
    """Gets blobs."""

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """The bytes of ``blob`` from the PDS at the URL ``pds``, verified against its CID.

        Raises:
            BlobNotFound: the PDS does not have the blob or the account.
            ImageTooLarge: longer than ``fetch.max_source_mb``.
            CidMismatch: the bytes are not those that the CID names.
            FetchFailed: the connection was refused, reset or forbidden, or the answer is bad.
            RateLimited: the PDS asks for fewer fetches.
            UpstreamTimeout, Busy: no answer in time, or the fetch channel is full.
        """
        ...


class PdsFetcher:
    """Gets blobs by ``com.atproto.sync.getBlob``.

    Args:
        headers: called for each request; returns its further headers.
    """

    def __init__(
        self,
        config: Config,
        gateway: Gateway,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings = config.fetch
        self._max_bytes = config.fetch.max_source_bytes
        self._gateway = gateway
        self._headers = headers

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """See ``Fetcher.fetch``."""
        with mapped_errors(pds):
            answer = await self._gateway.get(
                self._origin(pds),
                _target(blob),
                max_bytes=self._max_bytes,
                headers=self._headers(),
            )
        if is_absent(answer.status, answer.body):
            raise BlobNotFound(f"{pds}: status {answer.status}")
        if answer.status != 200:
            raise failure_of(pds, answer)
        if answer.sha256 != cid_digest(blob.cid):
            raise CidMismatch(f"{pds}: sha-256 {answer.sha256.hex()}")
        return answer.body

    async def exists(self, pds: str, blob: BlobKey) -> bool:
        """Whether the PDS still serves ``blob``. Asks without reading the blob.

        Bluesky's PDS answers a HEAD with the status of a GET. But the reason of a refusal is in the
        body, and a HEAD has no body (RFC 9110, section 9.3.2). So a refused HEAD is followed by a
        GET, also for a PDS that does not support HEAD. Of the GET, only the body of a refusal is
        read.

        Raises:
            FetchFailed, UpstreamTimeout, Busy: the PDS gave no clear answer.
        """
        with mapped_errors(pds):
            origin = self._origin(pds)
            answer = await self._gateway.head(origin, _target(blob))
            if _may_answer_otherwise(answer.status):
                answer = await self._gateway.head(origin, _target(blob), method="GET")
        if answer.status == 200:
            return True
        if is_absent(answer.status, answer.body):
            return False
        raise failure_of(pds, answer)

    def _origin(self, pds: str) -> Origin:
        return parse_origin(
            pds,
            allow_http=self._settings.allow_http,
            allow_private_hosts=self._settings.allow_private_hosts,
        )


def _target(blob: BlobKey) -> str:
    did = quote(blob.did, safe=":")
    return f"/xrpc/com.atproto.sync.getBlob?did={did}&cid={blob.cid}"


@contextmanager
def mapped_errors(pds: str) -> Iterator[None]:
    """Raise the egress errors of a request to a PDS as errors of ``proxy.errors``."""
    try:
        yield
    except Saturated as error:
        raise Busy(str(error)) from error
    except TimedOut as error:
        raise UpstreamTimeout(str(error)) from error
    except TooLarge as error:
        raise ImageTooLarge(f"{error} (fetch.max_source_mb)") from error
    except Forbidden as error:
        raise ForbiddenDestination(str(error)) from error
    except AskedToWait as error:
        raise RateLimited(f"{pds}: {error}", error.seconds) from error
    except EgressError as error:
        raise FetchFailed(f"{pds}: {error}") from error


def _may_answer_otherwise(status: int) -> bool:
    """Whether a GET may give more information than a HEAD with this status. Pure, total.

    Not after a 429: it asks for fewer requests, so do not send another one.
    """
    return (400 <= status < 500 and status != 429) or status == 501


def failure_of(pds: str, answer: Response) -> FetchFailed:
    """The error for an answer that is not usable, but does not say that the item is absent."""
    cause = f"{pds}: status {answer.status}"
    pause = pause_asked(answer.status, answer.headers, time.time())
    if pause or answer.status == 429:
        return RateLimited(cause, pause or None)
    return FetchFailed(cause)


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
