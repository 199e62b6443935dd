"""PNG: colour chunks, depths, palettes, transparency, text (PNG, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import product

import numpy as np
from PIL import Image

from tests.corpus.cases import Case
from tests.corpus.generated import FOREIGN
from tests.corpus.generated.pictures import card, glass, grey_card, ramp, raw_png
from tests.imaging import sources
from tests.imaging.sources import Chunk, Pixels

SRGB_CHRM = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3_CHRM = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
ADOBE_CHRM = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
BT2020_CHRM = (31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600)


def gama(value: int) -> Chunk:
    return b"gAMA", struct.pack(">I", value)


def chrm(values: tuple[int, ...]) -> Chunk:
    return b"cHRM", struct.pack(">8I", *values)


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> Chunk:
    return b"cICP", bytes([primaries, transfer, matrix, full])


def iccp(profile: bytes, name: bytes = b"profile") -> Chunk:
    return b"iCCP", name + b"\0\0" + zlib.compress(profile)


SRGB: Chunk = (b"sRGB", b"\0")


def kinds() -> dict[str, bytes]:
    """A file of each kind of samples."""
    indexed = Image.fromarray(card()).quantize(64)
    return {
        "rgb8": raw_png(card(), 2),
        "rgb16": raw_png(sources.wide(card()), 2),
        "rgba8": raw_png(glass(), 6),
        "rgba16": raw_png(sources.wide(glass()), 6),
        "grey8": raw_png(grey_card(), 0),
        "grey16": raw_png(sources.wide(grey_card()), 0),
        "la8": raw_png(sources.with_alpha(grey_card()), 4),
        "la16": raw_png(sources.wide(sources.with_alpha(grey_card())), 4),
        "palette": sources.encoded(indexed, "PNG"),
        "palette-clear": sources.encoded(indexed, "PNG", transparency=bytes([0, 90, 180])),
    }


def cases() -> Iterator[Case]:
    yield from _kinds()
    yield from _coded_colors()
    yield from _gamma()
    yield from _profiles()
    yield from _keys()
    yield from _palettes()
    yield from _foreign()
    yield from _cuts()


def _with(data: bytes, *chunks: Chunk) -> bytes:
    before = b"PLTE" if b"PLTE" in data else b"IDAT"
    return sources.with_chunks(data, chunks, before)


def _kinds() -> Iterator[Case]:
    for name, data in kinds().items():
        yield Case(f"png/kind/{name}", lambda d=data: d)
    for bits in (1, 2, 4):
        samples = (grey_card() >> (8 - bits)).astype(np.uint8)
        yield Case(
            f"png/kind/grey{bits}",
            lambda s=samples, bits=bits: sources.vips_png(s, bitdepth=bits),
        )
    for name, pixels in {"rgb8": card(), "la8": sources.with_alpha(grey_card())}.items():
        yield Case(
            f"png/kind/{name}-interlaced", lambda p=pixels: sources.vips_png(p, interlace=True)
        )
    for width, height in ((1, 1), (1, 40), (40, 1), (3, 5)):
        yield Case(
            f"png/kind/{width}x{height}",
            lambda w=width, h=height: raw_png(ramp(w, h), 2),
        )
    yield Case("png/kind/large", lambda: sources.png(card(1700, 1100)))
    yield Case("png/kind/flat", lambda: sources.png(sources.pixel_art(96, 64, 16)))
    clear = np.zeros((64, 96, 4), np.uint8)
    yield Case("png/kind/clear", lambda: raw_png(clear, 6))


def _coded_colors() -> Iterator[Case]:
    codes = list(product((1, 9, 12), (1, 8, 13, 16, 18)))
    codes += [(1, 4), (1, 5), (5, 6), (6, 6), (4, 4), (1, 14), (9, 15), (11, 17), (22, 13), (1, 7),
              (8, 13), (10, 8), (1, 9), (1, 10), (1, 11), (1, 12), (7, 7)]  # fmt: skip
    files = kinds()
    for primaries, transfer in codes:
        yield Case(
            f"png/cicp/{primaries}-{transfer}",
            lambda p=primaries, t=transfer: _with(files["rgb8"], cicp(p, t)),
        )
    for name, (primaries, transfer) in product(files, ((12, 13), (1, 8), (9, 16))):
        if name != "rgb8":
            yield Case(
                f"png/cicp/{name}-{primaries}-{transfer}",
                lambda n=name, p=primaries, t=transfer: _with(files[n], cicp(p, t)),
            )
    others = {
        "gama": [gama(62500)],
        "gama-chrm": [gama(62500), chrm(P3_CHRM)],
        "iccp": [iccp(sources.ADOBE_RGB)],
        "srgb": [SRGB],
    }
    for (primaries, transfer), (name, chunks) in product(((1, 13), (12, 13)), others.items()):
        code = cicp(primaries, transfer)
        yield Case(
            f"png/cicp/{primaries}-{transfer}-and-{name}",
            lambda c=code, more=chunks: _with(files["rgb8"], c, *more),
        )
        yield Case(
            f"png/cicp/{primaries}-{transfer}-after-{name}",
            lambda c=code, more=chunks: _with(files["rgb8"], *more, c),
        )
    odd = {
        "unknown": cicp(2, 2),
        "reserved": cicp(0, 0),
        "matrix": cicp(12, 13, 1),
        "limited": cicp(12, 13, 0, 0),
        "short": (b"cICP", b"\x0c\x0d\0"),
        "long": (b"cICP", b"\x0c\x0d\0\x01\0"),
        "empty": (b"cICP", b""),
    }
    for name, chunk in odd.items():
        yield Case(f"png/cicp/odd-{name}", lambda c=chunk: _with(files["rgb8"], c))
    yield Case(
        "png/cicp/odd-behind",
        lambda: sources.with_chunks(files["rgb8"], [cicp(12, 13)], b"IEND"),
    )
    yield Case("png/cicp/odd-twice", lambda: _with(files["rgb8"], cicp(12, 13), cicp(1, 13)))


def _gamma() -> Iterator[Case]:
    files = kinds()
    for name, value in product(files, (62500, 100000)):
        yield Case(f"png/gama/{name}-{value}", lambda n=name, v=value: _with(files[n], gama(v)))
    for value in (45455, 45454, 47619, 30000, 55556, 20000, 1, 0, 2**31 - 1, 1_000_000):
        yield Case(f"png/gama/rgb8-{value}", lambda v=value: _with(files["rgb8"], gama(v)))
    primaries = {"srgb": SRGB_CHRM, "p3": P3_CHRM, "adobe": ADOBE_CHRM, "bt2020": BT2020_CHRM,
                 "zero": (0,) * 8, "grey": (31270, 32900) * 4}  # fmt: skip
    for name, values in primaries.items():
        yield Case(f"png/chrm/{name}", lambda v=values: _with(files["rgb8"], chrm(v)))
        for value in (45455, 62500):
            yield Case(
                f"png/chrm/{name}-{value}",
                lambda v=values, g=value: _with(files["rgb8"], gama(g), chrm(v)),
            )
    for kind in ("rgb16", "rgba8", "palette", "grey8"):
        yield Case(
            f"png/chrm/p3-{kind}",
            lambda k=kind: _with(files[k], gama(45455), chrm(P3_CHRM)),
        )
    chunks = [gama(62500), chrm(P3_CHRM)]
    yield Case("png/chrm/and-srgb", lambda: _with(files["rgb8"], SRGB, *chunks))
    yield Case("png/chrm/before-srgb", lambda: _with(files["rgb8"], *chunks, SRGB))
    yield Case("png/chrm/and-iccp", lambda: _with(files["rgb8"], iccp(sources.ADOBE_RGB), *chunks))
    yield Case("png/chrm/behind", lambda: sources.with_chunks(files["rgb8"], chunks, b"IEND"))
    yield Case(
        "png/gama/behind", lambda: sources.with_chunks(files["rgb8"], [gama(62500)], b"IEND")
    )
    yield Case("png/gama/short", lambda: _with(files["rgb8"], (b"gAMA", b"\0\0")))
    yield Case("png/gama/twice", lambda: _with(files["rgb8"], gama(62500), gama(45455)))


def _profiles() -> Iterator[Case]:
    files = kinds()
    color = {"p3": sources.builtin_profile("p3"), "adobe": sources.ADOBE_RGB}
    for name, (profile, data) in product(files, color.items()):
        if name.startswith(("rgb", "palette")):
            yield Case(f"png/icc/{name}-{profile}", lambda n=name, d=data: _with(files[n], iccp(d)))
        elif profile == "adobe":
            yield Case(
                f"png/icc/{name}-own", lambda n=name: _with(files[n], iccp(sources.DARK_GREY))
            )
    gamma18 = sources._profile(b"GRAY", {b"kTRC": sources._gamma(1.8)})
    for name in ("grey8", "grey16", "la8", "la16"):
        yield Case(f"png/icc/{name}-18", lambda n=name: _with(files[n], iccp(gamma18)))
        yield Case(
            f"png/icc/{name}-colour", lambda n=name: _with(files[n], iccp(sources.ADOBE_RGB))
        )
    odd = {
        "grey-in-colour": iccp(sources.DARK_GREY),
        "inks": iccp(sources.builtin_profile("cmyk")),
        "cut": iccp(sources.ADOBE_RGB[:100]),
        "garbage": (b"iCCP", b"name\0\0" + FOREIGN),
        "empty": (b"iCCP", b""),
        "nameless": iccp(sources.ADOBE_RGB, b""),
    }
    for name, chunk in odd.items():
        yield Case(f"png/icc/odd-{name}", lambda c=chunk: _with(files["rgb8"], c))
    yield Case(
        "png/icc/odd-behind",
        lambda: sources.with_chunks(files["rgb8"], [iccp(sources.ADOBE_RGB)], b"IEND"),
    )


def _keys() -> Iterator[Case]:
    """A colour that is transparent: all of its bits have to be the same."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint16) * 512, (64, 96))
    for key in (0x8000, 0x8001, 0x8100, 0):
        chunk = (b"tRNS", struct.pack(">H", key))
        yield Case(f"png/key/grey16-{key:04x}", lambda c=chunk: raw_png(ramp, 0, c))
    color = np.dstack([ramp, ramp, ramp[:, ::-1]])
    for keys in ((0x8000, 0x8000, 0x3E00), (0x8001, 0x8001, 0x3E01), (0x8000, 0x8000, 0x3E01)):
        chunk = (b"tRNS", struct.pack(">HHH", *keys))
        yield Case(
            f"png/key/rgb16-{'-'.join(f'{each:04x}' for each in keys)}",
            lambda c=chunk: raw_png(color, 2, c),
        )
    patches = np.array(card())
    for keys in ((40, 40, 40), (200, 60, 40), (1, 2, 3), (0x128, 40, 40)):
        chunk = (b"tRNS", struct.pack(">HHH", *keys))
        yield Case(
            f"png/key/rgb8-{'-'.join(map(str, keys))}", lambda c=chunk: raw_png(patches, 2, c)
        )
    for key in (40, 128, 3, 0x128):
        chunk = (b"tRNS", struct.pack(">H", key))
        yield Case(f"png/key/grey8-{key}", lambda c=chunk: raw_png(grey_card(), 0, c))
    chunk = (b"tRNS", struct.pack(">HHH", 200, 60, 40))
    yield Case("png/key/and-gama", lambda: raw_png(patches, 2, gama(62500), chunk))
    yield Case("png/key/and-cicp", lambda: raw_png(patches, 2, cicp(12, 13), chunk))
    yield Case("png/key/short", lambda: raw_png(patches, 2, (b"tRNS", b"\0\x28")))
    for bits in (1, 2, 4):
        samples = (grey_card() >> (8 - bits)).astype(np.uint8)
        yield Case(
            f"png/key/grey{bits}",
            lambda s=samples, bits=bits: sources.with_chunks(
                sources.vips_png(s, bitdepth=bits), [(b"tRNS", b"\0\1")]
            ),
        )


