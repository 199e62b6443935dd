"""The frames that are read of moving sources, beside those that Chromium draws."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

from proxy.imaging.animation import read_apng, read_decoded, read_gif
from proxy.imaging.animation.avif_movie import finished
from proxy.imaging.animation.film import FOREVER, Film
from proxy.imaging.color.conversion import to_srgb
from proxy.imaging.containers.inspection import inspect
from proxy.model import formats
from proxy.model.formats import Format
from tests.imaging import browser_frames, moving, sources
from tests.imaging.moving import GifFrame, PngFrame, WebpFrame, plain, ramp

pytestmark = [pytest.mark.slow, pytest.mark.browser]

Show = Callable[[bytes, str], browser_frames.Film]


def read(source: bytes) -> Film | None:
    format_ = formats.sniff(source)
    assert format_ is not None
    facts = inspect(format_, source)

    def convert(image: Image.Image) -> Image.Image:
        return to_srgb(image, facts.profile)

    match format_:
        case Format.GIF:
            return read_gif.film(source, 100)
        case Format.PNG:
            return read_apng.film(source, 100, convert)
        case _:
            return read_decoded.film(format_, facts.picture, convert)


WHOLE = plain(0, 16, 12)
PHOTO = sources.photo(48, 32)
# Chromium 156 takes the samples of a sequence for those of a limited range, whatever the file says.
AVIF = {"quality": 95, "subsampling": "4:4:4", "range": "limited", "duration": 40}


def pictures(*frames: sources.Pixels) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


def rgba(width: int, height: int, seed: int = 1) -> Image.Image:
    """Noise in colour and alpha."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8))


def colored(color: tuple[int, ...], width: int = 16, height: int = 12) -> Image.Image:
    return Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color)


def three(disposal: int) -> list[GifFrame]:
    return [
        GifFrame(ramp(16, 12)),
        GifFrame(plain(1, 6, 5), 4, 3, disposal),
        GifFrame(plain(2, 3, 3), 5, 5),
    ]


def stepped(dispose: int, blend: int) -> list[PngFrame]:
    return [
        PngFrame(rgba(16, 12)),
        PngFrame(rgba(6, 5, 2), 4, 3, dispose, blend),
        PngFrame(rgba(8, 7, 3), 2, 2, dispose, blend),
        PngFrame(rgba(3, 3, 4), 5, 5, 0, blend),
    ]


def mixed(*, clears: bool, blends: bool) -> list[WebpFrame]:
    return [
        WebpFrame(rgba(16, 12), blends=blends),
        WebpFrame(rgba(6, 5, 2), 4, 2, clears, blends),
        WebpFrame(rgba(8, 7, 3), 2, 2, clears, blends),
        WebpFrame(rgba(3, 3, 4), 6, 6, False, blends),
    ]


def disposed(number: int) -> bytes:
    return moving.gif(three(number), (16, 12))


def disposed_at_once(number: int) -> bytes:
    frames = [GifFrame(WHOLE, disposal=number), GifFrame(plain(1, 2, 2), 1, 1)]
    return moving.gif(frames, (16, 12))


def combined(dispose: int, blend: int) -> bytes:
    return moving.apng(stepped(dispose, blend))


def cleared_at_once(number: int) -> bytes:
    frames = [PngFrame(rgba(16, 12), dispose=number), PngFrame(rgba(4, 4, 2), 2, 2, blend=1)]
    return moving.apng(frames)


def joined(clears: bool, blends: bool) -> bytes:
    return moving.webp(mixed(clears=clears, blends=blends), (16, 12))


