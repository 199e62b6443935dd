"""WebP files as other programs write them: their chunks differ, and the picture does not."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources

PHOTO = sources.photo(160, 120)
PRESET = Preset(width=1000, fit="contain", quality=90)
PLAIN = sources.webp(PHOTO)
ANIMATION, EXIF, ALPHA, ICC = 0x02, 0x08, 0x10, 0x20


def shown(source: bytes) -> sources.Pixels:
    result = render(source, PRESET, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image)


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def header(width: int, height: int, flags: int = 0) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)


def frame(left: int, top: int, width: int, height: int, picture: bytes) -> bytes:
    numbers = (left // 2, top // 2, width - 1, height - 1, 100)
    head = b"".join(number.to_bytes(3, "little") for number in numbers)
    return chunk(b"ANMF", head + b"\0" + picture)


PICTURE = PLAIN[12:]
TURNED = chunk(b"EXIF", sources.exif(6))
HALVED = chunk(b"EXIF", sources.exif(3))
ANIM = chunk(b"ANIM", b"\x10\x20\xc0\xff\0\0")


def test_an_orientation_counts_if_the_header_announces_it() -> None:
    """Catches EXIF that no other reader looks for, and one without a header before it."""
    upright = shown(PLAIN)
    for source in (
        webp(header(160, 120), PICTURE, TURNED),
        webp(PICTURE, TURNED),
        webp(header(160, 120, EXIF), PICTURE),
    ):
        assert np.array_equal(shown(source), upright)
    turned = np.rot90(upright, -1)
    for source in (
        webp(header(160, 120, EXIF), PICTURE, TURNED),
        webp(header(160, 120, EXIF), TURNED, PICTURE),
        webp(header(160, 120, EXIF), PICTURE, TURNED, HALVED),
    ):
        assert np.array_equal(shown(source), turned)


def test_a_profile_counts_if_the_header_announces_it_and_it_is_the_first() -> None:
    """Catches a second profile that wins, and colours converted by one that others ignore."""
    adobe, srgb = (
        chunk(b"ICCP", profile) for profile in (sources.ADOBE_RGB, sources.builtin_profile("srgb"))
    )
    plain = shown(PLAIN).astype(int)
    converted = shown(webp(header(160, 120, ICC), adobe, PICTURE)).astype(int)
    assert np.abs(converted - plain).mean() > 2
    for source in (
        webp(header(160, 120), adobe, PICTURE),
        webp(header(160, 120, ICC), srgb, adobe, PICTURE),
    ):
        assert np.abs(shown(source) - plain).max() <= 2
    both = shown(webp(header(160, 120, ICC), adobe, srgb, PICTURE))
    assert np.array_equal(both, converted)


@pytest.mark.parametrize("flags", [ANIMATION, ANIMATION | ALPHA])
def test_what_a_first_frame_does_not_cover_is_transparent(flags: int) -> None:
    """Catches black around a small frame, in files whose header says that nothing is transparent.

    The background colour is a hint that browsers ignore.
    """
    first = frame(20, 40, 160, 120, PICTURE)
    got = shown(webp(header(300, 200, flags), ANIM, first, frame(0, 0, 160, 120, PICTURE)))
    assert np.array_equal(got[40:160, 20:180, :3], shown(PLAIN))
    assert (got[40:160, 20:180, 3] == 255).all()
    got = got.copy()
    got[40:160, 20:180] = 0
    assert not got[..., 3].any()


def test_an_animation_that_covers_all_is_opaque() -> None:
    """Catches a fourth band in each first frame."""
    source = webp(header(160, 120, ANIMATION), ANIM, frame(0, 0, 160, 120, PICTURE))
    assert np.array_equal(shown(source), shown(PLAIN))


@pytest.mark.parametrize("tail", [b"no chunk", b"\0" * 99, chunk(b"EXIF", sources.exif(6))])
def test_what_follows_the_end_is_no_part_of_the_picture(tail: bytes) -> None:
    """Catches an orientation from bytes behind the file."""
    assert np.array_equal(shown(PLAIN + tail), shown(PLAIN))


@pytest.mark.parametrize("size", [0, -10, -1, 100, 2**32 - 1])
def test_a_file_of_another_size_than_it_says_does_not_decode(size: int) -> None:
    """Catches a guess: no browser shows such a file."""
    wrong = size if size in (0, 2**32 - 1) else len(PLAIN) - 8 + size
    with pytest.raises(UndecodableImage):
        shown(PLAIN[:4] + struct.pack("<I", wrong) + PLAIN[8:])
    for canvas in ((100, 100), (200, 200)):
        with pytest.raises(UndecodableImage):
            shown(webp(header(*canvas), PICTURE))


def test_unknown_chunks_are_passed_over() -> None:
    """Catches a refusal of a chunk that somebody added between those of the format."""
    note = chunk(b"note", b"xyz")
    assert np.array_equal(shown(webp(header(160, 120), note, PICTURE, note)), shown(PLAIN))
