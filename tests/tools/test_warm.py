"""Warming: every blob once, politely, and from where the last run ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.accounts import records as records_module
from proxy.cache.interface import Entry
from proxy.errors import Busy, DidUnresolvable, FetchFailed
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.service import Service
from proxy.tools.warm import (
    BUSY_SECONDS,
    BUSY_TRIES,
    MAX_NAMES,
    MAX_REASONS,
    Bookmark,
    Failures,
    Pace,
    Tally,
    Warmer,
    warm_account,
    warm_images,
)
from tests.fakes import faults
from tests.fakes.network import Fault, honest
from tests.fakes.parts import FakeCache, FakeFetcher, FakeProcessor, FakeResolver
from tests.fakes.sites import GET_BLOB, LIST_BLOBS, cid_of, new_plc_did
from tests.fakes.world import World, tiny_png
from tests.processes import until

pytestmark = pytest.mark.slow

PRESETS = ("avatar", "avatar_thumbnail", "banner")


def warmer_of(
    service: Service,
    *,
    at_once: int = 4,
    per_second: float = 1e6,
    on_done: Callable[[], None] = lambda: None,
) -> Warmer:
    return Warmer(service, PRESETS, at_once=at_once, per_second=per_second, on_done=on_done)


def account(world: World, blobs: int) -> tuple[Did, list[Cid]]:
    """An account with that many different pictures, in the order that its PDS lists them."""
    did = world.make_account()
    cids = [world.pds.add_blob(did, tiny_png((number, 0, 0))) for number in range(blobs)]
    return did, sorted(cids)


def nowhere(folder: Path) -> Bookmark:
    return Bookmark(folder, "test")


async def test_every_blob_of_an_account_is_fetched_once_and_then_served(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a fetch for each preset, and the pages after the first left out."""
    monkeypatch.setattr(records_module, "PAGE", 3)
    did, cids = account(world, 8)
    pages: list[int] = []
    done = 0

    def on_done() -> None:
        nonlocal done
        done += 1

    async with world.service() as service:
        warmer = warmer_of(service, on_done=on_done)
        await warm_account(service, did, warmer, nowhere(tmp_path), pages.append)
        assert world.pds.requests_by_path[GET_BLOB] == len(cids)
        for cid in cids:
            for preset in PRESETS:
                assert (await service.get_image(preset, did, cid)).cache == "hit"
    assert (warmer.tally.made, warmer.tally.failed) == (8, 0)
    assert sum(pages) == done == 8


async def test_cached_pictures_are_not_asked_for(world: World, tmp_path: Path) -> None:
    """Catches a second run that costs a PDS as much as the first."""
    did, _ = account(world, 5)
    async with world.service() as service:
        await warm_account(service, did, warmer_of(service), nowhere(tmp_path))
        before = world.pds.requests_by_path[GET_BLOB]
        again = warmer_of(service)
        await warm_account(service, did, again, nowhere(tmp_path))
    assert world.pds.requests_by_path[GET_BLOB] == before == 5
    assert (again.tally.cached, again.tally.made) == (5, 0)


