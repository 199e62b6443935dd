"""AVIF and HEIC: colour codes, transforms, depths, brands, boxes; and WebP that does not move."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image

from tests.corpus.cases import Case
from tests.corpus.generated import FOREIGN, boxes
from tests.corpus.generated.pictures import (
    card,
    glass,
    grey_card,
    heic,
    nclx,
    ramp,
    riff_chunk,
    wide_avif,
    with_nclx,
)
from tests.imaging import sources
from tests.imaging.heif import sequence
from tests.imaging.isobmff import box
from tests.imaging.sources import Pixels
from tests.imaging.workers.heic_grid import grid

CODES = [(1, 1), (1, 8), (1, 13), (1, 4), (1, 5), (5, 6), (6, 6), (4, 4), (9, 1), (9, 14), (12, 13),
         (12, 8), (11, 17), (2, 2), (1, 2), (2, 13), (9, 16), (9, 18), (12, 16), (1, 16), (12, 18),
         (22, 13), (1, 11), (1, 9), (1, 10), (1, 7)]  # fmt: skip


def cases() -> Iterator[Case]:
    yield from _webps()
    yield from _avif_colors()
    yield from _avif_boxes()
    yield from _avif_kinds()
    yield from _heics()


def _webps() -> Iterator[Case]:
    for name, pixels in {"rgb": card(), "rgba": glass(), "grey": grey_card()}.items():
        for lossless in (False, True):
            yield Case(
                f"webp/still/{name}{'-lossless' * lossless}",
                lambda p=pixels, n=lossless: sources.webp(p, lossless=n),
            )
    for name, profile in {"p3": sources.builtin_profile("p3"), "adobe": sources.ADOBE_RGB,
                          "broken": sources.ADOBE_RGB[:150]}.items():  # fmt: skip
        yield Case(f"webp/still/icc-{name}", lambda p=profile: sources.webp(card(), icc_profile=p))
    for orientation in (1, 3, 6, 8):
        yield Case(
            f"webp/still/turned-{orientation}",
            lambda o=orientation: sources.webp(
                sources.stored(card(), o), lossless=True, exif=sources.exif(o)
            ),
            pixels=card(),  # Chromium reads no EXIF of a WebP
        )
    yield Case("webp/still/xmp", lambda: sources.webp(card(), xmp=FOREIGN))
    plain = sources.webp(card())
    size = struct.pack("<I", len(plain) - 8 + 8 + len(FOREIGN))
    assert len(FOREIGN) % 2 == 0
    yield Case(
        "webp/still/unknown-chunk",
        lambda: plain[:4] + size + plain[8:] + riff_chunk(b"FRGN", FOREIGN),
    )
    yield Case("webp/still/trailing", lambda: plain + FOREIGN)
    for percent in (20, 60, 95):
        yield Case(
            f"webp/still/cut-{percent}",
            lambda p=percent: plain[: len(plain) * p // 100],
            status=422,
        )
    yield Case("webp/still/large", lambda: sources.webp(card(1700, 1000), quality=80))
    yield Case("webp/still/1x1", lambda: sources.webp(card(6, 6)[:1, :1]))


def _with_codes(data: bytes, primaries: int, transfer: int) -> bytes:
    if b"colrnclx" in data:
        return with_nclx(data, primaries, transfer)
    body = nclx(primaries, transfer, 6, full=True)
    return boxes.with_property(data, b"colr", body, essential=False)


def avif(pixels: Pixels, **options: object) -> bytes:
    """With a chroma sample for each pixel: how others are spread is the decoder's own."""
    return sources.avif(pixels, **{"subsampling": "4:4:4", **options})