SOURCES: dict[str, Callable[[], bytes]] = {
    **{f"gif of disposal {number}": partial(disposed, number) for number in range(8)},
    **{
        f"gif whose first frame is disposed of by {number}": partial(disposed_at_once, number)
        for number in (2, 3)
    },
    "gif with a small first frame": lambda: moving.gif(
        [GifFrame(plain(2, 8, 4), 4, 4), GifFrame(plain(1, 5, 5), 1, 2)], (20, 14)
    ),
    "gif whose first frame exceeds its canvas": lambda: moving.gif(
        [GifFrame(plain(2, 12, 12), 8, 6), GifFrame(ramp(30, 30))], (16, 12)
    ),
    "gif whose later frames exceed its canvas": lambda: moving.gif(
        [GifFrame(WHOLE), GifFrame(ramp(10, 10), 12, 8, 2), GifFrame(plain(1, 3, 3), 40, 40)],
        (16, 12),
    ),
    "gif of a canvas of nothing": lambda: moving.gif(
        [GifFrame(WHOLE), GifFrame(ramp(16, 12))], (0, 0)
    ),
    "gif with transparency": lambda: moving.gif(
        [
            GifFrame(ramp(16, 12), transparent=3),
            GifFrame(ramp(8, 8, 3), 2, 2, 2, transparent=1),
            GifFrame(ramp(8, 8), 5, 1, transparent=0),
        ],
        (16, 12),
    ),
    "gif with palettes of its frames": lambda: moving.gif(
        [
            GifFrame(ramp(16, 12)),
            GifFrame(ramp(8, 8), 2, 2, local=((9, 8, 7), (90, 80, 70), (200, 100, 50), (1, 2, 3))),
            GifFrame(ramp(8, 8, 2), 3, 3, local=((0, 0, 0), (255, 255, 255))),
        ],
        (16, 12),
    ),
    "gif of greys": lambda: moving.gif(
        [GifFrame(ramp(16, 12)), GifFrame(plain(2, 16, 12))],
        (16, 12),
        colors=[(grey, grey, grey) for grey in range(4)],
    ),
    "gif without a palette": lambda: moving.gif(
        [GifFrame(WHOLE), GifFrame(ramp(16, 12))], (16, 12), colors=()
    ),
    "gif with indices that its palette lacks": lambda: moving.gif(
        [GifFrame(ramp(16, 12)), GifFrame(plain(9, 8, 8), transparent=5)], (16, 12)
    ),
    "gif of interlaced frames": lambda: moving.gif(
        [GifFrame(ramp(16, 12), interlaced=True), GifFrame(ramp(9, 11), 3, 1, interlaced=True)],
        (16, 12),
    ),
    "gif of short frames": lambda: moving.gif(
        [GifFrame(plain(at % 4, 4, 4), delay=delay) for at, delay in enumerate((0, 1, 2, 3, None))],
        (4, 4),
    ),
    "gif that loops five times": lambda: moving.gif(three(1), (16, 12), loops=5),
    "gif that loops once": lambda: moving.gif(three(1), (16, 12), loops=1),
    "gif that loops for ever": lambda: moving.gif(three(1), (16, 12), loops=0),
    "gif with the other extension": lambda: moving.gif(
        three(1), (16, 12), loops=5, loops_as=b"ANIMEXTS1.0"
    ),
    "gif with a frame of nothing": lambda: moving.gif(
        [GifFrame(WHOLE), GifFrame(ramp(16, 12)), GifFrame(plain(2, 16, 12))], (16, 12)
    ).replace(struct_of(0, 0, 16, 12, 3), struct_of(0, 0, 0, 0, 3)),
    **{
        f"apng of disposal {dispose} and blending {blend}": partial(combined, dispose, blend)
        for dispose in (0, 1, 2)
        for blend in (0, 1)
    },
    **{
        f"apng whose first frame is disposed of by {number}": partial(cleared_at_once, number)
        for number in (1, 2)
    },
    "apng whose default picture is no frame": lambda: moving.apng(
        stepped(1, 1)[:3], default=colored((255, 0, 0, 255))
    ),
    "apng with a palette": lambda: moving.apng(
        [PngFrame(paletted(0)), PngFrame(paletted(1, 8, 8), 3, 2, 0, 1)]
    ),
    "apng of greys": lambda: moving.apng(
        [PngFrame(Image.fromarray(PHOTO[..., at])) for at in range(3)]
    ),
    "apng of sixteen bits": lambda: moving.apng(
        [PngFrame(Image.fromarray(sources.wide(PHOTO[..., at]))) for at in range(2)]
    ),
    "apng with a gamma": lambda: moving.apng(
        [PngFrame(colored((128, 60, 10))), PngFrame(colored((10, 60, 128), 4, 4), 3, 3)],
        chunks=[(b"gAMA", (100_000).to_bytes(4, "big"))],
    ),
    "apng of odd durations": lambda: moving.apng(
        [
            PngFrame(colored((at * 50, 0, 0)), delay=delay)
            for at, delay in enumerate(((0, 100), (1, 100), (1, 99), (1, 30), (7, 0), (3, 1)))
        ]
    ),
    "apng that plays twice": lambda: moving.apng(stepped(0, 0), plays=2),
    "apng that declares more frames": lambda: moving.apng(stepped(0, 1), declared=9),
    "apng that declares fewer frames": lambda: moving.apng(stepped(0, 1), declared=2),
    "apng that declares its frames twice": lambda: moving.apng(
        stepped(0, 1), chunks=[(b"acTL", struct.pack(">II", 2, 5))]
    ),
    **{
        f"webp that {'clears' * clears or 'keeps'} and {'blends' * blends or 'replaces'}": partial(
            joined, clears, blends
        )
        for clears in (False, True)
        for blends in (False, True)
    },
    "webp with a small first frame": lambda: moving.webp(
        [WebpFrame(rgba(6, 6), 4, 4), WebpFrame(rgba(6, 6, 2), 8, 2)], (20, 14)
    ),
    "webp of short frames": lambda: moving.webp(
        [WebpFrame(colored((at, 0, 0, 255)), duration=at) for at in (0, 5, 10, 11, 20)], (16, 12)
    ),
    "webp that plays thrice": lambda: moving.webp(
        mixed(clears=True, blends=True), (16, 12), plays=3
    ),
    # With chroma at full size: how it is enlarged is another matter, of stills too.
    "avif": lambda: moving.saved("AVIF", pictures(PHOTO, PHOTO[::-1], 255 - PHOTO), **AVIF),
    "avif with alpha": lambda: moving.saved(
        "AVIF",
        pictures(sources.with_alpha(PHOTO), sources.with_alpha(PHOTO[::-1])),
        **AVIF | {"duration": [7, 200]},
    ),
    "avif that plays thrice": lambda: finished(
        moving.saved("AVIF", pictures(PHOTO, PHOTO[::-1]), **AVIF), 3
    ),
    "avif that plays once": lambda: finished(
        moving.saved("AVIF", pictures(PHOTO, PHOTO[::-1]), **AVIF), 1
    ),
}


