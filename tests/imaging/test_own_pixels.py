"""What leaves: nothing but a picture, and the source itself only if that is all it is."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.imaging.pipeline import render
from proxy.imaging.stripped.copies import strip
from proxy.model.formats import Format, sniff
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import decode

PHOTO = sources.photo(160, 120)
SMALLER = Preset(width=100, fit="contain", quality=80)
FITS = Preset(width=160, fit="contain", quality=95)
XMP = b"<x:xmpmeta>secret place</x:xmpmeta>"


def noted(format_: str) -> bytes:
    """A source with every kind of metadata its format has."""
    profile = sources.ADOBE_RGB
    notes = {"exif": sources.exif(1), "xmp": XMP, "icc_profile": profile}
    match format_:
        case "jpeg":
            data = sources.jpeg(PHOTO, comment=b"secret place", dpi=(301, 301), **notes)
            photoshop = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0csecret place"
            thumbnail = b"JFXX\0\x10" + sources.jpeg(PHOTO[:16, :16])
            return sources.with_segments(data, (0xED, photoshop), (0xE0, thumbnail))
        case "png":
            more = [
                (b"tEXt", b"Comment\0secret place"),
                (b"zTXt", b"Comment\0\0" + zlib.compress(b"secret place")),
                (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
                (b"tIME", b"\x07\xea\1\1\1\1\1"),
                (b"prVt", b"secret place"),
            ]
            return sources.with_chunks(
                sources.png(PHOTO, exif=sources.exif(1), icc_profile=profile), more
            )
        case "webp":
            return sources.webp(PHOTO, **notes)
        case "avif":
            return sources.avif(PHOTO, **notes)
        case _:
            return sources.encoded(
                Image.fromarray(PHOTO).quantize(64), "GIF", comment=b"secret place"
            )


def parts(format_: Format, data: bytes) -> list[bytes]:
    """The names of what a result is made of, by a parser of its own."""
    if format_ is Format.JPEG:
        at, found = 2, []
        while data[at + 1] != 0xDA:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            found.append(data[at + 1 : at + 2] + data[at + 4 : at + 8])
            at += 2 + length
        assert data.endswith(b"\xff\xd9")
        return [name for name in found if name[0] >= 0xE0]
    at, found = (8, []) if format_ is Format.PNG else (12, [])
    while at < len(data):
        if format_ is Format.PNG:
            length = int.from_bytes(data[at : at + 4], "big")
            found.append(data[at + 4 : at + 8])
            at += 12 + length
        else:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            found.append(data[at : at + 4])
            at += 8 + length + length % 2
    return found


ALLOWED = {
    Format.JPEG: {b"\xe0JFIF"},
    Format.PNG: {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"},
    Format.WEBP: {b"VP8 ", b"VP8L", b"VP8X", b"ALPH"},
}


@pytest.mark.parametrize("preset", [SMALLER, FITS], ids=["smaller", "same_size"])
@pytest.mark.parametrize("output", [Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF])
@pytest.mark.parametrize("source", ["jpeg", "png", "webp", "avif", "gif"])
def test_no_note_of_a_source_reaches_a_result(source: str, output: Format, preset: Preset) -> None:
    """Catches an encoder that copies comment, EXIF or profile from the decoded picture."""
    result = render(noted(source), preset, output, max_pixels=10**6).data
    for trace in (b"secret", b"Camera", b"Exif", b"xmp", b"ICC_PROFILE", b"acsp", b"8BIM"):
        assert trace not in result
    if output in ALLOWED:
        assert set(parts(output, result)) <= ALLOWED[output]
    with Image.open(BytesIO(result)) as image:
        assert not image.getexif()
        assert not {"icc_profile", "exif", "xmp", "comment", "dpi"} & set(image.info)


def test_a_paletted_png_stays_paletted_when_only_its_notes_go() -> None:
    """Catches a screenshot that triples in size because it said who made it."""
    image = Image.fromarray(sources.pixel_art(160, 120)).quantize(6)
    for options in ({}, {"transparency": 2}, {"transparency": bytes([255, 0, 128, 255, 9, 1])}):
        plain = sources.encoded(image, "PNG", **options)
        source = sources.with_chunks(plain, [(b"tEXt", b"Author\0somebody")])
        result = render(source, FITS, None, max_pixels=10**6).data
        assert b"somebody" not in result
        assert np.array_equal(decode(result), decode(plain))
        with Image.open(BytesIO(result)) as shown:
            assert shown.mode == "P"


# The source itself


def coarse(format_: str) -> bytes:
    """A bare file that FITS cannot make smaller."""
    match format_:
        case "jpeg":
            return sources.jpeg(PHOTO, quality=40)
        case "progressive":
            return sources.jpeg(PHOTO, quality=40, progressive=True)
        case "webp":
            return sources.webp(PHOTO, quality=40)
        case "webp_alpha":
            return sources.webp(sources.with_alpha(PHOTO), quality=40, alpha_quality=10)
        case "avif":
            return sources.avif(PHOTO, quality=20)
        case "avif_alpha":
            return sources.avif(sources.with_alpha(PHOTO), quality=20)
        case _:
            art = Image.fromarray(sources.pixel_art(160, 120)).quantize(6)
            return sources.encoded(art, "PNG", optimize=True)


@pytest.mark.parametrize(
    "format_", ["jpeg", "progressive", "webp", "webp_alpha", "png", "avif", "avif_alpha"]
)
def test_a_bare_source_that_fits_is_never_made_larger_or_worse(format_: str) -> None:
    """Catches a second lossy generation that even takes more bytes."""
    source = coarse(format_)
    kind = {"webp": Format.WEBP, "avif": Format.AVIF}.get(format_.partition("_")[0])
    assert render(source, FITS, kind, max_pixels=10**6).data == source


def test_a_bare_source_that_the_preset_makes_smaller_is_transformed() -> None:
    """Catches passing everything through that fits: megabytes of needless quality."""
    source = sources.jpeg(PHOTO, quality=100, subsampling=0)
    result = render(source, FITS.model_copy(update={"quality": 60}), None, max_pixels=10**6)
    assert len(result.data) < len(source) / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: sources.jpeg(PHOTO, quality=20, exif=sources.exif(1)),
        lambda: sources.jpeg(PHOTO, quality=20, comment=b"secret place"),
        lambda: sources.jpeg(PHOTO, quality=20, icc_profile=sources.ADOBE_RGB),
        lambda: sources.jpeg(PHOTO, quality=20) + b"secret place",
        lambda: sources.jpeg(PHOTO, quality=20) + sources.jpeg(PHOTO[:40], quality=20),
        lambda: sources.with_segments(sources.jpeg(PHOTO, quality=20), (0xE5, b"secret place")),
        lambda: sources.with_segments(
            sources.jpeg(PHOTO, quality=20), (0xE0, b"JFIF\0\1\1\0\0\1\0\1\2\2secret place")
        ),
        lambda: sources.cmyk_jpeg(sources.cmyk(PHOTO)),
        lambda: sources.with_chunks(coarse("png"), [(b"tEXt", b"Comment\0secret place")]),
        lambda: sources.with_chunks(coarse("png"), [(b"gAMA", (100_000).to_bytes(4, "big"))]),
        lambda: sources.with_chunks(coarse("png"), [(b"prVt", b"secret place")], b"IEND"),
        lambda: sources.with_chunks(coarse("png"), [(b"IDAT", b"secret place")], b"IEND"),
        lambda: coarse("png") + b"secret place",
        lambda: sources.webp(PHOTO, quality=20, exif=sources.exif(1)),
        lambda: sources.webp(PHOTO, quality=20, icc_profile=sources.ADOBE_RGB),
        lambda: sources.webp(PHOTO, quality=20) + b"secret place",
    ],
    ids=[
        "exif", "comment", "profile", "trailer", "second_jpeg", "unknown_app", "long_jfif", "cmyk",
        "png_text", "png_gamma", "png_private", "png_idat_trailer", "png_trailer", "webp_exif",
        "webp_profile", "webp_trailer",
    ],
)  # fmt: skip
def test_nothing_leaves_beside_the_picture(make: Callable[[], bytes]) -> None:
    """Catches a size comparison alone: the smaller original would carry its owner's notes out."""
    source = make()
    output = Format.WEBP if source[8:12] == b"WEBP" else None
    result = render(source, FITS, output, max_pixels=10**6)
    assert result.data != source
    assert b"secret" not in result.data


