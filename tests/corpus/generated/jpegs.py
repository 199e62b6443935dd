"""JPEG: markers, cuts, orientation, inks, what lies around the pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from itertools import product

import numpy as np
from PIL import Image

from tests.corpus.cases import Case
from tests.corpus.generated import FOREIGN
from tests.corpus.generated.pictures import card, grey_card, ramp
from tests.imaging import sources
from tests.imaging.sources import Pixels

SIZES = {"blocks": (96, 64), "odd": (91, 61)}
"""Sides that are whole blocks of any subsampling, and such that are of none."""


def cases() -> Iterator[Case]:
    yield from _plain()
    yield from _turned()
    yield from _profiles()
    yield from _inks()
    yield from _segments()
    yield from _cuts()
    yield from _odd_files()


def _plain() -> Iterator[Case]:
    for sampling, quality, progressive in product(
        ("4:4:4", "4:2:2", "4:2:0"), (60, 85, 98), (False, True)
    ):
        yield Case(
            f"jpeg/plain/{sampling}-q{quality}{'-progressive' * progressive}".replace(":", ""),
            lambda s=sampling, q=quality, p=progressive: sources.jpeg(
                card(), subsampling=s, quality=q, progressive=p
            ),
        )
    yield Case("jpeg/plain/grey", lambda: sources.jpeg(grey_card()))
    yield Case("jpeg/plain/restarts", lambda: sources.jpeg(card(), restart_marker_blocks=3))
    yield Case("jpeg/plain/rgb", lambda: sources.jpeg(card(), keep_rgb=True))
    yield Case("jpeg/plain/flat", lambda: sources.jpeg(sources.pixel_art(96, 64, 16), quality=90))
    for width, height in ((1, 1), (2, 1), (1, 17), (17, 3), (300, 2)):
        yield Case(
            f"jpeg/plain/{width}x{height}",
            lambda w=width, h=height: sources.jpeg(ramp(w, h)),
        )
    yield Case("jpeg/plain/large", lambda: sources.jpeg(card(1800, 1200), quality=90))


def _turned() -> Iterator[Case]:
    for orientation, (name, size), endian in product(range(10), SIZES.items(), "<>"):
        if endian == ">" and name == "odd":
            continue
        upright = card(*size)
        pixels = sources.stored(upright, orientation) if 1 <= orientation <= 8 else upright
        yield Case(
            f"jpeg/turned/{name}-{orientation}{'-big' * (endian == '>')}",
            lambda p=pixels, o=orientation, e=endian: sources.jpeg(
                p, quality=80, exif=sources.exif(o, endian=e)
            ),
        )
    for orientation, sampling in product((3, 6, 8), ("4:4:4", "4:2:2")):
        yield Case(
            f"jpeg/turned/{sampling.replace(':', '')}-{orientation}",
            lambda o=orientation, s=sampling: sources.jpeg(
                sources.stored(card(), o), subsampling=s, quality=80, exif=sources.exif(o)
            ),
        )
    for orientation in (3, 6):
        yield Case(
            f"jpeg/turned/progressive-{orientation}",
            lambda o=orientation: sources.jpeg(
                sources.stored(card(), o), progressive=True, quality=80, exif=sources.exif(o)
            ),
        )
        yield Case(
            f"jpeg/turned/grey-{orientation}",
            lambda o=orientation: sources.jpeg(
                sources.stored(grey_card(), o), quality=80, exif=sources.exif(o)
            ),
        )
    twice = sources.exif(6)[6:]
    yield Case(
        "jpeg/turned/two-exif",
        lambda: sources.with_segments(
            sources.jpeg(sources.stored(card(), 6), exif=sources.exif(6)),
            (0xE1, b"Exif\0\0" + twice),
        ),
    )


def _profiles() -> Iterator[Case]:
    profiles = {
        "p3": sources.builtin_profile("p3"),
        "srgb": sources.builtin_profile("srgb"),
        "adobe": sources.ADOBE_RGB,
        "grey-in-colour": sources.DARK_GREY,
        "broken": sources.ADOBE_RGB[:200],
        "empty": b"",
    }
    for name, profile in profiles.items():
        yield Case(f"jpeg/icc/{name}", lambda p=profile: sources.jpeg(card(), icc_profile=p))
    yield Case("jpeg/icc/grey", lambda: sources.jpeg(grey_card(), icc_profile=sources.DARK_GREY))
    yield Case(
        "jpeg/icc/turned",
        lambda: sources.jpeg(
            sources.stored(card(), 6), icc_profile=sources.ADOBE_RGB, exif=sources.exif(6)
        ),
    )
    whole = sources.ADOBE_RGB
    half = len(whole) // 2
    parts = [whole[:half], whole[half:]]
    for name, order in {"parts": (0, 1), "parts-backwards": (1, 0), "part-missing": (0,)}.items():
        yield Case(
            f"jpeg/icc/{name}",
            lambda order=order: sources.with_segments(
                sources.jpeg(card()),
                *((0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 2]) + parts[n]) for n in order),
            ),
        )


def _inks() -> Iterator[Case]:
    inks = sources.cmyk(card())
    yield Case("jpeg/inks/cmyk", lambda: sources.cmyk_jpeg(inks))
    yield Case("jpeg/inks/ycck", lambda: sources.ycck_jpeg(inks))
    profile = sources.builtin_profile("cmyk")
    yield Case("jpeg/inks/cmyk-icc", lambda: sources.cmyk_jpeg(inks, icc_profile=profile))
    yield Case(
        "jpeg/inks/cmyk-turned",
        lambda: sources.cmyk_jpeg(sources.stored(inks, 6), exif=sources.exif(6)),
    )


def _segments() -> Iterator[Case]:
    plain = sources.jpeg(card(), quality=85)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + FOREIGN + b"</x:xmpmeta>"
    segments = {
        "comment": (0xFE, FOREIGN),
        "comment-empty": (0xFE, b""),
        "xmp": (0xE1, xmp),
        "iptc": (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x20" + FOREIGN),
        "jumbf": (0xEB, b"JP\0\x01\0\0\0\x01" + FOREIGN),
        "mpf": (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0" + FOREIGN),
        "app5": (0xE5, FOREIGN),
        "app15": (0xEF, FOREIGN * 100),
        "jfif-short": (0xE0, b"JFIF\0"),
        "jfif-shorter": (0xE0, b"JF"),
        "jfif-empty": (0xE0, b""),
        "jfxx": (0xE0, b"JFXX\0\x13\x01\x01" + FOREIGN),
        "adobe-short": (0xEE, b"Adobe"),
        "adobe-shorter": (0xEE, b"Ado"),
        "adobe-cut": (0xEE, b"Adobe\0d\0\0"),
        "exif-short": (0xE1, b"Exif\0\0"),
        "exif-broken": (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "exif-loop": (0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "icc-short": (0xE2, b"ICC_PROFILE\0"),
    }
    for name, segment in segments.items():
        yield Case(f"jpeg/segment/{name}", lambda s=segment: sources.with_segments(plain, s))
    bare = plain[:2] + plain[20:]
    for name, segment in segments.items():
        if name.startswith(("jfif", "adobe")):
            yield Case(
                f"jpeg/segment/{name}-alone", lambda s=segment: sources.with_segments(bare, s)
            )
    yield Case("jpeg/segment/none", lambda: plain[:2] + plain[20:])
    yield Case("jpeg/segment/fill-bytes", lambda: plain[:2] + b"\xff\xff\xff" + plain[2:])


def _cuts() -> Iterator[Case]:
    for progressive in (False, True):
        kind = "progressive" if progressive else "baseline"
        whole = sources.jpeg(card(), subsampling="4:4:4", progressive=progressive)
        scan = whole.rindex(b"\xff\xda")
        # Chromium leaves out the last rows of a baseline one, which has them.
        yield Case(f"jpeg/cut/{kind}-no-eoi", lambda w=whole: w[:-2], status=200, pixels=card())
        yield Case(f"jpeg/cut/{kind}-half-eoi", lambda w=whole: w[:-1], status=200, pixels=card())
        for percent in (1, 10, 25, 50, 75, 90):
            at = scan + (len(whole) - scan) * percent // 100
            for mended in (False, True):
                yield Case(
                    f"jpeg/cut/{kind}-{percent}{'-eoi' * mended}",
                    lambda w=whole, at=at, mended=mended: w[:at] + b"\xff\xd9" * mended,
                    status=422,
                )
        yield Case(f"jpeg/cut/{kind}-head", lambda w=whole: w[:100], status=422)
    whole = sources.jpeg(card(), subsampling="4:4:4")
    for name, rest in {
        "zero": b"\0",
        "text": FOREIGN,
        "picture": sources.jpeg(card()[::-1]),
        "eoi": b"\xff\xd9",
        "much": FOREIGN * 1000,
    }.items():
        yield Case(f"jpeg/behind/{name}", lambda rest=rest: whole + rest)
    yield Case("jpeg/behind/no-eoi-zeros", lambda: whole[:-2] + bytes(64), pixels=card())


def _odd_files() -> Iterator[Case]:
    yield Case("jpeg/odd/lossless", lambda: lossless(grey_card()))
    yield Case("jpeg/odd/arithmetic", lambda: _with_frame(sources.jpeg(card()), 0xC9))
    yield Case("jpeg/odd/hierarchical", lambda: _with_frame(sources.jpeg(card()), 0xC5))
    yield Case("jpeg/odd/extended", lambda: _with_frame(sources.jpeg(card()), 0xC1))
    yield Case("jpeg/odd/no-tables", lambda: _without(sources.jpeg(card()), 0xC4))
    yield Case("jpeg/odd/no-quantization", lambda: _without(sources.jpeg(card()), 0xDB))
    yield Case("jpeg/odd/zero-high", lambda: _high(sources.jpeg(card()), 0))
    yield Case("jpeg/odd/higher", lambda: _high(sources.jpeg(card()), 80), status=422)
    yield Case("jpeg/odd/ultra-hdr", _ultra_hdr)
    yield Case("jpeg/odd/mpo", _mpo)


def _segments_of(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan's data."""
    at, marker = 2, 0
    while marker != 0xDA:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, end
        at = end


