"""Reads the frames of a WebP or an AVIF, which Pillow's decoders compose themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import cast

from PIL import AvifImagePlugin, Image, ImageFile, WebPImagePlugin

from proxy.errors import UndecodableImage
from proxy.imaging.animation.avif_movie import plays_of
from proxy.imaging.animation.film import Convert, Film, Frame, shown
from proxy.imaging.decoder_errors import decoding
from proxy.model.formats import Format
from proxy.model.presets import Size

_READERS: dict[Format, type[ImageFile.ImageFile]] = {
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
}


def film(format_: Format, picture: bytes, convert: Convert) -> Film | None:
    """Return the film of a WebP or AVIF, or None if it has no second frame."""
    image = _READERS[format_](BytesIO(picture))
    count = cast("int", getattr(image, "n_frames", 1))
    if count < 2:
        return None
    plays = plays_of(picture) if format_ is Format.AVIF else image.info["loop"]
    frames = partial(_frames, format_, picture, convert, count)
    return Film(Size(*image.size), count, plays, frames)


def _frames(format_: Format, picture: bytes, convert: Convert, count: int) -> Iterator[Frame]:
    image = _READERS[format_](BytesIO(picture))
    for number in range(count):
        try:
            with decoding():
                image.seek(number)
                image.load()
        except UndecodableImage:
            return
        mode = "RGBA" if "A" in image.mode else "RGB"
        # A copy: the file's own pixels are those of the next frame later.
        plain = Image.Image.copy(image) if image.mode == mode else image.convert(mode)
        plain.info = {}
        yield Frame(convert(plain), shown(image.info["duration"]))
