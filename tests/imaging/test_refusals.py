"""Bytes that give no picture, and which error says so."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging import decode
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.examples import many
from tests.imaging import sources

PRESET = Preset(width=60, height=40, fit="cover", quality=80)
ANIMATED = Preset(width=60, fit="contain", quality=80, animated=True)
PHOTO = sources.photo(160, 120)

MAKERS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: sources.jpeg(PHOTO),
    "progressive": lambda: sources.jpeg(PHOTO, progressive=True),
    "png": lambda: sources.png(PHOTO),
    "interlaced": lambda: sources.vips_png(PHOTO, interlace=True),
    "webp": lambda: sources.webp(PHOTO),
    "lossless": lambda: sources.webp(PHOTO, lossless=True),
    "avif": lambda: sources.avif(PHOTO),
    "gif": lambda: sources.gif(PHOTO),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def pillow(format_: str) -> bytes:
    return sources.encoded(Image.fromarray(PHOTO), format_)


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG",
        b"GIF8",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage",
        b"%PDF-1.7\n",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300),
        b"\x00\x00\x00\x18ftypmp42\0\0\0\0mp42isom",
        b"\x00\x00\x00\x0cJXL \r\n\x87\n",
        b"\xff\x0a\xfa\x7f",
        b"qoif\0\0\0\1\0\0\0\1\3\0" + bytes(20),
        b"P6 1 1 255 abc",
        b"just some text",
        *(pillow(format_) for format_ in ("TIFF", "BMP", "ICO", "TGA", "PCX", "PPM", "JPEG2000")),
    ],
    ids=lambda source: source[:12].decode("latin-1").encode("unicode_escape").decode() or "empty",
)
def test_a_format_off_the_list_is_unsupported_and_reaches_no_decoder(
    source: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a list by name or by what Pillow can open: EPS starts Ghostscript there."""

    def never(*_: object) -> Image.Image:
        pytest.fail("a decoder was asked")

    monkeypatch.setattr(decode, "_open", never)
    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(UnsupportedImage):
        render(source, PRESET, None, max_pixels=10**6)


def test_one_format_inside_the_signature_of_another_is_not_opened() -> None:
    """Catches a decoder chosen by Pillow: the rest of the file would pick another plug-in."""
    for head in (b"\xff\xd8\xff", b"GIF89a", b"RIFF\x10\0\0\0WEBP", b"\x89PNG\r\n\x1a\n"):
        for body in ("TIFF", "BMP", "PNG", "GIF"):
            with pytest.raises((UndecodableImage, ImageTooLarge)):
                render(head + pillow(body), PRESET, None, max_pixels=10**6)


def test_heic_without_its_decoder_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a 422 or 500 where only an optional package is missing."""
    monkeypatch.setattr(decode, "_open_heic", None)
    with pytest.raises(UnsupportedImage):
        render(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), PRESET, None, max_pixels=10**6)


@EACH
def test_a_truncated_file_does_not_decode(make: Callable[[], bytes]) -> None:
    """Catches a half-grey picture that is cached for a year."""
    source = make()
    for part in (0.2, 0.5, 0.8):
        with pytest.raises(UndecodableImage):
            render(source[: int(len(source) * part)], PRESET, None, max_pixels=10**6)


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
def test_an_animation_is_served_only_if_its_first_frame_decodes(format_: str) -> None:
    """Catches a passthrough by signature: any bytes after "GIF89a" would be served as an image."""
    source = sources.animation(format_, [PHOTO, PHOTO[::-1]])
    with pytest.raises(UndecodableImage):
        render(source[: len(source) // 4], ANIMATED, None, max_pixels=10**6)
    with pytest.raises(UndecodableImage):
        render(b"GIF89a" + b"<script>" * 9, ANIMATED, None, max_pixels=10**10)


@pytest.mark.parametrize("name", ["png", "interlaced", "webp", "lossless", "gif"])
def test_a_file_with_damaged_data_does_not_decode_to_anything_wrong(name: str) -> None:
    """Catches an exception of another class; a PNG's checksums must count too."""
    source = bytearray(MAKERS[name]())
    middle = len(source) // 2
    source[middle : middle + 64] = bytes(byte ^ 0x5A for byte in source[middle : middle + 64])
    try:
        render(bytes(source), PRESET, None, max_pixels=10**6)
    except UndecodableImage:
        return
    assert name not in ("png", "interlaced")


