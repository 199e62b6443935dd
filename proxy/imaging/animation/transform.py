"""Makes a moving result of a moving picture, or finds that its first frame has to do.

Within bounds of frames, pixels, time and bytes; the time is looked at between frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image, ImageChops

from proxy.errors import ImageTooLarge
from proxy.imaging.animation import (
    read_apng,
    read_decoded,
    read_gif,
    write_apng,
    write_avif,
    write_gif,
    write_webp,
)
from proxy.imaging.animation.film import Convert, Film, Frame
from proxy.imaging.animation.output import TooManyBytes
from proxy.imaging.decode import Decoded
from proxy.imaging.limits import MAX_CANVAS, MOST_ELSE
from proxy.model.animation import AnimationBounds
from proxy.model.formats import Format
from proxy.model.presets import Size

_WEAKER = (0, 20, 40)
"""What is taken from the quality, one after the other, until the result is small enough."""

_LEAST_QUALITY = 20

_GIF_COLORS = (write_gif.MOST_COLORS, 127, 63, 31, 15)
_GIF_COLORS_OF_DRAWN = (*_GIF_COLORS, 7, 3)
_PNG_COLORS = (write_apng.ALL, write_apng.ALL_TIGHTLY, write_apng.MOST_COLORS, 31)
"""Likewise, the colours of a frame."""

_LONGEST = 60_000
"""Milliseconds of frames that are joined because they look the same: every format can say it."""


class OutOfTime(Exception):
    """The CPU time of the bounds is used up."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of a moving picture.

    Attributes:
        target: GIF, PNG, WEBP or AVIF.
        quality: 1 to 100.
        size: of the result, upright.
        place: makes a frame of the result of one of the source: crops, scales and turns it. Its
            second argument tells whether the picture is drawn rather than photographed.
        as_it_came: returns the source itself, if it may be served; else None.
    """

    target: Format
    quality: int
    size: Size
    place: Callable[[Image.Image, bool], Image.Image]
    as_it_came: Callable[[], bytes | None]


def transform(
    format_: Format,
    source: bytes,
    picture: bytes,
    convert: Convert,
    order: Order,
    bounds: AnimationBounds,
) -> bytes | None:
    """Return the moving result; None if the picture does not move, or exceeds the bounds.

    The result never has more bytes than a source of the same format. In another format it is the
    smallest that can be made, if no attempt has as few as the source.

    Args:
        picture: the source without its metadata.
        convert: converts a decoded frame to sRGB.
    """
    deadline = time.thread_time() + bounds.max_seconds
    try:
        film = _film(format_, source, picture, convert, bounds.max_frames)
        if film is None or film.count > bounds.max_frames:
            return None
        canvas = film.size.width * film.size.height
        if canvas > MAX_CANVAS or film.count * canvas > bounds.max_pixels:
            return None
        first = _first_if_moving(_timed(film.frames(), deadline))
        if first is None:
            return None
        same = order.as_it_came()
        if same is not None:
            return same
        most = len(source)
        last = most if order.target is format_ else max(most, MOST_ELSE)
        return _smallest(film, first, order, (most, last), deadline)
    except (OutOfTime, ImageTooLarge, MemoryError):  # the still may have room
        return None


def count_frames(format_: Format, source: bytes, picture: bytes, most: int) -> int:
    """Return the frames that a file declares, 1 for a still; ``most + 1`` if there are more.

    Args:
        picture: as in ``transform``.
    """
    found = _film(format_, source, picture, lambda image: image, most)
    return 1 if found is None else min(found.count, most + 1)


def _film(
    format_: Format, source: bytes, picture: bytes, convert: Convert, most: int
) -> Film | None:
    match format_:
        case Format.GIF:
            return read_gif.film(source, most)
        case Format.PNG:
            return read_apng.film(source, most, convert)
        case Format.WEBP | Format.AVIF:
            return read_decoded.film(format_, picture, convert)
        case _:
            return None


def _timed(frames: Iterator[Frame], deadline: float) -> Iterator[Frame]:
    for frame in frames:
        if time.thread_time() > deadline:
            raise OutOfTime
        yield frame


def _first_if_moving(frames: Iterator[Frame]) -> Frame | None:
    """Return the first frame, or None if no later one looks different."""
    first = next(frames, None)
    if first is not None and any(_differ(first.image, frame.image) for frame in frames):
        return first
    return None


def _differ(first: Image.Image, second: Image.Image) -> bool:
    if first.mode != second.mode:
        first, second = first.convert("RGBA"), second.convert("RGBA")
    return ImageChops.difference(first, second).getbbox(alpha_only=False) is not None


def _smallest(
    film: Film, first: Frame, order: Order, most: tuple[int, int], deadline: float
) -> bytes | None:
    """Return the best result that has few enough bytes, or None.

    Args:
        most: bytes of any attempt but the last, and of the last.
    """
    drawn = Decoded(first.image, None).is_flat

    def frames() -> Iterator[Frame]:
        return _joined(_placed(_timed(film.frames(), deadline), order, drawn))

    if _first_if_moving(frames()) is None:
        return None
    *better, last = _attempts(order, drawn)
    for attempt, bytes_ in (*((each, most[0]) for each in better), (last, most[1])):
        try:
            return _write(frames, film.plays, order, attempt, bytes_, drawn)
        except TooManyBytes:
            continue
    return None


def _attempts(order: Order, drawn: bool) -> tuple[int, ...]:
    """Return qualities, or numbers of colours, from the best to the smallest."""
    match order.target:
        case Format.GIF:
            return _GIF_COLORS_OF_DRAWN if drawn else _GIF_COLORS
        case Format.PNG:
            return _PNG_COLORS
        case _:
            least = min(order.quality, _LEAST_QUALITY)
            weaker = tuple(max(order.quality - by, least) for by in _WEAKER)
            # Lossy WebP has coarse chroma alone, which blurs what is drawn.
            exact = drawn and order.target is Format.WEBP
            return (write_webp.LOSSLESS, *weaker) if exact else weaker


def _write(
    frames: Callable[[], Iterator[Frame]],
    plays: int,
    order: Order,
    attempt: int,
    most: int,
    drawn: bool,
) -> bytes:
    match order.target:
        case Format.GIF:
            return write_gif.write(frames(), order.size, plays, attempt, most)
        case Format.PNG:
            # Frames are read twice for a palette, as it comes before them.
            palette = write_apng.shared_palette(frames(), attempt) if attempt > 0 else None
            if palette is not None:
                return write_apng.write_with_palette(frames(), order.size, plays, palette, most)
            return write_apng.write(frames(), order.size, plays, attempt, most)
        case Format.WEBP:
            return write_webp.write(frames(), order.size, plays, attempt, most, drawn=drawn)
        case Format.AVIF:
            return write_avif.write(frames(), plays, attempt, most, drawn=drawn)
        case _:
            raise ValueError(f"{order.target} has no frames")


def _placed(frames: Iterator[Frame], order: Order, drawn: bool) -> Iterator[Frame]:
    for image, duration in frames:
        # An AVIF has alpha in all frames or in none, as its source has.
        plain = image if order.target is Format.AVIF else _opaque(image)
        yield Frame(order.place(plain, drawn), duration)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return image


def _joined(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Join frames in a row that look the same, as many as ``_LONGEST`` allows."""
    shown: Frame | None = None
    for frame in frames:
        if shown is None:
            shown = frame
            continue
        together: Fraction = shown.duration + frame.duration
        if together <= _LONGEST and not _differ(shown.image, frame.image):
            shown = Frame(shown.image, together)
            continue
        yield shown
        shown = frame
    if shown is not None:
        yield shown
