"""JPEGs that lack something: a picture is served if, and only if, all of its data is there."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import pyvips
from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging.containers import jpeg
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources

PHOTO = sources.photo(160, 120)
PRESET = Preset(width=1000, fit="contain", quality=90)
EOI = b"\xff\xd9"

MAKERS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: sources.jpeg(PHOTO),
    "full chroma": lambda: sources.jpeg(PHOTO, subsampling="4:4:4"),
    "own tables": lambda: sources.jpeg(PHOTO, optimize=True),
    "progressive": lambda: sources.jpeg(PHOTO, progressive=True),
    "restarts": lambda: sources.jpeg(PHOTO, restart_marker_rows=1),
    "progressive restarts": lambda: sources.jpeg(PHOTO, progressive=True, restart_marker_rows=1),
    "grey": lambda: sources.jpeg(sources.grey(161, 119)),
    "inks": lambda: sources.cmyk_jpeg(sources.cmyk(PHOTO)),
    "other scans": lambda: pyvips.Image.new_from_array(PHOTO).jpegsave_buffer(
        interlace=True, trellis_quant=True, optimize_scans=True, restart_interval=3
    ),
    "one block": lambda: sources.jpeg(PHOTO[:8, :8]),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
PRESETS = pytest.mark.parametrize("width", [1000, 70, 15], ids=["whole", "half", "eighth"])


def shown(source: bytes, width: int = 1000) -> sources.Pixels:
    preset = PRESET.model_copy(update={"width": width})
    result = render(source, preset, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image)


@PRESETS
@EACH
def test_a_jpeg_without_its_end_marker_has_every_pixel(
    make: Callable[[], bytes], width: int
) -> None:
    """Catches a decoder that waits for a marker when it has nothing more to decode."""
    whole = make()
    wanted = shown(whole, width)
    for tail in (b"", b"\xff", b"\xff" * 9, b"\0" * 99, b"no marker", b"\xff" * 9 + EOI):
        assert (shown(whole.removesuffix(EOI) + tail, width) == wanted).all(), tail


@PRESETS
@EACH
@pytest.mark.parametrize("end", [b"", b"\xff", EOI, EOI + b"\0" * 99])
def test_a_jpeg_that_lacks_data_does_not_decode_whatever_stands_behind_the_cut(
    make: Callable[[], bytes], end: bytes, width: int
) -> None:
    """Catches grey that libjpeg invents at an end marker which somebody put behind the cut."""
    source = make()
    start = jpeg.layout_of(source).scan_ends[-2:][0] if b"\xff\xc2" in source else 0
    start = max(start, source.index(b"\xff\xda") + 16)
    for part in (0.05, 0.3, 0.5, 0.8):
        cut = source[: start + int((len(source) - start) * part)]
        with pytest.raises(UndecodableImage):
            shown(cut + end, width)


def test_a_jpeg_cut_where_a_restart_marker_is_due_lacks_data() -> None:
    """Catches a decoder that skips all it is given, in search of that marker, as if complete."""
    source = MAKERS["restarts"]()
    markers = [source.index(bytes([0xFF, 0xD0 + number])) for number in range(7)]
    for marker in markers:
        for cut in (source[:marker], source[: marker + 2]):
            with pytest.raises(UndecodableImage):
                shown(cut + EOI)


@pytest.mark.parametrize("name", ["baseline", "full chroma", "own tables", "grey"])
def test_a_few_missing_bytes_are_missed_too(name: str) -> None:
    """Catches filling bits that a decoder takes for the end of a block."""
    source = MAKERS[name]().removesuffix(EOI)
    for missing in range(1, 33):
        with pytest.raises(UndecodableImage):
            shown(source[:-missing] + EOI)


def test_a_progressive_jpeg_needs_each_of_its_scans() -> None:
    """Catches a blurred picture from a file that ends, in good order, between two scans."""
    source = MAKERS["progressive"]()
    *ends, last = jpeg.layout_of(source).scan_ends
    assert len(ends) > 5
    for end in ends:
        with pytest.raises(UndecodableImage):
            shown(source[:end] + EOI)
    assert (shown(source[:last] + EOI) == shown(source)).all()


def test_a_progressive_jpeg_needs_all_data_of_the_scans_between() -> None:
    """Catches a look at the last scan alone, where a scan before it was cut."""
    source = MAKERS["progressive"]()
    for end in jpeg.layout_of(source).scan_ends[:-1]:
        with pytest.raises(UndecodableImage):
            shown(source[: end - 40] + source[end:])


def test_what_follows_the_end_marker_is_no_part_of_the_picture() -> None:
    """Catches the second picture of a camera's file, decoded or counted as missing."""
    for make in (MAKERS["baseline"], MAKERS["progressive"]):
        source = make()
        second = sources.jpeg(PHOTO[::-1], progressive=True)
        assert (shown(source + second) == shown(source)).all()
        assert (shown(source + second[:99]) == shown(source)).all()


