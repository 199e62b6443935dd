"""Decodes a file to pixels, once for each size that is needed.

Several results of one picture share the decoded pixels. The pixels do not depend on which other
results share them: the fraction of a JPEG follows from one result alone, and every other format is
decoded in full.

Pure.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable
from functools import cached_property
from io import BytesIO

from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from proxy.imaging import color_key, png_rows
from proxy.imaging.containers.facts import Place
from proxy.imaging.jpeg_decoder import CompleteJpeg
from proxy.model.formats import Format
from proxy.model.presets import Box, Placement, Size

_open_heic: Callable[[BytesIO], Image.Image] | None = None
with contextlib.suppress(ImportError):
    from pillow_heif import HeifImageFile

    _open_heic = HeifImageFile


def can_read(format_: Format) -> bool:
    """Whether there is a decoder; the decoder for HEIC is optional."""
    return format_ is not Format.HEIC or _open_heic is not None


# The plug-ins are used directly, without Image.open: the format is not guessed, no other plug-in
# can handle the file, and Pillow's process-wide pixel limit does not apply.
_READERS: dict[Format, type[ImageFile.ImageFile]] = {
    Format.JPEG: CompleteJpeg,
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
}


def _open(format_: Format, picture: bytes) -> Image.Image:
    """Read the header of the picture; ``load`` decodes the pixels."""
    if format_ is Format.HEIC and _open_heic is not None:
        return _open_heic(BytesIO(picture))
    image = _READERS[format_](BytesIO(picture))
    palette = image.palette
    if format_ is Format.PNG and image.mode == "P" and not (palette and palette.palette):
        raise ValueError("indices into a palette that is missing or empty")
    return image


_DECODER_STAYS = frozenset({Format.WEBP, Format.GIF, Format.AVIF, Format.HEIC})
"""Formats whose open file keeps its own frames, several times the size of the picture."""

_FRACTIONS = (8, 4, 2)  # libjpeg decodes at n/8 for other n too; Pillow only at these


class Original:
    """A picture in its file, decoded at most once at each fraction of its size.

    Args:
        picture: the file, without its metadata.
        transparent, place, crop: see ``containers.facts.Facts``.

    Attributes:
        canvas: the size of all that is decoded.
        size: that of the picture as stored, before orientation.
        profile, exif: as the decoder reports them; None and b"" if it reports none.
    """

    def __init__(
        self,
        format_: Format,
        picture: bytes,
        transparent: tuple[int, ...] | None,
        place: Place | None = None,
        crop: Box | None = None,
    ) -> None:
        self._format = format_
        self._picture = picture
        self._transparent = transparent
        self._opened: Image.Image | None = _open(format_, picture)
        self._decoded: dict[int, Decoded | Exception] = {}
        self._place = place
        self.canvas = Size(*self._opened.size) if place is None else place.canvas
        self._crop = crop and (int(crop.left), int(crop.top), int(crop.right), int(crop.bottom))
        self.size = self.canvas
        if self._crop is not None:
            left, top, right, bottom = self._crop
            self.size = Size(right - left, bottom - top)
        self.profile: bytes | None = self._opened.info.get("icc_profile")
        self.exif: bytes = self._opened.info.get("exif", b"")

    def decode(self, region: Placement, gap: float, *, keep: bool) -> tuple[Decoded, Placement]:
        """Decode the whole picture; a JPEG at a fraction of its size if the result is small.

        Args:
            region: the region that is needed, in stored pixels, and the size of the result.
            gap: the decoded region is at least this many times the size of the result.
            keep: whether to keep the pixels for another result. A failure is kept too.

        Returns:
            The decoded picture, and the region in its pixels.
        """
        fraction = self._fraction(region, gap)
        found = self._decoded.get(fraction)
        if found is None:
            try:
                found = self._load(fraction, keep)
            except Exception as error:
                found = error
            if keep:
                self._decoded[fraction] = found
        if isinstance(found, Exception):
            raise found
        crop = Box(*(edge / fraction for edge in region.crop))
        return found, Placement(crop, region.size)

    def forget(self) -> None:
        """Free the kept pixels: no other result needs them."""
        self._decoded.clear()

    def _fraction(self, region: Placement, gap: float) -> int:
        """Return the number by which the sides of the picture may be divided."""
        if self._format is not Format.JPEG:
            return 1
        (left, top, right, bottom), size = region
        width = math.ceil(self.size.width * size.width / (right - left) * gap)
        height = math.ceil(self.size.height * size.height / (bottom - top) * gap)
        most = min(self.size.width // width, self.size.height // height)
        return next((number for number in _FRACTIONS if most >= number), 1)

    def _load(self, fraction: int, keep: bool) -> Decoded:
        image = self._opened or _open(self._format, self._picture)
        self._opened = None
        layout = _layout(image)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (self.size.width // fraction, self.size.height // fraction))
        frame = image.tile[0].extents if isinstance(image, GifImagePlugin.GifImageFile) else None
        if self._format is Format.PNG and (quick := png_rows.stored(self._picture)) is not None:
            image = _open(self._format, quick)
        image.load()
        if frame is not None and frame != (0, 0, *image.size):
            image = _alone(image, frame)
        elif self._crop is not None:
            image = image.crop(self._crop)
        elif keep and self._format in _DECODER_STAYS:
            image = image.copy()
        alpha = None
        if self._transparent is not None:
            low = self._low_bytes() if layout == "RGB;16B" else None
            alpha = color_key.alpha(image, low, self._transparent)
        decoded = Decoded(_grey(image) if layout == "LA;16B" else image, alpha)
        return (
            decoded if self._place is None else Decoded(_placed(decoded.plain, self._place), None)
        )

    def _low_bytes(self) -> Image.Image:
        """Decode the low bytes of 16-bit RGB; Pillow's own decoding drops them."""
        image = _READERS[self._format](BytesIO(self._picture))
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
        return image


