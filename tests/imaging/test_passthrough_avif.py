"""AVIF files that hold more than their picture, each in a place of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imaging.passthrough_avif import bare_avif
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import decode

PHOTO = sources.photo(160, 120)
FITS = Preset(width=160, fit="contain", quality=95)
PLAIN = sources.avif(PHOTO, quality=20)
WITH_ALPHA = sources.avif(sources.with_alpha(PHOTO), quality=20)
NOTE = b"secret place"

PARENTS = {b"meta": 4, b"iinf": 6, b"iprp": 0, b"ipco": 0, b"iref": 4}
"""Boxes that hold boxes, and how many bytes come before those."""


def box(kind: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + length]))
        at += length
    return found


Edit = Callable[[bytes], bytes]


def edited(data: bytes, path: str, edit: Edit, *, shift: bool = True) -> bytes:
    """The file with the body of one box changed, and all lengths and offsets right again.

    Args:
        path: the kinds on the way to it.
        shift: whether what is located in the file moves with the header.
    """

    def walk(content: bytes, kinds: list[bytes]) -> bytes:
        if not kinds:
            return edit(content)
        made = b""
        for kind, body in boxes(content):
            if kind == kinds[0]:
                skip = PARENTS.get(kind, 0) if kinds[1:] else 0
                body = body[:skip] + walk(body[skip:], kinds[1:])
            made += box(kind, body)
        return made

    result = walk(data, path.encode().split())
    return moved(result, result.index(b"mdat") - data.index(b"mdat")) if shift else result


def moved(data: bytes, by: int) -> bytes:
    """With every offset in ``iloc`` so much larger."""

    def move(body: bytes) -> bytes:
        out = body[:8]
        for at in range(8, len(body), 14):
            entry = body[at : at + 14]
            offset = int.from_bytes(entry[6:10], "big") + by
            out += entry[:6] + offset.to_bytes(4, "big") + entry[10:]
        return out

    return edited(data, "meta iloc", move, shift=False)


def longer(data: bytes, item: int, extra: bytes) -> bytes:
    """With ``extra`` at the end of an item's data, which is the last in the file."""

    def grow(body: bytes) -> bytes:
        at = 8 + 14 * item
        length = int.from_bytes(body[at + 10 : at + 14], "big") + len(extra)
        return body[: at + 10] + length.to_bytes(4, "big") + body[at + 14 :]

    data = edited(data, "meta iloc", grow)
    return edited(data, "mdat", lambda body: body + extra)


def unit(kind: int, body: bytes) -> bytes:
    """An open bitstream unit of AV1 (5.3), of less than 128 bytes."""
    return bytes([kind << 3 | 2, len(body)]) + body


def appended(extra: bytes) -> Edit:
    return lambda body: body + extra


def replaced(old: bytes, new: bytes) -> Edit:
    def edit(body: bytes) -> bytes:
        assert old in body
        return body.replace(old, new)

    return edit


def with_property(extra: bytes) -> bytes:
    """A property more, which belongs to the picture."""
    data = edited(PLAIN, "meta iprp ipco", appended(extra))
    return edited(data, "meta iprp ipma", replaced(b"\0\1\4\1\2\x83\4", b"\0\1\5\1\2\x83\4\x05"))


MEDIA = PLAIN.index(b"mdat") - 4
FRAME = PLAIN[MEDIA + 8 + 2 :]  # without the first unit, which only says that a picture begins

