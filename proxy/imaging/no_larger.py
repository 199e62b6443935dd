"""Encodes a picture in no more bytes than its source where that has no copy of its own pixels.

EXIF may turn it though its blocks cannot be turned, or its colours were converted. A JPEG gets the
tables of its source: pixels that were coded with them once lose next to nothing. The lossy formats
get less quality after that, until it is enough.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BytesIO
from itertools import islice

from PIL import Image, JpegImagePlugin

from proxy.imaging import palettes
from proxy.imaging.containers import webp
from proxy.imaging.encode import encode, prepared, save
from proxy.model.formats import Format

_COARSER = (1, 1.15, 1.5, 2.2, 4, 8)
"""Factors of the source's tables, one after the other."""

_ATTEMPTS = 5

_MOST_PIXELS, _MOST_EXACT = 16_000_000, 8_000_000
"""Pixels of all attempts, for their CPU time: of lossy ones, and of those without loss, which take
twice as long. One lossy attempt is made in any case, and a JPEG needs no bound."""

_STEP, _STEPS_OF_HALF = 6, 25
"""By how much quality falls each time: at least, and for each time that the bytes are to halve."""

_TIGHT = 9  # of zlib
_STRATEGIES = (0, 1)  # of zlib: the default, and that for samples less others


def within(
    most: int,
    made: int,
    image: Image.Image,
    format_: Format,
    quality: int,
    *,
    flat: bool,
    webp_effort: int,
    source: bytes,
    orientation: int,
) -> bytes | None:
    """Return the picture in at most ``most`` bytes, or else in the fewest; None if those are more.

    What a PNG or a WebP without loss holds may take more bytes once it is turned.

    Args:
        made: how many bytes ``encode`` made of the rest; more than ``most``.
        image, format_, quality, flat, webp_effort: see ``encode``.
        source: the file of the same format that the picture was read from.
        orientation: of the source, 1 to 8.
    """
    clean = prepared(image, format_)
    pixels = clean.width * clean.height
    match format_:
        case Format.JPEG:
            found = _jpegs(clean, source, orientation, flat=flat)
        case Format.PNG:
            found = islice(_pngs(clean), _MOST_EXACT // pixels)
        case _:
            effort = webp_effort
            found = _weaker(most, made, clean, format_, quality, effort, source=source, flat=flat)
    best: bytes | None = None
    for data in found:
        if len(data) < (made if best is None else len(best)):
            best = data
        if best is not None and len(best) <= most:
            break
    return best


def _jpegs(image: Image.Image, source: bytes, orientation: int, *, flat: bool) -> Iterator[bytes]:
    with JpegImagePlugin.JpegImageFile(BytesIO(source)) as own:
        tables, progressive = own.quantization, "progressive" in own.info
        of_components = [tables[component[3]] for component in own.layer[:2]]
        sampling = JpegImagePlugin.get_sampling(own)
    if orientation >= 5:
        of_components = [_transposed(table) for table in of_components]
    if sampling not in (0, 2):  # 4:2:2 becomes 4:4:0 when it is turned, which Pillow cannot write
        sampling = 0 if flat else 2
    for factor in _COARSER:
        scaled = [[min(round(step * factor), 255) for step in table] for table in of_components]
        options = {"qtables": scaled, "subsampling": sampling, "progressive": progressive}
        yield save(image, Format.JPEG, {**options, "optimize": True})


def _transposed(table: list[int]) -> list[int]:
    return [table[8 * row + column] for column in range(8) for row in range(8)]


def _pngs(image: Image.Image) -> Iterator[bytes]:
    clean = palettes.without_color(palettes.without_spare_entries(image))
    for strategy in _STRATEGIES:
        options = {"compress_level": _TIGHT, "compress_type": strategy}
        yield save(clean, Format.PNG, options)
    form = palettes.with_palette(clean, had_palette=True)
    if form is not None:
        yield save(form, Format.PNG, {"compress_level": _TIGHT})


def _weaker(
    most: int,
    made: int,
    image: Image.Image,
    format_: Format,
    quality: int,
    webp_effort: int,
    *,
    source: bytes,
    flat: bool,
) -> Iterator[bytes]:
    pixels = image.width * image.height
    exact = format_ is Format.WEBP and any(part.kind == b"VP8L" for part in webp.chunks(source))
    if exact and pixels <= _MOST_EXACT:
        yield save(image, format_, {"lossless": True, "quality": 100})
    for _ in range(min(max(_MOST_PIXELS // pixels, 1), _ATTEMPTS)):
        quality = max(quality - _STEP - round(_STEPS_OF_HALF * math.log2(made / most)), 1)
        data = encode(image, format_, quality, flat=flat, webp_effort=webp_effort)
        yield data
        made = len(data)
