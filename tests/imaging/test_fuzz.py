"""Twenty thousand damaged pictures, each through a sandboxed worker.

``python -m tests.imaging.test_fuzz [--cases N] [--seed N]`` runs other ones, with a progress bar,
and writes those that fail to files.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.config import Config
from proxy.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging import memory_estimate as memory
from proxy.imaging.containers import jpeg, png, webp
from proxy.imaging.memory_estimate import WORKER
from proxy.imaging.pipeline import render
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model import formats
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset
from tests.corpus.generated import boxes, moving, pictures, pngs
from tests.examples import many
from tests.imaging import sources
from tests.imaging.properties import light_level, nclx, with_colors

pytestmark = [pytest.mark.slow, pytest.mark.time_limit(600)]

CASES = 20_000
SEED = 20_240_229
MEGAPIXELS = 0.25
"""Enough for what is here; with 50, mutated headers would take hours to decode."""

SECONDS = 30
"""For one case, on a machine that is busy: most take a few milliseconds."""

PRESETS = (
    Preset(width=24, height=16, fit="cover", quality=80),
    Preset(width=40, fit="contain", quality=80),
    Preset(width=40, fit="contain", quality=90, animated=True),
)

CONFIG = Config.model_validate(
    {"process": {"threads": 2, "max_megapixels": MEGAPIXELS, "queue_wait": 600}}
)

Mutation = Callable[[random.Random, bytes], bytes]


@cache
def corpus() -> tuple[bytes, ...]:
    """Valid files: small, and different in what decoders have separate code for."""
    photo = sources.photo(48, 36)
    glass = sources.with_alpha(photo)
    grey = sources.grey(48, 36)
    inks = sources.cmyk(photo)
    art = sources.pixel_art(48, 36)
    camera = sources.exif(6)
    found = [
        sources.jpeg(photo),
        sources.jpeg(photo, progressive=True, subsampling=0),
        sources.jpeg(grey, exif=camera),
        sources.jpeg(photo, icc_profile=sources.ADOBE_RGB, exif=camera),
        sources.jpeg(photo, restart_marker_blocks=2),
        sources.cmyk_jpeg(inks),
        sources.ycck_jpeg(inks),
        sources.png(photo),
        sources.png(glass, icc_profile=sources.builtin_profile("p3")),
        sources.png(grey),
        sources.vips_png(sources.wide(photo), bitdepth=16),
        sources.vips_png(photo, interlace=True),
        sources.encoded(Image.fromarray(art).quantize(6), "PNG", transparency=b"\0\x80\xff"),
        sources.encoded(Image.fromarray(grey).convert("1"), "PNG"),
        sources.with_chunks(sources.png(photo), [(b"tRNS", bytes(6)), (b"gAMA", bytes(4))]),
        sources.with_chunks(
            sources.vips_png(sources.wide(photo), bitdepth=16),
            [(b"cICP", b"\x09\x10\0\1"), (b"cLLI", b"\0\x3d\x09\0" * 2), (b"tRNS", bytes(6))],
        ),
        sources.with_chunks(
            sources.png(glass), [(b"gAMA", b"\0\0\xf4\x24"), (b"cHRM", b"\0\0\x7a\x26" * 8)]
        ),
        sources.animation("PNG", [photo, photo[::-1]]),
        sources.webp(photo),
        sources.webp(glass, lossless=True),
        sources.webp(glass, exif=camera, icc_profile=sources.ADOBE_RGB),
        sources.animation("WEBP", [photo, photo[::-1], art]),
        sources.avif(photo),
        sources.avif(glass, exif=camera),
        sources.ten_bit_avif(photo),
        with_colors(sources.ten_bit_avif(photo), nclx(9, 18), light_level(600)),
        sources.animation("AVIF", [photo, photo[::-1]]),
        sources.gif(art),
        sources.animation("GIF", [art, art[::-1]], disposal=2, transparency=0),
        sources.animation("GIF", [photo, 255 - photo, photo[::-1]], loop=2),
        sources.animation("PNG", [glass, glass[::-1]], blend=1, disposal=1),
        sources.animation("WEBP", [glass, glass[::-1]], lossless=True),
        *heic_files(Image.fromarray(photo), Image.fromarray(glass)),
        *colored_files(),
        *moving_files(),
    ]
    assert all(formats.sniff(file) for file in found)
    return tuple(found)


def colored_files() -> Iterator[bytes]:
    """What names its colours in each way that there is."""
    photo = sources.photo(48, 36)
    indexed = sources.encoded(Image.fromarray(photo).quantize(16), "PNG")
    p3 = pngs.cicp(12, 13)
    yield sources.with_chunks(sources.png(photo), [p3, pngs.gama(62500)])
    yield sources.with_chunks(indexed, [pngs.cicp(9, 16)], b"PLTE")
    chunks = [pngs.gama(45455), pngs.chrm(pngs.P3_CHRM)]
    yield sources.with_chunks(sources.vips_png(sources.wide(photo), bitdepth=16), chunks)
    grey = sources.with_alpha(sources.grey(48, 36))
    yield sources.with_chunks(sources.png(grey), [pngs.iccp(sources.DARK_GREY)])
    yield sources.with_chunks(sources.png(photo), [pngs.iccp(sources.ADOBE_RGB), pngs.SRGB])
    avif = sources.avif(photo)
    yield pictures.with_nclx(avif, 12, 13)
    yield pictures.with_nclx(sources.avif(sources.with_alpha(photo)), 1, 8, full=False)
    codes = pictures.nclx(9, 18, 9, full=True)
    yield boxes.with_property(sources.ten_bit_avif(photo), b"colr", codes, essential=False)
    yield boxes.without_property(avif, b"colr")


def moving_files() -> Iterator[bytes]:
    """What moves, with every way to put a frame on the canvas, and larger than the boxes."""
    photo = sources.photo(48, 36)
    glass = sources.with_alpha(photo)
    part = np.ascontiguousarray(glass[8:24, 8:28])
    stripes = moving.indices(0, 48, 36)
    yield pictures.gif(
        (48, 36),
        [
            pictures.GifFrame(stripes, delay=0),
            pictures.GifFrame(stripes[:20, :20], 8, 4, disposal=2, transparent=3),
            pictures.GifFrame(stripes[:9, :30], 16, 20, disposal=3, palette=pictures.PALETTE[3:]),
            pictures.GifFrame(stripes[:16, :16], 0, 0, delay=1, interlaced=True),
        ],
        loops=2,
    )
    frames = [
        pictures.ApngFrame(glass),
        pictures.ApngFrame(part, 8, 4, dispose=1, blend=1),
        pictures.ApngFrame(part[:8], 20, 20, (1, 0), dispose=2),
    ]
    yield pictures.apng(frames, 3)
    chunk = sources.png_chunk(*pngs.cicp(12, 13))
    yield pictures.apng(frames, default=glass[::-1], more=chunk)
    for lossy in (False, True):
        yield pictures.webp_animation(
            (48, 36),
            [
                pictures.WebpFrame(glass, lossy=lossy),
                pictures.WebpFrame(part, 8, 4, dispose=True, lossy=lossy),
                pictures.WebpFrame(part[:8], 20, 20, duration=0, blend=False, lossy=lossy),
            ],
            loops=2,
        )
    yield sources.animation("AVIF", [glass, glass[::-1], glass], duration=[0, 40, 900])
    yield sources.animation("GIF", [photo, photo[::-1]], loop=0)


def heic_files(*images: Image.Image) -> Iterator[bytes]:
    """HEIC files, where there is an encoder for it."""
    try:
        import pillow_heif
    except ImportError:
        return
    if not pillow_heif.libheif_info()["encoders"]:
        return
    for image in images:
        out = BytesIO()
        pillow_heif.from_pillow(image).save(out)
        yield out.getvalue()


# Mutations


def flip_bits(random_: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 8, 64))):
        changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def flip_in_head(random_: random.Random, data: bytes) -> bytes:
    """Where sizes, types and tables are."""
    head = min(len(data), 256)
    return flip_bits(random_, data[:head]) + data[head:]


def set_bytes(random_: random.Random, data: bytes) -> bytes:
    at = random_.randrange(len(data))
    value = random_.choice((b"\0", b"\xff", b"\x80", b"\x7f", b"\1")) * random_.choice((1, 2, 4, 9))
    return data[:at] + value + data[at + len(value) :]


def truncate(random_: random.Random, data: bytes) -> bytes:
    return data[: random_.randrange(len(data))]


def cut_out(random_: random.Random, data: bytes) -> bytes:
    at = random_.randrange(len(data))
    return data[:at] + data[at + random_.randrange(1, 40) :]


def repeat(random_: random.Random, data: bytes) -> bytes:
    at = random_.randrange(len(data))
    end = at + random_.randrange(1, 200)
    return data[:end] + data[at:end] * random_.choice((1, 2, 50)) + data[end:]


def splice(random_: random.Random, data: bytes) -> bytes:
    """The beginning of one file, the end of another."""
    other = random_.choice(corpus())
    return data[: random_.randrange(len(data))] + other[random_.randrange(len(other)) :]


def edit_length(random_: random.Random, data: bytes) -> bytes:
    """A number that counts bytes, pixels or entries, made extreme; a PNG's checksum is mended."""
    size, order = random_.choice((2, 4)), random_.choice((">", "<"))
    code = order + {2: "H", 4: "I"}[size]
    at = random_.randrange(max(min(len(data), 600) - size, 1))
    (old,) = struct.unpack_from(code, data.ljust(at + size, b"\0"), at)
    top = (1 << (8 * size)) - 1
    new = random_.choice((0, 1, top, top >> 1, (top >> 1) + 1, old + 1, old - 1, old * 2, old // 2))
    changed = data[:at] + struct.pack(code, new & top) + data[at + size :]
    return with_checksums(changed) if random_.random() < 0.5 else changed


def shuffle_pieces(random_: random.Random, data: bytes) -> bytes:
    """Segments, chunks or boxes in another order, dropped, or doubled."""
    pieces = list(pieces_of(data))
    if len(pieces) < 2:
        return truncate(random_, data)
    first, *rest = pieces
    match random_.randrange(4):
        case 0:
            random_.shuffle(rest)
        case 1:
            del rest[random_.randrange(len(rest))]
        case 2:
            rest.insert(random_.randrange(len(rest)), random_.choice(rest))
        case _:
            others = list(pieces_of(random_.choice(corpus())))
            rest.insert(random_.randrange(len(rest)), random_.choice(others))
    return b"".join([first, *rest])


def flip_in_piece(random_: random.Random, data: bytes) -> bytes:
    """A change that a PNG's checksums do not show, so that it reaches the decoder."""
    return with_checksums(flip_bits(random_, data))


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_in_head,
    set_bytes,
    truncate,
    cut_out,
    repeat,
    splice,
    edit_length,
    shuffle_pieces,
    flip_in_piece,
)


def pieces_of(data: bytes) -> Iterator[bytes]:
    """A file's head, its segments, chunks or top boxes, and its rest."""
    match formats.sniff(data):
        case Format.JPEG:
            spans = [(part.start, part.end) for part in jpeg.segments(data, 2)]
        case Format.PNG:
            spans = [(part.start, part.end) for part in png.chunks(data)]
        case Format.WEBP:
            spans = [(part.start, part.end) for part in webp.chunks(data)]
        case Format.AVIF | Format.HEIC:
            spans = list(_boxes(data))
        case _:
            spans = []
    if not spans:
        yield data
        return
    yield data[: spans[0][0]]
    for start, end in spans:
        yield data[start:end]
    yield data[spans[-1][1] :]


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    at = int.from_bytes(data[:4], "big")
    while 8 <= at <= len(data) - 8:
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 8:
            return
        yield at, min(at + length, len(data))
        at += length


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again; another file as it is."""
    if formats.sniff(data) is not Format.PNG:
        return data
    changed = bytearray(data)
    for chunk in png.chunks(data):
        crc = zlib.crc32(data[chunk.start + 4 : chunk.end - 4])
        changed[chunk.end - 4 : chunk.end] = struct.pack(">I", crc)
    return bytes(changed)


def case(seed: int, number: int) -> tuple[bytes, Preset, Format | None]:
    """One case; the same for the same numbers."""
    random_ = random.Random(f"{seed} {number}")
    data = random_.choice(corpus())
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        data = random_.choice(MUTATIONS)(random_, data or b"\0")
    output = random_.choice((None, None, None, *OUTPUTS))
    if output is Format.AVIF and random_.random() < 0.8:
        output = None  # the slowest encoder by far, and not what is tested
    return data, random_.choice(PRESETS), output


class Run:
    """Cases on their way through a pool.

    Attributes:
        outcomes: how many ended in which format or error.
        faults: what is wrong, by number of the case.
        peak: bytes of the largest worker that was there after a case.
    """

    def __init__(self, seed: int, numbers: Iterator[int], on_done: Callable[[], None]) -> None:
        self._seed = seed
        self._numbers = numbers
        self._on_done = on_done
        self.outcomes: Counter[str] = Counter()
        self.faults: dict[int, str] = {}
        self.peak = 0

    async def go(self) -> None:
        deaths: Counter[str] = Counter()
        pool = ProcessingPool(CONFIG, on_death=lambda reason: deaths.update([reason]))
        async with trio.open_nursery() as outer:
            await outer.start(pool.run)
            async with trio.open_nursery() as nursery:
                for _ in range(4):  # enough that no worker waits for this process
                    nursery.start_soon(self._take_cases, pool)
            outer.cancel_scope.cancel()
        self.outcomes.update({f"worker died: {reason}": n for reason, n in deaths.items()})

    async def _take_cases(self, pool: ProcessingPool) -> None:
        for number in self._numbers:
            source, preset, output = case(self._seed, number)
            began = time.monotonic()
            try:
                made = await pool.process(source, preset, output)
            except (UnsupportedImage, ImageTooLarge, UndecodableImage) as error:
                outcome = type(error).__name__
            except Exception as error:
                outcome = type(error).__name__
                self.faults[number] = repr(error)
            else:
                outcome = made.format.value
                if fault := _fault(made.data, made.format, preset):
                    self.faults[number] = fault
            if time.monotonic() - began > SECONDS:
                self.faults[number] = f"took {time.monotonic() - began:.1f} s"
            self.outcomes[outcome] += 1
            self.peak = max(self.peak, largest_worker())
            self._on_done()


def largest_worker() -> int:
    """The most bytes that were resident in any image worker that is there; 0 without /proc."""
    most = 0
    for pid in (pid for child in children("self") for pid in children(child)):
        with suppress(OSError):  # it ended meanwhile
            # Other tests have servers of their own, until the last one.
            if b"proxy.imaging.workers" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            status = Path(f"/proc/{pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
                most = max(most, int(found[1]) * 1024)
    return most


def children(pid: str) -> Iterator[str]:
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ended meanwhile
            yield from each.read_text().split()


def _fault(data: bytes, format_: Format, preset: Preset) -> str:
    """What is wrong with a result, in any of its frames."""
    with Image.open(BytesIO(data)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
        width = preset.width if preset.fit == "cover" else min(image.width, preset.width)
        if image.width != width or image.format != format_.name:
            return f"{image.format} of {image.size}"
        if number and not preset.animated:
            return f"moves, {number + 1} frames"
    return ""


def test_every_damaged_picture_ends_in_an_image_or_an_error_of_the_table() -> None:
    """Catches an exception of another class, a hang, a crash, and memory beyond the ceiling."""
    run = Run(SEED, iter(range(CASES)), lambda: None)
    trio.run(run.go)
    outcomes = run.outcomes
    assert run.faults == {}, outcomes
    assert not any("died" in outcome for outcome in outcomes), outcomes
    assert sum(outcomes.values()) == CASES
    # Pictures this small need no more than what is documented of a worker between two jobs.
    assert run.peak <= WORKER
    # Catches a corpus that only tests the first check of each decoder.
    assert outcomes["UndecodableImage"] > CASES / 10
    assert CASES - sum(outcomes[name] for name in outcomes if name[0].isupper()) > CASES / 10


def test_the_corpus_is_valid_and_the_cases_are_the_same_each_time() -> None:
    """Catches a corpus of broken files, and failures that nobody can run again."""
    for file in corpus():
        assert render(file, PRESETS[0], Format.PNG, max_pixels=10**6).data
        format_ = formats.sniff(file)
        # A sequence of pictures is the one kind whose size only the decoder knows.
        assert format_ is not None
        assert memory.declared_size(format_, file) or b"moov" in file
    first = [case(SEED, number) for number in range(50)]
    assert first == [case(SEED, number) for number in range(50)]
    assert len({hashlib.sha256(source).digest() for source, _, _ in first}) > 40


@settings(max_examples=many(200), derandomize=False, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_bytes_after_any_beginning_end_in_a_result_or_an_error(data: st.DataObject) -> None:
    """The same in this process, where a failing case shrinks to its cause."""
    file = data.draw(st.sampled_from(corpus()))
    start = data.draw(st.integers(0, len(file)))
    middle = data.draw(st.binary(max_size=64))
    skip = data.draw(st.integers(0, 64))
    source = file[:start] + middle + file[start + skip :]
    with suppress(UnsupportedImage, ImageTooLarge, UndecodableImage):
        assert render(source, PRESETS[0], None, max_pixels=250_000).data


def main() -> int:
    """The fuzzer as a command; 1 if a case failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    parser = argparse.ArgumentParser(description="Damaged pictures through sandboxed workers.")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="for failed cases")
    options = parser.parse_args()
    with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=options.cases)
        run = Run(options.seed, iter(range(options.cases)), lambda: bar.advance(task))
        trio.run(run.go)
    for outcome, count in run.outcomes.most_common():
        print(f"{count:8} {outcome}")
    print(f"{run.peak / 2**20:8.0f} MiB in the largest worker")
    for number, fault in sorted(run.faults.items()):
        options.keep.mkdir(parents=True, exist_ok=True)
        file = options.keep / f"{options.seed}-{number}"
        file.write_bytes(case(options.seed, number)[0])
        print(f"{file}: {fault}", file=sys.stderr)
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