def test_a_source_that_needs_a_crop_or_a_turn_or_another_format_is_not_passed_through() -> None:
    """Catches a comparison of bytes without one of sizes and formats."""
    source = sources.jpeg(PHOTO, quality=20)
    for preset, output in (
        (SMALLER, None),
        (Preset(width=160, height=100, fit="cover", quality=95), None),
        (FITS, Format.PNG),
    ):
        assert render(source, preset, output, max_pixels=10**6).data != source


SRGB = sources.builtin_profile("srgb")
P3 = sources.builtin_profile("p3")


def nclx(primaries: int, transfer: int) -> bytes:
    """An AVIF that names its colours by code points (H.273)."""
    data = sources.avif(PHOTO, quality=20)
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        (sources.jpeg(PHOTO, quality=30, icc_profile=SRGB), True),
        (sources.jpeg(PHOTO, quality=30, icc_profile=P3), False),
        (sources.webp(PHOTO, quality=20, icc_profile=SRGB), True),
        (sources.webp(PHOTO, quality=20, icc_profile=P3), False),
        (sources.with_chunks(coarse("png"), [(b"gAMA", struct.pack(">I", 45455))]), True),
        (sources.with_chunks(coarse("png"), [(b"gAMA", struct.pack(">I", 100_000))]), False),
        (sources.with_chunks(coarse("png"), [(b"cICP", b"\1\x0d\0\1")], b"PLTE"), True),
        (sources.with_chunks(coarse("png"), [(b"cICP", b"\x0c\x0d\0\1")], b"PLTE"), False),
        (nclx(1, 13), True),
        (nclx(12, 13), False),
        (nclx(1, 8), False),
    ],
    ids=[
        "jpeg_srgb", "jpeg_p3", "webp_srgb", "webp_p3", "png_gamma", "png_linear", "png_cicp",
        "png_p3", "avif_srgb", "avif_p3", "avif_linear",
    ],
)  # fmt: skip
def test_own_pixels_leave_only_if_they_are_srgb(source: bytes, *, kept: bool) -> None:
    """Catches colours that change when what named them is taken away, or a needless generation."""
    format_ = sniff(source)
    assert format_ is not None
    result = render(source, FITS, format_, max_pixels=10**6).data
    assert (result == strip(format_, source)) == kept


def test_rows_that_no_picture_needs_are_not_copied() -> None:
    """Catches the rest of a cropped screenshot left in the same compressed stream."""
    pixels = sources.pixel_art(40, 30)
    data = sources.png(pixels)
    header = bytearray(data[16:29])
    header[4:8] = struct.pack(">I", 20)
    cropped = data[:8] + sources.png_chunk(b"IHDR", bytes(header)) + data[33:]
    assert decode(cropped).shape[:2] == (20, 40)
    assert strip(Format.PNG, cropped) is None
