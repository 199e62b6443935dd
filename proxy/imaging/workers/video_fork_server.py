"""The process that the workers of videos are forked from: as ``fork_server``, with FFmpeg.

It is another process, which only a service that makes posters starts: FFmpeg takes a third of the
memory and of the start, and no picture meets its code.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from typing import NoReturn

from proxy.errors import ImageProxyError
from proxy.imaging.poster import poster, render_posters
from proxy.imaging.recipes import Outcome, Recipe
from proxy.imaging.workers.fork_server import fork_workers, ignore_signals
from proxy.imaging.workers.imports import VIDEO_CODECS
from proxy.imaging.workers.main import Given, keep_freed_memory, serve, warm_up

_STUMPS = (b"\0\0\0\x14ftypisom\0\0\0\0isom", b"\x1a\x45\xdf\xa3")
"""Truncated files, as those of ``main.warm_up``."""


def main(descriptor: int) -> NoReturn:
    """Fork workers as the socket ``descriptor`` says, until it closes."""
    ignore_signals()
    keep_freed_memory()
    warm_up_for_videos()
    # FFmpeg is told to start no threads.
    fork_workers(socket.socket(fileno=descriptor), 0, _serve_posters)


def warm_up_for_videos() -> None:
    """As ``main.warm_up``, with the decoders of videos."""
    warm_up(VIDEO_CODECS)
    for stump in _STUMPS:
        with suppress(ImageProxyError):
            poster(BytesIO(stump), max_pixels=1000)


def _serve_posters(given: Given) -> NoReturn:
    def render_all(_: bytes, recipes: Sequence[Recipe], max_pixels: int) -> Iterator[Outcome]:
        return render_posters(given.source, recipes, max_pixels=max_pixels)

    serve(given, render_all)