def test_a_png_whose_only_fault_is_a_checksum_does_not_decode() -> None:
    """Catches pixels that rotted on their way: inflating alone does not notice."""
    source = bytearray(sources.png(PHOTO, compress_level=0))
    source[len(source) // 2] ^= 1
    with pytest.raises(UndecodableImage):
        render(bytes(source), PRESET, None, max_pixels=10**6)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif", "gif", "png"])
def test_a_header_alone_does_not_decode(name: str) -> None:
    """Catches an index or struct error of a header reader."""
    source = MAKERS[name]()
    for length in (12, 16, 20, 24, 30, 40, 64):
        with pytest.raises((UndecodableImage, UnsupportedImage)):
            render(source[:length], PRESET, None, max_pixels=10**6)


# Limits


@EACH
def test_the_pixel_limit_counts_pixels_and_includes_its_number(make: Callable[[], bytes]) -> None:
    """Catches a limit per side, and one that is off by one."""
    source = make()
    render(source, PRESET, None, max_pixels=160 * 120)
    with pytest.raises(ImageTooLarge):
        render(source, PRESET, None, max_pixels=160 * 120 - 1)


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = sources.png(PHOTO)
    return data[:8] + sources.png_chunk(b"IHDR", header) + data[33:]


def huge_jpeg() -> bytes:
    data = bytearray(sources.jpeg(PHOTO))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def huge_gif(frame: bool) -> bytes:
    data = bytearray(sources.gif(PHOTO))
    size = struct.pack("<HH", 60_000, 60_000)
    at = data.index(b",\0\0\0\0") + 5 if frame else 6
    data[at : at + 4] = size
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(sources.webp(sources.with_alpha(PHOTO)))
    data[24:30] = b"\xff\xff\x00" * 2
    return bytes(data)


@pytest.mark.parametrize(
    "source",
    [huge_png(), huge_jpeg(), huge_gif(False), huge_gif(True), huge_webp()],
    ids=["png", "jpeg", "gif_canvas", "gif_frame", "webp_canvas"],
)
def test_a_bomb_is_refused_by_its_header(source: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check after decoding: by then the memory is gone."""

    def never(*_: object) -> None:
        pytest.fail("a decoder saw it, and WebP's allocates the canvas at once")

    monkeypatch.setattr(decode, "_open", never)
    with pytest.raises(ImageTooLarge):
        render(source, PRESET, None, max_pixels=50_000_000)


@pytest.mark.parametrize("name", MAKERS)
def test_pillows_own_limit_has_no_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches two limits, where the one nobody configured decides, or warns."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    render(MAKERS[name](), PRESET, None, max_pixels=10**6)


# Whatever comes


def mutations(source: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(source) - 1)
    edits = st.lists(st.tuples(places, st.binary(min_size=1, max_size=6)), max_size=6)

    def apply(changes: list[tuple[int, bytes]], cut: int, doubled: int) -> bytes:
        data = bytearray(source)
        for at, replacement in changes:
            data[at : at + len(replacement)] = replacement
        return bytes(data[: len(data) - cut % 3 * cut // 2] + data[doubled : doubled + cut % 9])

    return st.builds(apply, edits, places, places)


NOTED = sources.jpeg(
    PHOTO[:24, :32], exif=sources.exif(6), icc_profile=sources.ADOBE_RGB, comment=b"x", quality=60
)
SMALL = (
    NOTED,
    sources.jpeg(PHOTO[:24, :32], progressive=True),
    sources.with_chunks(
        sources.png(sources.with_alpha(PHOTO[:24, :32]), icc_profile=sources.ADOBE_RGB),
        [(b"acTL", b"\0\0\0\1\0\0\0\0"), (b"gAMA", b"\0\0\xff\xff"), (b"eXIf", b"II*\0")],
    ),
    sources.animation("WEBP", [PHOTO[:24, :32], PHOTO[24:48, :32]], exif=sources.exif(3)),
    sources.animation("GIF", [PHOTO[:24, :32], PHOTO[24:48, :32]], disposal=3),
    sources.avif(PHOTO[:24, :32], exif=sources.exif(6), icc_profile=sources.ADOBE_RGB),
)


@settings(max_examples=many(600), derandomize=False, suppress_health_check=list(HealthCheck))
@given(
    source=st.one_of(*map(mutations, SMALL)),
    preset=st.sampled_from([PRESET, ANIMATED]),
    output=st.sampled_from([None, Format.PNG, Format.WEBP]),
)
def test_any_bytes_give_a_picture_or_an_error_of_the_table_and_no_warning(
    source: bytes, preset: Preset, output: Format | None
) -> None:
    """Catches every other exception, a warning of Pillow's, and a result that does not open."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failure, result = None, None
        try:
            result = render(source, preset, output, max_pixels=10**5)
        except (UnsupportedImage, ImageTooLarge, UndecodableImage) as error:
            failure = error
        if result is None:
            assert failure is not None
            assert "Warning" not in failure.cause
            return
        with Image.open(BytesIO(result.data), formats=[result.format.name]) as image:
            image.load()


def test_damaged_notes_neither_warn_nor_fail() -> None:
    """Catches Pillow's readers of EXIF, MPO, Photoshop and text, which warn and raise."""
    pictures = [
        sources.jpeg(
            PHOTO, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0\1\0\0\0\xff\xff\xff"
        ),
        sources.with_segments(
            sources.jpeg(PHOTO),
            (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
            (0xED, b"Photoshop 3.0\0008BIM"),
        ),
        sources.with_chunks(sources.png(PHOTO), [(b"acTL", bytes(8)), (b"zTXt", b"x\0\0bad")]),
        sources.with_chunks(sources.png(PHOTO), [(b"gAMA", b""), (b"cHRM", b""), (b"tRNS", b"")]),
        sources.with_chunks(sources.png(PHOTO), [(b"tEXt", b"x\0" + bytes(70 << 20))]),
        sources.png(PHOTO)[:-12] + b"\0\0\0\x04tEXtx\0xxbad!" + sources.png_chunk(b"IEND", b""),
        sources.webp(PHOTO, exif=b"Exif\0\0II*\0garbage"),
        sources.avif(PHOTO, exif=sources.exif(1)).replace(b"II*\0", b"junk"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in pictures:
            result = render(source, PRESET, None, max_pixels=10**6)
            with Image.open(BytesIO(result.data)) as image:
                assert np.asarray(image.convert("L")).std() > 10