def _with_frame(data: bytes, marker: int) -> bytes:
    at = next(start for kind, start, _ in _segments_of(data) if kind == 0xC0)
    return data[: at + 1] + bytes([marker]) + data[at + 2 :]


def _without(data: bytes, marker: int) -> bytes:
    found = [(start, end) for kind, start, end in _segments_of(data) if kind == marker]
    for start, end in reversed(found):
        data = data[:start] + data[end:]
    return data


def _high(data: bytes, height: int) -> bytes:
    at = next(start for kind, start, _ in _segments_of(data) if kind == 0xC0)
    return data[: at + 5] + struct.pack(">H", height) + data[at + 7 :]


def lossless(pixels: Pixels) -> bytes:
    """SOF3 (ITU-T T.81, H): grey of 8 bits, each sample predicted from the one to its left."""
    height, width = pixels.shape
    values = pixels.astype(int)
    left = np.empty_like(values)
    left[:, 1:] = values[:, :-1]
    left[1:, 0] = values[:-1, 0]
    left[0, 0] = 128
    bits = ""
    for off in (values - left).ravel().tolist():
        size = abs(off).bit_length()
        # Every category has a code of four bits, its own number.
        bits += f"{size:04b}"
        if size:
            bits += f"{off if off > 0 else off + (1 << size) - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    counts = bytes([0, 0, 0, 9] + [0] * 12)
    parts = [
        (0xC3, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
        (0xC4, b"\0" + counts + bytes(range(9))),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    ]
    head = b"\xff\xd8" + b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in parts
    )
    return head + coded + b"\xff\xd9"


def _ultra_hdr() -> bytes:
    """A base picture with a gain map behind it, as Ultra HDR writes it."""
    namespace = b"http://ns.adobe.com/hdr-gain-map/1.0/"
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:hdrgm='" + namespace + b"' "
    xmp += b"hdrgm:Version='1.0'/>"
    return sources.with_segments(sources.jpeg(card()), (0xE1, xmp)) + sources.jpeg(
        grey_card(24, 16)
    )


def _mpo() -> bytes:
    out = io.BytesIO()
    first, second = Image.fromarray(card()), Image.fromarray(card()[::-1])
    first.save(out, "MPO", save_all=True, append_images=[second], quality=90)
    return out.getvalue()
