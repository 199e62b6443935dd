"""The memory that transforms are believed to need, and what the service and its workers do take."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import pyvips
import trio
from PIL import Image

from proxy.config import Config, load_config
from proxy.imaging import memory_estimate as memory
from proxy.imaging.pipeline import render_each
from proxy.imaging.recipes import Recipe, Rendered
from proxy.imaging.workers.batch import Job
from proxy.imaging.workers.client import ImageWorker
from proxy.imaging.workers.forks import ForkServer
from proxy.imaging.workers.sandbox import Limits
from proxy.model.animation import AnimationBounds
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset
from proxy.tools.doctor.memory_ceiling import ceiling
from tests.imaging import moving, sources
from tests.processes import SERVE, serve, upstream

pytestmark = pytest.mark.slow

MIB = 1 << 20

SMALLER = Preset(width=200, fit="contain", quality=80)
NEARLY = Preset(width=1584, fit="contain", quality=90)
SAME = Preset(width=4000, fit="contain", quality=90)

WIDTH, HEIGHT = 1600, 1250


def noise(channels: int) -> sources.Pixels:
    random = np.random.default_rng(5)
    return random.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def avif(bits: int) -> bytes:
    """With nothing left out: alpha, chroma at full size."""
    pixels = sources.wide(sources.with_alpha(sources.photo(WIDTH, HEIGHT)))
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="rgb16")
    return bytes(
        image.heifsave_buffer(
            compression="av1", bitdepth=bits, Q=80, effort=0, subsample_mode="off"
        )
    )


def heic(bits: int) -> bytes:
    """Likewise; from eight bits on the encoder takes ten."""
    pillow_heif = pytest.importorskip("pillow_heif")
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("no encoder for HEIC")
    pixels = sources.with_alpha(sources.photo(WIDTH, HEIGHT))
    data, mode = (
        (pixels.tobytes(), "RGBA") if bits == 8 else (sources.wide(pixels).tobytes(), "RGBA;16")
    )
    out = BytesIO()
    pillow_heif.from_bytes(mode=mode, size=(WIDTH, HEIGHT), data=data).save(out, chroma=444)
    return out.getvalue()


def photo() -> sources.Pixels:
    return sources.photo(WIDTH, HEIGHT)


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: sources.jpeg(photo(), exif=sources.exif(6)),
    "progressive jpeg": lambda: sources.jpeg(photo(), progressive=True, subsampling=0),
    "progressive cmyk": lambda: sources.cmyk_jpeg(sources.cmyk(photo()), progressive=True),
    "noise jpeg": lambda: sources.jpeg(noise(3), subsampling=0),
    "png": lambda: sources.png(sources.with_alpha(photo()), compress_level=1),
    "png with a profile": lambda: sources.png(
        sources.with_alpha(photo()), compress_level=1, icc_profile=sources.ADOBE_RGB
    ),
    "png with a colour key": lambda: sources.with_chunks(
        sources.png(photo(), compress_level=1), [(b"tRNS", bytes(6))]
    ),
    "16 bit png with a colour key": lambda: sources.with_chunks(
        sources.vips_png(sources.wide(photo()), compression=1), [(b"tRNS", bytes(6))]
    ),
    "hdr png": lambda: sources.with_chunks(
        sources.png(sources.with_alpha(photo()), compress_level=1), [(b"cICP", b"\x09\x10\0\1")]
    ),
    "16 bit png": lambda: sources.vips_png(sources.wide(photo()), bitdepth=16, compression=1),
    "interlaced png": lambda: sources.vips_png(photo(), interlace=True, compression=1),
    "noise png": lambda: sources.png(noise(4), compress_level=0),
    "webp": lambda: sources.webp(sources.with_alpha(photo())),
    "lossless webp": lambda: sources.webp(sources.with_alpha(photo()), lossless=True, quality=0),
    "animated webp": lambda: sources.animation("WEBP", [photo(), 255 - photo()], method=0),
    "gif": lambda: sources.gif(photo()),
    "animated gif": lambda: sources.animation("GIF", [photo(), 255 - photo()], disposal=2),
    "avif": lambda: sources.avif(photo()),
    "ten bit avif": lambda: avif(10),
    "twelve bit avif": lambda: avif(12),
    "heic": lambda: heic(8),
    "ten bit heic": lambda: heic(10),
}


@contextmanager
def worker() -> Iterator[ImageWorker]:
    """One that is ready."""

    async def start() -> ImageWorker:
        found = ImageWorker.spawn(server, Limits(4096 * MIB, 600), 100 * MIB)
        await found.ready()
        return found

    server = ForkServer()
    found = trio.run(start)
    try:
        yield found
    finally:
        found.end()
        server.close()


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_an_honest_picture_needs_no_more_than_its_estimate(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a figure per pixel that is too low: its pictures would all be tried twice."""
    # At two megapixels the fixed part would hide the rest.
    monkeypatch.setattr(memory, "FIXED", 8 * MIB)
    source = make()
    jobs = [(SMALLER, None), (NEARLY, Format.WEBP), *((SAME, output) for output in OUTPUTS)]
    for preset, output in jobs:
        estimate = memory.estimate(source, preset, output, max_pixels=50_000_000)
        assert estimate.pixels in (WIDTH * HEIGHT, 50_000_000)
        # A fresh one: what the last job left could be used again.
        with worker() as fresh:
            recipe = Recipe(preset=preset, output=output)
            made = trio.run(fresh.run, Job(source, ((recipe, estimate),)), print)
            assert isinstance(made, Rendered), made
            assert len(made.data) < estimate.result


