"""Bounds on the structure of a file: what costs a decoder minutes is refused before it decodes."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from io import BytesIO
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proxy.errors import UndecodableImage, UnsupportedImage
from proxy.imaging import bounds, decode
from proxy.imaging import memory_estimate as memory
from proxy.imaging.containers import jpeg, png
from proxy.imaging.containers.facts import MAX_PARTS
from proxy.imaging.containers.inspection import inspect
from proxy.imaging.pipeline import render
from proxy.imaging.workers.client import TIME_LIMIT
from proxy.model.formats import OUTPUTS, Format, sniff
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.imaging import sources

PRESET = Preset(width=40, fit="contain", quality=80)
PHOTO = sources.photo(160, 120)
MEGABYTES = 10_000_000

MOST_STEPS = 10_000
"""Lines of ``proxy``, each of which takes well under a microsecond, before a job is admitted."""


def with_scans(count: int) -> bytes:
    """A progressive grey JPEG whose scans after the first say only that nothing changes."""
    source = sources.jpeg(sources.grey(64, 48), progressive=True)
    tables = source.index(b"\xff\xda")
    first_end = jpeg.AFTER_SCAN.search(source, tables + 10)
    assert first_end is not None
    # One Huffman code, "1": all blocks are done, in runs of the longest length (EOB14).
    codes = b"\xff\xc4" + struct.pack(">HB", 2 + 1 + 16 + 1, 0x10) + b"\1" + bytes(15) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0x10, 1, 63, 0) + bytes(8)
    # The first scan is of all bits of the first coefficient: the file lacks nothing.
    first = bytearray(source[: first_end.start()])
    first[tables + 9] = 0
    return bytes(first) + (codes + scan) * (count - 1) + b"\xff\xd9"


def repeated(head: bytes, part: bytes, tail: bytes = b"") -> bytes:
    return head + part * ((MEGABYTES - len(head)) // len(part)) + tail


GIF = sources.gif(PHOTO)
GIF_HEAD = GIF[: 13 + 3 * 256]
PNG = sources.png(PHOTO)

HOSTILE: dict[str, bytes] = {
    "jpeg of fill bytes": repeated(b"\xff\xd8", b"\xff"),
    "jpeg of escaped bytes": repeated(b"\xff\xd8", b"\xff\0"),
    "jpeg of zeros": repeated(b"\xff\xd8\xff", b"\0"),
    "jpeg of fill before each segment": repeated(b"\xff\xd8", b"\xff" * 60_000 + b"\xfe\0\2"),
    "jpeg of empty segments": repeated(b"\xff\xd8", b"\xff\xe0\0\2"),
    "jpeg of restart markers": repeated(b"\xff\xd8", b"\xff\xd0"),
    "jpeg of scans": repeated(b"\xff\xd8", b"\xff\xda\0\2"),
    "jpeg of scans after damage": repeated(b"\xff\xd8\xff\xe0\0\0", b"\xff\xda\0\2"),
    "gif of empty extensions": repeated(GIF_HEAD, b"!\xfe\0"),
    "gif of small blocks": repeated(GIF_HEAD + b"!\xfe", b"\1x"),
    "gif of zeros": repeated(GIF_HEAD, b"\0"),
    "png of empty chunks": repeated(PNG[:33], sources.png_chunk(b"IDAT", b"")),
    "webp of empty chunks": repeated(b"RIFF\xff\xff\xff\xffWEBP", b"ICCP\0\0\0\0"),
    "avif of empty boxes": repeated(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", b"\0\0\0\x08free"),
    "avif of sizes": repeated(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", b"ispe"),
}  # fmt: skip

each_hostile = pytest.mark.parametrize("source", HOSTILE.values(), ids=list(HOSTILE))


def steps_of(work: Callable[[], object]) -> int:
    """Count the lines of ``proxy`` that ``work`` runs, and the bytes that it copies at once."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if "/proxy/" not in frame.f_code.co_filename:
            return None
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except (UndecodableImage, UnsupportedImage):
        pass
    finally:
        sys.settrace(before)
    return steps


