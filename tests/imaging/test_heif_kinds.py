"""Kinds of HEIC files, and AVIF files beside them: brands, depths, alpha, derived pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.heif import (
    Item,
    alpha_of,
    coded,
    deep_heic,
    file_of,
    grid,
    heic,
    overlay,
    sequence,
    size,
)
from tests.imaging.isobmff import box, boxes
from tests.imaging.reference import color_error

pytest.importorskip("pillow_heif")

PRESET = Preset(width=1000, fit="contain", quality=90)
PHOTO = sources.photo(256, 128)
CUTOUT = sources.with_alpha(PHOTO)
HALVES = [np.ascontiguousarray(PHOTO[:, :128]), np.ascontiguousarray(PHOTO[:, 128:])]

KINDS: dict[str, tuple[Callable[[sources.Pixels], bytes], bytes]] = {
    "heic": (heic, b"heic\0\0\0\0mif1heicmiaf"),
    "avif": (sources.avif, b"avif\0\0\0\0avifmif1miaf"),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def shown(source: bytes, max_pixels: int = 10**6) -> sources.Pixels:
    result = render(source, PRESET, Format.PNG, max_pixels=max_pixels)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image)


def assert_shows(source: bytes, wanted: sources.Pixels) -> None:
    got = shown(source)
    assert got.shape == wanted.shape
    assert color_error(got, wanted) < 3
    if wanted.shape[2] == 4:
        assert np.abs(got[..., 3].astype(int) - wanted[..., 3]).mean() < 1


def written(kind: str, items: list[Item], primary: int = 1) -> bytes:
    return file_of(items, brands=KINDS[kind][1], primary=primary)


def picture(kind: str, pixels: sources.Pixels) -> Item:
    return coded(KINDS[kind][0](np.ascontiguousarray(pixels)))


def tiles(kind: str) -> list[Item]:
    return [picture(kind, half) for half in HALVES]


@EACH
def test_the_writer_of_these_tests_writes_what_decoders_read(kind: str) -> None:
    """Guards the tests below: a picture alone, in a file of theirs."""
    assert_shows(written(kind, [picture(kind, PHOTO)]), PHOTO)


@pytest.mark.parametrize(
    "brands",
    [
        b"heic\0\0\0\0mif1heic",
        b"heix\0\0\0\0mif1heix",
        b"heim\0\0\0\0mif1heic",
        b"heis\0\0\0\0mif1heic",
        b"mif1\0\0\0\0mif1heic",
        b"mif1\0\0\0\0miafMiHBheicmif1",
        b"msf1\0\0\0\0hevcheicmif1",
    ],
)
def test_each_brand_of_heic_is_read(brands: bytes) -> None:
    """Catches a list of the one brand that phones write."""
    assert_shows(file_of([picture("heic", PHOTO)], brands=brands), PHOTO)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("pixels", [PHOTO, CUTOUT], ids=["opaque", "alpha"])
def test_deep_samples_are_scaled_to_eight_bits(bits: int, pixels: sources.Pixels) -> None:
    """Catches samples that are cut off: all but the darkest would be white."""
    assert_shows(deep_heic(pixels, bits), pixels)


@EACH
def test_a_grid_is_put_together(kind: str) -> None:
    """Catches the first tile alone, a wrong order, and a size that counts the tiles' margin."""
    across = written(kind, [grid(1, 2, 256, 128, [2, 3]), *tiles(kind)])
    assert_shows(across, PHOTO)
    down = written(kind, [grid(2, 1, 128, 256, [2, 3]), *tiles(kind)])
    assert_shows(down, np.vstack(HALVES))
    smaller = written(kind, [grid(1, 2, 200, 100, [2, 3]), *tiles(kind)])
    assert_shows(smaller, PHOTO[:100, :200])
    last = written(kind, [*tiles(kind), grid(1, 2, 256, 128, [2, 1])], primary=3)
    assert_shows(last, np.hstack(HALVES[::-1]))


@EACH
def test_a_grid_is_turned_and_cropped_as_a_whole(kind: str) -> None:
    """Catches properties that are looked for at the tiles."""
    turned = grid(1, 2, 256, 128, [2, 3])
    turned.properties.append((box(b"irot", b"\1"), True))
    assert_shows(written(kind, [turned, *tiles(kind)]), np.rot90(PHOTO))
    cropped = grid(1, 2, 256, 128, [2, 3])
    aperture = struct.pack(">IIIIiIiI", 100, 1, 50, 1, 0, 1, 0, 1)
    cropped.properties.append((box(b"clap", aperture), True))
    assert_shows(written(kind, [cropped, *tiles(kind)]), PHOTO[39:89, 78:178])