def struct_of(left: int, top: int, width: int, height: int, index: int) -> bytes:
    """The head of an image descriptor; ``index`` tells apart what is never equal."""
    assert index
    return b"," + b"".join(side.to_bytes(2, "little") for side in (left, top, width, height))


def paletted(first: int, width: int = 16, height: int = 12) -> Image.Image:
    image = Image.fromarray((ramp(width, height) + first) % 4).convert("L")
    image.putpalette(moving.flat_palette(moving.PALETTE))
    image.info["transparency"] = bytes([0, 128, 255, 255])
    return image


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_every_frame_is_what_chromium_draws_at_its_time(
    make: Callable[[], bytes], show: Show
) -> None:
    """Catches a rule of disposal, blending, offsets, palettes, durations or loops taken wrong."""
    source = make()
    format_ = formats.sniff(source)
    assert format_ is not None
    film = read(source)
    wanted = show(source, format_.content_type)
    assert film is not None
    assert not wanted.broken
    frames = list(film.frames())
    assert len(frames) == len(wanted.frames)
    assert (film.plays or math.inf) == wanted.plays
    for number, (frame, other) in enumerate(zip(frames, wanted.frames, strict=True)):
        assert abs(frame.duration - other.duration) < 1, number
        got = np.asarray(frame.image.convert("RGBA")).astype(int)
        assert got.shape == other.pixels.shape
        # A browser's canvas holds colours multiplied by their alpha: thin ones are not exact.
        weight = np.minimum(got[..., 3:], other.pixels[..., 3:]) / 255
        away = np.abs(got - other.pixels) * np.concatenate([weight] * 3 + [np.ones_like(weight)], 2)
        # Decoders of AVIF differ, and so do curves: a gamma of 2.2 is not quite that of sRGB.
        exact = format_ is not Format.AVIF and b"gAMA" not in source
        assert away.max() <= (2 if exact else 4), number


def test_a_film_is_known_by_its_second_frame() -> None:
    """Catches a still GIF, PNG or WebP that is taken for a moving one."""
    still = moving.gif([GifFrame(WHOLE)], (16, 12))
    assert read(still) is None
    assert read(moving.apng([PngFrame(rgba(16, 12))])) is None
    alone = moving.apng([PngFrame(rgba(16, 12))], default=rgba(16, 12, 2))
    assert read(alone) is None
    assert read(moving.apng(stepped(0, 1), plays=1 << 31)) is None  # no number in a PNG
    assert read(sources.webp(PHOTO)) is None
    assert read(sources.avif(PHOTO)) is None
    assert FOREVER == 0
