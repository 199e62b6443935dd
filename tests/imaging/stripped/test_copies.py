"""The copy of a file shows what the file shows, and is the file if that was clean."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from proxy.imaging.stripped.copies import strip
from proxy.model.formats import SOURCES, Format, sniff
from tests.imaging import sources

PHOTO = sources.photo(48, 36)
GLASS = sources.with_alpha(PHOTO)
ART = sources.pixel_art(48, 36)
SMALL_PALETTE = Image.fromarray(ART).quantize(6)


def with_plain_texts(gif: bytes) -> bytes:
    """With one between each frame and the control extension that browsers take for the frame's."""
    first, *controlled = gif.split(b"!\xf9\4")
    text = b"!\1\x0c" + bytes(12) + b"\2hi\0"
    return b"!\xf9\4".join([first, *(part[:5] + text + part[5:] for part in controlled)])


CLEAN: dict[str, bytes] = {
    "jpeg": sources.jpeg(PHOTO),
    "progressive jpeg": sources.jpeg(PHOTO, progressive=True, subsampling=0),
    "grey jpeg": sources.jpeg(sources.grey(48, 36)),
    "jpeg with restarts": sources.jpeg(PHOTO, restart_marker_blocks=2),
    "rgb jpeg": sources.jpeg(PHOTO, keep_rgb=True),
    "png": sources.png(PHOTO),
    "png with alpha": sources.png(GLASS),
    "png in black and white": sources.encoded(Image.new("1", (9, 9)), "PNG"),
    "png with a palette": sources.encoded(SMALL_PALETTE, "PNG", transparency=b"\0\x80\xff"),
    "animated png": sources.animation("PNG", [PHOTO, PHOTO[::-1]]),
    "png with a default picture": sources.animation(
        "PNG", [PHOTO, PHOTO[::-1]], default_image=True
    ),
    "webp": sources.webp(PHOTO),
    "lossless webp": sources.webp(GLASS, lossless=True),
    "webp with alpha": sources.webp(GLASS),
    "animated webp": sources.animation("WEBP", [PHOTO, GLASS, ART], loop=3),
    "gif": sources.gif(ART),
    "animated gif": sources.animation("GIF", [ART, ART[::-1]], disposal=2, loop=3),
    "avif": sources.avif(PHOTO),
    "avif with alpha": sources.avif(GLASS),
}
OTHER: dict[str, bytes] = {
    "interlaced png": sources.vips_png(PHOTO, interlace=True, keep=0),
    "interlaced png of two bits": sources.vips_png(
        sources.alpha(33, 21), interlace=True, bitdepth=2, keep=0
    ),
    "avif by libheif": sources.ten_bit_avif(PHOTO),
    "animated avif": sources.animation("AVIF", [PHOTO, PHOTO[::-1], PHOTO]),
    "animated avif with alpha": sources.animation("AVIF", [GLASS, GLASS[::-1]]),
    "gif with a plain text in front of each frame": with_plain_texts(
        sources.animation("GIF", [ART, ART[::-1]], disposal=2, loop=3)
    ),
    "avif with exif": sources.avif(PHOTO, exif=sources.exif(1), xmp=b"<x/>"),
}


def frames(data: bytes) -> Iterator[tuple[bytes, object, object]]:
    """The pixels of each frame, how long it is shown, and the count of loops."""
    with Image.open(BytesIO(data)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            pixels = np.asarray(image.convert("RGBA")).tobytes()
            yield pixels, image.info.get("duration"), image.info.get("loop")


def stripped(data: bytes) -> bytes:
    format_ = sniff(data)
    assert format_ is not None
    copy = strip(format_, data)
    assert copy is not None
    return copy


@pytest.mark.parametrize("data", CLEAN.values(), ids=CLEAN.keys())
def test_a_clean_file_is_copied_to_the_byte(data: bytes) -> None:
    """Catches a writer of its own taste, and an allow-list that lacks what is common."""
    assert stripped(data) == data


@pytest.mark.parametrize("data", [*CLEAN.values(), *OTHER.values()], ids=[*CLEAN, *OTHER])
def test_a_copy_shows_the_same_frames_and_is_its_own_copy(data: bytes) -> None:
    """Catches a part that is left out although a decoder needs it."""
    copy = stripped(data)
    assert list(frames(copy)) == list(frames(data))
    assert len(copy) <= len(data)
    assert stripped(copy) == copy


@pytest.mark.parametrize("data", [*CLEAN.values(), *OTHER.values()], ids=[*CLEAN, *OTHER])
def test_a_part_of_a_file_has_no_copy(data: bytes) -> None:
    """Catches a parser that takes the end of the data for the end of the file."""
    format_ = sniff(data)
    assert format_ is not None
    for length in range(16, len(data) - 2, 7):
        assert strip(format_, data[:length]) is None, length


@given(st.data())
def test_any_bytes_have_a_copy_or_none(data: st.DataObject) -> None:
    """Catches a parser that raises, or whose copy is not clean."""
    file = data.draw(st.sampled_from([*CLEAN.values(), *OTHER.values()]))
    at = data.draw(st.integers(0, len(file)))
    more = data.draw(st.binary(max_size=8))
    skip = data.draw(st.integers(0, 12))
    for format_ in SOURCES:
        copy = strip(format_, file[:at] + more + file[at + skip :])
        assert copy is None or strip(format_, copy) == copy


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("more", [b"\0", b"\x55", b"\x00\x3f", b"behind", bytes(range(1, 40))])
def test_nothing_behind_the_last_block_is_copied_with_pixels_at_hand(
    quality: int, more: bytes
) -> None:
    """Catches a decoder that is asked in place of the codes, and does not see a few bytes."""
    for pixels in (PHOTO, sources.grey(48, 36), np.full((40, 40, 3), 200, np.uint8)):
        clean = sources.jpeg(pixels, quality=quality)
        source = clean[:-2] + more + clean[-2:]
        with Image.open(BytesIO(source)) as shown:
            shown.load()
            assert strip(Format.JPEG, source, shown=shown) == clean
            assert strip(Format.JPEG, clean, shown=shown) == clean


def test_a_transparency_behind_the_pixels_is_not_copied() -> None:
    """Catches a copy that is opaque in browsers, and transparent in readers that take any place."""
    late = sources.with_chunks(CLEAN["png"], [(b"tRNS", bytes(6))], before=b"IEND")
    assert strip(Format.PNG, CLEAN["png"]) is not None
    assert strip(Format.PNG, late) is None
