"""Every kind of source there is, small, and made at run time: the rows of the whole matrix.

To add a kind, add a line to ``KINDS`` (a maker that takes what a picture says of itself) or, if
that says nothing, to ``LONE``. Each is then tried with every orientation, profile, preset and
output, whole and damaged, in a sandboxed worker beside a thread
(``tests/imaging/workers/test_whole_matrix.py``).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO

import numpy as np
import pyvips
from PIL import Image

from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset
from tests.imaging import gifs, heif, isobmff, sources
from tests.imaging.properties import icc, light_level, nclx, with_colors
from tests.imaging.sources import Pixels
from tests.imaging.workers.heic_grid import grid

WIDTH, HEIGHT = 30, 22

PHOTO = sources.photo(WIDTH, HEIGHT)
GREY = sources.grey(WIDTH, HEIGHT)
GLASS = sources.with_alpha(PHOTO)
GREY_GLASS = sources.with_alpha(GREY)
ART = sources.pixel_art(WIDTH, HEIGHT)
INKS = sources.cmyk(PHOTO)
FRAMES = [PHOTO, PHOTO[::-1], ART]


EXIFS: dict[str, bytes | None] = {
    "upright": None,
    **{f"exif {turn}": sources.exif(turn, endian="<>"[turn % 2]) for turn in range(2, 9)},
    "exif of no tiff": b"Exif\0\0garbage that is no TIFF",
    "exif cut short": sources.exif(6)[:30],
}

DECENT = {
    name: exif
    for name, exif in EXIFS.items()
    if name.removeprefix("exif ").isdigit() or exif is None
}
"""Those that Pillow's encoder of AVIF reads: it writes the turn as a property of the picture."""


@dataclass(frozen=True)
class Notes:
    """What a file says of its picture: an EXIF block and an ICC profile, or none."""

    exif: bytes | None = None
    profile: bytes | None = None

    @property
    def options(self) -> dict[str, bytes]:
        """The same for an encoder of Pillow's."""
        options = {"exif": self.exif, "icc_profile": self.profile}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Kind:
    """A format, with its mode, depth and coding.

    Attributes:
        make: makes the file, with its notes.
        profiles: those that such a picture can have, by name; "none" is among them.
        exifs: likewise, and "upright".
    """

    make: Callable[[Notes], bytes]
    profiles: dict[str, bytes | None] = field(default_factory=lambda: RGB_PROFILES)
    exifs: dict[str, bytes | None] = field(default_factory=lambda: EXIFS)


RGB_PROFILES: dict[str, bytes | None] = {
    "none": None,
    "srgb": sources.builtin_profile("srgb"),
    "p3": sources.builtin_profile("p3"),
    "adobe": sources.ADOBE_RGB,
    "of grey": sources.DARK_GREY,
    "damaged": sources.ADOBE_RGB[:200],
    "no profile": b"no profile at all" * 20,
}
GREY_PROFILES = {
    "none": None,
    "grey": sources.DARK_GREY,
    "of rgb": sources.ADOBE_RGB,
    "damaged": sources.DARK_GREY[:150],
}
INK_PROFILES = {
    "none": None,
    "cmyk": sources.builtin_profile("cmyk"),
    "of rgb": sources.ADOBE_RGB,
    "damaged": sources.builtin_profile("cmyk")[:5000],
}


def by_pillow(pixels: Pixels, format_: str, **options: object) -> Callable[[Notes], bytes]:
    image = Image.fromarray(pixels)
    return lambda notes: sources.encoded(image, format_, **options, **notes.options)


def moving(format_: str, **options: object) -> Callable[[Notes], bytes]:
    return lambda notes: sources.animation(format_, FRAMES, **options, **notes.options)


def png_of(data: bytes) -> Callable[[Notes], bytes]:
    """A PNG that Pillow cannot write, with its notes as chunks."""

    def make(notes: Notes) -> bytes:
        chunks: list[sources.Chunk] = []
        if notes.profile is not None:
            chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(notes.profile)))
        if notes.exif is not None:
            chunks.append((b"eXIf", notes.exif.removeprefix(b"Exif\0\0")))
        return sources.with_chunks(data, chunks, b"PLTE" if b"PLTE" in data else b"IDAT")

    return make


def quantized(colors: int, *, of: Pixels = ART, **options: object) -> bytes:
    return sources.encoded(Image.fromarray(of).quantize(colors), "PNG", **options)


def gif_of(colors: int, **options: object) -> bytes:
    return sources.encoded(Image.fromarray(ART).quantize(colors), "GIF", **options)


def few_levels(bits: int) -> bytes:
    return sources.vips_png((GREY >> (8 - bits)).astype(np.uint8), bitdepth=bits)