def test_missing_restart_markers_are_no_missing_data() -> None:
    """Catches a refusal where the data goes on: each marker is there for a decoder to go on at."""
    source = MAKERS["restarts"]()
    markers = [at for at in range(len(source)) if source[at : at + 2] == b"\xff\xd0"]
    assert markers
    changed = source[: markers[0]] + b"\xff\xd3" + source[markers[0] + 2 :]
    assert shown(changed).shape == (120, 160, 3)


def test_arithmetic_coding_is_decoded() -> None:
    """Catches a decoder that is asked to wait, which it cannot in this coding: all would fail.

    Any bytes are a picture in this coding; these were in another.
    """
    source = sources.jpeg(PHOTO).replace(b"\xff\xc0", b"\xff\xc9")
    assert shown(source).shape == (120, 160, 3)
    assert np.array_equal(shown(source.removesuffix(EOI)), shown(source))


@pytest.mark.parametrize("width", [1000, 80, 20])
@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF])
def test_a_lossless_or_hierarchical_jpeg_has_one_answer(frame: int, width: int) -> None:
    """Catches an answer by preset: a decoder that can do it, but not at a fraction of the size."""
    source = sources.jpeg(PHOTO).replace(b"\xff\xc0", bytes([0xFF, frame]))
    with pytest.raises(UndecodableImage, match="process"):
        shown(source, width)


@pytest.mark.parametrize(
    "segment",
    [
        (jpeg.APP0, b"JFIF\0"),
        (jpeg.APP0, b"JFIF\0\1\1\0\0\1\0\1\0"),
        (jpeg.APP14, b"Adobe"),
        (jpeg.APP14, b"Adobe\0\x64\0\0\0\0"),
        (jpeg.APP0, b""),
        (jpeg.APP14, b""),
    ],
)
def test_a_segment_too_short_for_what_it_is_called_is_ignored(segment: tuple[int, bytes]) -> None:
    """Catches a reader that trusts the name: libjpeg, and so every browser, wants all bytes."""
    source = sources.jpeg(PHOTO)
    assert (shown(sources.with_segments(source, segment)) == shown(source)).all()


def test_the_shortest_complete_segments_still_count() -> None:
    """Catches a minimum that is too high: without Adobe's word, these are taken for luma."""
    pixels = Image.fromarray(PHOTO)
    source = sources.encoded(pixels, "JPEG", keep_rgb=True, quality=95)
    plain = source.replace(b"R\x11\0G\x11\0B\x11\0", b"\1\x11\0\2\x11\0\3\x11\0")
    plain = plain.replace(b"\x03R\0G\0B\0", b"\x03\1\0\2\0\3\0")
    at = plain.find(b"\xff\xee")
    bare = plain if at < 0 else plain[:at] + plain[at + 16 :]
    adobe = (jpeg.APP14, b"Adobe\0\x64\0\0\0\0\0")
    named = shown(sources.with_segments(bare, adobe)).astype(int)
    assert np.abs(named - PHOTO).mean() < 3
