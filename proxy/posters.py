"""Makes posters: has a video fetched to a file, its frame decoded, and the file forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import trio

from proxy.accounts.did_documents import Resolver
from proxy.accounts.video_file import VideoFile, video_file
from proxy.accounts.whereabouts import ask_pds
from proxy.config import Config
from proxy.egress.gateway import VIDEOS_AT_ONCE
from proxy.egress.neighbours import group_of_url
from proxy.errors import Busy, ImageProxyError, RateLimited, UnsupportedImage
from proxy.imaging.workers.fair_shares import Publisher
from proxy.imaging.workers.pool import PosterMaker, Processed
from proxy.imaging.workers.shared_source import VideoSource
from proxy.model.formats import Format, content_type_of, describe_other
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.presets import Preset
from proxy.model.selection import Covering
from proxy.observability.spans import Spans
from proxy.shared.fair_turns import FairTurns
from proxy.shared.negative_cache import LONGEST, NegativeCache

HEAD = 64
"""Bytes by which a video is told from other blobs."""

OF_HOST = VIDEOS_AT_ONCE // 2
"""Files for videos of one host, or of one domain: it may take its time over them."""

MOST_WAITING, MOST_WAITING_OF_HOST = 64, 16
"""Posters that may wait for a file; more are refused as busy."""


class VideoFetcher(Protocol):
    """Gets blobs into files."""

    async def fetch_video(self, pds: str, blob: BlobKey, file: VideoFile) -> None:
        """Write ``blob``, verified against its CID, to ``file``, which it empties first.

        Raises:
            ImageProxyError: as ``Fetcher.fetch``, with the limits of ``[video]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Poster:
    """A poster, and the seconds of ``resolve``, ``fetch``, ``queue`` and ``process``."""

    processed: Processed
    timings: Mapping[str, float]


def is_decoder_installed() -> bool:
    """Whether the extra ``video`` is installed."""
    return find_spec("av") is not None


class Posters:
    """Makes posters, ``VIDEOS_AT_ONCE`` at a time.

    Args:
        maker: None: there is nothing that decodes, and every blob is of an unsupported format.
    """

    def __init__(
        self,
        config: Config,
        resolver: Resolver,
        fetcher: VideoFetcher,
        maker: PosterMaker | None,
        spans: Spans,
    ) -> None:
        self._config = config
        self._resolver = resolver
        self._fetcher = fetcher
        self._maker = maker if is_decoder_installed() else None
        self._spans = spans
        # A file lives until its poster is made.
        self._files = FairTurns(
            VIDEOS_AT_ONCE,
            OF_HOST,
            waiting=MOST_WAITING,
            waiting_of_group=MOST_WAITING_OF_HOST,
            refusal=lambda text: Busy(f"files for videos: {text}"),
        )
        self._threads = trio.CapacityLimiter(VIDEOS_AT_ONCE)
        self._failures = NegativeCache(config.identity.negative_ttl, longest=LONGEST)

    async def make(
        self,
        key: ImageKey,
        preset: Preset,
        on_start: Callable[[], None],
        remembers: Callable[[], bool] = lambda: True,
    ) -> Poster:
        """Make the poster of ``key``.

        Cancellation leaves no file behind.

        Args:
            on_start: called before it is decoded.
            remembers: whether a failure is to be remembered: nothing was forgotten meanwhile.

        Raises:
            ImageProxyError: as for an image.
        """
        if self._maker is None:
            raise UnsupportedImage("videos need the extra video, and a processor that has it")
        self._failures.check(key.blob, trio.current_time())
        try:
            made = await self._make(self._maker, key, preset, on_start)
        except ImageProxyError as error:
            # As for pictures: what is a moment's is not remembered.
            if not isinstance(error, Busy | RateLimited) and remembers():
                self._failures.failed(key.blob, error, trio.current_time())
            raise
        self._failures.succeeded(key.blob)
        return made

    def forget(self, covering: Covering) -> None:
        """Forget the failures of what is covered."""
        self._failures.purge(covering)

    async def _make(
        self, maker: PosterMaker, key: ImageKey, preset: Preset, on_start: Callable[[], None]
    ) -> Poster:
        began = trio.current_time()
        with self._spans.span("resolve"):
            pds = await self._resolver.resolve(key.blob.did)
        resolved = trio.current_time()
        async with (
            self._files.turn(group_of_url(pds), self._config.fetch.timeout),
            video_file(self._config.cache.path, self._threads) as file,
        ):
            with self._spans.span("fetch"):
                answered = await ask_pds(
                    self._resolver,
                    key.blob.did,
                    pds,
                    partial(self._fetcher.fetch_video, blob=key.blob, file=file),
                    timeout=self._config.video.timeout,
                )
            head = await file.head(HEAD)
            if not content_type_of(head).startswith("video/"):
                raise UnsupportedImage(describe_other(head))
            fetched = trio.current_time()
            processed = await maker.poster(
                VideoSource(file.descriptor, file.size),
                preset,
                key.format or Format.JPEG,
                publisher=Publisher(group_of_url(answered.pds), key.blob.did),
                on_start=on_start,
            )
        timings = {
            "resolve": resolved - began,
            "fetch": fetched - resolved,
            "queue": processed.queue_seconds,
            "process": processed.process_seconds,
        }
        return Poster(processed, timings)