def vips_avif(pixels: Pixels, bits: int, **options: object) -> bytes:
    """An AVIF by libvips, which writes 10 and 12 bits."""
    image = pyvips.Image.new_from_array(sources.wide(pixels)).copy(interpretation="rgb16")
    data: bytes = image.heifsave_buffer(compression="av1", bitdepth=bits, effort=0, **options)
    return data


def heic(pixels: Pixels, **options: object) -> Callable[[Notes], bytes]:
    return lambda notes: heif.heic(pixels, **options, **notes.options)


def several_in_heic() -> bytes:
    import pillow_heif

    first, *more = [Image.fromarray(frame) for frame in FRAMES]
    file = pillow_heif.from_pillow(first)
    for image in more:
        file.add_from_pillow(image)
    out = BytesIO()
    file.save(out)
    return out.getvalue()


HEIC_BRANDS = b"heic\0\0\0\0mif1heic"


def heic_of(properties: list[bytes]) -> bytes:
    """A HEIC with more properties of its picture."""
    item = heif.coded(heif.heic(PHOTO))
    item.properties += [(each, True) for each in properties]
    return heif.file_of([item], brands=HEIC_BRANDS)


FAST: dict[str, object] = {"speed": 10}
LIMITED: dict[str, object] = {"subsampling": "4:4:4", "range": "limited"}

KINDS: dict[str, Kind] = {
    "jpeg 420": Kind(by_pillow(PHOTO, "JPEG", subsampling="4:2:0")),
    "jpeg 444 progressive": Kind(by_pillow(PHOTO, "JPEG", subsampling=0, progressive=True)),
    "jpeg with restarts": Kind(by_pillow(PHOTO, "JPEG", restart_marker_blocks=2)),
    "jpeg grey": Kind(by_pillow(GREY, "JPEG"), GREY_PROFILES),
    "jpeg cmyk": Kind(lambda notes: sources.cmyk_jpeg(INKS, **notes.options), INK_PROFILES),
    "jpeg ycck": Kind(lambda notes: sources.ycck_jpeg(INKS, **notes.options), INK_PROFILES),
    "png rgb": Kind(by_pillow(PHOTO, "PNG")),
    "png rgba": Kind(by_pillow(GLASS, "PNG")),
    "png grey": Kind(by_pillow(GREY, "PNG"), GREY_PROFILES),
    "png grey alpha": Kind(by_pillow(GREY_GLASS, "PNG"), GREY_PROFILES),
    "png grey 1": Kind(png_of(few_levels(1)), GREY_PROFILES),
    "png grey 2": Kind(png_of(few_levels(2)), GREY_PROFILES),
    "png grey 4": Kind(png_of(few_levels(4)), GREY_PROFILES),
    "png grey 16": Kind(png_of(sources.vips_png(sources.wide(GREY))), GREY_PROFILES),
    "png grey alpha 16": Kind(png_of(sources.vips_png(sources.wide(GREY_GLASS))), GREY_PROFILES),
    "png rgb 16": Kind(png_of(sources.vips_png(sources.wide(PHOTO)))),
    "png rgba 16": Kind(png_of(sources.vips_png(sources.wide(GLASS)))),
    "png interlaced": Kind(png_of(sources.vips_png(PHOTO, interlace=True))),
    "png palette": Kind(png_of(quantized(200, of=PHOTO))),
    "png palette of 6": Kind(png_of(quantized(6))),
    "png palette of 2": Kind(png_of(quantized(2))),
    "png palette alpha": Kind(png_of(quantized(6, transparency=b"\0\x80\xff"))),
    "png palette key": Kind(png_of(quantized(6, transparency=2))),
    "apng": Kind(moving("PNG")),
    "webp lossy": Kind(by_pillow(PHOTO, "WEBP")),
    "webp lossless": Kind(by_pillow(PHOTO, "WEBP", lossless=True)),
    "webp lossy alpha": Kind(by_pillow(GLASS, "WEBP")),
    "webp lossless alpha": Kind(by_pillow(GLASS, "WEBP", lossless=True)),
    "webp animated": Kind(moving("WEBP")),
    "avif 420": Kind(by_pillow(PHOTO, "AVIF", **FAST), exifs=DECENT),
    "avif 444 limited": Kind(by_pillow(PHOTO, "AVIF", **FAST, **LIMITED), exifs=DECENT),
    "avif grey": Kind(by_pillow(GREY, "AVIF", **FAST), GREY_PROFILES, DECENT),
    "avif alpha": Kind(by_pillow(GLASS, "AVIF", **FAST), exifs=DECENT),
    # Pillow 13.0 crashes where it should write a sequence that is turned.
    "avif animated": Kind(moving("AVIF", **FAST), exifs={"upright": None}),
    "heic 420": Kind(heic(PHOTO)),
    "heic 444": Kind(heic(PHOTO, chroma=444)),
    "heic grey": Kind(heic(GREY), GREY_PROFILES),
    "heic alpha": Kind(heic(GLASS)),
}  # fmt: skip
"""By name, which begins with the format."""