async def test_a_run_goes_on_where_the_last_one_ended(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that begins anew, and one that leaves out the page it was ended in."""
    monkeypatch.setattr(records_module, "PAGE", 2)
    did, cids = account(world, 6)
    done = 0
    async with world.service() as service:
        with trio.CancelScope() as scope:

            def on_done() -> None:
                nonlocal done
                done += 1
                if done == 3:
                    scope.cancel()

            warmer = warmer_of(service, at_once=1, on_done=on_done)
            await warm_account(service, did, warmer, nowhere(tmp_path))
        assert scope.cancelled_caught
        asked = [request.query for request in world.pds.requests if request.path == LIST_BLOBS]
        assert [query.get("cursor") for query in asked] == [None, cids[1]]
        pages: list[int] = []
        await warm_account(service, did, warmer_of(service), nowhere(tmp_path), pages.append)
        asked = [request.query for request in world.pds.requests if request.path == LIST_BLOBS]
        assert [query.get("cursor") for query in asked][2:] == [cids[1], cids[3], cids[5]]
        assert world.pds.requests_by_path[GET_BLOB] == len(cids)
        # At its end there is nothing to go on from.
        assert await nowhere(tmp_path).load() == ""


async def test_a_non_image_is_not_a_failure(world: World, tmp_path: Path) -> None:
    """Catches a run that fails because an account has a video."""
    did, _ = account(world, 1)
    world.pds.add_blob(did, b"\0\0\0\x18ftypmp42" + bytes(100), "video/mp4")
    world.pds.add_blob(did, tiny_png()[:-30])
    async with world.service() as service:
        warmer = warmer_of(service)
        await warm_account(service, did, warmer, nowhere(tmp_path))
    tally = warmer.tally
    assert (tally.made, tally.skipped, tally.failed, tally.cached) == (1, 1, 1, 0)
    assert len(tally.failures) == len(PRESETS)
    names = [line for line in tally.failures.lines() if line.startswith("  ")]
    assert len(names) == len(PRESETS)
    assert all("/img/" in name for name in names)


async def test_what_is_blocked_is_neither_fetched_nor_a_failure(
    world: World, tmp_path: Path
) -> None:
    """Catches a run that fails for what its operator has refused."""
    did, cids = account(world, 3)
    async with world.service() as service:
        await service.moderator.block(Selection(did, cids[1]), by="test")
        warmer = warmer_of(service)
        await warm_account(service, did, warmer, nowhere(tmp_path))
    assert (warmer.tally.made, warmer.tally.skipped, warmer.tally.failed) == (2, 1, 0)
    assert world.pds.requests_by_path[GET_BLOB] == 2


async def test_a_page_that_cannot_be_had_ends_the_run_and_keeps_its_place(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an account that is done because its PDS failed in the middle."""
    monkeypatch.setattr(records_module, "PAGE", 2)
    did, cids = account(world, 4)

    def fail_next_page(count: int) -> None:
        world.pds.faults += [honest] * 2 + [faults.answers(500)]

    async with world.service() as service:
        with pytest.raises(FetchFailed):
            await warm_account(service, did, warmer_of(service), nowhere(tmp_path), fail_next_page)
    assert await nowhere(tmp_path).load() == cids[1]


class Parts:
    """A service without network, disk or threads, so that its time can jump."""

    def __init__(self) -> None:
        self.cache, self.fetcher = FakeCache(), FakeFetcher()
        self.processor, self.resolver = FakeProcessor(), FakeResolver()

    def add(self, *, is_cached: bool = False) -> BlobKey:
        blob = BlobKey(new_plc_did(), cid_of(b"a picture"))
        self.resolver.pds[blob.did] = "https://pds.example"
        self.fetcher.blobs["https://pds.example", blob] = b"a picture"
        if is_cached:
            for preset in PRESETS:
                key = image_key(DEFAULT_PRESETS, preset, blob.did, blob.cid)
                self.cache.entries[key] = Entry(b"a picture", Format.PNG)
        return blob

    async def warm(self, world: World, blobs: list[BlobKey], **limits: Any) -> tuple[float, Tally]:
        """How many seconds it took, and what came of it."""
        async with world.service(
            cache=self.cache,
            fetcher=self.fetcher,
            processor=self.processor,
            resolver=self.resolver,
        ) as service:
            warmer = warmer_of(service, **limits)
            began = trio.current_time()
            await warmer.warm(blobs)
            return trio.current_time() - began, warmer.tally


@pytest.fixture
async def parts() -> Parts:
    return Parts()


async def test_blobs_are_begun_at_even_distances(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a rate that many tasks exceed together."""
    blobs = [parts.add() for _ in range(21)]
    seconds, tally = await parts.warm(world, blobs, at_once=8, per_second=2)
    assert seconds == pytest.approx(10)
    assert tally.made == 21


async def test_cached_pictures_take_no_slot(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a run that goes on after an hour and takes an hour to find its place."""
    blobs = [parts.add(is_cached=True) for _ in range(1000)]
    seconds, tally = await parts.warm(world, blobs, at_once=1, per_second=2)
    assert seconds < 2
    assert tally.cached == 1000


async def test_only_so_many_blobs_are_under_way(world: World, parts: Parts) -> None:
    """Catches a connection for every blob of an account."""
    blobs = [parts.add() for _ in range(20)]
    parts.fetcher.gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(parts.warm, world, blobs, at_once=3))
        await until(lambda: len(parts.fetcher.calls) >= 3)
        await trio.testing.wait_all_tasks_blocked()
        assert len(parts.fetcher.calls) == 3
        parts.fetcher.gate.open()
    assert len(parts.fetcher.calls) == 20


async def test_what_is_busy_is_tried_again_after_a_pause(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a want of room that is counted as a failure, or answered by the next question."""
    blobs = [parts.add()]
    parts.fetcher.errors = [Busy("full"), Busy("full")]
    seconds, tally = await parts.warm(world, blobs)
    assert (tally.made, tally.failed) == (1, 0)
    assert seconds >= 2 * BUSY_SECONDS
    parts.fetcher.errors = [Busy("full")] * 100
    _, tally = await parts.warm(world, [parts.add()])
    assert (tally.failed, len(tally.failures)) == (1, 1)


def list_of(world: World, count: int) -> list[BlobKey]:
    """Pictures of one account."""
    did, cids = account(world, count)
    return [BlobKey(did, cid) for cid in cids]


WAIT = ("Retry-After", "30")


@asynccontextmanager
async def fetching(world: World) -> AsyncIterator[Service]:
    """A service with the real fetcher, whose time can jump."""
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        yield service


@pytest.mark.parametrize("status", [429, 503])
async def test_a_pds_that_asks_for_a_pause_gets_it_and_loses_nothing(
    world: World, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a run that goes through its list while the PDS is left alone, and makes nothing."""
    blobs = list_of(world, 20)
    world.pds.faults = [faults.answers(status, b"", WAIT)]
    async with fetching(world) as service:
        warmer = warmer_of(service)
        began = trio.current_time()
        await warmer.warm(blobs)
        assert (warmer.tally.made, warmer.tally.failed) == (20, 0)
        assert trio.current_time() - began >= 30
    assert world.pds.blob_requests == 21


async def test_a_list_of_images_waits_for_a_pds_as_well(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a pause that accounts get and files do not."""
    keys = [image_key(DEFAULT_PRESETS, "avatar", *blob) for blob in list_of(world, 20)]
    world.pds.faults = [faults.answers(429, b"", WAIT)]
    async with fetching(world) as service:
        assert (await warm_images(service, keys, at_once=4)).made == len(keys)
        assert all([await service.is_cached(key) for key in keys])
    assert world.pds.blob_requests == 21


async def test_a_pds_that_never_relents_is_waited_for_once(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a run that takes a quarter of an hour for each blob of an account, or each page."""
    blobs = list_of(world, 20)
    world.pds.fault = faults.answers(429, b"", WAIT)
    async with fetching(world) as service:
        warmer = warmer_of(service)
        began = trio.current_time()
        await warmer.warm(blobs)
        assert (warmer.tally.failed, warmer.tally.unsettled) == (20, 20)
        assert trio.current_time() - began < BUSY_TRIES * (30 + BUSY_TRIES * BUSY_SECONDS)
        began = trio.current_time()
        await warmer.warm(blobs)
        assert (warmer.tally.failed, warmer.tally.unsettled) == (40, 40)
        assert trio.current_time() - began < 1


async def test_a_pds_that_names_no_time_is_asked_again_when_its_refusal_is_forgotten(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches tries that the service answers by itself, from what it remembers."""
    blobs = list_of(world, 1)
    world.pds.faults = [faults.answers(429)] * 2
    async with fetching(world) as service:
        warmer = warmer_of(service)
        await warmer.warm(blobs)
        assert (warmer.tally.made, warmer.tally.failed) == (1, 0)


async def test_a_stream_waits_for_no_pds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a stranger's PDS that holds up what is new on all the others."""
    send, receive = trio.open_memory_channel[BlobKey](20)
    for blob in list_of(world, 20):
        send.send_nowait(blob)
    send.close()
    world.pds.fault = faults.answers(429, b"", WAIT)
    async with fetching(world) as service:
        warmer = warmer_of(service)
        began = trio.current_time()
        await warmer.warm_from(receive)
        assert warmer.tally.failed == 20
        assert trio.current_time() - began < 1


@pytest.mark.parametrize(
    ("fault", "pages_later"),
    [(faults.answers(500), [1, 3, 5]), (faults.answers(404), [5])],
    ids=["passes", "settled"],
)
async def test_a_run_returns_to_what_failed_for_a_reason_that_passes(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    pages_later: list[int],
) -> None:
    """Catches a bookmark behind blobs that no run makes then, and one that a lost blob holds."""
    monkeypatch.setattr(records_module, "PAGE", 2)
    did, cids = account(world, 6)

    def fail_first_of_second_page(count: int) -> None:
        if len(pages) == 1:
            world.pds.faults = [fault]
        pages.append(count)

    pages: list[int] = []
    async with world.service() as service:
        warmer = warmer_of(service, at_once=1)
        await warm_account(service, did, warmer, nowhere(tmp_path), fail_first_of_second_page)
        assert (warmer.tally.made, warmer.tally.failed) == (5, 1)
        kept = await nowhere(tmp_path).load()
        assert kept == (cids[1] if len(pages_later) > 1 else "")
        if kept:
            again = warmer_of(service)
            await warm_account(service, did, again, nowhere(tmp_path))
            assert (again.tally.made, again.tally.cached) == (1, 3)
    assert await nowhere(tmp_path).load() == ""


async def test_a_page_is_waited_for_as_blobs_are(
    world: World, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a run that ends because its PDS said 429 to a page instead of a blob."""
    did, _ = account(world, 3)
    world.pds.faults = [faults.answers(429, b"", WAIT)]
    async with fetching(world) as service:
        warmer = warmer_of(service)
        await warm_account(service, did, warmer, nowhere(tmp_path))
        assert warmer.tally.made == 3


def test_one_reason_is_told_once_with_its_number_and_names() -> None:
    """Catches a directory that is down, told once for each image of a list."""
    failures = Failures()
    dids = [new_plc_did() for _ in range(MAX_NAMES + 5)]
    failures.add("/img/b", dids[0], FetchFailed("https://pds.example: status 500"))
    for did in dids:
        failures.add(f"/img/{did}", did, DidUnresolvable(f"{did}: refused"))
    assert list(failures.lines()) == [
        "failed to fetch blob from PDS: https://pds.example: status 500",
        "  /img/b",
        f"failed to resolve DID: refused ({len(dids)} times)",
        *(f"  /img/{did}" for did in dids[:MAX_NAMES]),
        "  and 5 more",
    ]
    assert len(failures) == len(dids) + 1
    assert failures.kinds == {FetchFailed, DidUnresolvable}


def test_the_list_of_failures_has_an_end() -> None:
    """Catches memory that grows with a broken account, or with what a PDS says."""
    failures, did = Failures(), new_plc_did()
    for number in range(MAX_REASONS + 7):
        failures.add(f"/img/{number}", did, FetchFailed(f"reason {number}"))
    lines = list(failures.lines())
    assert len(lines) == 2 * MAX_REASONS + 1
    assert lines[-1] == "7 more for other reasons"
    assert len(failures) == MAX_REASONS + 7


async def test_a_slot_that_is_given_back_goes_to_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pace = Pace(1)
    began = trio.current_time()
    for _ in range(10):
        await pace.wait()
        pace.give_back()
    await pace.wait()
    assert trio.current_time() == began
    await pace.wait()
    assert trio.current_time() - began == 1


@pytest.mark.parametrize("kept", ["", "{", "7", "[]", "\xff"])
async def test_an_unreadable_bookmark_is_ignored(tmp_path: Path, kept: str) -> None:
    """Catches a run that a killed process keeps from ever starting again."""
    bookmark = nowhere(tmp_path)
    await bookmark.save("x")
    (file,) = (tmp_path / "warm").iterdir()
    file.write_bytes(kept.encode("latin-1"))
    assert await bookmark.load() == ""


async def test_runs_about_different_things_have_different_bookmarks(tmp_path: Path) -> None:
    """Catches a new preset that begins where another one's run was ended."""
    await Bookmark(tmp_path, "did", "avatar").save("x")
    assert await Bookmark(tmp_path, "did", "banner").load() == ""
    assert await Bookmark(tmp_path, "did", "avatar").load() == "x"
    await Bookmark(tmp_path, "did", "avatar").clear()
    await Bookmark(tmp_path, "did", "avatar").clear()
    assert await Bookmark(tmp_path, "did", "avatar").load() == ""
