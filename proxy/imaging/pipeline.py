"""Transforms one picture by one preset, or by several.

The steps: sniff, read the container, check the limits, decode, resample, convert to sRGB, turn
upright, encode. What moves goes another way (``animation``), if the preset lets it move.
Synchronous; several threads may run it at the same time.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from PIL import Image

from proxy.errors import (
    ImageTooLarge,
    ResultTooLarge,
    UnsupportedImage,
)
from proxy.imaging import bounds, resample
from proxy.imaging.animation.detect import may_move
from proxy.imaging.animation.transform import Order, count_frames, transform
from proxy.imaging.color.conversion import to_srgb
from proxy.imaging.containers import exif
from proxy.imaging.containers.inspection import inspect
from proxy.imaging.decode import Decoded, Original, can_read
from proxy.imaging.decoder_errors import decoding
from proxy.imaging.encode import encode
from proxy.imaging.info import is_see_through, placeholder_of
from proxy.imaging.limits import MAX_SIDES
from proxy.imaging.no_larger import within
from proxy.imaging.photographs import is_photograph
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.stripped.copies import strip, turn
from proxy.model import formats
from proxy.model.animation import DEFAULT_BOUNDS, AnimationBounds
from proxy.model.formats import Format
from proxy.model.picture_info import MOST_FRAMES, PictureInfo
from proxy.model.presets import Box, Placement, Preset, Size, fits, place

LANCZOS: Final = Image.Resampling.LANCZOS
BICUBIC: Final = Image.Resampling.BICUBIC

REDUCING_GAP = 2.0
"""Cheap steps (libjpeg's scaling, box averages) stop at this multiple of the result's size.

With a lower value the loss is visible; with a higher one there is no gain in speed.
"""

CHEAP_GAP, OTHER_GAP = 1.0, 1.3
"""The same for libjpeg's scaling of photographs: for what is ``_CHEAP``, and for others.

At 1, a JPEG of 2000 pixels is decoded at half size for a result of 800, which loses 0.0005 of SSIM.
The encoders' settings make up for that, and for the softer kernel; other formats need more.
"""

_CHEAP = frozenset({Format.JPEG, Format.WEBP})
"""What is asked for most, and loses more by its encoder than by cheaper steps before it."""


def render(
    source: bytes,
    preset: Preset,
    output: Format | None,
    *,
    max_pixels: int,
    animation: AnimationBounds = DEFAULT_BOUNDS,
) -> Rendered:
    """Transform ``source`` by ``preset``.

    Args:
        source: any bytes.
        output: see ``Recipe``.
        max_pixels: limit of the source's canvas, checked before decoding.
        animation: the bounds of a moving result; beyond them it is the first frame.

    Raises:
        UnsupportedImage: the format is not on the allow-list.
        ImageTooLarge: the source exceeds ``max_pixels``, or the result the sides of its format.
        UndecodableImage: the source is corrupt or truncated, or has more scans or parts than any
            real picture.
    """
    recipe = Recipe(preset=preset, output=output, animation=animation)
    return _Picture(source, max_pixels).render(recipe, last=True)


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
            raise UnsupportedImage(formats.describe_other(source))
        with decoding():
            bounds.check(format_, source)
            facts = inspect(format_, source)
            if facts.size is not None:
                _check_pixels(facts.size, max_pixels)
            original = Original(format_, facts.picture, facts.transparent, facts.place, facts.crop)
            _check_pixels(original.canvas, max_pixels)
            if original.profile is not None and format_ in (Format.AVIF, Format.HEIC):
                facts = replace(facts, profile=original.profile)
            if format_ is Format.AVIF:  # HEIC's decoder turns the picture itself
                facts = replace(facts, orientation=exif.orientation_of(original.exif))
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
        orientation, stored = self._facts.orientation, self._original.size
        upright = Size(stored.height, stored.width) if orientation >= 5 else stored
        placement = _on_whole_pixels(place(recipe.preset, upright))
        on_canvas = _as_stored(placement, upright, orientation)
        if recipe.output is Format.JSON:
            with decoding():
                return self._info(upright, on_canvas, keep=not last)
        if recipe.preset.animated:
            with decoding():
                moving = self._moving(recipe, upright, placement, on_canvas)
            if moving is not None:
                return moving
        return self._still(recipe, upright, placement, on_canvas, last=last)

    def _still(
        self,
        recipe: Recipe,
        upright: Size,
        placement: Placement,
        on_canvas: Placement,
        *,
        last: bool,
    ) -> Rendered:
        """Return a result that does not move, with the arguments of ``_moving`` and ``render``.

        Raises:
            ResultTooLarge: its format cannot hold it.
        """
        preset, output = recipe.preset, recipe.output
        format_, facts = self._format, self._facts
        target = output or formats.output_for(format_)
        if not _can_hold(target, placement.size):
            raise ResultTooLarge(f"{placement.size} exceeds what {target} holds")
        if output is None and self._becomes_jpeg(preset, placement, on_canvas):
            target = Format.JPEG

        with decoding():
            gap = CHEAP_GAP if target in _CHEAP else OTHER_GAP
            decoded, region = self._original.decode(on_canvas, gap, keep=not last)
            # A palette is kept if no new colours can appear.
            as_is = target is Format.PNG and not _scales(decoded, region)
            if as_is and decoded.paletted is not None:
                image, flat = decoded.paletted, True
            else:
                flat = decoded.is_flat
                if flat and decoded.size != self._original.size:
                    # libjpeg's scaling makes hard edges ring: decode again, nearer to full size.
                    decoded, region = self._original.decode(on_canvas, REDUCING_GAP, keep=not last)
                kernel: resample.Kernel = BICUBIC if target in _CHEAP else LANCZOS
                # The estimates of other sources have no room for it, and other results gain little.
                is_png = target is format_ is Format.PNG
                image = _scaled(decoded.plain, region, flat=flat, kernel=kernel, averages=is_png)
            had_palette = decoded.paletted is not None
            del decoded
            if last:
                self._original.forget()
            converted = to_srgb(image, facts.profile)
            srgb = converted is image
            image = _turn(_opaque(converted), facts.orientation)
            del converted
        data = encode(
            image,
            target,
            preset.quality,
            flat=flat,
            had_palette=had_palette,
            webp_effort=preset.webp_effort,
        )
        if target is format_ and fits(preset, upright):
            if srgb:
                data = self._own_pixels(image, most=len(data)) or data
            if len(data) > len(self._source):
                data = self._no_larger(len(data), image, preset, flat=flat) or data
        return Rendered(data, target)

    def _becomes_jpeg(self, preset: Preset, placement: Placement, on_canvas: Placement) -> bool:
        """Whether this is a PNG that the preset would have as a JPEG."""
        if self._format is not Format.PNG or preset.png == "keep":
            return False
        with decoding():
            decoded, _ = self._original.decode(on_canvas, REDUCING_GAP, keep=True)
            can_be = decoded.paletted is None and _can_hold(Format.JPEG, placement.size)
            return can_be and is_photograph(decoded.plain)

    def _info(self, upright: Size, on_canvas: Placement, *, keep: bool) -> Rendered:
        """Return what is told of the picture; see ``PictureInfo``.

        Args:
            upright, on_canvas: the size of the source, and what is looked at for the placeholder.
            keep: see ``Original.decode``.
        """
        format_, facts = self._format, self._facts
        decoded, region = self._original.decode(on_canvas, REDUCING_GAP, keep=keep)
        small = _turn(
            to_srgb(_scaled(decoded.plain, region, flat=True), facts.profile), facts.orientation
        )
        thumbhash, color = placeholder_of(small)
        moves = may_move(format_, self._source)
        frames = count_frames(format_, self._source, facts.picture, MOST_FRAMES) if moves else 1
        told = PictureInfo(
            width=upright.width,
            height=upright.height,
            type=format_.content_type,
            bytes=len(self._source),
            animated=frames > 1,
            frames=frames,
            alpha=is_see_through(decoded.plain),
            thumbhash=thumbhash,
            color=color,
        )
        return Rendered(told.model_dump_json().encode(), Format.JSON)

    def _own_pixels(self, shown: Image.Image, *, most: int) -> bytes | None:
        """Return the source's own coded pixels, upright, in at most ``most`` bytes."""
        if self._facts.crop is not None:
            return None
        if self._facts.orientation != 1:
            if self._format is not Format.JPEG:
                return None
            return turn(self._source, self._facts.orientation, most=most)
        return strip(self._format, self._source, still=True, most=most, shown=shown)

    def _no_larger(
        self, made: int, image: Image.Image, preset: Preset, *, flat: bool
    ) -> bytes | None:
        """Return the picture in no more bytes than its source, which has no copy of its own."""
        return within(
            len(self._source),
            made,
            image,
            self._format,
            preset.quality,
            flat=flat,
            webp_effort=preset.webp_effort,
            source=self._facts.picture,
            orientation=self._facts.orientation,
        )

    def _moving(
        self, recipe: Recipe, upright: Size, placement: Placement, on_canvas: Placement
    ) -> Rendered | None:
        """Return a result that moves, or None if the first frame is to be served.

        Args:
            upright: the size of the source.
            placement, on_canvas: the region and size of the result, upright and as stored.
        """
        preset, format_, facts = recipe.preset, self._format, self._facts
        target = formats.moving_output(format_, recipe.output)
        if target is None or not may_move(format_, self._source):
            return None
        if not _can_hold(target, placement.size):
            return None
        fitting = target is format_ and fits(preset, upright)
        srgb = True

        def convert(image: Image.Image) -> Image.Image:
            nonlocal srgb
            converted = to_srgb(image, facts.profile)
            srgb = srgb and converted is image
            return converted

        def place_frame(image: Image.Image, flat: bool) -> Image.Image:
            shown = image if facts.crop is None else image.crop(_whole(facts.crop))
            return _turn(_scaled(shown, on_canvas, flat=flat), facts.orientation)

        def as_it_came() -> bytes | None:
            unchanged = srgb and fitting and facts.orientation == 1 and facts.crop is None
            return strip(format_, self._source) if unchanged else None

        order = Order(target, preset.quality, placement.size, place_frame, as_it_came)
        data = transform(format_, self._source, facts.picture, convert, order, recipe.animation)
        return None if data is None else Rendered(data, target)


def _can_hold(format_: Format, size: Size) -> bool:
    return max(size) <= MAX_SIDES.get(format_, max(size))


def _whole(box: Box) -> tuple[int, int, int, int]:
    return int(box.left), int(box.top), int(box.right), int(box.bottom)


def _check_pixels(size: Size, max_pixels: int) -> None:
    if size.width * size.height > max_pixels:
        limit = f"process.max_megapixels = {max_pixels / 1_000_000:g}"
        raise ImageTooLarge(f"{size.width} x {size.height} pixels are over {limit}")


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


def _scaled(
    image: Image.Image,
    region: Placement,
    *,
    flat: bool,
    kernel: resample.Kernel = LANCZOS,
    averages: bool = False,
) -> Image.Image:
    """Crop and scale in one step; colours are weighted by their alpha.

    Args:
        kernel: of a photograph.
        averages: take the fast way for what is drawn, which needs as much memory as the source.
    """
    box, size = region
    if region == (Box(0, 0, *image.size), image.size):
        return image
    if flat and averages and (fast := resample.averaged(image, size, box)) is not None:
        return fast
    if not flat and (fast := resample.convolved(image, size, box, kernel)) is not None:
        return fast
    # Hamming has no negative lobes, so it makes no halo next to an edge, at any scale.
    of_pillow = Image.Resampling.HAMMING if flat else kernel
    return image.resize(size, of_pillow, box=box, reducing_gap=REDUCING_GAP)


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