class Decoded:
    """All pixels of a picture, at one size. Values derived from them are computed once."""

    def __init__(self, image: Image.Image, alpha: Image.Image | None) -> None:
        self.size = Size(*image.size)
        self._image = image
        self._alpha = alpha

    @property
    def paletted(self) -> Image.Image | None:
        """The picture with its palette, or in black and white, if it is stored so; else None."""
        return self._image if self._image.mode in ("1", "P") and self._alpha is None else None

    @cached_property
    def plain(self) -> Image.Image:
        """The picture in a mode that can be resampled: L, LA, RGB, RGBA or CMYK, 8-bit samples."""
        plain = _plain(self._image)
        if self._alpha is not None:
            plain = plain.copy()
            plain.putalpha(self._alpha)
        if self.paletted is None:
            self._image, self._alpha = plain, None
        return plain

    @cached_property
    def is_flat(self) -> bool:
        """Whether the picture is drawn rather than photographed: pixel art, a screenshot.

        It is drawn if its eight most frequent colours make up at least half of a grid of samples.
        The overshoot of a sharp filter, and coarse chroma, are visible next to flat areas, but not
        in photographs.
        """
        grid = (min(self.size.width, _SAMPLES), min(self.size.height, _SAMPLES))
        sample = self.plain.resize(grid, Image.Resampling.NEAREST)
        counted = sample.getcolors(2048)
        if counted is None:
            return False
        commonest = heapq.nlargest(_FLAT_COLORS, (count for count, _ in counted))
        return 2 * sum(commonest) >= sample.width * sample.height


_SAMPLES = 128  # each way
_FLAT_COLORS = 8


def _layout(image: Image.Image) -> str:
    """Return Pillow's name for the samples in a PNG that is not decoded yet; "" for other files."""
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return ""
    layout = image.tile[0].args
    return layout if isinstance(layout, str) else ""


def _grey(image: Image.Image) -> Image.Image:
    """Undo that Pillow decodes 16-bit grey with alpha as RGBA: its profile is one for grey."""
    return image.convert("LA")


def _plain(image: Image.Image) -> Image.Image:
    match image.mode:
        case "1":
            return image.convert("L")
        case "P":
            see_through = "transparency" in image.info
            return image.convert("RGBA" if see_through else "RGB")
        case "I;16" | "I;16L" | "I;16B" | "I":
            # convert() alone would clip: every value above 255 of 65535 would be white.
            return image.point(lambda value: value * (1 / 256)).convert("L")
        case "L" if "transparency" in image.info:  # a GIF whose palette is the greys in order
            return image.convert("LA")
        case "L" | "LA" | "RGB" | "RGBA" | "CMYK":
            return image
        case mode:
            return image.convert("RGBA" if "A" in mode or "a" in mode else "RGB")


def _placed(image: Image.Image, place: Place) -> Image.Image:
    """Put a picture on its canvas, transparent around it."""
    canvas = Image.new("LA" if image.mode in ("L", "LA") else "RGBA", place.canvas)
    canvas.paste(image.convert(canvas.mode), (place.left, place.top))
    return canvas


def _alone(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """Make all but the first frame of a GIF transparent, as browsers do.

    The specification has a background colour there, which no decoder of today shows.
    """
    alone = image.convert("RGBA")
    width, height = image.size
    left, top, right, bottom = frame
    around = ((0, 0, width, top), (0, bottom, width, height))
    beside = ((0, top, left, bottom), (right, top, width, bottom))
    for box in (*around, *beside):
        alone.paste((0, 0, 0, 0), box)
    return alone
