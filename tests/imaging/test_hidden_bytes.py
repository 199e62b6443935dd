"""A note in every place that a container has for bytes of others; it reaches no answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from proxy.imaging.pipeline import render_each
from proxy.imaging.recipes import Recipe, Rendered
from proxy.imaging.stripped.copies import strip
from proxy.model.formats import OUTPUTS, SOURCES, Format, sniff
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.stripped.test_hidden_in_avif import HIDING
from tests.imaging.test_fuzz import pieces_of

NOTE = b"SECRET PLACE, SECRET TIME"
PHOTO = sources.photo(64, 48)
GLASS = sources.with_alpha(PHOTO)
ART = sources.pixel_art(64, 48)

FITS = Preset(width=64, fit="contain", quality=95)
PRESETS = (
    FITS,
    FITS.model_copy(update={"animated": True}),
    Preset(width=40, fit="contain", quality=80),
    Preset(width=40, fit="contain", quality=80, animated=True),
)
RECIPES = [
    Recipe(preset=preset, output=output) for preset in PRESETS for output in (None, *OUTPUTS)
]


def reached(source: bytes) -> list[Rendered]:
    """All results of a source; at least one must be a picture."""
    results = [
        made
        for made in render_each(source, RECIPES, max_pixels=10**6)
        if isinstance(made, Rendered)
    ]
    assert len(results) == len(RECIPES)
    return results


# JPEG


def jpeg(**options: object) -> bytes:
    """One that the presets cannot make smaller."""
    return sources.jpeg(PHOTO, quality=30, **options)


def scan_end(data: bytes) -> int:
    return data.rindex(b"\xff\xd9")


def inserted(data: bytes, at: int, more: bytes = NOTE) -> bytes:
    return data[:at] + more + data[at:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def progressive() -> bytes:
    return jpeg(progressive=True)


def thumbnail(data: bytes) -> bytes:
    """JFIF with a picture of 1 x 9 pixels in it."""
    body = b"JFIF\0\1\1\0\0\1\0\1\x01\x09" + (NOTE + bytes(9))[:27]
    return data[:2] + segment(0xE0, body) + data[20:]


def spare_table(data: bytes, marker: int, head: bytes) -> bytes:
    body = head + (NOTE * 6)[: {0xDB: 64, 0xC4: len(NOTE)}[marker]]
    return inserted(data, data.index(b"\xff\xdb"), segment(marker, body))


def before_second_scan(data: bytes) -> int:
    first = data.index(b"\xff\xda")
    return data.index(b"\xff\xda", first + 2)


JPEG: dict[str, bytes] = {
    "comment": jpeg(comment=NOTE),
    "long jfif": sources.with_segments(
        jpeg()[:2] + jpeg()[20:], (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0" + NOTE)
    ),
    "density": jpeg().replace(b"JFIF\0\1\1\0\0\1\0\1", b"JFIF\0\1\1\1SECR"),
    "thumbnail": thumbnail(jpeg()),
    "jfxx": sources.with_segments(jpeg(), (0xE0, b"JFXX\0\x10" + NOTE)),
    "adobe": sources.with_segments(jpeg(), (0xEE, b"Adobe\0\x64\0\0\0\0\1" + NOTE)),
    **{
        f"app{number}": sources.with_segments(jpeg(), (0xE0 + number, NOTE))
        for number in range(16)
    },
    "exif": jpeg(exif=sources.exif(1, camera=NOTE.decode())),
    "spare quantisation": spare_table(jpeg(), 0xDB, b"\3"),
    "spare codes": spare_table(jpeg(), 0xC4, b"\3" + bytes(7) + bytes([len(NOTE)]) + bytes(8)),
    "after the last block": inserted(jpeg(), scan_end(jpeg())),
    "before a marker": inserted(jpeg(), jpeg().index(b"\xff\xda")),
    "before a restart": inserted(
        jpeg(restart_marker_blocks=4), jpeg(restart_marker_blocks=4).index(b"\xff\xd1")
    ),
    "between scans": inserted(
        progressive(),
        before_second_scan(progressive()),
        segment(0xFE, NOTE),
    ),
    "after a progressive scan": inserted(
        progressive(), progressive().index(b"\xff\xc4", progressive().index(b"\xff\xda"))
    ),
    "after a last progressive scan": inserted(progressive(), scan_end(progressive())),
    "after the end": jpeg() + NOTE,
    "a second file": jpeg() + jpeg(comment=NOTE),
}  # fmt: skip


# PNG


def png(**options: object) -> bytes:
    return sources.encoded(Image.fromarray(ART).quantize(6), "PNG", optimize=True, **options)


def with_palette() -> bytes:
    """A palette of 40 colours in eight bits, of which the pixels name six."""
    image = Image.fromarray(ART).quantize(6)
    image.putpalette((image.getpalette() or [])[:18] + list((NOTE * 5)[: 3 * 34]))
    return sources.encoded(image, "PNG", bits=8)


def apng() -> bytes:
    return sources.animation("PNG", [ART, ART[::-1]])


def longer_stream(data: bytes, kind: bytes, skip: int = 0) -> bytes:
    """The note behind the end of a compressed stream, in the chunk that holds the end."""
    at = data.index(kind) - 4
    length = int.from_bytes(data[at : at + 4], "big")
    body = data[at + 8 : at + 8 + length] + NOTE
    return data[:at] + sources.png_chunk(kind, body) + data[at + 12 + length :]


CHUNKS = {
    name: (kind, before + NOTE)
    for name, kind, before in (
        ("text", b"tEXt", b"Comment\0"),
        ("international text", b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0"),
        ("exif", b"eXIf", b"II*\0\x08\0\0\0\0\0"),
        ("private", b"prVt", b""),
        ("histogram", b"hIST", b""),
        ("suggested palette", b"sPLT", b"name\0\x08"),
        ("time", b"tIME", b""),
        ("resolution", b"pHYs", b""),
        ("significant bits", b"sBIT", b""),
        ("background", b"bKGD", b""),
        ("provenance", b"caBX", b""),
    )
}

PNG: dict[str, bytes] = {
    **{name: sources.with_chunks(png(), [chunk]) for name, chunk in CHUNKS.items()},
    **{
        f"{name} at the end": sources.with_chunks(png(), [chunk], b"IEND")
        for name, chunk in CHUNKS.items()
    },
    **{
        f"{name} among frames": sources.with_chunks(apng(), [chunk], b"fdAT")
        for name, chunk in CHUNKS.items()
    },
    "compressed text": sources.with_chunks(
        png(), [(b"zTXt", b"Comment\0\0" + zlib.compress(NOTE, 0))]
    ),
    "after the stream": longer_stream(png(), b"IDAT"),
    "after a frame's stream": longer_stream(apng(), b"fdAT"),
    "empty data": sources.with_chunks(png(), [(b"IDAT", NOTE)], b"IEND"),
    "in the end": png()[:-12] + sources.png_chunk(b"IEND", NOTE),
    "after the end": png() + NOTE,
    "after the end of frames": apng() + NOTE,
    "spare palette": with_palette(),
    "palette of true colour": sources.with_chunks(sources.png(PHOTO), [(b"PLTE", (NOTE * 3)[:75])]),
    "spare transparency": sources.with_chunks(with_palette(), [(b"tRNS", b"\xff" * 8 + NOTE)]),
}  # fmt: skip


# GIF


def gif() -> bytes:
    return sources.gif(ART)


def moving_gif() -> bytes:
    return sources.animation("GIF", [ART, ART[::-1]], loop=2)


def blocks(data: bytes) -> bytes:
    return bytes([len(data)]) + data + b"\0"


GIF_NOTES = {
    "comment": b"!\xfe" + blocks(NOTE),
    "xmp": b"!\xff\x0bXMP DataXMP" + blocks(NOTE),
    "private": b"!\xff\x0bPRIVATE 1.0" + blocks(NOTE),
    "loops with more": b"!\xff\x0bNETSCAPE2.0\3\1\2\0" + blocks(NOTE),
    "plain text": b"!\1\x0c" + bytes(12) + blocks(NOTE),
    "unknown label": b"!\x42" + blocks(NOTE),
}


def after_codes(data: bytes) -> bytes:
    """The note in blocks behind the code for the end, of the last frame."""
    return data[:-2] + bytes([len(NOTE)]) + NOTE + b"\0;"


def first_frame(data: bytes) -> int:
    """Where the first frame begins, or its control extension."""
    return 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)


def spare_colors() -> bytes:
    data = gif()
    end = first_frame(data)
    assert data[10] & 7 == 2  # eight entries, of which six are named
    return data[: end - 6] + b"SECRET" + data[end:]


GIF: dict[str, bytes] = {
    **{
        f"{name} {place}": inserted(make(), at(make()), note)
        for name, note in GIF_NOTES.items()
        for place, make, at in (
            ("first", gif, first_frame),
            ("last", gif, lambda data: len(data) - 1),
            ("first of frames", moving_gif, first_frame),
            ("last of frames", moving_gif, lambda data: len(data) - 1),
        )
    },
    "after the codes": after_codes(gif()),
    "after the codes of a frame": after_codes(moving_gif()),
    "spare colours": spare_colors(),
    "after the trailer": gif() + NOTE,
    "after the trailer of frames": moving_gif() + NOTE,
}


# WebP


def webp() -> bytes:
    return sources.webp(PHOTO, quality=20)


def glass() -> bytes:
    return sources.webp(GLASS, quality=20)


def moving_webp() -> bytes:
    return sources.animation("WEBP", [PHOTO, GLASS], quality=20)


def chunk(kind: bytes, body: bytes = NOTE) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body)) + body


def in_frame(data: bytes) -> bytes:
    """A chunk within the first frame."""
    at = data.index(b"ANMF")
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    body = data[at + 8 : at + 8 + length] + chunk(b"NOTE")
    return riff(data[8:at] + chunk(b"ANMF", body) + data[at + 8 + length + (length & 1) :])


def longer_chunk(data: bytes, kind: bytes) -> bytes:
    """The note within the chunk of the coded data, behind its end."""
    at = data.index(kind, 12)
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    body = data[at + 8 : at + 8 + length] + NOTE
    return riff(data[8:at] + chunk(kind, body) + data[at + 8 + length + (length & 1) :])


WEBP: dict[str, bytes] = {
    "in the coded data": longer_chunk(webp(), b"VP8 "),
    "in the coded alpha": longer_chunk(glass(), b"ALPH"),
    "in lossless data": longer_chunk(sources.webp(ART, lossless=True), b"VP8L"),
    **{
        f"{kind.decode().strip()} in {name}": riff(make()[8:] + chunk(kind))
        for kind in (b"EXIF", b"XMP ", b"ICCP", b"NOTE", b"META")
        for name, make in (("alpha", glass), ("frames", moving_webp))
    },
    "chunk after a picture": riff(webp()[8:] + chunk(b"NOTE")),
    "first chunk": riff(glass()[8:30] + chunk(b"NOTE") + glass()[30:]),
    "first chunk of frames": riff(moving_webp()[8:30] + chunk(b"NOTE") + moving_webp()[30:]),
    "chunk in a frame": in_frame(moving_webp()),
    "after the end": webp() + NOTE,
    "after the end of alpha": glass() + NOTE,
    "after the end of frames": moving_webp() + NOTE,
}


# AVIF


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def moving_avif() -> bytes:
    return sources.animation("AVIF", [PHOTO, PHOTO[::-1]], quality=20)


def named_coder(data: bytes) -> bytes:
    at = data.index(b"av01", data.index(b"stsd")) + 4 + 42
    return data[:at] + NOTE + data[at + len(NOTE) :]


AVIF: dict[str, bytes] = {
    "box after frames": moving_avif() + box(b"uuid", NOTE),
    "bytes after frames": moving_avif() + NOTE,
    "coder's name": named_coder(moving_avif()),
}


ALL = {
    f"{format_} {name}": source
    for format_, notes in (
        ("jpeg", JPEG), ("png", PNG), ("gif", GIF), ("webp", WEBP), ("avif", AVIF)
    )
    for name, source in notes.items()
}  # fmt: skip


@pytest.mark.parametrize("source", ALL.values(), ids=ALL.keys())
def test_no_answer_has_a_note_from_any_place_of_a_source(source: bytes) -> None:
    """Catches a place that an allow-list does not know, in stills and in what moves."""
    for made in reached(source):
        assert NOTE[:6] not in made.data
        assert sniff(made.data) is made.format


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING.keys())
def test_no_answer_has_a_note_from_any_place_of_an_avif(make: Callable[[], bytes]) -> None:
    """The same, where offsets must be right around the note."""
    for made in render_each(make(), RECIPES, max_pixels=10**6):
        if isinstance(made, Rendered):
            assert b"secret" not in made.data
            assert b"Camera" not in made.data


@given(
    file=st.sampled_from([jpeg(), png(), apng(), glass(), moving_webp(), moving_avif()]),
    place=st.integers(0, 99),
    wrap=st.sampled_from(
        [
            lambda note: note,
            lambda note: segment(0xEA, note),
            lambda note: sources.png_chunk(b"noTe", note),
            lambda note: chunk(b"NOTE", note),
            lambda note: box(b"uuid", note),
        ]
    ),
)
def test_no_copy_has_a_note_from_between_two_parts(
    file: bytes, place: int, wrap: Callable[[bytes], bytes]
) -> None:
    """Catches a parser that skips what it does not understand, but copies it."""
    pieces = list(pieces_of(file))
    at = 1 + place % len(pieces)
    # Before the last piece of a JPEG, the data of a scan, a note is the picture's first codes.
    assume(sniff(file) is not Format.JPEG or at != len(pieces) - 1)
    pieces.insert(at, wrap(NOTE))
    source = b"".join(pieces)
    for format_ in SOURCES:
        copy = strip(format_, source)
        assert copy is None or NOTE not in copy
