"""The memory gate, and what a header is believed to need."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from proxy.config import Config
from proxy.errors import Busy, ImageTooLarge
from proxy.imaging import memory_estimate as memory
from proxy.imaging.workers.memory_gate import MemoryGate, MemoryGateStatistics, Reservation
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import DEFAULT_PRESETS, Preset, Size
from tests.imaging import sources

IDLE = MemoryGateStatistics(0, 0, 0, 0)
CONTAIN = Preset(width=800, fit="contain", quality=80)


class Visitors:
    """Tasks that ask for room, in order, and stay until they are let go."""

    def __init__(self, nursery: trio.Nursery, gate: MemoryGate) -> None:
        self._nursery = nursery
        self._gate = gate
        self.inside: list[str] = []
        self.entered: list[str] = []
        self._leave: dict[str, trio.Event] = {}

    async def come(
        self, name: str, amount: int, source: bytes = b"", *, reservation: Reservation | None = None
    ) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._leave[name] = trio.Event()
        self._nursery.start_soon(
            self._visit, name, reservation or Reservation(amount, source), scope
        )
        await trio.testing.wait_all_tasks_blocked()
        return scope

    async def go(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
        await trio.testing.wait_all_tasks_blocked()

    async def _visit(self, name: str, reservation: Reservation, scope: trio.CancelScope) -> None:
        with scope:
            async with self._gate.hold(reservation):
                self.inside.append(name)
                self.entered.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)


async def test_many_small_ones_or_one_large_one(nursery: trio.Nursery) -> None:
    """Catches a limit by count: four large ones would run where the memory is for one."""
    gate = MemoryGate(100, 1000)
    visitors = Visitors(nursery, gate)
    for number in range(10):
        await visitors.come(f"small {number}", 10)
    assert len(visitors.inside) == 10
    await visitors.come("large 1", 100)
    await visitors.come("large 2", 60)
    assert len(visitors.inside) == 10
    await visitors.go(*(f"small {number}" for number in range(10)))
    assert visitors.inside == ["large 1"]
    await visitors.go("large 1")
    assert visitors.inside == ["large 2"]
    await visitors.go("large 2")
    assert gate.statistics() == IDLE


async def test_the_order_of_arrival_holds_for_large_ones_too(nursery: trio.Nursery) -> None:
    """Catches small ones that overtake for ever: a large one would starve."""
    visitors = Visitors(nursery, MemoryGate(100, 1000))
    await visitors.come("first", 60)
    await visitors.come("large", 100)
    await visitors.come("small", 10)
    assert visitors.inside == ["first"]
    await visitors.go("first")
    assert visitors.inside == ["large"]
    await visitors.go("large")
    assert visitors.entered == ["first", "large", "small"]
    await visitors.go("small")


async def test_what_exceeds_the_budget_runs_alone(nursery: trio.Nursery) -> None:
    """Catches a picture that waits for room that there never is."""
    gate = MemoryGate(100, 1000)
    visitors = Visitors(nursery, gate)
    await visitors.come("giant", 10**9)
    await visitors.come("small", 1)
    assert visitors.inside == ["giant"]
    await visitors.go("giant", "small")
    assert gate.statistics() == IDLE


async def test_a_job_that_leaves_the_head_of_the_queue_lets_the_next_in(
    nursery: trio.Nursery,
) -> None:
    """Catches a queue that only moves when something finishes."""
    gate = MemoryGate(100, 1000)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 60)
    large = await visitors.come("large", 100)
    await visitors.come("small", 40)
    large.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert visitors.inside == ["first", "small"]
    await visitors.go("first", "small")
    assert gate.statistics() == IDLE


async def test_a_job_that_is_cancelled_as_it_is_admitted_leaves_no_room_taken(
    nursery: trio.Nursery,
) -> None:
    """Catches bytes that leak between the admission and the task that was to have them."""
    gate = MemoryGate(100, 1000)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 100)
    second = await visitors.come("second", 100)
    await visitors.come("third", 100)
    second.cancel()
    await visitors.go("first")
    assert visitors.inside == ["third"]
    await visitors.come("fourth", 100)
    fourth = await visitors.come("fifth", 100)
    visitors._leave["third"].set()
    fourth.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await visitors.go("fourth")
    assert gate.statistics() == IDLE


async def test_a_full_waiting_room_is_busy_at_once(nursery: trio.Nursery) -> None:
    """Catches sources that pile up while they wait: they are memory as well."""
    gate = MemoryGate(100, 50)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 100)
    await visitors.come("waits", 10, bytes(30))
    with pytest.raises(Busy):
        async with gate.hold(Reservation(1, bytes(21))):
            pass
    await visitors.come("fits", 10, bytes(20))
    assert gate.statistics().waiting_bytes == 50
    await visitors.go("first", "waits", "fits")
    assert gate.statistics() == IDLE


async def test_presets_of_one_blob_wait_with_it_together(nursery: trio.Nursery) -> None:
    """Catches six sizes of one picture that are refused as six pictures."""
    gate = MemoryGate(100, 50)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 100)
    blob = bytes(40)
    scopes = [await visitors.come(f"preset {number}", 50, blob) for number in range(6)]
    assert gate.statistics() == MemoryGateStatistics(1, 100, 6, 40)
    for scope in scopes[:5]:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert gate.statistics() == MemoryGateStatistics(1, 100, 1, 40)
    await visitors.go("first", "preset 5")
    assert gate.statistics() == IDLE


async def test_a_job_that_asks_for_another_amount_keeps_its_place(nursery: trio.Nursery) -> None:
    """Catches a reservation that goes to the end of the queue, or is admitted for what it was."""
    gate = MemoryGate(100, 1000)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 80)
    await visitors.come("second", 10)
    reservation = Reservation(30, b"")
    await visitors.come("third", 30, reservation=reservation)
    assert visitors.inside == ["first", "second"]
    await visitors.come("fourth", 5)
    # Smaller, it fits, and so do those behind it.
    assert gate.resize(reservation, 5)
    await trio.testing.wait_all_tasks_blocked()
    assert set(visitors.inside) == {"first", "second", "third", "fourth"}
    assert not gate.resize(reservation, 6)
    await visitors.go("fourth")
    assert gate.resize(reservation, 10)
    assert gate.statistics().admitted_bytes == 100
    late = Reservation(1, b"")
    await visitors.come("late", 1, reservation=late)
    assert gate.resize(late, 10**9)
    await visitors.go("first", "second", "third")
    assert gate.statistics() == MemoryGateStatistics(1, 100, 0, 0)
    await visitors.go("late")
    assert gate.statistics() == IDLE


async def test_an_error_in_the_block_gives_its_room_back() -> None:
    gate = MemoryGate(100, 50)
    with pytest.raises(ZeroDivisionError):
        async with gate.hold(Reservation(100, b"")):
            raise ZeroDivisionError
    assert gate.statistics() == IDLE


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 7, 640])
@pytest.mark.parametrize("height", [1, 9, 480])
def test_the_declared_size_is_the_decoded_one(width: int, height: int) -> None:
    """Catches an estimate that is wrong for honest files: each would be tried twice."""
    photo = sources.photo(width, height)
    made = {
        Format.JPEG: sources.jpeg(photo, exif=sources.exif(6), progressive=True),
        Format.PNG: sources.png(photo),
        Format.GIF: sources.gif(photo),
        Format.AVIF: sources.avif(sources.with_alpha(photo)),
    }
    for format_, source in made.items():
        found = memory.declared_size(format_, source)
        assert found == Size(width, height), format_
    for options in ({}, {"lossless": True}, {"exif": sources.exif(1)}):
        source = sources.webp(photo, **options)
        assert memory.declared_size(Format.WEBP, source) == Size(width, height)
    moving = sources.animation("WEBP", [photo, 255 - photo])
    assert memory.declared_size(Format.WEBP, moving) == Size(width, height)


def test_a_size_far_behind_long_metadata_is_found() -> None:
    """Catches a reader of the first few kilobytes: phones write far more before the size."""
    photo = sources.jpeg(sources.photo(64, 48))
    long = sources.with_segments(photo, *[(0xE1, bytes(60_000))] * 20)
    assert memory.declared_size(Format.JPEG, long) == Size(64, 48)


@given(st.sampled_from(Format), st.binary(max_size=200), st.sampled_from([None, *OUTPUTS]))
def test_any_bytes_have_an_estimate(format_: Format, tail: bytes, output: Format | None) -> None:
    """Catches a header that raises, or divides by zero, in the event loop."""
    heads = {
        Format.JPEG: b"\xff\xd8\xff\xc0\0\x11\x08",
        Format.PNG: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        Format.WEBP: b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0",
        Format.GIF: b"GIF89a",
        Format.AVIF: b"\0\0\0\x18ftypavif\0\0\0\0avifmif1\0\0\0\x14ispe\0\0\0\0",
        Format.HEIC: b"\0\0\0\x18ftypheic\0\0\0\0heicmif1\0\0\0\x14ispe\0\0\0\0",
    }
    for source in (heads[format_] + tail, tail):
        found = memory.estimate(source, CONTAIN, output, max_pixels=10**6)
        assert 0 < found.pixels <= 10**6
        limits = memory.budget(Config.model_validate({"process": {"max_megapixels": 1}}))
        assert memory.FIXED <= found.memory <= limits + 8 * 8192**2
        memory.declared_size(format_, source)


def test_what_names_no_size_counts_as_the_largest() -> None:
    """Catches a header without a size that is admitted as if it were small."""
    unknown = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(100)
    found = memory.estimate(unknown, CONTAIN, None, max_pixels=10**6)
    assert found.pixels == 10**6
    honest = sources.jpeg(sources.photo(64, 48))
    small = memory.estimate(honest, CONTAIN, None, max_pixels=10**6)
    assert small.pixels == 64 * 48
    distrusted = memory.estimate(honest, CONTAIN, None, max_pixels=10**6, trusting=False)
    assert distrusted.memory > 5 * 10**6 + small.memory


@pytest.mark.slow
def test_the_budget_holds_any_one_picture_that_is_allowed() -> None:
    """Catches a preset, format or shape that would be cut off by the budget."""
    config = Config()
    budget = memory.budget(config)
    most = config.process.max_pixels
    for preset in DEFAULT_PRESETS.values():
        for width, height in ((7071, 7071), (1600, 31250), (50_000, 1000), (16_383, 3051)):
            head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)
            source = head + b"\x08\x06\0\0\0" + bytes(4)
            for output in (None, *OUTPUTS):
                assert memory.estimate(source, preset, output, max_pixels=most).memory <= budget
    # Many small ones at once: what the pool is for.
    typical = memory.estimate(
        sources.jpeg(sources.photo(2000, 1500)), DEFAULT_PRESETS["avatar"], None, max_pixels=most
    )
    assert budget / typical.memory > 30


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["thread", "sandbox"])
async def test_a_picture_larger_than_its_header_says_gets_the_room_it_needs(isolation: str) -> None:
    """Catches a good picture that is refused because only its decoder knows its size."""
    # The first frame exceeds the canvas, and comes after more comments than are looked through.
    plain = sources.gif(sources.photo(300, 200))
    header = 13 + 3 * 256
    comments = b"!\xfe" + (b"\xff" + bytes(255)) * 100 + b"\0"
    source = plain[:6] + struct.pack("<HH", 20, 10) + plain[10:header] + comments + plain[header:]
    assert memory.declared_size(Format.GIF, source) == Size(20, 10)
    config = Config.model_validate({"process": {"isolation": isolation, "threads": 1}})
    pool = ProcessingPool(config)
    began = 0

    def on_start() -> None:
        nonlocal began
        began += 1

    made: dict[Format, bytes] = {}

    async def process(output: Format) -> None:
        made[output] = (await pool.process(source, CONTAIN, output, on_start=on_start)).data

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        async with trio.open_nursery() as asking:
            for output in (Format.JPEG, Format.PNG):
                asking.start_soon(process, output)
        nursery.cancel_scope.cancel()
    assert began == 4
    for data in made.values():
        with Image.open(BytesIO(data)) as image:
            assert image.size == (300, 200)


@pytest.mark.slow
async def test_a_picture_over_the_limit_is_refused_after_one_attempt(
    nursery: trio.Nursery,
) -> None:
    """Catches a second attempt where more room cannot help."""
    config = Config.model_validate({"process": {"isolation": "thread", "max_megapixels": 0.001}})
    pool = ProcessingPool(config)
    await nursery.start(pool.run)
    began = []
    with pytest.raises(ImageTooLarge):
        await pool.process(
            sources.png(sources.photo(64, 48)), CONTAIN, None, on_start=lambda: began.append(1)
        )
    assert began == [1]
