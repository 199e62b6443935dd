"""The rows of PNGs: the same pixels however they are written and read, and few bytes."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.imaging import encode, png_rows
from proxy.imaging.containers import png
from proxy.model.formats import Format
from tests.imaging import sources


def drawn(mode: str) -> Image.Image:
    """Letters of a thousand shades on white: too many for a palette."""
    random = np.random.default_rng(9)
    pixels = np.full((300, 333, 4), 255, np.uint8)
    letters = random.integers(0, 256, (20, 12, 9, 4), dtype=np.uint8)
    for top in range(0, 280, 15):
        for left in range(0, 320, 11):
            pixels[top : top + 12, left : left + 9] = letters[random.integers(20)]
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("mode", sorted(png_rows.MODES))
def test_the_file_holds_the_pixels_of_every_mode(mode: str, filtered: bool) -> None:
    """Catches a wrong colour type, and rows that are read as shifted by a sample."""
    image = drawn(mode)
    with Image.open(BytesIO(png_rows.file_of(image, 2, filtered=filtered))) as opened:
        opened.load()
        assert opened.mode == mode
        assert opened.tobytes() == image.tobytes()


@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_a_palette_keeps_its_chunks_and_its_pixels_when_it_is_packed(colors: int) -> None:
    """Catches a palette, or its alpha, that is lost on the way."""
    image = drawn("RGB").quantize(colors)
    image.info["transparency"] = bytes(range(colors))
    made = sources.encoded(image, "PNG", compress_level=0)
    packed = png_rows.packed(made, 2)
    assert len(packed) < len(made)
    assert [chunk.kind for chunk in png.chunks(packed) if chunk.intact] == [
        b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND",
    ]  # fmt: skip
    with Image.open(BytesIO(packed)) as opened, Image.open(BytesIO(made)) as wanted:
        assert opened.convert("RGBA").tobytes() == wanted.convert("RGBA").tobytes()


def test_a_drawing_is_smaller_than_pillow_makes_it() -> None:
    """Catches filters that hide what repeats from the compressor."""
    image = drawn("RGB")
    made = encode.encode(image, Format.PNG, 80, flat=True)
    assert len(made) < len(sources.encoded(image, "PNG", compress_level=4))


def test_a_photograph_keeps_its_filters() -> None:
    """Catches a photograph written without filters, in half as many bytes again."""
    photo = Image.fromarray(sources.photo(640, 480))
    assert png_rows.gains_by_filters(photo)
    made = encode.encode(photo, Format.PNG, 80, flat=False)
    assert made == png_rows.file_of(photo, 2, filtered=True)
    assert 1.5 * len(made) < len(png_rows.file_of(photo, 2, filtered=False))
    assert len(made) < 1.06 * len(sources.encoded(photo, "PNG", compress_level=4))


def bits(mode: str) -> bytes:
    """A PNG with that number of bits a pixel, or of that mode."""
    if mode.isdigit():
        return sources.encoded(drawn("RGB").quantize(1 << int(mode)), "PNG", bits=int(mode))
    return sources.encoded(drawn(mode), "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)


@pytest.mark.parametrize("mode", ["1", "2", "4", "8", "L", "LA", "RGB", "RGBA"])
def test_what_is_stored_has_the_pixels_and_chunks_of_the_file(mode: str) -> None:
    """Catches a row length that is not the file's, and a palette that is lost."""
    data = bits(mode)
    quick = png_rows.stored(data)
    assert quick is not None
    kinds = [chunk.kind for chunk in png.chunks(quick) if chunk.intact]
    assert kinds == list(dict.fromkeys(chunk.kind for chunk in png.chunks(data)))
    with Image.open(BytesIO(data)) as wanted, Image.open(BytesIO(quick)) as shown:
        assert (shown.mode, shown.size) == (wanted.mode, wanted.size)
        assert shown.convert("RGBA").tobytes() == wanted.convert("RGBA").tobytes()


def test_several_chunks_are_one_stream_and_what_follows_them_stays() -> None:
    """Catches a file of many chunks that takes Pillow's way, and an end that it cannot judge."""
    data = bits("RGB")
    stream = zlib.compress(rows_of(data))
    parts = [sources.png_chunk(b"IDAT", stream[at : at + 500]) for at in range(0, len(stream), 500)]
    header = data[: len(png.SIGNATURE) + 25]
    end = sources.png_chunk(b"tEXt", b"a\0b") + data[-12:-3]
    quick = png_rows.stored(header + b"".join(parts) + end)
    assert quick is not None
    assert rows_of(quick) == rows_of(data)
    assert quick.endswith(end)


def with_stream(data: bytes, stream: bytes) -> bytes:
    """A PNG with other compressed rows."""
    parts = [(chunk.kind, bytes(chunk.body)) for chunk in png.chunks(data)]
    new = [(kind, stream if kind == b"IDAT" else body) for kind, body in parts]
    return png.SIGNATURE + b"".join(sources.png_chunk(kind, body) for kind, body in new)


def rows_of(data: bytes) -> bytes:
    return zlib.decompress(b"".join(c.body for c in png.chunks(data) if c.kind == b"IDAT"))


def test_damage_is_left_to_pillow() -> None:
    """Catches a file that is read in spite of what Pillow refuses it for."""
    data = bits("RGB")
    rows = rows_of(data)
    for stream in (
        zlib.compress(rows)[:-20],
        zlib.compress(rows[:-1]),
        zlib.compress(rows + b"0"),
        b"",
    ):
        assert png_rows.stored(with_stream(data, stream)) is None


def test_what_is_mostly_repeats_is_left_to_pillow() -> None:
    """Catches a screenshot whose rows are written anew, which takes longer than to inflate it."""
    page = Image.new("RGB", (1000, 1000), "white")
    page.paste(drawn("RGB"))
    assert png_rows.stored(sources.encoded(page, "PNG")) is None


def test_sixteen_bits_are_left_to_pillow() -> None:
    """Catches rows of twice the length that the memory of a transform is counted with."""
    data = sources.vips_png(sources.wide(sources.photo(40, 30)), bitdepth=16)
    assert png_rows.stored(data) is None


def test_a_stream_ends_exactly_only_without_anything_behind_it() -> None:
    """Catches hidden bytes that are served, also ones that end as the stream does."""
    rows = bytes(1000)
    stream = zlib.compress(rows)
    assert png_rows.ends_exactly(stream, 1000)
    for other in (stream + b"x", stream + stream[-4:], stream[:-1], b""):
        assert not png_rows.ends_exactly(other, 1000)
    assert not png_rows.ends_exactly(stream, 999)
    assert not png_rows.ends_exactly(stream, 1001)