@EACH
def test_a_grid_of_more_pixels_than_allowed_is_refused(kind: str) -> None:
    """Catches a limit on the first tile."""
    source = written(kind, [grid(1, 2, 256, 128, [2, 3]), *tiles(kind)])
    assert shown(source, max_pixels=256 * 128).shape == (128, 256, 3)
    with pytest.raises(ImageTooLarge):
        shown(source, max_pixels=256 * 128 - 1)


@EACH
@pytest.mark.parametrize("part", [0.3, 0.6, 0.8, 0.999])
def test_a_grid_that_was_cut_does_not_decode(kind: str, part: float) -> None:
    """Catches green tiles: libheif goes on without those whose data is missing."""
    source = written(kind, [grid(1, 2, 256, 128, [2, 3]), *tiles(kind)])
    with pytest.raises(UndecodableImage):
        shown(source[: int(len(source) * part)])


def test_a_grid_is_whole_with_its_last_byte() -> None:
    """Catches a bound that is off by one."""
    source = written("heic", [grid(1, 2, 256, 128, [2, 3]), *tiles("heic")])
    assert_shows(source, PHOTO)
    assert_shows(source + b"bytes behind the end", PHOTO)
    with pytest.raises(UndecodableImage):
        shown(source[:-1])


def test_an_overlay_is_put_together_in_heic() -> None:
    """Catches the first layer alone, and a canvas without its colour."""
    layers = [*tiles("heic"), overlay(300, 200, [(0, 0), (100, 50)], [1, 2])]
    wanted = np.full((200, 300, 3), 255, np.uint8)
    wanted[:128, :128] = HALVES[0]
    wanted[50:178, 100:228] = HALVES[1]
    assert_shows(written("heic", layers, primary=3), wanted)


def test_another_picture_turned_is_shown_in_heic() -> None:
    """Catches a derived item, the identity of another, that is taken for no picture."""
    turn = (box(b"irot", b"\1"), True)
    derived = Item(b"iden", b"", [size(128, 128), turn], [(b"dimg", [2])])
    assert_shows(written("heic", [derived, picture("heic", HALVES[0])]), np.rot90(HALVES[0]))


@pytest.mark.parametrize("kind", ["overlay", "identity"])
def test_what_pillows_avif_reader_cannot_derive_does_not_decode(kind: str) -> None:
    """Catches the wrong layer shown for the picture (docs/containers.md names what is not read)."""
    items = [*tiles("avif"), overlay(300, 200, [(0, 0), (100, 50)], [1, 2])]
    if kind == "identity":
        items[2] = Item(b"iden", b"", [size(128, 128)], [(b"dimg", [1])])
    with pytest.raises(UndecodableImage):
        shown(written("avif", items, primary=3))


@EACH
def test_the_primary_picture_is_shown_whatever_stands_first(kind: str) -> None:
    """Catches the first of a burst, and a thumbnail."""
    flipped = picture(kind, PHOTO[::-1])
    assert_shows(written(kind, [picture(kind, PHOTO), flipped], primary=2), PHOTO[::-1])
    small = picture(kind, PHOTO[::4, ::4])
    small.references.append((b"thmb", [2]))
    assert_shows(written(kind, [small, picture(kind, PHOTO)], primary=2), PHOTO)


@EACH
def test_alpha_is_a_picture_of_its_own(kind: str) -> None:
    """Catches alpha that is lost, or shown as the picture."""
    alpha = alpha_of(1, picture(kind, CUTOUT[..., 3]))
    assert_shows(written(kind, [picture(kind, PHOTO), alpha]), np.dstack([PHOTO, CUTOUT[..., 3]]))


@EACH
def test_premultiplied_colours_are_divided_by_their_alpha(kind: str) -> None:
    """Catches a dark fringe: colours that were multiplied, and are so again on white."""
    opacity = CUTOUT[..., 3:] / 255
    color = picture(kind, np.round(PHOTO * opacity).astype(np.uint8))
    color.references.append((b"prem", [2]))
    alpha = alpha_of(1, picture(kind, CUTOUT[..., 3]))
    assert_shows(written(kind, [color, alpha]), np.dstack([PHOTO, CUTOUT[..., 3]]))


def turned_heic(*properties: bytes, exif: int = 1) -> bytes:
    item = coded(heic(PHOTO))
    item.properties += [(each, True) for each in properties]
    items = [item]
    if exif != 1:
        notes = b"\0\0\0\6" + sources.exif(exif)
        items.append(Item(b"Exif", notes, references=[(b"cdsc", [1])]))
    return written("heic", items)