def _avif_colors() -> Iterator[Case]:
    plain = avif(card())
    for primaries, transfer in CODES:
        yield Case(
            f"avif/nclx/{primaries}-{transfer}",
            lambda p=primaries, t=transfer: with_nclx(plain, p, t),
        )
    for bits, (primaries, transfer) in product((10, 12), ((1, 13), (12, 13), (9, 16), (9, 18))):
        data = wide_avif(card(), bits)
        yield Case(
            f"avif/nclx/{bits}bit-{primaries}-{transfer}",
            lambda d=data, p=primaries, t=transfer: _with_codes(d, p, t),
        )
    for matrix in (0, 1, 2, 5, 6, 9):
        yield Case(f"avif/nclx/matrix-{matrix}", lambda m=matrix: with_nclx(plain, 1, 13, m))
    for matrix in (1, 6, 9):
        yield Case(
            f"avif/nclx/limited-{matrix}",
            lambda m=matrix: with_nclx(plain, 1, 13, m, full=False),
        )
    yield Case("avif/nclx/none", lambda: boxes.without_property(plain, b"colr"))
    yield Case("avif/nclx/none-limited", lambda: boxes.without_property(
        avif(card(), range="limited"), b"colr"))  # fmt: skip
    yield Case("avif/nclx/own-limited", lambda: avif(card(), range="limited"))
    yield Case("avif/nclx/none-10", lambda: wide_avif(card(), 10))
    clear = avif(glass())
    for primaries, transfer in ((12, 13), (9, 16), (1, 8)):
        yield Case(
            f"avif/nclx/clear-{primaries}-{transfer}",
            lambda p=primaries, t=transfer: with_nclx(clear, p, t),
        )
    for name, profile in {"p3": sources.builtin_profile("p3"), "adobe": sources.ADOBE_RGB,
                          "grey": sources.DARK_GREY}.items():  # fmt: skip
        yield Case(f"avif/icc/{name}", lambda p=profile: avif(card(), icc_profile=p))
        yield Case(
            f"avif/icc/{name}-and-nclx",
            lambda p=profile: boxes.with_property(
                avif(card(), icc_profile=p), b"colr", nclx(12, 13, 6, True), essential=False
            ),
        )


def turned(upright: Pixels, angle: int, axis: int | None) -> Pixels:
    """What is stored so that ``irot`` and then ``imir`` (23008-12, 6.5.10 and 12) show it."""
    pixels = upright
    if axis is not None:
        pixels = pixels[::-1] if axis == 0 else pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, -angle))


