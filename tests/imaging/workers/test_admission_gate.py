"""The admission gate, and what a header is believed to need."""

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
from proxy.imaging.workers import admission_gate
from proxy.imaging.workers.admission_gate import (
    MAX_PASSES,
    AdmissionGate,
    GateLimits,
    GateStatistics,
    Reservation,
)
from proxy.imaging.workers.fair_shares import FORGET_AFTER, UNKNOWN, FairShares, Publisher
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.formats import OUTPUTS, SOURCES, Format
from proxy.model.presets import DEFAULT_PRESETS, Preset, Size
from tests.imaging import sources

IDLE = GateStatistics(0, 0, 0, 0)
CONTAIN = Preset(width=800, fit="contain", quality=80)


def gate_of(
    budget: int, *, places: int = 100, reserve: int = 0, waiting_room: int = 1000
) -> AdmissionGate:
    return AdmissionGate(GateLimits(places, budget, reserve, waiting_room))


class Visitors:
    """Tasks that ask for room, in order, and stay until they are let go."""

    def __init__(self, nursery: trio.Nursery, gate: AdmissionGate) -> None:
        self._nursery = nursery
        self._gate = gate
        self.inside: list[str] = []
        self.entered: list[str] = []
        self._leave: dict[str, trio.Event] = {}

    async def come(
        self,
        name: str,
        amount: int,
        source: bytes = b"",
        *,
        reservation: Reservation | None = None,
        publisher: Publisher = UNKNOWN,
    ) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._leave[name] = trio.Event()
        self._nursery.start_soon(
            self._visit, name, reservation or Reservation(amount, source, publisher), scope
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
    gate = gate_of(100)
    visitors = Visitors(nursery, gate)
    for number in range(10):
        await visitors.come(f"small {number}", 10)
    assert len(visitors.inside) == 10
    await visitors.come("large 1", 100)
    await visitors.come("large 2", 60)
    assert len(visitors.inside) == 10
    await visitors.go(*(f"small {number}" for number in range(10)))
    # The smaller of them had room before all small ones were gone.
    assert visitors.inside == ["large 2"]
    await visitors.go("large 2")
    assert visitors.inside == ["large 1"]
    await visitors.go("large 1")
    assert gate.statistics() == IDLE


async def test_a_large_one_does_not_hold_up_small_ones_that_fit(nursery: trio.Nursery) -> None:
    """Catches a strict order of arrival: one large picture stops everybody for as long as it waits.

    And small ones that pass for ever: a large one would starve.
    """
    gate = gate_of(100)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 60)
    await visitors.come("large", 100)
    for number in range(MAX_PASSES):
        await visitors.come(f"small {number}", 10)
        await visitors.go(f"small {number}")
    assert visitors.entered == ["first", *(f"small {number}" for number in range(MAX_PASSES))]
    await visitors.come("late", 10)
    assert visitors.inside == ["first"]
    await visitors.go("first")
    assert visitors.inside == ["large"]
    await visitors.go("large")
    assert visitors.entered[-2:] == ["large", "late"]
    await visitors.go("late")
    assert gate.statistics() == IDLE


async def test_small_ones_have_a_reserve_beside_any_large_one(nursery: trio.Nursery) -> None:
    """Catches a picture that takes all memory: while it is made, nobody else gets in."""
    gate = gate_of(100, reserve=20)
    visitors = Visitors(nursery, gate)
    await visitors.come("large", 1000)
    assert gate.statistics().admitted_bytes == 80
    await visitors.come("large too", 21)
    await visitors.come("small", 15)
    assert visitors.inside == ["large", "small"]
    await visitors.go("small")
    for number in range(2 * MAX_PASSES):
        await visitors.come(f"small {number}", 15)
        assert visitors.inside == ["large", f"small {number}"]
        await visitors.go(f"small {number}")
    await visitors.go("large")
    assert visitors.inside == ["large too"]
    await visitors.come("large as well", 60)
    await visitors.come("small", 15)
    assert visitors.inside == ["large too", "small"], "two of them would take the reserve"
    await visitors.go("large too", "small")
    await visitors.go("large as well")
    assert gate.statistics() == IDLE


async def test_small_ones_beyond_the_reserve_let_a_large_one_in_in_the_end(
    nursery: trio.Nursery,
) -> None:
    """Catches small ones that fill all memory again and again, as long as they fit."""
    gate = gate_of(100, reserve=20)
    visitors = Visitors(nursery, gate)
    for number in range(10):
        await visitors.come(f"small {number}", 10)
    await visitors.come("large", 80)
    for number in range(10, 10 + MAX_PASSES + 1):
        await visitors.come(f"small {number}", 10)
        await visitors.go(f"small {number - 10}")
    assert "large" not in visitors.entered
    for name in [name for name in visitors.inside if name != "large"][2:]:
        await visitors.go(name)
    assert "large" in visitors.inside
    await visitors.go(*visitors.inside)


