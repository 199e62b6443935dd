"""AVIF files that hold more than their picture, each in a place of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import UnidentifiedImageError

from proxy.errors import UndecodableImage
from proxy.imaging.pipeline import render
from proxy.imaging.stripped.copies import strip
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.isobmff import appended, box, edited, moved, replaced
from tests.imaging.reference import decode

PHOTO = sources.photo(160, 120)
FITS = Preset(width=160, fit="contain", quality=95)
PLAIN = sources.avif(PHOTO, quality=20)
WITH_ALPHA = sources.avif(sources.with_alpha(PHOTO), quality=20)
NOTE = b"secret place"


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


TRACES = (b"secret", b"Camera", b"note", b"acsp")


def test_the_files_that_are_changed_are_clean_and_their_changes_are_seen_by_a_decoder() -> None:
    """Catches mutations of a file that was refused anyway, or that are broken files."""
    assert strip(Format.AVIF, PLAIN) == PLAIN
    assert strip(Format.AVIF, WITH_ALPHA) == WITH_ALPHA
    assert edited(PLAIN, "meta iprp ipco ispe", lambda body: body) == PLAIN
    for name in ("box in meta", "unlocated bytes", "metadata unit", "name of the item"):
        assert decode(HIDING[name]()).shape == (120, 160, 3), name


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING.keys())
def test_nothing_that_is_hidden_is_copied(make: Callable[[], bytes]) -> None:
    """Catches a place in the file that nobody looks at."""
    source = make()
    copy = strip(Format.AVIF, source)
    if copy is not None:
        assert not any(trace in copy for trace in TRACES)
        with suppress(UnidentifiedImageError):  # some are no pictures any more
            assert np.array_equal(decode(copy), decode(source))


@pytest.mark.parametrize(
    "name",
    [
        "exif", "xmp", "trailer", "box at the end", "box between", "unlocated bytes",
        "unlocated before", "box in meta", "name of the handler", "name of the item", "brand",
        "minor version", "unused property", "unknown property", "metadata unit", "padding unit",
    ],
)  # fmt: skip
def test_what_is_hidden_costs_no_generation(name: str) -> None:
    """Catches an allow-list that refuses files where it could leave something out."""
    assert strip(Format.AVIF, HIDING[name](), still=True) is not None


def test_what_is_hidden_does_not_leave() -> None:
    """Catches a source that is served as it is although it is not clean."""
    for name, make in HIDING.items():
        with suppress(UndecodableImage):  # some are no pictures any more
            result = render(make(), FITS, Format.AVIF, max_pixels=10**6)
            assert not any(trace in result.data for trace in TRACES), name


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=8)), max_size=3))
def test_any_bytes_have_a_copy_or_none(changes: list[tuple[int, bytes]]) -> None:
    """Catches a parser that raises: what it is asked about has been transformed already."""
    data = WITH_ALPHA
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) :]
    strip(Format.AVIF, data)
    strip(Format.AVIF, data[: len(changes) * 99])
