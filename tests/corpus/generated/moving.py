"""What moves, and GIFs: disposal, blending, offsets, loops, durations, stills in disguise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image

from tests.corpus.cases import Case
from tests.corpus.generated import FOREIGN
from tests.corpus.generated.pictures import (
    PALETTE,
    ApngFrame,
    GifFrame,
    WebpFrame,
    apng,
    card,
    gif,
    gif_extension,
    glass,
    riff_chunk,
    turning,
    webp_animation,
)
from tests.imaging import sources
from tests.imaging.sources import Pixels

CANVAS = (96, 64)

DURATIONS = {
    "even": (100, 100, 100),
    "uneven": (40, 300, 120),
    "zero": (0, 0, 0),
    "ten": (10, 10, 10),
    "twenty": (20, 20, 20),
    "one-brief": (10, 200, 0),
    "long": (3000, 100, 7000),
}
"""Milliseconds."""


def indices(shift: int = 0, width: int = 96, height: int = 64) -> Pixels:
    """Stripes of eight colours."""
    found: Pixels = ((np.indices((height, width)).sum(0) // 8 + shift) % 8).astype(np.uint8)
    return found


def cases() -> Iterator[Case]:
    yield from _gif_stills()
    yield from _gifs()
    yield from _gif_foreign()
    yield from _apngs()
    yield from _webps()
    yield from _avifs()
    yield from _large()


def _gif_stills() -> Iterator[Case]:
    small = indices(0, 32, 32)
    for x, y in ((0, 0), (16, 16), (32, 32), (48, 40)):
        for transparent in (None, 3):
            name = f"{x}-{y}{'-clear' * (transparent is not None)}"
            frame = GifFrame(small, x, y, transparent=transparent)
            yield Case(f"gif/canvas/{name}", lambda f=frame: gif((64, 64), [f]))
    yield Case("gif/canvas/background", lambda: gif((64, 64), [GifFrame(small, 16, 16)],
                                                    background=1))  # fmt: skip
    yield Case("gif/canvas/larger-frame", lambda: gif((20, 20), [GifFrame(small)]))
    yield Case("gif/canvas/none", lambda: gif((0, 0), [GifFrame(small)]))
    yield Case("gif/canvas/no-control", lambda: gif((64, 64), [GifFrame(small, 16, 16, None)]))
    yield Case("gif/canvas/interlaced", lambda: gif(CANVAS, [GifFrame(indices(), interlaced=True)]))
    yield Case("gif/canvas/local", lambda: gif(CANVAS, [GifFrame(indices(), palette=PALETTE)],
                                               palette=None))  # fmt: skip
    yield Case("gif/canvas/no-palette", lambda: gif(CANVAS, [GifFrame(indices())], palette=None))
    yield Case(
        "gif/canvas/short-palette", lambda: gif(CANVAS, [GifFrame(indices())], palette=PALETTE[:12])
    )
    nothing = indices()[:0]
    yield Case("gif/canvas/empty-frame", lambda: gif(CANVAS, [GifFrame(nothing)]))
    yield Case(
        "gif/canvas/empty-frame-first",
        lambda: gif(CANVAS, [GifFrame(nothing), GifFrame(indices())]),
    )
    yield Case("gif/canvas/no-frame", lambda: gif(CANVAS, []), status=422)
    yield Case("gif/canvas/no-trailer", lambda: gif(CANVAS, [GifFrame(indices())], end=b""))
    whole = gif(CANVAS, [GifFrame(indices())])
    yield Case("gif/canvas/cut", lambda: whole[: len(whole) // 2], status=422)
    for colors in (2, 16, 256):
        yield Case(f"gif/canvas/photo-{colors}", lambda c=colors: sources.gif(card(), c))


def _gifs() -> Iterator[Case]:
    for disposal, transparent in product((0, 1, 2, 3), (None, 3)):
        frames = [
            GifFrame(indices(), disposal=1 if disposal == 3 else disposal),
            GifFrame(indices(2, 48, 32), 16, 16, disposal=disposal, transparent=transparent),
            GifFrame(indices(5, 40, 40), 48, 8, disposal=disposal, transparent=transparent),
            GifFrame(indices(1, 24, 24), 0, 40, disposal=disposal, transparent=transparent),
        ]
        name = f"disposal-{disposal}{'-clear' * (transparent is not None)}"
        yield Case(f"gif/moving/{name}", lambda f=frames: gif(CANVAS, f, loops=0))
    for disposal in (1, 2, 3):
        frames = [
            GifFrame(indices(shift, 32, 32), 8 * shift, 4 * shift, disposal=disposal)
            for shift in range(4)
        ]
        yield Case(f"gif/moving/first-small-{disposal}", lambda f=frames: gif((64, 64), f, loops=0))
    plain = [GifFrame(indices(shift)) for shift in range(3)]
    for loops in (None, 0, 1, 2, 5, 65535):
        yield Case(f"gif/moving/loops-{loops}", lambda n=loops: gif(CANVAS, plain, loops=n))
    for name, durations in DURATIONS.items():
        frames = [
            GifFrame(indices(shift), delay=duration // 10)
            for shift, duration in enumerate(durations)
        ]
        yield Case(f"gif/moving/time-{name}", lambda f=frames: gif(CANVAS, f, loops=0))
    no_control = [GifFrame(indices(shift), delay=None) for shift in range(3)]
    yield Case("gif/moving/no-control", lambda: gif(CANVAS, no_control, loops=0))
    same = [GifFrame(indices()) for _ in range(3)]
    yield Case("gif/moving/identical", lambda: gif(CANVAS, same, loops=0))
    yield Case("gif/moving/one-frame", lambda: gif(CANVAS, same[:1], loops=0))
    locals_ = [
        GifFrame(indices(), palette=PALETTE[shift * 3 :] + PALETTE[: shift * 3])
        for shift in range(3)
    ]
    yield Case("gif/moving/local-palettes", lambda: gif(CANVAS, locals_, loops=0))
    beyond = [GifFrame(indices()), GifFrame(indices(3, 48, 48), 80, 40)]
    yield Case("gif/moving/beyond-canvas", lambda: gif(CANVAS, beyond, loops=0))
    interlaced = [GifFrame(indices(shift), interlaced=True) for shift in range(3)]
    yield Case("gif/moving/interlaced", lambda: gif(CANVAS, interlaced, loops=0))
    whole = gif(CANVAS, plain, loops=0)
    yield Case("gif/moving/cut", lambda: whole[: len(whole) * 5 // 6])
    yield Case("gif/moving/no-trailer", lambda: whole[:-1])
    again = b"!\xff\x0bNETSCAPE2.0\x03\x01\x05\0\0"
    yield Case("gif/moving/loops-twice", lambda: gif(CANVAS, plain, loops=2, extensions=again))
    yield Case("gif/moving/loops-at-the-end", lambda: gif(CANVAS, plain, end=again + b";"))
    yield Case("gif/moving/photo", lambda: sources.animation("GIF", turning(5), loop=0))
    many = [GifFrame(indices(shift, 48, 32)) for shift in range(60)]
    yield Case("gif/moving/many", lambda: gif((48, 32), many, loops=0))
    clear = [GifFrame(indices(shift), transparent=shift, disposal=2) for shift in range(1, 5)]
    yield Case("gif/moving/clear", lambda: gif(CANVAS, clear, loops=0))
    tiny = [GifFrame(indices(shift, 1, 1)) for shift in range(3)]
    yield Case("gif/moving/1x1", lambda: gif((1, 1), tiny, loops=0))


def _gif_foreign() -> Iterator[Case]:
    frames = [GifFrame(indices(shift)) for shift in range(3)]
    extensions = {
        "comment": gif_extension(0xFE, FOREIGN),
        "xmp": gif_extension(0xFF, b"XMP DataXMP", FOREIGN),
        "application": gif_extension(0xFF, b"PRIVATE1.00", FOREIGN),
        "icc": gif_extension(0xFF, b"ICCRGBG1012", sources.ADOBE_RGB[:255]),
        "text": gif_extension(0x01, bytes(12), FOREIGN),
        "unknown": gif_extension(0x77, FOREIGN),
        "animexts": b"!\xff\x0bANIMEXTS1.0\x03\x01\0\0\0",
        "buffering": b"!\xff\x0bNETSCAPE2.0\x05\x02\0\0\1\0\0",
    }
    for (name, data), count in product(extensions.items(), (1, 3)):
        yield Case(
            f"gif/foreign/{name}-{count}",
            lambda d=data, n=count: gif(CANVAS, frames[:n], loops=0, extensions=d),
        )
    for count in (1, 3):
        yield Case(
            f"gif/foreign/trailing-{count}",
            lambda n=count: gif(CANVAS, frames[:n], loops=0, end=b";" + FOREIGN),
        )


def _apngs() -> Iterator[Case]:
    base = glass()
    part = np.ascontiguousarray(glass()[:32, 32:80])
    for dispose, blend in product((0, 1, 2), (0, 1)):
        frames = [
            ApngFrame(base, dispose=0 if dispose == 2 else dispose),
            ApngFrame(part, 16, 16, dispose=dispose, blend=blend),
            ApngFrame(part[::-1], 40, 24, dispose=dispose, blend=blend),
            ApngFrame(part[:16], 0, 40, dispose=dispose, blend=blend),
        ]
        yield Case(f"apng/dispose-{dispose}-blend-{blend}", lambda f=frames: apng(f))
    solid = [np.dstack([frame, np.full((64, 96), 255, np.uint8)]) for frame in turning(3)]
    plain = [ApngFrame(frame) for frame in solid]
    for plays in (0, 1, 2, 7):
        yield Case(f"apng/plays-{plays}", lambda n=plays: apng(plain, n))
    for name, durations in DURATIONS.items():
        frames = [
            ApngFrame(frame, delay=(duration, 1000))
            for frame, duration in zip(solid, durations, strict=True)
        ]
        yield Case(f"apng/time-{name}", lambda f=frames: apng(f))
    no_denominator = [ApngFrame(frame, delay=(20, 0)) for frame in solid]
    yield Case("apng/time-no-denominator", lambda: apng(no_denominator))
    yield Case("apng/default-is-no-frame", lambda: apng(plain, default=base[::-1]))
    yield Case("apng/default-is-no-frame-one", lambda: apng(plain[:1], default=base[::-1]))
    yield Case("apng/default-is-no-frame-small", lambda: apng(
        [ApngFrame(plain[0].pixels[:32, :48], 20, 10), plain[0]], default=base))  # fmt: skip
    yield Case("apng/one-frame", lambda: apng(plain[:1]))
    yield Case("apng/identical", lambda: apng([plain[0]] * 3))
    yield Case(
        "apng/foreign",
        lambda: apng(plain, more=sources.png_chunk(b"tEXt", b"Comment\0" + FOREIGN)) + FOREIGN,
    )
    gamma = sources.png_chunk(b"gAMA", (62500).to_bytes(4, "big"))
    yield Case("apng/gama", lambda: apng(plain, more=gamma))
    code = sources.png_chunk(b"cICP", bytes([12, 13, 0, 1]))
    yield Case("apng/cicp", lambda: apng(plain, more=code))
    whole = apng(plain)
    yield Case("apng/cut", lambda: whole[: len(whole) * 3 // 4])
    yield Case("apng/pillow", lambda: sources.animation("PNG", turning(4), loop=2))
    art = [Image.fromarray(sources.pixel_art(96, 64, 16)[:, ::step]) for step in (1, -1)]
    yield Case(
        "apng/palette",
        lambda: sources.encoded(
            art[0].quantize(6), "PNG", save_all=True, append_images=[art[1].quantize(6)],
            duration=80,
        ),
    )  # fmt: skip


def _webps() -> Iterator[Case]:
    base = glass()
    part = np.ascontiguousarray(glass()[:32, 32:80])
    for dispose, blend, lossy in product((False, True), repeat=3):
        frames = [
            WebpFrame(base, dispose=dispose, lossy=lossy),
            WebpFrame(part, 16, 16, dispose=dispose, blend=blend, lossy=lossy),
            WebpFrame(part[::-1], 40, 24, dispose=dispose, blend=blend, lossy=lossy),
            WebpFrame(part[:16], 0, 40, dispose=dispose, blend=blend, lossy=lossy),
        ]
        name = f"dispose-{dispose:d}-blend-{blend:d}{'-lossy' * lossy}"
        yield Case(f"webp/moving/{name}", lambda f=frames: webp_animation(CANVAS, f))
    small = [WebpFrame(part, 8 * n, 4 * n, dispose=True) for n in range(4)]
    for background in (0, 0xFF0000FF, 0xFFFFFFFF):
        yield Case(
            f"webp/moving/first-small-{background:08x}",
            lambda b=background: webp_animation(CANVAS, small, background=b),
        )
    plain = [WebpFrame(frame) for frame in turning(3)]
    for loops in (0, 1, 2, 9):
        yield Case(
            f"webp/moving/loops-{loops}", lambda n=loops: webp_animation(CANVAS, plain, loops=n)
        )
    for name, durations in DURATIONS.items():
        frames = [
            WebpFrame(frame, duration=duration)
            for frame, duration in zip(turning(3), durations, strict=True)
        ]
        yield Case(f"webp/moving/time-{name}", lambda f=frames: webp_animation(CANVAS, f))
    yield Case("webp/moving/identical", lambda: webp_animation(CANVAS, [plain[0]] * 3))
    yield Case("webp/moving/one-frame", lambda: webp_animation(CANVAS, plain[:1]))
    yield Case("webp/moving/one-small", lambda: webp_animation(CANVAS, small[:1]))
    chunk = riff_chunk(b"FRGN", FOREIGN)
    xmp = riff_chunk(b"XMP ", FOREIGN)
    yield Case("webp/moving/unknown-chunk", lambda: webp_animation(CANVAS, plain, before=chunk,
                                                                   after=chunk))  # fmt: skip
    yield Case("webp/moving/xmp", lambda: webp_animation(CANVAS, plain, flags=4, after=xmp))
    yield Case("webp/moving/trailing", lambda: webp_animation(CANVAS, plain) + FOREIGN)
    icc = riff_chunk(b"ICCP", sources.ADOBE_RGB)
    yield Case("webp/moving/icc", lambda: webp_animation(CANVAS, plain, flags=0x20, before=icc))
    yield Case("webp/moving/pillow", lambda: sources.animation("WEBP", turning(5), loop=3))
    whole = webp_animation(CANVAS, plain)
    yield Case("webp/moving/cut", lambda: whole[: len(whole) * 3 // 4])


def avif(frames: Sequence[Pixels], **options: object) -> bytes:
    """A sequence of limited range: Chromium takes the samples of any track for that."""
    return sources.animation("AVIF", frames, **{"quality": 95, "range": "limited", **options})


def _avifs() -> Iterator[Case]:
    for count in (2, 3, 6):
        yield Case(f"avif/moving/{count}", lambda n=count: avif(turning(n)))
    yield Case("avif/moving/full-range", lambda: avif(turning(3), range="full"))
    clear = [sources.with_alpha(frame) for frame in turning(3)]
    yield Case("avif/moving/clear", lambda: avif(clear))
    for name, durations in DURATIONS.items():
        yield Case(
            f"avif/moving/time-{name}", lambda d=durations: avif(turning(3), duration=list(d))
        )
    yield Case("avif/moving/identical", lambda: avif([card()] * 3))
    grey = [np.ascontiguousarray(frame[..., 1]) for frame in turning(3)]
    yield Case("avif/moving/grey", lambda: avif(grey))


def _large() -> Iterator[Case]:
    """Larger than the box of the preset that keeps what moves."""
    kinds = {
        "photo": [sources.photo(1700, 300), sources.photo(1700, 300, seed=2)],
        "flat": [sources.pixel_art(1700, 300, 20), sources.pixel_art(1700, 300, 20)[:, ::-1]],
    }
    for kind, frames in kinds.items():
        for format_ in ("GIF", "PNG", "WEBP"):
            yield Case(
                f"large/{kind}-{format_.lower()}",
                lambda n=format_, f=frames: sources.animation(n, f),
            )
        yield Case(f"large/{kind}-avif", lambda f=frames: avif(f))
    yield Case("large/still-gif", lambda: sources.gif(sources.pixel_art(3000, 2000, 50)))