async def test_what_exceeds_the_budget_runs_alone(nursery: trio.Nursery) -> None:
    """Catches a picture that waits for room that there never is."""
    gate = gate_of(100)
    visitors = Visitors(nursery, gate)
    await visitors.come("giant", 10**9)
    await visitors.come("small", 1)
    assert visitors.inside == ["giant"]
    await visitors.go("giant")
    assert visitors.inside == ["small"]
    await visitors.go("small")
    assert gate.statistics() == IDLE


async def test_a_job_that_leaves_the_head_of_the_queue_lets_the_next_in(
    nursery: trio.Nursery,
) -> None:
    """Catches a queue that only moves when something finishes."""
    gate = gate_of(100)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 60)
    large = await visitors.come("large", 100)
    await visitors.come("small", 40)
    large.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert visitors.inside == ["first", "small"]
    await visitors.go("first", "small")
    assert gate.statistics() == IDLE


async def test_jobs_without_memory_come_and_leave_without_a_look_at_all_others(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches work for each arrival and each cancellation that grows with the queue.

    A thousand large pictures that wait, and whose clients leave together, kept the loop for a
    second.
    """
    gate = gate_of(100)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 100)
    looks = 0
    next_ = gate._next

    def counted() -> Reservation | None:
        nonlocal looks
        looks += 1
        return next_()

    monkeypatch.setattr(gate, "_next", counted)
    scopes = [await visitors.come(f"job {number}", 100) for number in range(20)]
    waiting = Reservation(100, b"")
    scopes.append(await visitors.come("resized", 100, reservation=waiting))
    gate.resize(waiting, 90)
    for scope in scopes:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert looks == 0
    await visitors.go("first")
    assert gate.statistics() == IDLE


async def test_a_job_that_is_cancelled_as_it_is_admitted_leaves_no_room_taken(
    nursery: trio.Nursery,
) -> None:
    """Catches bytes that leak between the admission and the task that was to have them."""
    gate = gate_of(100)
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
    gate = gate_of(100, waiting_room=4 * 50)
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
    gate = gate_of(100, waiting_room=4 * 50)
    visitors = Visitors(nursery, gate)
    await visitors.come("first", 100)
    blob = bytes(40)
    scopes = [await visitors.come(f"preset {number}", 50, blob) for number in range(6)]
    assert gate.statistics() == GateStatistics(1, 100, 6, 40)
    for scope in scopes[:5]:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert gate.statistics() == GateStatistics(1, 100, 1, 40)
    await visitors.go("first", "preset 5")
    assert gate.statistics() == IDLE


async def test_a_job_that_asks_for_another_amount_keeps_its_place(nursery: trio.Nursery) -> None:
    """Catches a reservation that goes to the end of the queue, or is admitted for what it was."""
    gate = gate_of(100)
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
    assert gate.statistics() == GateStatistics(1, 100, 0, 0)
    await visitors.go("late")
    assert gate.statistics() == IDLE


async def test_no_more_are_admitted_than_there_are_places(nursery: trio.Nursery) -> None:
    """Catches a queue for threads behind the gate, where the order would be that of arrival."""
    gate = gate_of(100, places=2)
    visitors = Visitors(nursery, gate)
    for name in ("first", "second", "third"):
        await visitors.come(name, 1)
    assert visitors.inside == ["first", "second"]
    await visitors.go("second")
    assert visitors.inside == ["first", "third"]
    await visitors.go("first", "third")


HOSTILE, HONEST = "hostile.example", "honest.example"


async def flood(visitors: Visitors, name: str, count: int, owner: str = "did:web:one") -> None:
    for number in range(count):
        await visitors.come(
            f"{name} {number}", 1, b"%d" % number, publisher=Publisher(HOSTILE, owner)
        )


async def test_an_owner_of_many_waiting_jobs_gets_no_more_time_than_an_owner_of_one(
    nursery: trio.Nursery,
) -> None:
    """Catches an order of arrival: the first to ask for a hundred pictures delays all others."""
    visitors = Visitors(nursery, gate_of(100, places=1))
    await flood(visitors, "many", 6)
    await visitors.come("one", 1, b"x", publisher=Publisher(HONEST, "did:web:two"))
    await visitors.come(
        "another of the domain", 1, b"x", publisher=Publisher(HOSTILE, "did:web:three")
    )
    for _ in range(8):
        (running,) = visitors.inside
        await visitors.go(running)
    assert visitors.entered[:4] == ["many 0", "one", "another of the domain", "many 1"]


async def test_shares_are_of_time_and_not_of_jobs(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    """Catches turns by count: one that takes a hundred times as long gets 99% of the pool."""
    visitors = Visitors(nursery, gate_of(100, places=1))
    await flood(visitors, "slow", 4)
    for number in range(12):
        await visitors.come(
            f"quick {number}", 1, b"%d" % number, publisher=Publisher(HONEST, "did:x")
        )
    while visitors.inside:
        (running,) = visitors.inside
        mock_clock.jump(5 if running.startswith("slow") else 1)
        await visitors.go(running)
    quick = [f"quick {number}" for number in range(12)]
    assert visitors.entered == [
        "slow 0", *quick[:5], "slow 1", *quick[5:10], "slow 2", *quick[10:], "slow 3",
    ]  # fmt: skip


async def test_a_domain_leaves_half_of_the_places_to_others_that_wait(
    nursery: trio.Nursery,
) -> None:
    """Catches jobs that are counted only when they end: meanwhile they have every place."""
    visitors = Visitors(nursery, gate_of(100, places=4))
    await flood(visitors, "many", 8)
    assert len(visitors.inside) == 4, "alone it may have all"
    for number in range(4):
        await visitors.come(f"one {number}", 1, b"x", publisher=Publisher(HONEST, "did:web:two"))
    await visitors.go("many 0", "many 1", "many 2")
    assert sorted(visitors.inside) == ["many 3", "many 4", "one 0", "one 1"]
    while visitors.inside:
        await visitors.go(*visitors.inside)
    assert len(visitors.entered) == 12


async def test_a_domain_and_an_owner_have_their_share_of_the_waiting_room(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a flood that fills the room: everybody else would be refused at once."""
    monkeypatch.setattr(admission_gate, "MAX_WAITING", 8)
    gate = gate_of(100, places=1)
    visitors = Visitors(nursery, gate)
    await flood(visitors, "many", 1 + 2)
    with pytest.raises(Busy, match=r"hostile\.example/did:web:one"):
        async with gate.hold(Reservation(1, b"y", Publisher(HOSTILE, "did:web:one"))):
            pass
    await visitors.come("other 1", 1, b"x", publisher=Publisher(HOSTILE, "did:web:two"))
    await visitors.come("other 2", 1, b"x", publisher=Publisher(HOSTILE, "did:web:three"))
    with pytest.raises(Busy, match=r"hostile\.example,"):
        async with gate.hold(Reservation(1, b"y", Publisher(HOSTILE, "did:web:four"))):
            pass
    for number in range(4):
        await visitors.come(
            f"honest {number}", 1, b"x", publisher=Publisher(f"h{number}", "did:web:five")
        )
    assert gate.statistics().waiting == 8
    with pytest.raises(Busy, match="9 jobs, of"):
        async with gate.hold(Reservation(1, b"y", Publisher("another", "did:web:six"))):
            pass
    while visitors.inside:
        await visitors.go(*visitors.inside)
    assert gate.statistics() == IDLE
    assert not any((gate._waiting, gate._waiting_bytes, gate._sources))


def test_what_was_used_while_nobody_waited_is_not_held_against_a_domain() -> None:
    """Catches a busy domain that has to wait for a minute because another came."""
    shares = FairShares(1)
    busy, new = Publisher("busy", "did:a"), Publisher("new", "did:b")
    for second in range(1000):
        shares.begin(busy, second)
        shares.end(busy, 1, second + 1)
    shares.begin(busy, 1000)
    shares.end(busy, 1, 1001)
    # The new one is ahead by one job, and not by a thousand.
    assert shares.rank(new, 1001) < shares.rank(busy, 1001)
    shares.begin(new, 1001)
    shares.end(new, 1.5, 1002)
    assert shares.rank(busy, 1002) < shares.rank(new, 1002)
    assert shares.rank(new, 1002 + FORGET_AFTER) == (False, 0.0, False, 0.0)


async def test_an_error_in_the_block_gives_its_room_back() -> None:
    gate = gate_of(100, waiting_room=4 * 50)
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


@given(st.sampled_from(sorted(SOURCES)), st.binary(max_size=200), st.sampled_from([None, *OUTPUTS]))
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