def _avif_boxes() -> Iterator[Case]:
    upright = card()
    for angle, axis in product(range(4), (None, 0, 1)):
        name = f"avif/turned/{angle}{'' if axis is None else f'-{axis}'}"

        def make(angle: int = angle, axis: int | None = axis) -> bytes:
            data = avif(turned(upright, angle, axis))
            if angle:
                data = boxes.with_property(data, b"irot", bytes([angle]))
            if axis is not None:
                data = boxes.with_property(data, b"imir", bytes([axis]))
            return data

        yield Case(name, make)
    for orientation in range(1, 9):
        yield Case(
            f"avif/turned/exif-{orientation}",
            lambda o=orientation: avif(sources.stored(upright, o), exif=sources.exif(o)),
        )
    yield Case(
        "avif/turned/alpha",
        lambda: avif(sources.stored(glass(), 6), exif=sources.exif(6)),
    )
    claps = {
        "centre": (upright[16:48, 16:80], ((64, 1), (32, 1), (0, 1), (0, 1))),
        "corner": (upright[:32, :64], ((64, 1), (32, 1), (-16, 1), (-16, 1))),
        "off": (upright[8:40, 24:88], ((64, 1), (32, 1), (8, 1), (-8, 1))),
        "whole": (upright, ((96, 1), (64, 1), (0, 1), (0, 1))),
        "zero": (upright, ((0, 1), (0, 1), (0, 1), (0, 1))),
        "no-denominator": (upright, ((64, 0), (32, 1), (0, 1), (0, 1))),
        "beyond": (upright, ((128, 1), (32, 1), (0, 1), (0, 1))),
    }
    for name, (seen, fields) in claps.items():
        known = name in ("centre", "corner", "off", "whole")
        yield Case(
            f"avif/clap/{name}",
            lambda f=fields: boxes.with_property(avif(upright), b"clap", boxes.clap(*f)),
            pixels=np.ascontiguousarray(seen) if known else None,
        )

    def clap_and_turn() -> bytes:
        data = boxes.with_property(
            avif(upright), b"clap", boxes.clap((64, 1), (32, 1), (-16, 1), (-16, 1))
        )
        return boxes.with_property(data, b"irot", b"\1")

    yield Case("avif/clap/turned", clap_and_turn,
               pixels=np.ascontiguousarray(np.rot90(upright[:32, :64])))  # fmt: skip
    plain = avif(upright)
    yield Case("avif/ipma/split", lambda: boxes.split_ipma(plain))
    yield Case("avif/ipma/split-clear", lambda: boxes.split_ipma_by_item(avif(glass())))
    yield Case("avif/ipma/turned", lambda: boxes.split_ipma(
        boxes.with_property(avif(turned(upright, 1, None)), b"irot", b"\1")))  # fmt: skip
    yield Case("avif/box/essential-unknown", lambda: boxes.with_property(plain, b"frgn", FOREIGN))
    yield Case(
        "avif/box/unknown", lambda: boxes.with_property(plain, b"frgn", FOREIGN, essential=False)
    )
    yield Case("avif/box/pasp", lambda: boxes.with_property(
        plain, b"pasp", struct.pack(">II", 2, 1), essential=False))  # fmt: skip
    for name, rest in {"free": box(b"free", FOREIGN), "uuid": box(b"uuid", FOREIGN),
                       "udta": box(b"udta", FOREIGN), "bytes": FOREIGN}.items():  # fmt: skip
        yield Case(f"avif/behind/{name}", lambda r=rest: plain + r)
    yield Case("avif/box/exif", lambda: avif(upright, exif=sources.exif(1)))
    yield Case("avif/box/xmp", lambda: avif(upright, xmp=FOREIGN))
    for percent in (10, 50, 90):
        yield Case(
            f"avif/cut/{percent}", lambda p=percent: plain[: len(plain) * p // 100], status=422
        )


def _avif_kinds() -> Iterator[Case]:
    for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:0:0"):
        yield Case(
            f"avif/kind/{sampling.replace(':', '')}",
            lambda s=sampling: sources.avif(card(), subsampling=s),
        )
    yield Case("avif/kind/clear", lambda: sources.avif(glass()))
    yield Case("avif/kind/grey", lambda: sources.avif(grey_card()))
    yield Case("avif/kind/grey-clear", lambda: sources.avif(sources.with_alpha(grey_card())))
    yield Case("avif/kind/flat", lambda: avif(sources.pixel_art(96, 64, 8)))
    for bits in (10, 12):
        yield Case(f"avif/kind/{bits}", lambda b=bits: wide_avif(card(), b))
    yield Case("avif/kind/large", lambda: sources.avif(card(1700, 900), quality=80))
    for width, height in ((1, 1), (17, 9), (95, 63)):
        yield Case(
            f"avif/kind/{width}x{height}",
            lambda w=width, h=height: sources.avif(ramp(w, h)),
        )
    plain = sources.avif(card())
    for name, brand in {"mif1": b"mif1", "avis": b"avis", "unknown": b"abcd"}.items():
        yield Case(f"avif/brand/{name}", lambda b=brand: plain[:8] + b + plain[12:])


def _heics() -> Iterator[Case]:
    def case(name: str, make: Callable[..., bytes], pixels: Pixels) -> Case:
        return Case(f"heic/{name}", make, pixels=pixels)

    yield case("rgb", lambda: heic(card()), card())
    yield case("rgba", lambda: heic(glass()), glass())
    yield case("grey", lambda: heic(grey_card()), np.dstack([grey_card()] * 3))
    yield case("420", lambda: heic(card(), chroma=420), card())
    for name in ("10", "12"):
        yield case(f"{name}bit", lambda n=name: _deep_heic(int(n)), card())
    for orientation in range(2, 9):
        yield case(
            f"turned-{orientation}",
            lambda o=orientation: heic(sources.stored(card(), o), exif=sources.exif(o)),
            card(),
        )
    yield case("exif", lambda: heic(card(), exif=sources.exif(1)), card())
    yield case("xmp", lambda: heic(card(), xmp=FOREIGN), card())
    plain = heic(card())
    for brand in (b"heix", b"mif1", b"hevc", b"heim"):
        yield case(f"brand-{brand.decode()}", lambda b=brand: plain[:8] + b + plain[12:], card())
    yield case("trailing", lambda: plain + FOREIGN, card())
    yield case(
        "clap",
        lambda: boxes.with_property(
            plain, b"clap", boxes.clap((64, 1), (32, 1), (-16, 1), (-16, 1))
        ),
        np.ascontiguousarray(card()[:32, :64]),
    )
    yield case("several", _several_heics, card())
    frames = [card(), np.ascontiguousarray(card()[::-1])]
    yield case("sequence", lambda: sequence(frames, brands=b"hevc\0\0\0\0msf1hevc"), card())
    yield Case("heic/grid", lambda: grid(2, 3))
    yield Case("heic/cut", lambda: plain[: len(plain) * 2 // 3], status=422)
    for name, profile in {"adobe": sources.ADOBE_RGB}.items():
        yield Case(f"heic/icc-{name}", lambda p=profile: _profiled(p))


def _deep_heic(bits: int) -> bytes:
    import pillow_heif

    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        return heic(sources.wide(card()), "RGB;16")
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False


def _several_heics() -> bytes:
    import pillow_heif

    out = BytesIO()
    file = pillow_heif.from_pillow(Image.fromarray(card()))
    file.add_from_pillow(Image.fromarray(card()[::-1]))
    file.save(out, quality=95, chroma=444)
    return out.getvalue()


def _profiled(profile: bytes) -> bytes:
    import pillow_heif

    image = Image.fromarray(card())
    image.info["icc_profile"] = profile
    out = BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=95, chroma=444)
    return out.getvalue()
