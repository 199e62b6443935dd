"""PNG files with chunks in places where they do not count, and without what is not needed."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging.containers import png
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.sources import png_chunk, with_chunks

PHOTO = sources.photo(160, 120)
PRESET = Preset(width=80, fit="contain", quality=90)
"""Scaled: the source's own coded pixels would come with chunks that do not count."""
PLAIN = sources.png(PHOTO)
PALETTE = sources.encoded(Image.fromarray(PHOTO).quantize(50), "PNG")
TURN, FLIP = (
    (b"eXIf", sources.exif(value).removeprefix(b"Exif\0\0")) for value in (6, 3)
)  # fmt: skip


def shown(source: bytes) -> sources.Pixels:
    result = render(source, PRESET, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image.convert("RGBA"))


def damaged(source: bytes, kind: bytes) -> bytes:
    """With a wrong checksum of the first chunk of a kind."""
    at = source.index(kind)
    end = at + 4 + int.from_bytes(source[at - 4 : at], "big")
    return source[:end] + bytes([source[end] ^ 1]) + source[end + 1 :]


def test_the_first_orientation_before_the_pixels_counts() -> None:
    """Catches the last of two, and one behind the pixels, which browsers never see."""
    assert png.inspect(with_chunks(PLAIN, [TURN])).orientation == 6
    assert png.inspect(with_chunks(PLAIN, [TURN, FLIP])).orientation == 6
    for source in (
        with_chunks(PLAIN, [TURN], before=b"IEND"),
        with_chunks(PLAIN, [(b"eXIf", sources.exif(6))]),  # the prefix is that of a JPEG
        PLAIN + png_chunk(*TURN),
    ):
        assert png.inspect(source).orientation == 1


@pytest.mark.parametrize("source", [PALETTE, PLAIN], ids=["palette", "colours"])
def test_transparency_counts_between_the_palette_and_the_pixels(source: bytes) -> None:
    """Catches a transparent colour that no browser takes, since it comes too late or too early."""
    palette = source is PALETTE
    body = bytes(50) if palette else b"".join(b"\0" + bytes([value]) for value in PHOTO[0, 0])
    key = (b"tRNS", body)
    assert (shown(with_chunks(source, [key]))[..., 3] < 255).any()
    opaque = [with_chunks(source, [key], before=b"IEND"), with_chunks(source, [])]
    if palette:
        opaque.append(with_chunks(source, [key], before=b"PLTE"))
        opaque.append(damaged(with_chunks(source, [key]), b"tRNS"))
    for file in opaque:
        assert np.array_equal(shown(file), shown(source))
    twice = with_chunks(source, [key, (b"tRNS", b"\xff" * 6)])
    assert np.array_equal(shown(twice), shown(with_chunks(source, [key])))


@pytest.mark.parametrize("source", [PALETTE, PLAIN], ids=["palette", "colours"])
def test_a_png_needs_no_end(source: bytes) -> None:
    """Catches a 422 for a file whose pixels are all there."""
    for file in (
        source[:-12],
        source[:-4],
        source[:-1] + b"x",
        source + b"bytes behind the end",
        source[:-12] + png_chunk(b"IEND", b"more"),
        with_chunks(source, [(b"note", b"x")], before=b"IEND"),
        damaged(with_chunks(source, [(b"tEXt", b"a\0b")]), b"tEXt"),
    ):
        assert np.array_equal(shown(file), shown(source))


def test_the_pixels_may_be_in_chunks_of_any_size() -> None:
    """Catches a reader of one chunk, and one that an empty chunk ends."""
    at = PLAIN.index(b"IDAT") - 4
    length = int.from_bytes(PLAIN[at : at + 4], "big")
    data = PLAIN[at + 8 : at + 8 + length]
    pieces = [data[:1], b"", data[1:2], data[2:300], b"", data[300:], b""]
    split = PLAIN[:at] + b"".join(png_chunk(b"IDAT", piece) for piece in pieces)
    assert np.array_equal(shown(split + PLAIN[at + 12 + length :]), shown(PLAIN))


def test_an_animation_that_is_cut_still_has_its_first_frame() -> None:
    """Catches a 422 for a picture whose pixels end before the cut."""
    whole = sources.animation("PNG", [PHOTO, PHOTO[::-1], PHOTO])
    for at in (whole.index(b"fdAT") + 40, whole.rindex(b"fdAT") + 40, whole.rindex(b"fcTL") + 9):
        assert np.array_equal(shown(whole[:at]), shown(PLAIN))


@pytest.mark.parametrize(("length", "counts"), [(0, False), (1, True), (79, True), (80, False)])
def test_a_profile_counts_by_the_length_of_its_name(length: int, counts: bool) -> None:
    """Catches a profile that browsers and libpng skip (section 11.3.2.3: 1 to 79 bytes)."""
    body = b"a" * length + b"\0\0" + zlib.compress(sources.ADOBE_RGB)
    assert np.array_equal(shown(with_chunks(PLAIN, [(b"iCCP", body)])), shown(PLAIN)) != counts


def headed(header: bytes, source: bytes = PLAIN) -> bytes:
    return source[:8] + png_chunk(b"IHDR", header) + source[33:]


@pytest.mark.parametrize(
    "source",
    [
        PLAIN[:8] + png_chunk(b"tEXt", b"a\0b") + PLAIN[8:],
        headed(PLAIN[16:29] + b"\0"),
        headed(PLAIN[16:26] + b"\1\0" + PLAIN[28:29]),
        headed(PLAIN[16:27] + b"\1" + PLAIN[28:29]),
        PLAIN[:33] + PLAIN[8:],
        with_chunks(PALETTE, [(b"PLTE", bytes(150))]),
    ],
    ids=["header second", "long header", "compression", "filters", "two headers", "two palettes"],
)
def test_what_no_reader_takes_for_a_png_does_not_decode(source: bytes) -> None:
    """Catches a picture that neither browsers nor libpng show, served as if it were right."""
    with pytest.raises(UndecodableImage):
        shown(source)


def test_of_two_chunks_the_first_intact_one_counts() -> None:
    """Catches a damaged chunk that hides the one behind it, which browsers take."""
    key = (b"tRNS", b"".join(b"\0" + bytes([value]) for value in PHOTO[0, 0]))
    for chunk in (TURN, key):
        once = with_chunks(PLAIN, [chunk])
        at = once.index(chunk[0]) - 4
        twice = damaged(once[: once.index(b"IDAT") - 4], chunk[0]) + once[at:]
        assert (shown(twice) == shown(once)).all()
        assert not np.array_equal(shown(twice), shown(PLAIN))


def test_impossible_primaries_turn_the_gamma_off_too() -> None:
    """Catches a colour beyond the chromaticity diagram that is computed with."""
    gamma = (b"gAMA", (100_000).to_bytes(4, "big"))
    for value in (640_000, 2**32 - 1_000):
        places = (31270, 32900, value, 33000, 30000, 60000, 15000, 6000)
        primaries = (b"cHRM", b"".join(place.to_bytes(4, "big") for place in places))
        assert (shown(with_chunks(PLAIN, [gamma, primaries])) == shown(PLAIN)).all()