def gamma(value: int) -> sources.Chunk:
    return b"gAMA", struct.pack(">I", value)


CHROMATICITIES = (
    b"cHRM",
    struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000),
)


def with_png_chunks(*chunks: sources.Chunk, pixels: Pixels = PHOTO) -> Callable[[], bytes]:
    return lambda: sources.with_chunks(sources.png(pixels), chunks)


# By ITU-T H.273: sRGB, P3, BT.2020, and what is linear, PQ or HLG.
CODE_POINTS = {
    "srgb": (1, 13),
    "p3": (12, 13),
    "bt.2020": (9, 14),
    "linear": (1, 8),
    "pq": (9, 16),
    "hlg": (9, 18),
    "none": (2, 2),
}


def with_code_points(make: Callable[[], bytes]) -> dict[str, Callable[[], bytes]]:
    def made(primaries: int, transfer: int) -> bytes:
        return with_colors(make(), nclx(primaries, transfer))

    return {name: partial(made, *points) for name, points in CODE_POINTS.items()}


LONE: dict[str, Callable[[], bytes]] = {
    "jpeg with a comment": lambda: sources.jpeg(PHOTO, comment=b"a comment"),
    "jpeg without exif's end": lambda: sources.with_segments(sources.jpeg(PHOTO), (0xE1, b"Exif")),
    "jpeg of one pixel": lambda: sources.jpeg(PHOTO[:1, :1]),
    "jpeg without an end": lambda: sources.jpeg(PHOTO)[:-2],
    "jpeg progressive without an end": lambda: sources.jpeg(PHOTO, progressive=True)[:-2],
    "jpeg with a second one": lambda: sources.jpeg(PHOTO) + sources.jpeg(ART),
    "jpeg of short segments": lambda: sources.with_segments(
        sources.jpeg(PHOTO), (0xE0, b"JFIF\0"), (0xEE, b"Adobe")
    ),
    "png gAMA": with_png_chunks(gamma(100_000)),
    "png gAMA grey": with_png_chunks(gamma(62_500), pixels=GREY),
    "png gAMA cHRM": with_png_chunks(gamma(45_455), CHROMATICITIES),
    "png sRGB": with_png_chunks((b"sRGB", b"\0"), gamma(100_000)),
    "png cICP p3": with_png_chunks((b"cICP", bytes((12, 13, 0, 1)))),
    "png cICP linear": with_png_chunks((b"cICP", bytes((1, 8, 0, 1)))),
    "png cICP pq": with_png_chunks((b"cICP", bytes((9, 16, 0, 1)))),
    "png cICP hlg": with_png_chunks((b"cICP", bytes((9, 18, 0, 1)))),
    "png tRNS": with_png_chunks((b"tRNS", bytes(6))),
    "png tRNS 16": lambda: sources.with_chunks(
        sources.vips_png(sources.wide(PHOTO)), [(b"tRNS", bytes(6))]
    ),
    "png tRNS grey": with_png_chunks((b"tRNS", b"\0\x80"), pixels=GREY),
    "png text": with_png_chunks((b"tEXt", b"Title\0of it"), (b"zTXt", b"Title\0\0junk"),
                                (b"iTXt", b"Title\0\0\0en\0\0\xff")),
    "png iCCP junk": with_png_chunks((b"iCCP", b"x\0\0junk")),
    "apng two headers": with_png_chunks((b"acTL", bytes(8)), (b"acTL", bytes(4)),
                                        (b"fcTL", b"\xff" * 26)),
    "avif 10": lambda: vips_avif(PHOTO, 10),
    "avif 12": lambda: vips_avif(PHOTO, 12),
    "avif 10 alpha": lambda: vips_avif(GLASS, 10),
    **{f"avif nclx {name}": make
       for name, make in with_code_points(lambda: sources.avif(PHOTO, speed=10)).items()},
    **{f"heic nclx {name}": make
       for name, make in with_code_points(lambda: heif.heic(PHOTO)).items()},
    # libheif refuses it.
    "avif nclx reserved": lambda: with_colors(sources.avif(PHOTO, speed=10), nclx(3, 3)),
    "avif without colr": lambda: with_colors(sources.avif(PHOTO, speed=10)),
    "avif icc and nclx": lambda: with_colors(
        sources.avif(PHOTO, speed=10), icc(sources.ADOBE_RGB), nclx(12, 13)),
    "avif 10 pq with a light level": lambda: with_colors(
        vips_avif(PHOTO, 10), nclx(9, 16, 9), light_level(1000)),
    "avif lossless": lambda: vips_avif(PHOTO, 8, lossless=True),
    "gif": lambda: sources.gif(PHOTO),
    "gif of 2": lambda: sources.gif(ART, 2),
    "gif transparent": lambda: gif_of(6, transparency=2),
    "gif interlaced": lambda: gif_of(64, interlace=1),
    "gif with a comment": lambda: gif_of(6, comment=b"a comment"),
    "gif animated": lambda: sources.animation("GIF", FRAMES, loop=0),
    "gif disposal 2": lambda: sources.animation("GIF", FRAMES, loop=3, disposal=2, transparency=0),
    "gif disposal 3": lambda: sources.animation("GIF", FRAMES, disposal=3),
    "gif of a small frame": lambda: gifs.gif((30, 22), gifs.frame(4, 6, 20, 10)),
    "gif larger than its canvas": lambda: gifs.gif((9, 9), gifs.frame(4, 6, 20, 10)),
    "webp animated alpha": lambda: sources.animation("WEBP", [GLASS, GLASS[::-1]], lossless=True),
    "avif of several ipma": lambda: isobmff.split(
        sources.avif(GLASS, speed=10),
        lambda found: [isobmff.associations([entry]) for entry in found],
    ),
    "avif cropped": lambda: isobmff.with_properties(
        sources.avif(PHOTO, speed=10), isobmff.clap(20, 12, 2, -1)
    ),
    "avif mirrored": lambda: isobmff.with_properties(
        sources.avif(PHOTO, speed=10),
        isobmff.box(b"irot", b"\1"),
        isobmff.box(b"imir", b"\0"),
    ),
    "heic 10": partial(heif.deep_heic, PHOTO, 10),
    "heic 12": partial(heif.deep_heic, PHOTO, 12),
    "heic 10 alpha": partial(heif.deep_heic, GLASS, 10),
    "heic of several": several_in_heic,
    "heic tiled": lambda: grid(2, 2),
    "heic cropped and turned": lambda: heic_of(
        properties=[isobmff.clap(20, 12, 2, -1), isobmff.box(b"irot", b"\3")]
    ),
    "heic of tracks": lambda: heif.sequence(FRAMES, brands=b"hevc\0\0\0\0msf1hevc"),
    "heic overlaid": lambda: heif.file_of(
        [heif.coded(heif.heic(PHOTO)), heif.overlay(40, 30, [(5, 4)], [1])],
        brands=HEIC_BRANDS,
        primary=2,
    ),
    "heic premultiplied": lambda: heif.file_of(
        [
            heif.coded(heif.heic(PHOTO), references=[(b"prem", [2])]),
            heif.alpha_of(1, heif.coded(heif.heic(GLASS[..., 3]))),
        ],
        brands=HEIC_BRANDS,
    ),
}  # fmt: skip
"""Kinds that come without notes, or with their own."""