@each_hostile
def test_the_estimate_of_any_header_takes_a_bounded_number_of_steps(source: bytes) -> None:
    """Catches a header that is walked byte by byte on the event loop: 10 MB take seconds."""
    steps = steps_of(lambda: memory.estimate(source, PRESET, None, max_pixels=10**6))
    assert 0 < steps < MOST_STEPS


def test_the_estimate_searches_a_bounded_number_of_bytes() -> None:
    """Catches a search that is one step of Python and walks through the whole file."""
    searched = 0

    class Counting:
        def search(self, data: bytes, start: int, end: int = sys.maxsize) -> object:
            nonlocal searched
            found = real.search(data, start, end)
            searched += (found.end() if found else min(end, len(data))) - start
            return found

    real = jpeg._MARKER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "_MARKER", Counting())
        for name, source in HOSTILE.items():
            if name.startswith("jpeg"):
                memory.estimate(source, PRESET, None, max_pixels=10**6)
                assert searched <= jpeg.MAX_FILL + 1000, name
                searched = 0


@each_hostile
def test_a_file_of_nothing_but_parts_is_refused_before_a_decoder_sees_it(
    source: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a decoder whose readers, some in Python, walk through millions of parts."""
    if source is HOSTILE["avif of sizes"]:
        pytest.skip("one box, which the decoder refuses at once")

    def never(*_: object) -> None:
        pytest.fail("a decoder saw it")

    monkeypatch.setattr(decode, "_open", never)
    with pytest.raises(UndecodableImage):
        render(source, PRESET, None, max_pixels=10**6)


@pytest.mark.parametrize("make", [sources.jpeg, sources.png, sources.gif, sources.webp])
def test_bytes_after_the_end_are_no_parts(make: Callable[[sources.Pixels], bytes]) -> None:
    """Catches a good picture that is refused for what somebody appended to it."""
    made = make(PHOTO)
    assert render(made + bytes(MEGABYTES), PRESET, None, max_pixels=10**6) == render(
        made, PRESET, None, max_pixels=10**6
    )


@each_hostile
def test_refusing_a_file_takes_a_bounded_number_of_steps(source: bytes) -> None:
    """Catches a count of parts that goes on after the bound."""
    format_ = sniff(source)
    assert format_ is not None
    assert steps_of(lambda: bounds.check(format_, source)) < 20 * MAX_PARTS


def test_as_many_scans_as_the_bound_allows_are_decoded_and_one_more_is_not() -> None:
    """Catches 76 bytes that cost a walk over 49 million coefficients, as often as one likes."""
    render(with_scans(bounds.MAX_SCANS), PRESET, None, max_pixels=10**6)
    with pytest.raises(UndecodableImage, match="scans"):
        render(with_scans(bounds.MAX_SCANS + 1), PRESET, None, max_pixels=10**6)


def test_scans_are_counted_behind_segments_that_hide_them() -> None:
    """Catches a count that an end marker within a comment ends, or a scan in it prolongs."""
    many = with_scans(bounds.MAX_SCANS + 1)
    second = many.index(b"\xff\xc4", many.index(b"\xff\xda"))
    hidden = many[:second] + b"\xff\xfe\0\4\xff\xd9" + many[second:]
    with pytest.raises(UndecodableImage, match="scans"):
        bounds.check(Format.JPEG, hidden)
    noted = sources.with_segments(sources.jpeg(PHOTO), (0xE1, b"\xff\xda" * 100))
    bounds.check(Format.JPEG, noted + b"\xff\xda" * 100)


def test_encoders_stay_far_below_the_bounds() -> None:
    """Catches a bound that real pictures reach."""
    inks = sources.cmyk(PHOTO)
    progressive = [
        sources.jpeg(PHOTO, progressive=True),
        sources.cmyk_jpeg(inks, progressive=True),
        sources.jpeg(sources.grey(64, 48), progressive=True),
    ]
    for source in progressive:
        # And a bound that says nothing: each scan of 49 megapixels takes 84 ms.
        assert source.count(b"\xff\xda") * 3 // 2 <= bounds.MAX_SCANS <= 40
    # libpng's chunks of 8 KiB, in the largest file that is fetched.
    assert MAX_PARTS > 20 * (MEGABYTES // 8192)


def test_only_the_first_profile_of_a_png_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches 2300 profiles, each of which inflates to megabytes: 23 seconds."""
    inflated: list[bytes] = []
    real = png._inflate_profile

    def counted(body: bytes) -> bytes | None:
        inflated.append(body)
        return real(body)

    monkeypatch.setattr(png, "_inflate_profile", counted)
    many = sources.with_chunks(PNG, [(b"iCCP", b"x\0\0not zlib %d" % n) for n in range(100)])
    inspect(Format.PNG, many)
    assert inflated == [b"x\0\0not zlib 0"]


def test_a_gif_with_comments_comes_out_as_without_them() -> None:
    """Catches extensions that are removed together with the transparent colour, or the frame."""
    image = Image.fromarray(PHOTO).quantize(16)
    plain = sources.encoded(image, "GIF", transparency=3)
    noted = sources.encoded(image, "GIF", transparency=3, comment=b"note " * 5000)
    assert len(inspect(Format.GIF, noted).picture) < len(noted) - 20_000
    results = [render(source, PRESET, Format.PNG, max_pixels=10**6) for source in (plain, noted)]
    assert results[0] == results[1]
    with Image.open(BytesIO(results[0].data)) as made:
        assert made.convert("RGBA").getchannel("A").getextrema() == (0, 255)


NOISE = np.random.default_rng(1).integers(0, 256, (800, 1200, 4), dtype=np.uint8)

COSTLIEST: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: sources.cmyk_jpeg(NOISE, progressive=True),
    "png": lambda: sources.png(NOISE, compress_level=1),
    "webp": lambda: sources.webp(NOISE, quality=100, method=0),
    "gif": lambda: sources.gif(NOISE[..., :3]),
    "avif": lambda: sources.avif(NOISE, quality=95, speed=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", COSTLIEST)
@pytest.mark.parametrize("output", OUTPUTS)
def test_noise_takes_less_cpu_time_than_its_limit(source: str, output: Format) -> None:
    """Catches a limit that ends a picture which only is costly: a photograph takes a tenth."""
    made = COSTLIEST[source]()
    large = Preset(width=1200, fit="contain", quality=90)
    limit = memory.estimate(made, large, output, max_pixels=10**7).cpu - memory.LEAST_SECONDS
    began = time.process_time()
    render(made, large, output, max_pixels=10**7)
    assert time.process_time() - began < limit


def test_the_limit_of_cpu_time_grows_with_the_picture_and_has_an_end() -> None:
    """Catches one limit for all: an icon could take as long as 50 megapixels."""
    icon = memory.estimate(sources.png(PHOTO), PRESET, None, max_pixels=50_000_000)
    assert memory.LEAST_SECONDS <= icon.cpu < memory.LEAST_SECONDS + 0.1
    photo = sources.jpeg(np.zeros((3000, 4000, 3), np.uint8))
    avatar = memory.estimate(photo, DEFAULT_PRESETS["avatar"], None, max_pixels=50_000_000)
    assert 4 < avatar.cpu < 6
    for preset in DEFAULT_PRESETS.values():
        for output in OUTPUTS:
            distrusted = memory.estimate(
                photo, preset, output, max_pixels=50_000_000, trusting=False
            )
            # Attempts to be no larger than the source are for its own format alone.
            shares = 2 if output is Format.JPEG else 1
            assert distrusted.cpu <= shares * memory.MOST_SECONDS <= TIME_LIMIT * 2 / 3
