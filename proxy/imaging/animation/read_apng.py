"""Reads the frames of an animated PNG (W3C PNG, third edition, chapter 12.5), composed. Pure.

Pillow decodes the pixels of each frame alone, as a PNG of its own. It would compose them too, but
it keeps a palette's indices for colours, and has no 16-bit samples with transparency.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging.animation.film import Convert, Film, Frame, shown
from proxy.imaging.containers import png
from proxy.imaging.containers.apng import CLEAR, OVER, RESTORE, Parsed, Part, alone, parse
from proxy.imaging.decode import Original
from proxy.imaging.decoder_errors import decoding
from proxy.model.formats import Format
from proxy.model.presets import Box, Placement, Size


def film(source: bytes, most: int, convert: Convert) -> Film | None:
    """Return the film of a PNG, or None if it has no second frame; see ``read_gif.film``.

    A default picture without a frame's control chunk is none of its frames.
    """
    parsed = parse(source, most + 1)
    if parsed is None or len(parsed.parts) < 2:
        return None
    frames = partial(_frames, parsed, convert)
    return Film(parsed.size, len(parsed.parts), parsed.plays, frames)


def _frames(parsed: Parsed, convert: Convert) -> Iterator[Frame]:
    canvas = Image.new("RGBA", parsed.size)
    for part in parsed.parts:
        control = part.control
        try:
            with decoding():
                image = convert(_decoded(parsed, part)).convert("RGBA")
        except UndecodableImage:
            return
        before = canvas.copy() if control.disposal == RESTORE else None
        if control.blend == OVER:
            canvas.alpha_composite(image, (control.left, control.top))
        else:
            canvas.paste(image, control.box)
        yield Frame(canvas.copy(), shown(control.milliseconds))
        if before is not None:
            canvas = before
        elif control.disposal == CLEAR:
            canvas.paste((0, 0, 0, 0), control.box)


def _decoded(parsed: Parsed, part: Part) -> Image.Image:
    """Decode the frame as the PNG that it would be alone."""
    facts = png.inspect(alone(parsed, part))
    original = Original(Format.PNG, facts.picture, facts.transparent)
    size = Size(part.control.width, part.control.height)
    decoded, _ = original.decode(Placement(Box(0, 0, *size), size), 1, keep=False)
    return decoded.plain
