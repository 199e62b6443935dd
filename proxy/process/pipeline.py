"""One picture through one preset.

The way: sniff, read the container, check the limits, decode, resample, convert to sRGB, turn
upright, encode. Synchronous; several threads may call ``render`` at once.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from io import BytesIO

from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from proxy import formats
from proxy.errors import (
    ImageProxyError,
    ImageTooLarge,
    ResultTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.formats import Format
from proxy.presets import Box, Placement, Preset, Size, fits, place
from proxy.process import color, containers, resample
from proxy.process.bare import is_bare
from proxy.process.encode import MAX_SIDES, encode

_open_heic: Callable[[BytesIO], Image.Image] | None = None
with contextlib.suppress(ImportError):
    from pillow_heif import HeifImageFile

    _open_heic = HeifImageFile

REDUCING_GAP = 2.0
"""Cheap steps (libjpeg's scaling, box averages) stop at this multiple of the result's size.

With less the loss shows; with more the gain in speed is gone.
"""

JPEG_GAP, OTHER_GAP = 1.0, 1.3
"""The same for photographs where resampling is fast, by the format of the result.

At 1 a JPEG of 2000 pixels is decoded at a half for 800, which loses 0.0005 of SSIM. Our JPEG tables
make up for that; other formats keep the distance.
"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A result: the bytes of a file, and its format."""

    data: bytes
    format: Format


def render(source: bytes, preset: Preset, output: Format | None, *, max_pixels: int) -> Rendered:
    """Transform ``source`` by ``preset``.

    Args:
        source: any bytes.
        output: one of ``formats.OUTPUTS``, or None: the format follows the source.
        max_pixels: of the source's canvas, checked before anything is decoded.

    Raises:
        UnsupportedImage: no format of the allow-list.
        ImageTooLarge: more than ``max_pixels``, or a result longer than its format can hold.
        UndecodableImage: corrupt or truncated.
    """
    format_ = formats.sniff(source)
    if format_ is None or (format_ is Format.HEIC and _open_heic is None):
        raise UnsupportedImage(f"first bytes {source[:12]!r}")
    with _decoding():
        facts = containers.inspect(format_, source)
        if facts.size is not None:
            _check_pixels(facts.size, max_pixels)
        image = _open(format_, facts.picture)
        stored = Size(*image.size)
        _check_pixels(stored, max_pixels)
        if format_ in (Format.AVIF, Format.HEIC):  # here only the decoder knows the profile
            facts = replace(facts, profile=image.info.get("icc_profile"))
        if format_ is Format.AVIF:  # HEIC's decoder turns the picture itself
            orientation = containers.exif_orientation(image.info.get("exif", b""))
            facts = replace(facts, orientation=orientation)

    upright = Size(stored.height, stored.width) if facts.orientation >= 5 else stored
    placement = _on_whole_pixels(place(preset, upright))
    target = output or formats.output_for(format_, animated=preset.animated)
    untouched = output is None and preset.animated and _moves(format_, facts)
    if not untouched and max(placement.size) > MAX_SIDES.get(target, max(placement.size)):
        raise ResultTooLarge(f"{placement.size} exceeds what {target} holds")

    with _decoding():
        on_canvas = _as_stored(placement, upright, facts.orientation)
        gap = JPEG_GAP if target is Format.JPEG else OTHER_GAP
        gap = gap if resample.available() else REDUCING_GAP
        image, region = _decode(image, on_canvas, gap)
        if untouched:
            return Rendered(_animation(format_, source), format_)
        # A palette survives where no new colours can arise.
        as_is = target is Format.PNG and not _scales(image, region) and not _converts(facts)
        if not (as_is and image.mode in ("1", "P")):
            image = _plain(image, facts.transparent)
        flat = _is_flat(image)
        if flat and image.size != stored and gap < REDUCING_GAP:
            # Hard edges ring when libjpeg scales them: once more, nearer to full size.
            image, region = _decode(_open(format_, facts.picture), on_canvas, REDUCING_GAP)
            image = _plain(image, facts.transparent)
        image = _resample(image, region, flat=flat)
        image = color.to_srgb(color.from_gamma(image, facts.gamma), facts.profile)
        image = _turn(_opaque(image), facts.orientation)
    data = encode(image, target, preset.quality, flat=flat)
    comparable = target is format_ and fits(preset, upright) and len(data) >= len(source)
    if comparable and is_bare(format_, source):
        return Rendered(source, format_)
    return Rendered(data, target)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Decoders raise almost anything for bad bytes: all of it says that they do not decode."""
    try:
        yield
    except ImageProxyError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooLarge(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _check_pixels(size: Size, max_pixels: int) -> None:
    if size.width * size.height > max_pixels:
        raise ImageTooLarge(f"{size.width} x {size.height} pixels")


# The plug-ins themselves and not Image.open: nothing is guessed, no other plug-in can answer, and
# Pillow's process-wide pixel limit neither warns nor decides.
_READERS: dict[Format, type[ImageFile.ImageFile]] = {
    Format.JPEG: JpegImagePlugin.JpegImageFile,
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
}


def _open(format_: Format, picture: bytes) -> Image.Image:
    """The picture's header; its pixels are decoded by ``load``."""
    if format_ is Format.HEIC and _open_heic is not None:
        return _open_heic(BytesIO(picture))
    return _READERS[format_](BytesIO(picture))


def _moves(format_: Format, facts: containers.Facts) -> bool:
    """Whether a preset with ``animated`` serves the source: any GIF, and WebP with frames."""
    return format_ is Format.GIF or (format_ is Format.WEBP and facts.animated)


def _animation(format_: Format, source: bytes) -> bytes:
    return containers.without_webp_metadata(source) if format_ is Format.WEBP else source


def _on_whole_pixels(placement: Placement) -> Placement:
    """Where nothing is scaled, half a pixel of offset would only blur."""
    crop, size = placement
    if (crop.right - crop.left, crop.bottom - crop.top) != size:
        return placement
    left, top = int(crop.left), int(crop.top)
    return Placement(Box(left, top, left + size.width, top + size.height), size)


def _as_stored(upright: Placement, canvas: Size, orientation: int) -> Placement:
    """The same region and size on the picture as stored, before it is turned upright.

    Args:
        canvas: the size of the whole upright picture.
    """
    (left, top, right, bottom), (width, height) = upright
    across, down = canvas
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
        width, height, across, down = height, width, down, across
    if orientation in (2, 3, 7, 8):
        left, right = across - right, across - left
    if orientation in (3, 4, 6, 7):
        top, bottom = down - bottom, down - top
    return Placement(Box(left, top, right, bottom), Size(width, height))


def _decode(image: Image.Image, region: Placement, gap: float) -> tuple[Image.Image, Placement]:
    """Decode all of the picture; a JPEG at n/8 of its size where the result is that much smaller.

    Args:
        gap: at least so many times the size of the result is left.

    Returns:
        The picture, and the region in its pixels.
    """
    (left, top, right, bottom), size = region
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        enough = (
            math.ceil(image.width * size.width / (right - left) * gap),
            math.ceil(image.height * size.height / (bottom - top) * gap),
        )
        full = image.size
        drafted = image.draft(None, enough)
        if drafted is not None:
            across, down = drafted[1][2] / full[0], drafted[1][3] / full[1]
            left, top, right, bottom = left * across, top * down, right * across, bottom * down
    image.load()
    return image, Placement(Box(left, top, right, bottom), size)


def _plain(image: Image.Image, transparent: tuple[int, ...] | None) -> Image.Image:
    """The picture in a mode that can be resampled: L, LA, RGB, RGBA or CMYK, 8 bit a sample."""
    match image.mode:
        case "1":
            image = image.convert("L")
        case "P":
            see_through = "transparency" in image.info
            return image.convert("RGBA" if see_through else "RGB")
        case "I;16" | "I;16L" | "I;16B" | "I":
            # convert() alone would clip: all above 255 of 65535 would be white.
            image = image.point(lambda value: value * (1 / 256)).convert("L")
        case "L" | "LA" | "RGB" | "RGBA" | "CMYK":
            pass
        case mode:
            image = image.convert("RGBA" if "A" in mode or "a" in mode else "RGB")
    return image if transparent is None else _keyed(image, transparent)


def _keyed(image: Image.Image, transparent: tuple[int, ...]) -> Image.Image:
    """Alpha where the colour is the transparent one: none of the bands differs from it."""
    bands = image.split()
    if len(bands) != len(transparent):
        return image
    differs = [
        band.point([0 if value == key else 255 for value in range(256)])
        for band, key in zip(bands, transparent, strict=True)
    ]
    image = image.copy()
    image.putalpha(reduce(ImageChops.lighter, differs))
    return image


_SAMPLES = 128  # each way
_FLAT_COLORS = 8


def _is_flat(image: Image.Image) -> bool:
    """Whether the picture is drawn rather than photographed: pixel art, a screenshot, a diagram.

    Then its eight commonest colours make up at least half of a grid of samples. Next to flat
    areas the overshoot of a sharp filter, and coarse chroma, are visible; in photographs not.
    """
    width, height = image.size
    grid = (min(width, _SAMPLES), min(height, _SAMPLES))
    sample = image.resize(grid, Image.Resampling.NEAREST)
    counted = sample.getcolors(2048)
    if counted is None:
        return False
    commonest = heapq.nlargest(_FLAT_COLORS, (count for count, _ in counted))
    return 2 * sum(commonest) >= sample.width * sample.height


def _scales(image: Image.Image, region: Placement) -> bool:
    return region != (Box(0, 0, *image.size), image.size)


def _converts(facts: containers.Facts) -> bool:
    return not (facts.profile is None and facts.gamma is None and facts.transparent is None)


def _resample(image: Image.Image, region: Placement, *, flat: bool) -> Image.Image:
    """Crop and scale in one step; transparent colours weigh by their alpha."""
    if not _scales(image, region):
        return image
    box, size = region
    if not flat and (fast := resample.lanczos(image, size, box)) is not None:
        return fast
    # Hamming has no negative lobes: no halo beside an edge, at any scale.
    kernel = Image.Resampling.HAMMING if flat else Image.Resampling.LANCZOS
    return image.resize(size, kernel, box=box, reducing_gap=REDUCING_GAP)


def _opaque(image: Image.Image) -> Image.Image:
    """Without an alpha channel that hides nothing."""
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode[:-1])
    return image


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    """Upright, after scaling: there are fewer pixels to turn then."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