def frames(alpha: bool) -> list[Image.Image]:
    """Each differs from the one before it everywhere."""
    pixels = sources.with_alpha(photo()) if alpha else photo()
    return [Image.fromarray(each) for each in (pixels, pixels[::-1], pixels[:, ::-1])]


def moving_gif(alpha: bool) -> bytes:
    few = []
    for image in frames(alpha):
        paletted = image.convert("RGB").quantize(255)
        if alpha:
            paletted.paste(255, mask=image.getchannel("A").point([255] * 128 + [0] * 128))
            paletted.info["transparency"] = 255
        few.append(paletted)
    return moving.saved("GIF", few, duration=50, disposal=3 if alpha else 1)


MOVING: dict[str, Callable[[bool], bytes]] = {
    "gif": moving_gif,
    "webp": lambda alpha: moving.saved("WEBP", frames(alpha), method=0, quality=95),
    "apng": lambda alpha: moving.saved("PNG", frames(alpha), compress_level=1, duration=50),
    "avif": lambda alpha: moving.saved("AVIF", frames(alpha), speed=9, quality=98, duration=50),
}


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("name", MOVING)
def test_what_moves_needs_no_more_than_its_estimate(
    name: str, alpha: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches frames that are all held at once, and a figure that is too low: stills instead."""
    monkeypatch.setattr(memory, "FIXED", 8 * MIB)
    source = MOVING[name](alpha)
    unhurried = AnimationBounds(max_seconds=60)
    for preset in (SMALLER, NEARLY):
        for output in (None, Format.WEBP):
            recipe = Recipe(
                preset=preset.model_copy(update={"animated": True}),
                output=output,
                animation=unhurried,
            )
            # The header of an AVIF sequence has no size, and its estimate is the maximum.
            estimate = memory.estimate(
                source, recipe.preset, output, max_pixels=WIDTH * HEIGHT, animation=unhurried
            )
            with worker() as fresh:
                made = trio.run(fresh.run, Job(source, ((recipe, estimate),)), print)
                assert isinstance(made, Rendered), made
                assert len(made.data) <= len(source) or (output and name != "webp")
                with Image.open(BytesIO(made.data)) as image:
                    assert getattr(image, "n_frames", 1) == 3


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_what_is_kept_for_the_next_result_is_what_is_counted(make: Callable[[], bytes]) -> None:
    """Catches a decoder with all of its frames that stays as long as the picture does."""
    source = make()
    # A JPEG is kept at four sizes, the others at one.
    presets = [SMALLER.model_copy(update={"width": width}) for width in (1500, 800, 400, 200, 199)]
    recipes = [Recipe(preset=preset, output=Format.JPEG) for preset in presets]
    for outcome in render_each(source, recipes, max_pixels=10**8):
        assert isinstance(outcome, Rendered), outcome
    del outcome
    before = freed_and_held()
    outcomes = render_each(source, recipes, max_pixels=10**8)
    for _ in recipes[1:]:
        next(outcomes)
    kept = freed_and_held() - before
    print(f"kept: {kept / WIDTH / HEIGHT:.1f} bytes a pixel")
    assert kept < memory.KEPT_BYTES * WIDTH * HEIGHT + memory.COPIES * len(source)
    # Catches a measurement that sees nothing.
    assert kept > WIDTH * HEIGHT
    next(outcomes)
    assert freed_and_held() - before < WIDTH * HEIGHT + memory.COPIES * len(source)


def freed_and_held() -> int:
    """Bytes that this process holds, once what is free within it went back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident(os.getpid())


def test_the_budget_follows_the_memory_that_there_is() -> None:
    """Catches transforms that share more memory than the container has."""
    config = Config()
    wanted = memory.budget(config)
    rest = memory.at_rest(config, workers=2)
    assert memory.budget_within(config, 2, 64 << 30) == wanted
    assert memory.budget_within(config, 2, rest + wanted) == wanted
    assert memory.budget_within(config, 2, rest + wanted - 1) == wanted - 1
    assert memory.budget_within(config, 2, 2 << 30) == (2 << 30) - rest
    assert memory.budget_within(config, 2, 256 * MIB) == 2 * memory.RESERVE
    two = Config.model_validate({"server": {"workers": 2}})
    assert memory.budget_within(two, 2, 2 * (rest + wanted - 1)) == wanted - 1
    # A process of the service then takes less at the most, too.
    assert ceiling(config, 2) - ceiling(config, 2, 2 << 30) == wanted - ((2 << 30) - rest)


def test_the_ceiling_is_the_documented_one() -> None:
    """Catches a change of the figures that the manual does not know of."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    total = ceiling(Config(), cpus=4)
    assert f"**{total / MIB:,.0f} MiB**" in text
    assert f"| {memory.budget(Config()) / MIB:,.0f} |" in text
    for figures in (memory.SOURCE_BYTES, memory.RESULT_BYTES):
        for format_, figure in figures.items():
            assert re.search(rf"\| {format_.name} \| {figure} \|", text, re.IGNORECASE), format_


class Peak:
    """The largest sum of what a process and its descendants hold, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, sum(resident(pid) for pid in family(self._pid)))


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes, with those that are shared with others."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
async def test_the_worst_that_can_be_asked_for_stays_below_the_ceiling(tmp_path: Path) -> None:
    """Catches sources, decoders or results that add up to more than the manual says.

    As many of the largest sources at once as may be fetched, each for the costliest results.
    """
    threads, megapixels, fetches = 4, 6, 8
    async with upstream() as internet:
        environment = internet.environment(
            tmp_path,
            PROCESS__THREADS=str(threads),
            PROCESS__MAX_MEGAPIXELS=str(megapixels),
            PROCESS__QUEUE_WAIT="600",
            FETCH__WORKERS=str(fetches),
            FETCH__PER_HOST=str(fetches),
        )
        config = load_config(environment=environment)
        most = config.fetch.max_source_bytes
        added = [
            internet.add_blob(blob + bytes(most - len(blob))) for blob in tall_sources(megapixels)
        ]
        async with serve(SERVE, environment) as server:
            statuses: list[int] = []

            async def ask(did: str, cid: str, output: str) -> None:
                target = f"/img/content_full/plain/{did}/{cid}@{output}"
                statuses.append((await server.get(target)).status)

            with Peak(server.pid) as peak:
                async with trio.open_nursery() as nursery:
                    for did, cid in added:
                        for output in (Format.AVIF, Format.JPEG):
                            nursery.start_soon(ask, did, cid, output.value)
    # All come from one host, which may fill half of the room to wait in.
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= len(added)
    most = ceiling(config, cpus=threads)
    print(f"peak {peak.bytes / MIB:.0f} MiB, ceiling {most / MIB:.0f} MiB")
    assert peak.bytes < most
    # Catches a ceiling so high that it says nothing, and a test that asks for too little.
    assert peak.bytes > most / 4


def tall_sources(megapixels: int) -> list[bytes]:
    """Different pictures as large as they may be, as tall as makes their results the largest."""
    width = 1600
    height = megapixels * 1_000_000 // width
    found = []
    for number in range(8):
        base = sources.photo(400, 300, seed=number + 1)
        image = Image.fromarray(sources.with_alpha(base)).resize((width, height))
        if number % 2:
            found.append(sources.encoded(image, "WEBP", quality=60, method=0))
        else:
            found.append(sources.encoded(image.quantize(64), "PNG", compress_level=1))
    return found
