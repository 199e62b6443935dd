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
from functools import cached_property, reduce
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
    Format.JPEG: JpegImagePlugin.JpegImageFile,
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
}


def _open(format_: Format, picture: bytes) -> Image.Image:
    """Read the header of the picture; ``load`` decodes the pixels."""
    if format_ is Format.HEIC and _open_heic is not None:
        return _open_heic(BytesIO(picture))
    return _READERS[format_](BytesIO(picture))


_DECODER_STAYS = frozenset({Format.WEBP, Format.GIF, Format.AVIF, Format.HEIC})
"""Formats whose open file keeps its own frames, several times the size of the picture."""

_FRACTIONS = (8, 4, 2)  # libjpeg decodes at n/8 for other n too; Pillow only at these


class Original:
    """A picture in its file, decoded at most once at each fraction of its size.

    Args:
        picture: the file, without its metadata.
        transparent: see ``containers.Facts``.

    Attributes:
        size: as stored, before orientation.
        profile, exif: as the decoder reports them; None and b"" if it reports none.
    """

    def __init__(
        self, format_: Format, picture: bytes, transparent: tuple[int, ...] | None
    ) -> None:
        self._format = format_
        self._picture = picture
        self._transparent = transparent
        self._opened: Image.Image | None = _open(format_, picture)
        self._decoded: dict[int, Decoded | Exception] = {}
        self.size = Size(*self._opened.size)
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
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (self.size.width // fraction, self.size.height // fraction))
        image.load()
        if keep and self._format in _DECODER_STAYS:
            image = image.copy()
        return Decoded(image, self._transparent)


class Decoded:
    """All pixels of a picture, at one size. Values derived from them are computed once."""

    def __init__(self, image: Image.Image, transparent: tuple[int, ...] | None) -> None:
        self.size = Size(*image.size)
        self._image = image
        self._transparent = transparent

    @property
    def paletted(self) -> Image.Image | None:
        """The picture with its palette, or in black and white, if it is stored so; else None."""
        return self._image if self._image.mode in ("1", "P") else None

    @cached_property
    def plain(self) -> Image.Image:
        """The picture in a mode that can be resampled: L, LA, RGB, RGBA or CMYK, 8-bit samples."""
        plain = _plain(self._image, self._transparent)
        if self.paletted is None:
            self._image = plain
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


def _plain(image: Image.Image, transparent: tuple[int, ...] | None) -> Image.Image:
    match image.mode:
        case "1":
            image = image.convert("L")
        case "P":
            see_through = "transparency" in image.info
            return image.convert("RGBA" if see_through else "RGB")
        case "I;16" | "I;16L" | "I;16B" | "I":
            # convert() alone would clip: every value above 255 of 65535 would be white.
            image = image.point(lambda value: value * (1 / 256)).convert("L")
        case "L" | "LA" | "RGB" | "RGBA" | "CMYK":
            pass
        case mode:
            image = image.convert("RGBA" if "A" in mode or "a" in mode else "RGB")
    return image if transparent is None else _keyed(image, transparent)


def _keyed(image: Image.Image, transparent: tuple[int, ...]) -> Image.Image:
    """Add an alpha channel: pixels whose bands all equal ``transparent`` become transparent."""
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
