"""AVIF files as other programs write them: their boxes differ, and the picture does not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging.containers import isobmff
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.isobmff import (
    UNKNOWN,
    Entry,
    appended,
    associations,
    box,
    boxes,
    clap,
    edited,
    entries,
    moved,
    replaced,
    split,
    with_properties,
)

PHOTO = sources.photo(160, 120)
PRESET = Preset(width=1000, fit="contain", quality=90)
PLAIN = sources.avif(PHOTO)
WITH_ALPHA = sources.avif(sources.with_alpha(PHOTO))


def shown(source: bytes, max_pixels: int = 10**6) -> sources.Pixels:
    result = render(source, PRESET, Format.PNG, max_pixels=max_pixels)
    with Image.open(BytesIO(result.data)) as image:
        # A result of few colours has a palette.
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


# Associations


@pytest.mark.parametrize(
    "change",
    [
        lambda found: [associations([entry]) for entry in [*found, UNKNOWN]],
        lambda found: [associations([entry]) for entry in [UNKNOWN, *reversed(found)]],
        lambda found: [associations(found), associations([])],
        lambda found: [associations([]), associations([]), associations(found, wide=True)],
        lambda found: [associations(found, wide=True), associations([UNKNOWN])],
    ],
    ids=["one each", "in reverse", "an empty one", "three", "of two kinds"],
)
@pytest.mark.parametrize("source", [PLAIN, WITH_ALPHA], ids=["opaque", "alpha"])
def test_associations_may_be_in_several_boxes(
    source: bytes, change: Callable[[list[Entry]], list[bytes]]
) -> None:
    """Catches a refusal of what browsers show, and offsets that a changed header has moved."""
    made = split(source, change)
    assert made.count(b"ipma") > 1
    assert (shown(made) == shown(source)).all()
    assert (shown(made + b"bytes behind the end") == shown(source)).all()
    at = made.index(b"meta") - 4
    behind_another = moved(made, 17)
    behind_another = behind_another[:at] + box(b"free", bytes(9)) + behind_another[at:]
    assert (shown(behind_another) == shown(source)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda found: [associations(found), associations(found)],
        lambda found: [associations([(found[0][0], bytes([value]))]) for value in found[0][1]],
        lambda found: [associations(found)[:-1], associations([])],
        lambda found: [associations(found), b"\0\0\0\0\xff\xff\xff\xff"],
        lambda found: [associations(found), b""],
    ],
    ids=["twice", "one property each", "cut", "a huge count", "nothing"],
)
def test_an_item_in_two_of_these_boxes_is_no_valid_file(
    change: Callable[[list[Entry]], list[bytes]],
) -> None:
    """Catches a guess where the standard forbids it and browsers show nothing, and a crash."""
    with pytest.raises(UndecodableImage):
        shown(split(PLAIN, change))


def test_a_file_that_needs_no_mending_is_left_as_it_is() -> None:
    """Catches a copy of each file with its header written anew."""
    assert isobmff.inspect(PLAIN).picture == PLAIN


# The clean aperture


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (clap(80, 60), (40, 30, 120, 90)),
        (clap(80, 60, 20, -10), (60, 20, 140, 80)),
        (clap(80, 60, -80, -60, per=2), (0, 0, 80, 60)),
        (clap(79, 59, 1, -1, per=2), (41, 30, 120, 89)),
        (clap(1, 1, -159, 119, per=2), (0, 119, 1, 120)),
        (clap(160, 120), (0, 0, 160, 120)),
    ],
)
def test_a_clean_aperture_is_what_is_shown(crop: bytes, box: tuple[int, int, int, int]) -> None:
    """Catches a property that is ignored, as browsers do, against the standard that is essential.

    The centre is off from that of the picture, in fractions, and both are counted between pixels.
    """
    left, top, right, bottom = box
    for source in (PLAIN, WITH_ALPHA):
        wanted = shown(source)[top:bottom, left:right]
        assert np.array_equal(shown(with_properties(source, crop))[..., :3], wanted[..., :3])


def test_a_crop_comes_before_a_turn_and_a_turn_before_a_mirror() -> None:
    """Catches a crop of the turned picture, in the wrong coordinates (MIAF, 7.3.6.7)."""
    crop, turn, mirror = clap(80, 60, 20, -10), box(b"irot", b"\1"), box(b"imir", b"\1")
    part = shown(PLAIN)[20:80, 60:140]
    assert np.array_equal(shown(with_properties(PLAIN, crop, turn)), np.rot90(part))
    turned = np.rot90(part)[:, ::-1]
    assert np.array_equal(shown(with_properties(PLAIN, crop, turn, mirror)), turned)


@pytest.mark.parametrize(
    "crop",
    [
        clap(161, 120),
        clap(100, 100, 31, 0),
        clap(100, 100, 0, -11),
        clap(0, 60),
        clap(80, 60, 1, 1, per=0),
        clap(2**32 - 1, 2**32 - 1, -(2**31), 2**31 - 1),
        box(b"clap", bytes(32)),
    ],
)
def test_an_aperture_outside_the_picture_is_ignored(crop: bytes) -> None:
    """Catches a crop with black edges, and a division by zero."""
    assert np.array_equal(shown(with_properties(PLAIN, crop)), shown(PLAIN))


def test_the_pixel_limit_is_for_what_is_decoded() -> None:
    """Catches a crop of one pixel that lets a canvas of any size in."""
    source = with_properties(PLAIN, clap(2, 2))
    assert shown(source, max_pixels=160 * 120).shape == (2, 2, 3)
    with pytest.raises(ImageTooLarge):
        shown(source, max_pixels=160 * 120 - 1)


def test_a_cropped_file_is_never_served_as_it_came() -> None:
    """Catches the source's own coded pixels in an answer: a browser would show what is cut off."""
    tight = sources.avif(PHOTO, quality=5)
    source = with_properties(tight, clap(150, 110))
    result = render(source, PRESET, Format.AVIF, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        assert image.size == (150, 110)


# Orientation


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_turns_and_mirrors_are_properties_of_the_picture(turns: int, mirror: int | None) -> None:
    """Catches a turn the other way, a mirror about the other axis, and a mirror before a turn.

    ``irot`` counts quarters against the clock, ``imir`` names the axis (23008-12, 6.5.10 and 12).
    """
    wanted = np.rot90(shown(PLAIN), turns)
    properties = [box(b"irot", bytes([turns]))]
    if mirror is not None:
        wanted = wanted[:, ::-1] if mirror else wanted[::-1]
        properties.append(box(b"imir", bytes([mirror])))
    assert np.array_equal(shown(with_properties(PLAIN, *properties)), wanted)


def test_exif_has_no_say_about_orientation_whatever_else_does() -> None:
    """Catches a picture turned twice, and one turned by notes that the standard says to ignore."""
    source = sources.avif(PHOTO, exif=sources.exif(6))
    assert np.array_equal(shown(source), np.rot90(shown(PLAIN), -1))
    other = edited(source, "meta iprp ipco irot", lambda _: b"\2")
    assert np.array_equal(shown(other), np.rot90(shown(PLAIN), 2))
    without = edited(source, "meta iprp ipco", replaced(b"irot", b"free"))
    without = edited(without, "meta iprp ipma", lambda body: associations(
        [(item, bytes(value for value in own if value != 0x85)) for item, own in entries(body)]
    ))  # fmt: skip
    assert np.array_equal(shown(without), shown(PLAIN))


# Where things are


def in_idat(source: bytes) -> bytes:
    """The file with its data within ``meta`` (``iloc`` of version 1, construction method 1)."""
    start = source.index(b"mdat") + 4

    def relocate(body: bytes) -> bytes:
        out = b"\1\0\0\0" + body[4:8]
        for at in range(8, len(body), 14):
            entry = body[at : at + 14]
            offset = int.from_bytes(entry[6:10], "big") - start
            out += entry[:2] + b"\0\1" + entry[2:6] + struct.pack(">I", offset) + entry[10:]
        return out

    made = edited(source, "meta iloc", relocate, shift=False)
    made = edited(made, "meta", appended(box(b"idat", source[start:])), shift=False)
    return made[: made.rindex(b"mdat") - 4]


def in_extents(source: bytes) -> bytes:
    """The file with the data of its one item in two extents, of 64-bit offsets from a base."""
    iloc = dict(boxes(dict(boxes(source))[b"meta"][4:]))[b"iloc"]
    start, length = struct.unpack(">II", iloc[14:])

    def relocate(shift: int) -> Callable[[bytes], bytes]:
        head = struct.pack(">IBBIIHHQH", 2 << 24, 0x88, 0x80, 1, 1, 0, 0, start + shift - 7, 2)
        return lambda _: head + struct.pack(">4Q", 7, 50, 57, length - 50)

    longer = edited(source, "meta iloc", relocate(0), shift=False)
    return edited(source, "meta iloc", relocate(len(longer) - len(source)), shift=False)


def long_form(source: bytes, kind: bytes) -> bytes:
    """The file with a size of 64 bits in one of its boxes."""
    made = moved(source, 8)
    parts = []
    for name, body in boxes(made):
        long = struct.pack(">I4sQ", 1, name, 16 + len(body)) + body
        parts.append(long if name == kind else box(name, body))
    return b"".join(parts)


@pytest.mark.parametrize(
    "change",
    [
        in_idat,
        in_extents,
        lambda source: long_form(source, b"meta"),
        lambda source: long_form(source, b"mdat"),
        lambda source: source.replace(struct.pack(">I", len(source) - source.index(b"mdat") + 4)
                                      + b"mdat", b"\0\0\0\0mdat"),
        lambda source: source + b"no box at all",
        lambda source: source + box(b"free", b"notes"),
        lambda source: edited(source, "meta", appended(box(b"uuid", bytes(20)))),
    ],
    ids=["idat", "extents", "long meta", "long mdat", "open end", "trailer", "free", "unknown"],
)  # fmt: skip
def test_the_data_may_be_wherever_the_format_allows(change: Callable[[bytes], bytes]) -> None:
    """Catches a reader of one writer's files: offsets of 32 bits, one extent, one box of media."""
    source = change(PLAIN)
    assert source != PLAIN
    assert np.array_equal(shown(source), shown(PLAIN))
    cropped = change(with_properties(PLAIN, clap(80, 60)))
    assert shown(cropped).shape == (60, 80, 3)


@pytest.mark.parametrize(
    "brands",
    [
        b"avif\0\0\0\0",
        b"avif\0\0\0\0avif",
        b"mif1\0\0\0\0avifmif1miaf",
        b"mif1\0\0\0\0miafMA1Bavif",
        b"msf1\0\0\0\0avif",
        b"miaf\0\0\0\0mif1avif",
        b"MA1B\0\0\0\0avifmif1",
        b"avif\0\0\0\x01avifnotealso",
    ],
)
def test_any_brand_will_do_beside_avif(brands: bytes) -> None:
    """Catches a list of first brands: files of generic ones are common, and browsers show them."""
    assert np.array_equal(shown(edited(PLAIN, "ftyp", lambda _: brands)), shown(PLAIN))