def indexed(
    indices: Pixels, bits: int, palette: bytes | None, transparency: bytes | None = None
) -> bytes:
    """A PNG of colour type 3; a palette of None is missing."""
    height, width = indices.shape
    packed = b""
    for row in indices:
        samples = "".join(f"{index:0{bits}b}" for index in row.tolist())
        samples += "0" * (-len(samples) % 8)
        packed += b"\0" + int(samples, 2).to_bytes(len(samples) // 8, "big")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0))]
    if palette is not None:
        parts.append((b"PLTE", palette))
    if transparency is not None:
        parts.append((b"tRNS", transparency))
    parts += [(b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sources.png_chunk(*part) for part in parts)


COLORS = bytes(value for color in sources.pixel_art(64, 64, 4)[::4, ::4].reshape(-1, 3)[:16]
               for value in color)  # fmt: skip


def _palettes() -> Iterator[Case]:
    for bits in (1, 2, 4, 8):
        indices = (np.indices((64, 96)).sum(0) // 8 % min(2**bits, 16)).astype(np.uint8)
        colors = COLORS[: 3 * min(2**bits, 16)]
        clear = bytes([0, 128] + [255] * 14)[: min(2**bits, 16)]
        yield Case(f"png/palette/{bits}", lambda i=indices, b=bits, c=colors: indexed(i, b, c))
        yield Case(
            f"png/palette/{bits}-clear",
            lambda i=indices, b=bits, c=colors, t=clear: indexed(i, b, c, t),
        )
    indices = (np.indices((64, 96)).sum(0) // 8 % 16).astype(np.uint8)
    yield Case("png/palette/missing", lambda: indexed(indices, 8, None), status=422)
    yield Case("png/palette/empty", lambda: indexed(indices, 8, b""), status=422)
    # What has no colour is black to libpng, and so to libvips; Chromium repeats colours.
    black = np.zeros((16, 3), np.uint8)
    black[:5] = np.frombuffer(COLORS[:15], np.uint8).reshape(5, 3)
    yield Case("png/palette/short", lambda: indexed(indices, 8, COLORS[:15]), pixels=black[indices])
    yield Case("png/palette/clear-long", lambda: indexed(indices, 8, COLORS, bytes(40)))
    yield Case("png/palette/clear-one", lambda: indexed(indices, 8, COLORS, b"\0"))
    yield Case("png/palette/suggested", lambda: _with(kinds()["rgb8"], (b"PLTE", COLORS)))
    large = Image.fromarray(sources.pixel_art(1800, 900, 30)).quantize(6)
    yield Case("png/palette/large", lambda: sources.encoded(large, "PNG", optimize=True))
    line = Image.fromarray(((np.indices((900, 1800)).sum(0) // 40 % 2) * 255).astype(np.uint8))
    yield Case("png/palette/large-1bit", lambda: sources.encoded(line.convert("1"), "PNG"))
    many = Image.fromarray(card(1700, 900)).quantize(256)
    yield Case("png/palette/large-256", lambda: sources.encoded(many, "PNG", optimize=True))


def _foreign() -> Iterator[Case]:
    plain = kinds()["rgb8"]
    chunks = {
        "text": (b"tEXt", b"Comment\0" + FOREIGN),
        "ztxt": (b"zTXt", b"Comment\0\0" + zlib.compress(FOREIGN)),
        "itxt": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + FOREIGN),
        "exif": (b"eXIf", sources.exif(1)[6:]),
        "time": (b"tIME", struct.pack(">HBBBBB", 2024, 2, 29, 1, 2, 3)),
        "phys": (b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
        "private": (b"prVt", FOREIGN),
        "c2pa": (b"caBX", FOREIGN),
        "background": (b"bKGD", struct.pack(">HHH", 255, 0, 0)),
        "bits": (b"sBIT", b"\x05\x06\x05"),
        "histogram": (b"hIST", b"\0\1"),
        "critical": (b"ABCD", FOREIGN),
        "mastering": (b"mDCV", bytes(24)),
        "light": (b"cLLI", bytes(8)),
    }
    for (name, chunk), before in product(chunks.items(), (b"IDAT", b"IEND")):
        place = "before" if before == b"IDAT" else "behind"
        yield Case(
            f"png/foreign/{name}-{place}",
            lambda c=chunk, b=before: sources.with_chunks(plain, [c], b),
        )
    yield Case("png/foreign/trailing", lambda: plain + FOREIGN)
    small = sources.encoded(Image.fromarray(card()).quantize(16), "PNG", optimize=True)
    yield Case(
        "png/foreign/fitting", lambda: _with(small, (b"tEXt", b"Comment\0" + FOREIGN)) + FOREIGN
    )
    upright = card()
    for orientation in (3, 6):
        yield Case(
            f"png/foreign/turned-{orientation}",
            lambda o=orientation: _with(
                raw_png(sources.stored(upright, o), 2), (b"eXIf", sources.exif(o)[6:])
            ),
        )


def _cuts() -> Iterator[Case]:
    whole = sources.png(card())
    for percent in (10, 50, 90):
        yield Case(
            f"png/cut/{percent}", lambda p=percent: whole[: len(whole) * p // 100], status=422
        )
    yield Case("png/cut/no-end", lambda: whole[:-12])
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    yield Case("png/cut/damaged", lambda: bytes(broken), status=422)
    at = whole.index(b"IDAT")
    crc = bytearray(whole)
    crc[at + 4 + int.from_bytes(whole[at - 4 : at], "big")] ^= 0xFF
    yield Case("png/cut/checksum", lambda: bytes(crc))