@pytest.mark.parametrize("exif", [1, 3, 6, 8])
def test_a_turn_of_the_picture_wins_over_exif(exif: int) -> None:
    """Catches a picture turned twice: EXIF in HEIF is informative (23008-12, A.2.1)."""
    turn, mirror = box(b"irot", b"\1"), box(b"imir", b"\1")
    assert_shows(turned_heic(exif=exif), PHOTO)
    assert_shows(turned_heic(turn, exif=exif), np.rot90(PHOTO))
    assert_shows(turned_heic(mirror, exif=exif), PHOTO[:, ::-1])
    assert_shows(turned_heic(turn, mirror, exif=exif), np.rot90(PHOTO)[:, ::-1])


def test_an_aperture_is_what_is_shown_of_a_heic() -> None:
    """Catches an aperture after the turn, which comes last of the two."""
    aperture = box(b"clap", struct.pack(">IIIIiIiI", 80, 1, 60, 1, 20, 1, -10, 1))
    assert_shows(turned_heic(aperture), PHOTO[24:84, 108:188])
    assert_shows(turned_heic(aperture, box(b"irot", b"\3")), np.rot90(PHOTO[24:84, 108:188], -1))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_heic_does_not_decode(part: float) -> None:
    """Catches a decoder that fills with green what is missing."""
    source = heic(PHOTO)
    with pytest.raises(UndecodableImage):
        shown(source[: int(len(source) * part)])


# Sequences

FRAMES = [HALVES[0], HALVES[1], np.ascontiguousarray(HALVES[0][::-1])]
IN_TRACKS = b"hevc\0\0\0\0msf1hevc"


def test_a_sequence_of_tracks_alone_gives_its_first_picture() -> None:
    """Catches a reader of items alone: such a file, which the standard allows, has none."""
    source = sequence(FRAMES, brands=IN_TRACKS)
    assert_shows(source, HALVES[0])
    assert_shows(source + b"bytes behind the end", HALVES[0])
    noted = sequence(FRAMES, brands=IN_TRACKS, before=box(b"free", b"notes"))
    assert_shows(noted, HALVES[0])


@pytest.mark.parametrize("brand", [b"hevc", b"hevx", b"heis"])
def test_the_brand_of_a_sequence_is_enough(brand: bytes) -> None:
    """Catches a sequence that is only shown if it claims a still's brand too, as of 10 bits."""
    assert_shows(sequence(FRAMES, brands=brand + bytes(4) + brand), HALVES[0])


@pytest.mark.parametrize("part", [0.02, 0.1, 0.25])
def test_a_sequence_without_its_first_picture_does_not_decode(part: float) -> None:
    """Catches a sample that is looked for where the file has ended."""
    source = sequence(FRAMES, brands=IN_TRACKS)
    with pytest.raises(UndecodableImage):
        shown(source[: int(len(source) * part)])


@pytest.mark.parametrize("kind", [b"stsd", b"stsz", b"stco", b"hdlr", b"mdia", b"hvcC"])
def test_a_sequence_without_one_of_its_tables_does_not_decode(kind: bytes) -> None:
    """Catches an exception of another class, of a reader that trusts the file."""
    source = sequence(FRAMES, brands=IN_TRACKS)
    with pytest.raises(UndecodableImage):
        shown(source.replace(kind, b"free"))


@pytest.mark.parametrize(
    "brands", [b"heic\0\0\0\0mif1heichevcmsf1", b"hevc\0\0\0\0msf1hevcmif1heic"]
)
def test_a_sequence_with_a_primary_picture_shows_that(brands: bytes) -> None:
    """Catches the first of a burst in place of the one that its owner chose."""
    chosen = written("heic", [picture("heic", HALVES[1])])
    meta, media = (dict(boxes(chosen))[kind] for kind in (b"meta", b"mdat"))
    start = chosen.index(b"mdat") + 4
    iloc = bytes(4) + b"\x44\0" + struct.pack(">HHHHII", 1, 1, 0, 1, start, len(media))
    assert box(b"iloc", iloc) in meta
    both = box(b"meta", meta) + box(b"mdat", media)
    assert_shows(sequence(FRAMES, brands=brands, before=moved_to(both, brands, start)), HALVES[1])


def moved_to(parts: bytes, brands: bytes, start: int) -> bytes:
    """The boxes after a first box of ``brands``, with the offset of their picture made right."""
    shift = len(brands) + 8 - (start - parts.index(b"mdat") - 4)
    old, new = (struct.pack(">HI", 1, value) for value in (start, start + shift))
    assert parts.count(old) == 1
    return parts.replace(old, new)
