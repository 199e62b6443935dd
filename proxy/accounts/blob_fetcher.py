"""Fetches blobs from a PDS, and verifies their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import quote

import trio

from proxy.accounts.availability import settled_verdict
from proxy.accounts.pds_answers import Verdict
from proxy.accounts.rate_limits import rate_limit_of
from proxy.accounts.video_file import VideoFile
from proxy.config import Config
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
    ImageProxyError,
    ImageTooLarge,
    RateLimited,
    UpstreamTimeout,
)
from proxy.model.identifiers import cid_digest
from proxy.model.keys import BlobKey

TYPES_OF_BLOBS = ("image/", "video/", "application/octet-stream")
"""How types of blobs begin that a page is not sent with, neither HTML nor JSON."""


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
        self._video = config.video
        self._max_bytes = config.fetch.max_source_bytes
        self._gateway = gateway
        self._headers = headers

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """See ``Fetcher.fetch``."""
        began = trio.current_time()
        with mapped_errors(pds):
            answer = await self._gateway.get(
                self._origin(pds),
                _target(blob),
                max_bytes=self._max_bytes,
                headers=self._headers(),
            )
        if answer.status != 200:
            raise await self._refusal(pds, blob, answer, began)
        if answer.sha256 != cid_digest(blob.cid):
            raise CidMismatch(f"{pds}: sha-256 {answer.sha256.hex()}")
        return answer.body

    async def fetch_video(self, pds: str, blob: BlobKey, file: VideoFile) -> None:
        """Write ``blob``, verified against its CID, to ``file``, within the limits of ``[video]``.

        Raises:
            ImageProxyError: as ``Fetcher.fetch``; or Busy: the disk has no room.
        """
        began = trio.current_time()
        await file.empty()
        with mapped_errors(pds, "video.max_source_mb"):
            answer = await self._gateway.get(
                self._origin(pds),
                _target(blob),
                max_bytes=self._video.max_source_bytes,
                lane="videos",
                headers=self._headers(),
                sink=file.add,
                timeout=self._video.timeout,
            )
        if answer.status != 200:
            raise await self._refusal(pds, blob, answer, began)
        if answer.sha256 != cid_digest(blob.cid):
            raise CidMismatch(f"{pds}: sha-256 {answer.sha256.hex()}")
        await file.finish()

    async def exists(self, pds: str, blob: BlobKey) -> bool:
        """Whether the PDS still serves ``blob``. Asks without reading the blob.

        Bluesky's PDS answers a HEAD with the status of a GET. But the reason of a refusal is in the
        body, and a HEAD has no body (RFC 9110, section 9.3.2). So a refused HEAD is followed by a
        GET, also for a PDS that does not support HEAD. Of the GET, only the body of a refusal is
        read. Where a PDS was, its domain may have a page for every path: what may be one is read,
        and compared with the CID.

        Raises:
            CidMismatch, FetchFailed, UpstreamTimeout, Busy: the PDS gave no clear answer.
        """
        began = trio.current_time()
        with mapped_errors(pds):
            origin = self._origin(pds)
            answer = await self._gateway.head(origin, _target(blob))
            if _may_answer_otherwise(answer.status):
                answer = await self._gateway.head(origin, _target(blob), method="GET")
        if answer.status == 200:
            if may_be_a_page(answer.headers):
                return await self._is_readable(pds, blob)
            return True
        refusal = await self._refusal(pds, blob, answer, began)
        if isinstance(refusal, BlobNotFound):
            return False
        raise refusal

    async def _is_readable(self, pds: str, blob: BlobKey) -> bool:
        try:
            await self.fetch(pds, blob)
        except BlobNotFound:
            return False
        return True

    async def _refusal(
        self, pds: str, blob: BlobKey, answer: Response, began: float
    ) -> ImageProxyError:
        """The error for an answer other than a 200."""
        verdict = await settled_verdict(
            self._gateway, self._settings, pds, blob.did, answer, began=began
        )
        if verdict in (Verdict.ABSENT, Verdict.NO_RECORD):
            return BlobNotFound(f"{pds}: status {answer.status}")
        return failure_of(pds, answer)

    def _origin(self, pds: str) -> Origin:
        return parse_origin(
            pds,
            allow_http=self._settings.allow_http,
            allow_private_hosts=self._settings.allow_private_hosts,
        )


def may_be_a_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer with these headers may be no blob, as it does not call itself one. Total.

    One that says that it is empty may be: no picture is.
    """
    content_type = headers.get("content-type", "").strip().lower()
    return not content_type.startswith(TYPES_OF_BLOBS) or headers.get("content-length") == "0"


def _target(blob: BlobKey) -> str:
    did = quote(blob.did, safe=":")
    return f"/xrpc/com.atproto.sync.getBlob?did={did}&cid={blob.cid}"


@contextmanager
def mapped_errors(pds: str, limit: str = "fetch.max_source_mb") -> Iterator[None]:
    """Raise the egress errors of a request to a PDS as errors of ``proxy.errors``."""
    try:
        yield
    except Saturated as error:
        raise Busy(str(error)) from error
    except TimedOut as error:
        raise UpstreamTimeout(str(error)) from error
    except TooLarge as error:
        raise ImageTooLarge(f"{error} ({limit})") from error
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
    return (400 <= status < 500 and status != 429) or status in (500, 501)


def failure_of(pds: str, answer: Response) -> FetchFailed | RateLimited:
    """The error for an answer that is not usable, but does not say that the item is absent."""
    cause = f"{pds}: status {answer.status}"
    return rate_limit_of(cause, answer) or FetchFailed(cause)
