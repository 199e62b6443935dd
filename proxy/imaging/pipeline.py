"""Transforms one picture by one preset, or by several.

The steps: sniff, read the container, check the limits, decode, resample, convert to sRGB, turn
upright, encode. Synchronous; several threads may run it at the same time.

Pure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from pydantic import BaseModel

from proxy.errors import (
    ImageProxyError,
    ImageTooLarge,
    ResultTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.imaging import bounds, color, containers, resample
from proxy.imaging.decode import Decoded, Original, can_read
from proxy.imaging.encode import MAX_SIDES, encode
from proxy.imaging.passthrough import is_bare
from proxy.model import formats
from proxy.model.formats import Format
from proxy.model.presets import Box, Placement, Preset, Size, fits, place

REDUCING_GAP = 2.0
"""Cheap steps (libjpeg's scaling, box averages) stop at this multiple of the result's size.

With a lower value the loss is visible; with a higher one there is no gain in speed.
"""

JPEG_GAP, OTHER_GAP = 1.0, 1.3
"""The same for photographs if fast resampling is available: for a JPEG result, and for others.

At 1, a JPEG of 2000 pixels is decoded at half size for a result of 800, which loses 0.0005 of SSIM.
Our JPEG tables compensate for that; other formats need the higher value.
"""


class Recipe(BaseModel, frozen=True):
    """A preset and an output format for a source. A service uses few different ones.

    Attributes:
        output: one of ``formats.OUTPUTS``, or None to choose it by the source.
    """

    preset: Preset
    output: Format | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """A result: the bytes of a file, and its format."""

    data: bytes
    format: Format


Outcome = Rendered | Exception
"""The result of a recipe: a picture or an error."""


def render(source: bytes, preset: Preset, output: Format | None, *, max_pixels: int) -> Rendered:
    """Transform ``source`` by ``preset``.

    Args:
        source: any bytes.
        output: see ``Recipe``.
        max_pixels: limit of the source's canvas, checked before decoding.

    Raises:
        UnsupportedImage: the format is not on the allow-list.
        ImageTooLarge: the source exceeds ``max_pixels``, or the result the sides of its format.
        UndecodableImage: the source is corrupt or truncated, or has more scans or parts than any
            real picture.
    """
    return _Picture(source, max_pixels).render(Recipe(preset=preset, output=output), last=True)


def render_each(source: bytes, recipes: Sequence[Recipe], *, max_pixels: int) -> Iterator[Outcome]:
    """Transform ``source`` by each recipe, in order, and decode it only as often as needed.

    Each outcome is the same that ``render`` would return or raise for the recipe alone.
    """
    picture: _Picture | None = None
    for number, recipe in enumerate(recipes, start=1):
        try:
            picture = picture or _Picture(source, max_pixels)
            yield picture.render(recipe, last=number == len(recipes))
        except Exception as error:
            yield error


class _Picture:
    """A source whose header was read, and is within the limits."""

    def __init__(self, source: bytes, max_pixels: int) -> None:
        format_ = formats.sniff(source)
        if format_ is None or not can_read(format_):
            raise UnsupportedImage(f"first bytes {source[:12]!r}")
        with _decoding():
            bounds.check(format_, source)
            facts = containers.inspect(format_, source)
            if facts.size is not None:
                _check_pixels(facts.size, max_pixels)
            original = Original(format_, facts.picture, facts.transparent)
            _check_pixels(original.size, max_pixels)
            if format_ in (Format.AVIF, Format.HEIC):  # only the decoder knows the profile of these
                facts = replace(facts, profile=original.profile)
            if format_ is Format.AVIF:  # HEIC's decoder turns the picture itself
                facts = replace(facts, orientation=containers.exif_orientation(original.exif))
        self._source = source
        self._format = format_
        self._facts = facts
        self._original = original

    def render(self, recipe: Recipe, *, last: bool) -> Rendered:
        """Make one result; see the function ``render``.

        Args:
            last: whether no other result follows; then the decoded picture is freed before the
                encoder starts.
        """
        preset, output = recipe.preset, recipe.output
        format_, facts, stored = self._format, self._facts, self._original.size
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
            decoded, region = self._original.decode(on_canvas, gap, keep=not last)
            if untouched:
                return Rendered(_animation(format_, self._source), format_)
            # A palette is kept if no new colours can appear.
            as_is = target is Format.PNG and not _scales(decoded, region) and not _converts(facts)
            if as_is and decoded.paletted is not None:
                image, flat = decoded.paletted, True
            else:
                flat = decoded.is_flat
                if flat and decoded.size != stored and gap < REDUCING_GAP:
                    # libjpeg's scaling makes hard edges ring: decode again, nearer to full size.
                    decoded, region = self._original.decode(on_canvas, REDUCING_GAP, keep=not last)
                image = _resample(decoded, region, flat=flat)
            del decoded
            if last:
                self._original.forget()
            image = color.to_srgb(color.from_gamma(image, facts.gamma), facts.profile)
            image = _turn(_opaque(image), facts.orientation)
        data = encode(image, target, preset.quality, flat=flat)
        fitting = target is format_ and fits(preset, upright) and len(data) >= len(self._source)
        if fitting and is_bare(format_, self._source):
            return Rendered(self._source, format_)
        return Rendered(data, target)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn every exception of a decoder into an error of ours: decoders raise almost any type."""
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
        limit = f"process.max_megapixels = {max_pixels / 1_000_000:g}"
        raise ImageTooLarge(f"{size.width} x {size.height} pixels are over {limit}")


def _moves(format_: Format, facts: containers.Facts) -> bool:
    """Whether a preset with ``animated`` serves the source itself: any GIF, or an animated WebP."""
    return format_ is Format.GIF or (format_ is Format.WEBP and facts.animated)


def _animation(format_: Format, source: bytes) -> bytes:
    return containers.without_webp_metadata(source) if format_ is Format.WEBP else source


def _on_whole_pixels(placement: Placement) -> Placement:
    """Round the offset if nothing is scaled: half a pixel of offset would only blur."""
    crop, size = placement
    if (crop.right - crop.left, crop.bottom - crop.top) != size:
        return placement
    left, top = int(crop.left), int(crop.top)
    return Placement(Box(left, top, left + size.width, top + size.height), size)


def _as_stored(upright: Placement, canvas: Size, orientation: int) -> Placement:
    """Return the same region and size for the picture as stored, before it is turned upright.

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


def _scales(decoded: Decoded, region: Placement) -> bool:
    return region != (Box(0, 0, *decoded.size), decoded.size)


def _converts(facts: containers.Facts) -> bool:
    return not (facts.profile is None and facts.gamma is None and facts.transparent is None)


def _resample(decoded: Decoded, region: Placement, *, flat: bool) -> Image.Image:
    """Crop and scale in one step; colours are weighted by their alpha."""
    image = decoded.plain
    if not _scales(decoded, region):
        return image
    box, size = region
    if not flat and (fast := resample.lanczos(image, size, box)) is not None:
        return fast
    # Hamming has no negative lobes, so it makes no halo next to an edge, at any scale.
    kernel = Image.Resampling.HAMMING if flat else Image.Resampling.LANCZOS
    return image.resize(size, kernel, box=box, reducing_gap=REDUCING_GAP)


def _opaque(image: Image.Image) -> Image.Image:
    """Remove an alpha channel that is fully opaque."""
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
    """Turn the picture upright; after scaling, there are fewer pixels to turn."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
