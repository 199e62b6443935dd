"""Smaller forms of a picture for PNG: grey, and palettes of 256 colours or fewer. Pure."""

from __future__ import annotations

from PIL import Image, ImageChops

from proxy.imaging import color_numbers

MOST_COLORS = 256

MEAN_ERROR = 2.0
"""Maximum mean difference of the samples of a palette that is not exact, in steps of 255, with
colours weighted by their alpha."""

FAR, MOST_FAR = 32, 0.001
"""A palette may be further off than ``FAR`` in this share of the samples."""

_MOST_GREYS = 16
_SAMPLES = 64  # each way


def with_palette(image: Image.Image, *, had_palette: bool) -> Image.Image | None:
    """Return the picture with a palette, or None; it may take more bytes, or fewer.

    Quick for a photograph: it has too many colours within its first few rows.

    Args:
        image: of any mode; those other than L, LA, RGB and RGBA have no such form.
        had_palette: whether the source had one, or was black and white. If so, the palette need not
            be exact, but within ``MEAN_ERROR``.
    """
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    most = _MOST_GREYS if image.mode == "L" else MOST_COLORS
    counted = image.getcolors(most)
    few = counted is not None
    if not few and not had_palette:
        return None
    if image.mode == "RGB" and counted and (exact := color_numbers.numbered(image, counted)):
        return exact
    if image.mode == "L":
        form = _greys(image)
    elif "A" in image.mode:
        form = _with_alpha(image.convert("RGBA"), few=few)
    else:
        form = _quantized(image)
    return form if _near(image, form, exact=not had_palette) else None


def without_spare_entries(image: Image.Image) -> Image.Image:
    """Return the picture with the entries of its palette that its pixels name, in their order.

    Others could hold anything; a picture without a palette comes back as it is.
    """
    if image.mode != "P":
        return image
    used = [number for number, count in enumerate(image.histogram()) if count]
    palette = (image.getpalette() or []) + [0] * 768
    place = {number: at for at, number in enumerate(used)}
    compact = image.point([place.get(number, 0) for number in range(256)])
    compact.putpalette([band for number in used for band in palette[3 * number : 3 * number + 3]])
    key = image.info.get("transparency")
    compact.info = {}
    if isinstance(key, bytes):
        alpha = key.ljust(256, b"\xff")
        compact.info["transparency"] = bytes(alpha[number] for number in used)
    elif key in place:
        compact.info["transparency"] = place[key]
    return compact


def without_color(image: Image.Image) -> Image.Image:
    """Return the picture with one band for its colour if it has none, else as it is."""
    if image.mode not in ("RGB", "RGBA"):
        return image
    size = (min(image.width, _SAMPLES), min(image.height, _SAMPLES))
    if not _is_grey(image.resize(size, Image.Resampling.NEAREST)) or not _is_grey(image):
        return image
    grey = image.getchannel("R")
    if image.mode == "RGBA":
        return Image.merge("LA", (grey, image.getchannel("A")))
    return grey


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()[:3]
    return all(ImageChops.difference(red, band).getbbox() is None for band in (green, blue))


def _greys(image: Image.Image) -> Image.Image:
    """Return a palette of 16 greys or fewer: one of more is no smaller than the picture itself."""
    levels = image.getcolors(_MOST_GREYS)
    if levels is None:
        top = _MOST_GREYS - 1
        table = [round(round(value * top / 255) * 255 / top) for value in range(256)]
        image = image.point(table)
        levels = image.getcolors(_MOST_GREYS) or []
    values = sorted(int(value) for _, value in levels if isinstance(value, (int, float)))
    number = {value: place for place, value in enumerate(values)}
    form = image.point([number.get(value, 0) for value in range(256)])
    form.putpalette([band for value in values for band in (value, value, value)])
    return form


def _with_alpha(image: Image.Image, *, few: bool) -> Image.Image:
    """Return a palette with alpha; without a loss if there are few colours."""
    if not few:
        return image.quantize(MOST_COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # Only palettes without alpha come out exact: one of the colours, then one of pairs of an entry
    # of that and an alpha.
    colors = _quantized(image.convert("RGB"))
    entries = colors.getpalette() or []
    numbers = Image.frombytes("L", colors.size, colors.tobytes())
    pairs = _quantized(Image.merge("RGB", (numbers, image.getchannel("A"), numbers)))
    table = pairs.getpalette() or []
    chosen = [(table[at], table[at + 1]) for at in range(0, len(table), 3)]
    form = Image.frombytes("P", pairs.size, pairs.tobytes())
    form.putpalette([band for color, _ in chosen for band in entries[3 * color : 3 * color + 3]])
    form.info["transparency"] = bytes(alpha for _, alpha in chosen)
    return form


def _quantized(image: Image.Image) -> Image.Image:
    """Return a palette for RGB; that of few colours is exact."""
    exact = color_numbers.with_numbers(image, MOST_COLORS) if image.mode == "RGB" else None
    if exact is not None:
        return exact
    return image.quantize(MOST_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _near(image: Image.Image, form: Image.Image, *, exact: bool) -> bool:
    mode = "RGBa" if "A" in image.mode else image.mode
    shown = form.convert("RGBA").convert("RGBa") if mode == "RGBa" else form.convert(mode)
    wanted = image.convert("RGBA").convert("RGBa") if mode == "RGBa" else image
    counts = _together(ImageChops.difference(wanted, shown).histogram())
    if exact:
        return not any(counts[1:])
    samples = sum(counts)
    error = sum(step * count for step, count in enumerate(counts))
    return error <= MEAN_ERROR * samples and sum(counts[FAR + 1 :]) <= MOST_FAR * samples


def _together(histogram: list[int]) -> list[int]:
    """Return the sum of the bands' histograms."""
    return [sum(histogram[step::256]) for step in range(256)]
