"""Makes the colour transparent that a PNG names in tRNS (W3C PNG, 11.3.1.1). Pure."""

from __future__ import annotations

from PIL import Image, ImageChops


def alpha(image: Image.Image, low: Image.Image | None, key: tuple[int, ...]) -> Image.Image | None:
    """Return an alpha channel: pixels whose samples all equal ``key`` are transparent.

    Args:
        image: as decoded: 1, L, I;16 or RGB; None is returned for another number of bands.
        low: the low bytes of the samples, if ``image`` has only their high bytes.
        key: a sample for each band, of 16 bits if the file's are, else of 8.
    """
    parts = [image]
    if image.mode == "1":
        parts = [image.convert("L")]
    elif image.mode == "I;16":
        # Its two bytes as two bands; the low one is first.
        parts = [Image.frombytes("LA", image.size, image.tobytes())]
        key = (key[0] & 0xFF, key[0] >> 8)
    elif low is not None:
        parts = [image, low]
        key = tuple(sample >> 8 for sample in key) + tuple(sample & 0xFF for sample in key)
    bands = [(part, number) for part in parts for number in range(len(part.getbands()))]
    if len(bands) != len(key):
        return None
    mask: Image.Image | None = None
    for (part, number), sample in zip(bands, key, strict=True):  # one at a time, to save memory
        table = [0 if value == sample else 255 for value in range(256)]
        differs = part.getchannel(number).point(table)
        mask = differs if mask is None else ImageChops.lighter(mask, differs)
    return mask
