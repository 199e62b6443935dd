"""Whether coded data of WebP and AVIF are needed up to their end. Pure.

Their codes cannot be walked over here. But a decoder shows other pixels, or none, if it is given
other bytes that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageChops, ImageFile

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging.decoder_errors import decoding
from proxy.imaging.stripped.parts import NotUnderstood

TAIL = 8
"""Bytes at the end, of which at least one must be needed: encoders write a byte or two too many."""


def are_needed(
    reader: type[ImageFile.ImageFile], file: bytes, ends: Sequence[int], shown: Image.Image
) -> bool:
    """Whether all of what ends at ``ends`` is needed up to its last bytes.

    Args:
        ends: offsets in the file.
        shown: the pixels that the decoder makes of the file; opaque alpha may be missing.

    Raises:
        NotUnderstood: there is not enough memory to tell.
    """
    return all(_decodes_to_others(reader, file, end, shown) for end in ends)


def _decodes_to_others(
    reader: type[ImageFile.ImageFile], file: bytes, end: int, shown: Image.Image
) -> bool:
    other = bytes(byte ^ 0xFF for byte in file[end - TAIL : end])
    try:
        with decoding(), reader(BytesIO(file[: end - TAIL] + other + file[end:])) as image:
            image.load()
            if image.size != shown.size:
                return True
            changed = ImageChops.difference(image.convert(shown.mode), shown)
            return changed.getbbox(alpha_only=False) is not None
    except UndecodableImage:
        return True
    except ImageTooLarge as error:
        raise NotUnderstood from error