HIDING: dict[str, Callable[[], bytes]] = {
    "exif": lambda: sources.avif(PHOTO, quality=20, exif=sources.exif(1)),
    "xmp": lambda: sources.avif(PHOTO, quality=20, xmp=b"<x>secret place</x>"),
    "profile": lambda: sources.avif(PHOTO, quality=20, icc_profile=sources.ADOBE_RGB),
    "turned": lambda: sources.avif(PHOTO, quality=20, exif=sources.exif(6)),
    "animation": lambda: sources.animation("AVIF", [PHOTO, 255 - PHOTO], quality=20),
    "premultiplied": lambda: sources.avif(
        sources.with_alpha(PHOTO), quality=20, alpha_premultiplied=True
    ),
    "trailer": lambda: PLAIN + NOTE,
    "box at the end": lambda: PLAIN + box(b"free", NOTE),
    "box between": lambda: moved(
        PLAIN[:MEDIA] + box(b"free", NOTE) + PLAIN[MEDIA:], 8 + len(NOTE)
    ),
    "unlocated bytes": lambda: edited(PLAIN, "mdat", appended(NOTE)),
    "unlocated before": lambda: moved(
        edited(PLAIN, "mdat", lambda body: NOTE + body), len(NOTE)
    ),
    "box in meta": lambda: edited(PLAIN, "meta", appended(box(b"free", NOTE))),
    "name of the handler": lambda: edited(
        PLAIN, "meta hdlr", lambda body: body[:-1] + NOTE + b"\0"
    ),
    "name of the item": lambda: edited(
        PLAIN, "meta iinf infe", replaced(b"Color\0", b"secret place\0")
    ),
    "brand": lambda: edited(PLAIN, "ftyp", appended(b"note")),
    "minor version": lambda: edited(PLAIN, "ftyp", replaced(b"avif\0\0\0\0", b"avifnote")),
    "unused property": lambda: edited(
        PLAIN, "meta iprp ipco", appended(box(b"ispe", bytes(4) + b"secretly"))
    ),
    "unknown property": lambda: with_property(box(b"uuid", NOTE + bytes(4))),
    "second size": lambda: with_property(box(b"ispe", bytes(4) + b"secretly")),
    "aspect": lambda: with_property(box(b"pasp", b"\0\0\0\1\0\0\0\2")),
    "crop": lambda: with_property(box(b"clap", b"\0\0\0\1" * 8)),
    "mirror": lambda: with_property(box(b"imir", b"\0")),
    "long size": lambda: edited(PLAIN, "meta iprp ipco ispe", appended(NOTE)),
    "codec's own": lambda: edited(PLAIN, "meta iprp ipco av1C", appended(unit(5, NOTE))),
    "display p3": lambda: edited(
        PLAIN, "meta iprp ipco colr", replaced(b"nclx\0\1\0\x0d", b"nclx\0\x0c\0\x0d")
    ),
    "linear light": lambda: edited(
        PLAIN, "meta iprp ipco colr", replaced(b"nclx\0\1\0\x0d", b"nclx\0\1\0\x08")
    ),
    "metadata unit": lambda: longer(PLAIN, 0, unit(5, b"\4" + NOTE)),
    "padding unit": lambda: longer(PLAIN, 0, unit(15, NOTE)),
    "second frame": lambda: longer(PLAIN, 0, FRAME),
    "bytes after the units": lambda: longer(PLAIN, 0, NOTE),
    "metadata unit beside alpha": lambda: longer(WITH_ALPHA, 0, unit(5, b"\4" + NOTE)),
}  # fmt: skip


def test_the_files_that_are_changed_are_bare_and_their_changes_are_seen_by_a_decoder() -> None:
    """Catches mutations of a file that was refused anyway, or that are broken files."""
    assert bare_avif(PLAIN)
    assert bare_avif(WITH_ALPHA)
    assert edited(PLAIN, "meta iprp ipco ispe", lambda body: body) == PLAIN
    for name in ("box in meta", "unlocated bytes", "metadata unit", "name of the item"):
        assert decode(HIDING[name]()).shape == (120, 160, 3), name


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING.keys())
def test_a_file_with_anything_beside_its_picture_is_not_bare(make: Callable[[], bytes]) -> None:
    """Catches a place in the file that nobody looks at."""
    source = make()
    assert not bare_avif(source)


def test_what_is_hidden_does_not_leave() -> None:
    """Catches a source that is served as it is although it was not found to be bare."""
    for name in ("unlocated bytes", "metadata unit", "box at the end", "exif"):
        result = render(HIDING[name](), FITS, Format.AVIF, max_pixels=10**6)
        assert NOTE not in result.data, name
        assert b"Camera" not in result.data, name


@pytest.mark.parametrize("data", [PLAIN, WITH_ALPHA], ids=["opaque", "alpha"])
def test_every_byte_of_the_header_is_accounted_for(data: bytes) -> None:
    """Catches a field that may say anything, other than sizes and the decoder's configuration."""
    free: set[int] = set()
    for kind, length in ((b"ispe", 8), (b"av1C", 4)):
        at = data.find(kind)
        while at >= 0:
            # A size follows its version and flags.
            first = at + 4 + (4 if kind == b"ispe" else 0)
            free.update(range(first, first + length))
            at = data.find(kind, at + 4)
    for at in range(data.index(b"mdat") + 4):
        for flip in (0xFF, 0x01, 0x40):
            changed = bytearray(data)
            changed[at] ^= flip
            assert at in free or not bare_avif(bytes(changed)), (at, flip)


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=8)), max_size=3))
def test_any_bytes_are_bare_or_not(changes: list[tuple[int, bytes]]) -> None:
    """Catches a parser that raises: what it is asked about has been transformed already."""
    data = WITH_ALPHA
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) :]
    bare_avif(data)
    bare_avif(data[: len(changes) * 99])