PRESETS = {
    "cover": Preset(width=20, height=12, fit="cover", quality=80),
    "enlarged": Preset(width=50, height=50, fit="cover", quality=80),
    "contain": Preset(width=16, fit="contain", quality=80),
    "as large": Preset(width=200, fit="contain", quality=90),
    "animated": Preset(width=16, fit="contain", quality=80, animated=True),
    "animated, as large": Preset(width=200, fit="contain", quality=90, animated=True),
}

RECIPES: dict[str, tuple[Preset, Format | None]] = {
    f"{name}{f'@{output}' if output else ''}": (preset, output)
    for name, preset in PRESETS.items()
    for output in (None, *OUTPUTS)
}
"""Every preset with every output."""


@dataclass(frozen=True)
class Picture:
    """A file of the matrix.

    Attributes:
        is_whole: whether every browser shows it, whatever its notes say.
    """

    name: str
    source: bytes
    is_whole: bool = True


def pictures(name: str) -> Iterator[Picture]:
    """Each file of a kind: turned, with profiles, and damaged."""
    if name in LONE:
        source = LONE[name]()
        yield Picture(name, source)
    else:
        kind = KINDS[name]
        for exif in kind.exifs:
            # A profile is as good for one turn as for another.
            for profile in kind.profiles if exif in ("upright", "exif 6") else ("none",):
                notes = Notes(kind.exifs[exif], kind.profiles[profile])
                yield Picture(f"{name}, {exif}, profile {profile}", kind.make(notes))
        source = kind.make(Notes(kind.exifs.get("exif 6")))
    yield from damaged(name, source)


def damaged(name: str, source: bytes) -> Iterator[Picture]:
    """Files that break off, early and late, or have wrong bytes in their middle: rare errors."""
    for part in (0.1, 0.5, 0.9):
        yield Picture(f"{name}, {part:.0%} of it", source[: int(len(source) * part)], False)
    yield Picture(f"{name}, without its last byte", source[:-1], False)
    middle = len(source) // 2
    hole = source[:middle] + bytes(8) + source[middle + 8 :]
    yield Picture(f"{name}, with a hole", hole, False)
