"""Writes an AVIF sequence, by Pillow's encoder. Pure.

The encoder takes a picture that can be asked for one frame after the other; it holds what it has
written, which the time that it may take bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from proxy.imaging.animation.avif_movie import finished
from proxy.imaging.animation.film import Frame, Ticks
from proxy.imaging.animation.output import TooManyBytes
from proxy.imaging.encode import avif_level
from proxy.imaging.encoder_errors import encoding

_SPEED = 9  # as quick as 10, for a third of the time of stills


def write(frames: Iterator[Frame], plays: int, quality: int, most: int, *, drawn: bool) -> bytes:
    """Return an AVIF sequence of ``frames``.

    Args:
        quality: a preset's.
        drawn: whether the picture has hard edges, where coarse chroma would be visible.

    Raises:
        TooManyBytes: it has more than ``most``.
    """
    reel = _Reel(frames)
    out = BytesIO()
    with encoding():
        reel.save(
            out,
            "AVIF",
            save_all=True,
            duration=reel.durations,
            quality=avif_level(quality),
            subsampling="4:4:4" if drawn else "4:2:0",
            speed=_SPEED,
            max_threads=1,
            range="limited",  # Chromium takes every sequence for one of a limited range
        )
    data = finished(out.getvalue(), plays)
    if len(data) > most:
        raise TooManyBytes
    return data


class _Reel(Image.Image):
    """The frames as Pillow's encoder asks for them: each is there until the next is sought.

    Attributes:
        durations: of the frames so far, in milliseconds.
        is_animated: tells the encoder that more frames follow.
    """

    is_animated = True

    def __init__(self, frames: Iterator[Frame]) -> None:
        super().__init__()
        self.durations: list[int] = []
        self._frames = frames
        self._ticks = Ticks()
        first = next(frames)
        self._wanted = first.image.mode
        self._show(first)

    def seek(self, frame: int) -> None:
        """Raises EOFError after the last frame."""
        if frame < len(self.durations):
            return
        following = next(self._frames, None)
        if following is None:
            raise EOFError
        self._show(following)

    def tell(self) -> int:
        return 0  # what the encoder seeks when it has finished

    def _show(self, frame: Frame) -> None:
        # All frames need one mode; the first frame's is that of the decoder.
        self.im = frame.image.convert(self._wanted).im
        self._mode = self._wanted
        self._size = frame.image.size
        self.durations.append(self._ticks.of(frame.duration))
