"""The service: how often each part is asked, what a failure costs, the order of a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from proxy.accounts.did_documents import MIGRATION_AGE
from proxy.cache.interface import Entry
from proxy.cache.writer import GATHERING_SECONDS, RETRY_PAUSE, CacheWriter
from proxy.config import Config
from proxy.egress.circuit import UNNAMED_PAUSE
from proxy.errors import (
    BlobBlocked,
    BlobNotFound,
    Busy,
    CidMismatch,
    DidNotFound,
    DidUnresolvable,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    ImageTooLarge,
    InvalidCid,
    InvalidDid,
    InvalidFormat,
    InvalidPreset,
    ModerationUnreadable,
    NoPdsEndpoint,
    RateLimited,
    ResultTooCostly,
    ResultTooLarge,
    UndecodableImage,
    UnsupportedImage,
    UpstreamTimeout,
)
from proxy.imaging.decode import Decoded, Original
from proxy.imaging.workers.fair_shares import UNKNOWN, Publisher
from proxy.imaging.workers.pool import Processed
from proxy.lifecycle import open_moderator, open_service
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.model.selection import Selection
from proxy.service import Image, Service
from proxy.shared.supervision import RESTART_PAUSE, supervise
from tests.fakes import faults
from tests.fakes.network import Fault, honest
from tests.fakes.parts import FakeCache, FakeFetcher, FakeProcessor, FakeResolver
from tests.fakes.sites import FakePds, cid_of, document, new_plc_did, pds_service
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.processes import until

SIX = list(DEFAULT_PRESETS)[:6]


def key_of(did: Did, cid: Cid, preset: str = "avatar") -> ImageKey:
    return image_key(DEFAULT_PRESETS, preset, did, cid)


def sample(service: Service, name: str, **labels: str) -> float:
    """The value of a metric."""
    return service.metrics.registry.get_sample_value(f"imageproxy_{name}", labels) or 0.0


async def failure(service: Service, *args: str) -> ImageProxyError:
    with pytest.raises(ImageProxyError) as caught:
        await service.get_image(*args)
    return caught.value


class Parts:
    """A service without network, disk or threads, and an account with a blob on it."""

    def __init__(self) -> None:
        self.cache = FakeCache()
        self.fetcher = FakeFetcher()
        self.processor = FakeProcessor()
        self.resolver = FakeResolver()
        self.did, self.cid = self.add(b"a picture")

    def add(self, data: bytes) -> tuple[Did, Cid]:
        did, cid = new_plc_did(), cid_of(data)
        self.resolver.pds[did] = "https://pds.example"
        self.fetcher.blobs["https://pds.example", BlobKey(did, cid)] = data
        return did, cid

    @property
    def key(self) -> ImageKey:
        return key_of(self.did, self.cid)

    @property
    def all(self) -> dict[str, Any]:
        return {
            "cache": self.cache,
            "fetcher": self.fetcher,
            "processor": self.processor,
            "resolver": self.resolver,
        }


@pytest.fixture
async def parts() -> Parts:
    return Parts()


class Requests:
    """Concurrent requests, and what became of each."""

    def __init__(self, nursery: trio.Nursery, service: Service) -> None:
        self._nursery = nursery
        self._service = service
        self.images: list[Image] = []
        self.errors: list[Exception] = []

    def ask(self, did: Did, cid: Cid, preset: str = "avatar") -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, preset, did, cid, scope)
        return scope

    async def _ask(self, preset: str, did: Did, cid: Cid, scope: trio.CancelScope) -> None:
        try:
            with scope:
                self.images.append(await self._service.get_image(preset, did, cid))
        except Exception as error:
            self.errors.append(error)


settled = trio.testing.wait_all_tasks_blocked


# Hit and miss.


async def test_a_hit_neither_resolves_nor_fetches_nor_transforms(
    world: World, parts: Parts
) -> None:
    """Catches: a hit resolves fetches or transforms."""
    parts.cache.entries[parts.key] = Entry(b"kept", Format.JPEG)
    async with world.service(**parts.all) as service:
        for _ in range(2):
            image = await service.get_image("avatar", parts.did, parts.cid)
            assert (image.data, image.content_type) == (b"kept", "image/jpeg")
            assert (image.cache, image.timings) == ("hit", {})
            assert image.etag == parts.key.etag
    assert parts.cache.gets == [parts.key]  # the second came from memory
    assert (parts.resolver.calls, parts.fetcher.calls, parts.processor.calls) == ([], [], [])


async def test_a_miss_does_everything_once_and_keeps_its_result(world: World, parts: Parts) -> None:
    """Catches: a miss does something twice or keeps nothing."""
    expected = parts.processor.result(b"a picture", DEFAULT_PRESETS["avatar"])
    async with world.service(**parts.all) as service:
        image = await service.get_image("avatar", parts.did, parts.cid)
        assert (image.data, image.content_type, image.cache) == (expected, "image/png", "miss")
        assert set(image.timings) == {"resolve", "fetch", "queue", "process"}
        await settled()
        assert parts.cache.entries == {parts.key: Entry(expected, Format.PNG)}
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"
    assert len(parts.resolver.calls) == len(parts.fetcher.calls) == 1
    assert parts.processor.calls == [(b"a picture", DEFAULT_PRESETS["avatar"])]
    async with world.service(**parts.all) as service:
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"


async def test_a_result_on_disk_outlives_the_process(client_world: World) -> None:
    """Catches: a result on disk is lost with the process."""
    did, cid = client_world.add_blob(tiny_jpeg())
    async with client_world.service() as service:
        first = await service.get_image("avatar_thumbnail", did, cid)
        assert (first.cache, first.content_type) == ("miss", "image/jpeg")
    client_world.pds.refuses = client_world.plc.refuses = -1
    async with client_world.service() as service:
        second = await service.get_image("avatar_thumbnail", did, cid)
        assert (second.cache, second.data, second.etag) == ("hit", first.data, first.etag)
    assert client_world.pds.blob_requests == 1
    assert client_world.open_wires == 0


@pytest.mark.parametrize("preset", DEFAULT_PRESETS)
async def test_each_preset_is_served_as_itself(world: World, parts: Parts, preset: str) -> None:
    """Catches: a preset is missing or served as another."""
    async with world.service(**parts.all) as service:
        image = await service.get_image(preset, parts.did, parts.cid)
        assert image.data == parts.processor.result(b"a picture", DEFAULT_PRESETS[preset])
        assert image.etag.startswith(f'"{preset}-{parts.cid}-')


async def test_each_format_is_served_and_has_an_entry_of_its_own(
    world: World, parts: Parts
) -> None:
    """Catches: a format is ignored or shares its entry."""
    async with world.service(**parts.all) as service:
        images = [
            await service.get_image("avatar", parts.did, parts.cid, name)
            for name in (None, "png", "webp")
        ]
        assert [image.cache for image in images] == ["miss"] * 3
        assert [image.content_type for image in images] == ["image/png", "image/png", "image/webp"]
        assert len({image.etag for image in images}) == 3
        await settled()
    assert len(parts.cache.entries) == 3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"preset": "invalid_preset"}, InvalidPreset),
        ({"preset": ""}, InvalidPreset),
        ({"preset": "AVATAR"}, InvalidPreset),
        ({"did": "did:plc:../../../etc/passwd"}, InvalidDid),
        ({"did": ""}, InvalidDid),
        ({"cid": "../../../etc/passwd"}, InvalidCid),
        ({"cid": ""}, InvalidCid),
        ({"format": "gif"}, InvalidFormat),
    ],
)
async def test_a_wrong_request_reaches_neither_a_cache_nor_a_pds(
    world: World, parts: Parts, change: dict[str, str], error: type[ImageProxyError]
) -> None:
    """Catches: a wrong request reaches a cache or a PDS."""
    request = {"preset": "avatar", "did": parts.did, "cid": parts.cid} | change
    async with world.service(**parts.all) as service:
        with pytest.raises(error):
            await service.get_image(**request)
    assert (parts.cache.gets, parts.resolver.calls) == ([], [])


# Errors.


@pytest.mark.parametrize("place", ["resolver", "fetcher"])
@pytest.mark.parametrize(
    "error",
    [
        BlobNotFound,
        DidNotFound,
        DidUnresolvable,
        NoPdsEndpoint,
        FetchFailed,
        ForbiddenDestination,
        CidMismatch,
        ImageTooLarge,
        UpstreamTimeout,
        Busy,
        ZeroDivisionError,
    ],
)
async def test_an_error_on_the_way_to_a_blob_comes_out_as_itself_and_passes(
    world: World, parts: Parts, place: str, error: type[Exception]
) -> None:
    """Catches: an error on the way to a blob comes out as another or stays."""
    getattr(parts, place).errors = [error("a cause with 10.0.0.1 in it")]
    config = world.config(identity={"negative_ttl": 0})
    async with world.service(config, **parts.all) as service:
        with pytest.raises(error) as caught:
            await service.get_image("avatar", parts.did, parts.cid)
        assert type(caught.value) is error
        if isinstance(caught.value, ImageProxyError):
            assert "10.0.0.1" not in caught.value.public_message
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


@pytest.mark.parametrize("error", [UnsupportedImage, ImageTooLarge, UndecodableImage, Busy])
async def test_an_error_of_a_transform_comes_out_as_itself_and_is_not_kept(
    world: World, parts: Parts, error: type[ImageProxyError]
) -> None:
    """Catches: an error of a transform comes out as another or is kept."""
    parts.processor.error = error()
    config = world.config(identity={"negative_ttl": 0})
    async with world.service(config, **parts.all) as service:
        assert type(await failure(service, "avatar", parts.did, parts.cid)) is error
        await settled()
        assert parts.cache.puts == []
        assert sample(service, "rejected_total", stage="process") == (error is Busy)
        parts.processor.error = None
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


async def test_each_request_gets_an_error_of_its_own(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: one failure raised in many requests is one object."""
    parts.fetcher.gate.close()
    parts.fetcher.errors = [FetchFailed("reset")]
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        for preset in SIX * 10:
            requests.ask(parts.did, parts.cid, preset)
        await settled()
        parts.fetcher.gate.open()
        await settled()
        assert [type(error) for error in requests.errors] == [FetchFailed] * 60
        assert len({id(error) for error in requests.errors}) == 60
    assert len(parts.fetcher.calls) == 1


async def test_a_pause_that_a_pds_asked_for_ends_when_it_said(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a pause that a PDS asked for is remembered beyond its end."""
    did, cid = world.add_blob(b"a picture")
    world.pds.faults = [faults.answers(429, b"", ("Retry-After", "3"))]
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        for preset in SIX:
            assert type(await failure(service, preset, did, cid)) is RateLimited
        assert world.pds.blob_requests == 1
        failures = sample(service, "fetch_duration_seconds_count", outcome="rate_limited")
        assert failures == len(SIX)
        await trio.sleep(3)
        assert (await service.get_image("avatar", did, cid)).cache == "miss"


async def test_a_pds_that_says_429_without_a_time_is_left_alone_for_a_while(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a PDS that says 429 alone is asked each time."""
    did, cid = world.add_blob(b"a picture")
    world.pds.fault = faults.answers(429)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        for preset in SIX:
            assert type(await failure(service, preset, did, cid)) is RateLimited
        assert world.pds.blob_requests == 1
        world.pds.fault = honest
        await trio.sleep(UNNAMED_PAUSE)
        assert (await service.get_image("avatar", did, cid)).cache == "miss"


async def test_a_dead_link_is_asked_for_once(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: a dead link is a load on its PDS."""
    did = world.make_account()
    cid = cid_of(b"deleted")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        for _ in range(100):
            for preset in SIX:
                assert type(await failure(service, preset, did, cid)) is BlobNotFound
        assert world.pds.blob_requests == 1
        mock_clock.jump(60)
        world.pds.add_blob(did, b"deleted")
        assert (await service.get_image("avatar", did, cid)).cache == "miss"


@pytest.mark.parametrize("name", ["cache", "fetcher", "processor", "resolver"])
async def test_a_service_without_one_of_its_parts_does_not_start(world: World, name: str) -> None:
    """Catches: a service without one of its parts starts."""
    parts: dict[str, Any] = {name: None}
    with pytest.raises(TypeError, match=name):
        async with open_service(world.config(), **parts):
            raise AssertionError


def test_a_service_that_is_opened_under_asyncio_fails_at_once() -> None:
    """Catches an AttributeError of Trio's own, which tells nobody what to do instead."""

    async def opened() -> None:
        async with open_service(Config()):
            raise AssertionError

    with pytest.raises(RuntimeError, match="under Trio only"):
        asyncio.run(opened())


# Coalescing.


@pytest.mark.slow
async def test_a_thousand_requests_share_one_fetch(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a thousand requests are a thousand fetches."""
    world, processor = client_world, FakeProcessor()
    did, cid = world.add_blob(b"a picture")
    gate = trio.Event()
    world.pds.fault = faults.gated(gate)
    async with world.service(cache=FakeCache(), processor=processor) as service:
        requests = Requests(nursery, service)
        for _ in range(1000):
            requests.ask(did, cid)
        await settled()
        gate.set()
        await settled()
        assert len({id(image.data) for image in requests.images}) == 1
        states = [image.cache for image in requests.images]
        assert (states.count("miss"), states.count("coalesced")) == (1, 999)
        assert sample(service, "coalesced_total") == 999
    assert (len(world.plc.requests), world.pds.blob_requests) == (1, 1)
    assert len(processor.calls) == 1


async def test_requests_that_come_while_a_result_is_looked_up_made_or_written_share_it(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: requests that come while a result is looked up made or written do it again."""
    gates = [
        parts.cache.get_gate,
        parts.fetcher.gate,
        parts.processor.queue,
        parts.processor.gate,
        parts.cache.put_gate,
    ]
    for gate in gates:
        gate.close()
    # No memory tier, which would hide the rest.
    async with world.service(world.config(cache={"memory_mb": 0}), **parts.all) as service:
        requests = Requests(nursery, service)
        for gate in gates:
            requests.ask(parts.did, parts.cid)
            await settled()
            gate.open()
            await settled()
        requests.ask(parts.did, parts.cid)
        await settled()
        assert [image.cache for image in requests.images].count("miss") == 1
        assert len(requests.images) == 6
    assert len(parts.fetcher.calls) == len(parts.processor.calls) == len(parts.cache.puts) == 1


async def test_six_presets_of_one_blob_share_one_fetch(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: six presets of one blob are six fetches."""
    world, processor = client_world, FakeProcessor()
    did, cid = world.add_blob(b"a picture")
    gate = trio.Event()
    world.pds.fault = faults.gated(gate)
    async with world.service(cache=FakeCache(), processor=processor) as service:
        requests = Requests(nursery, service)
        for preset in SIX:
            requests.ask(did, cid, preset)
        await settled()
        gate.set()
        await settled()
        assert len({image.data for image in requests.images}) == 6
        assert {image.cache for image in requests.images} == {"miss"}
    assert world.pds.blob_requests == 1
    assert len(processor.calls) == 6


async def test_six_presets_of_one_blob_share_one_decode(
    world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: six presets of one blob are six decodes."""
    decodes: list[int] = []
    load = Original._load

    def count(original: Original, fraction: int, keep: bool) -> Decoded:
        decodes.append(fraction)
        return load(original, fraction, keep)

    monkeypatch.setattr(Original, "_load", count)
    did, cid = world.add_blob(tiny_png(size=(80, 60)))
    gate = trio.Event()
    world.pds.fault = faults.gated(gate)
    async with world.service(cache=FakeCache()) as service:
        requests = Requests(nursery, service)
        for preset in SIX:
            requests.ask(did, cid, preset)
        await settled()
        gate.set()
        with trio.fail_after(30):
            for preset in SIX:
                await service.get_image(preset, did, cid)
        assert requests.errors == []
    assert decodes == [1]


async def test_a_preset_that_comes_while_another_transforms_shares_its_fetch(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: a preset that comes while another transforms fetches again."""
    parts.processor.gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        for preset in SIX:
            requests.ask(parts.did, parts.cid, preset)
            await settled()
        parts.processor.gate.open()
        await settled()
        assert len(requests.images) == 6
    assert len(parts.fetcher.calls) == 1


async def test_one_owners_blob_is_not_served_as_anothers(
    world: World, nursery: trio.Nursery
) -> None:
    """Catches: one owner's blob is served as another's."""
    # The same bytes: one CID, two owners, of whom one may be blocked or gone.
    mine, cid = world.add_blob(b"the same")
    theirs, _ = world.add_blob(b"the same")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        requests = Requests(nursery, service)
        requests.ask(mine, cid)
        requests.ask(theirs, cid)
        await settled()
        assert [image.cache for image in requests.images] == ["miss"] * 2
    assert world.pds.blob_requests == 2


# Going away.


async def test_a_fetch_that_nobody_waits_for_is_cancelled(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a fetch goes on when nobody waits for it."""
    world = client_world
    did, cid = world.add_blob(b"a picture")
    world.pds.faults = [faults.gated(trio.Event())]
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        requests = Requests(nursery, service)
        scopes = [requests.ask(did, cid, preset) for preset in ("avatar", "avatar", "banner")]
        await settled()
        for left, scope in enumerate(scopes, 1):
            assert len(world.network.open_wires) == 1
            scope.cancel()
            await settled()
            assert (len(world.network.open_wires) == 0) == (left == 3)
        fetched = "fetch_duration_seconds_count"
        assert sample(service, fetched, outcome="cancelled") == 1
        assert (await service.get_image("avatar", did, cid)).cache == "miss"
    assert world.pds.blob_requests == 2


async def test_a_waiter_that_goes_away_leaves_the_others(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: a waiter that goes away takes the others with it."""
    parts.fetcher.gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        first = requests.ask(parts.did, parts.cid)
        await settled()
        requests.ask(parts.did, parts.cid)
        requests.ask(parts.did, parts.cid, "banner")
        await settled()
        first.cancel()
        await settled()
        parts.fetcher.gate.open()
        await settled()
        assert (len(requests.images), requests.errors) == (2, [])
    assert (len(parts.fetcher.calls), parts.fetcher.cancelled) == (1, 0)


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_transform_under_way_is_kept_without_waiters(
    world: World, parts: Parts, nursery: trio.Nursery, comes_back: bool
) -> None:
    """Catches: a transform under way is thrown away with its last waiter."""
    parts.processor.gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        scope = requests.ask(parts.did, parts.cid)
        await settled()
        scope.cancel()
        await settled()
        if comes_back:
            requests.ask(parts.did, parts.cid)
            await settled()
        parts.processor.gate.open()
        await settled()
        assert [image.cache for image in requests.images] == ["coalesced"] * comes_back
        assert list(parts.cache.entries) == [parts.key]
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"
    assert len(parts.processor.calls) == 1


async def test_a_transform_that_waits_for_its_place_is_cancelled_with_its_last_waiter(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: a transform that nobody waits for is still made."""
    parts.processor.queue.close()
    async with world.service(**parts.all) as service:
        scope = Requests(nursery, service).ask(parts.did, parts.cid)
        await settled()
        scope.cancel()
        await settled()
        assert parts.processor.queue.waiting == 0
        parts.processor.queue.open()
        await settled()
    assert parts.processor.calls == []


# Writing behind the answer.


async def test_an_answer_does_not_wait_for_the_disk(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: an answer waits for the disk."""
    parts.cache.put_gate.close()
    config = world.config(cache={"memory_mb": 0}, server={"shutdown_timeout": 7})
    async with world.service(config, **parts.all) as service:
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"
        # What waits to be written is a hit all the same, for which nobody has to wait.
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"
        assert service.hit(parts.key) is not None
        assert parts.cache.entries == {}
        left = trio.current_time()
    # And a disk that never answers does not hold the shutdown. Where a chore's thread has to end,
    # this clock jumps to whatever is due next, a fraction of a second.
    assert 7 <= trio.current_time() - left < 8


@pytest.mark.parametrize(("failures", "is_kept"), [(1, True), (2, False), (3, False)])
async def test_a_failed_write_is_tried_once_more_and_then_counted(
    world: World,
    parts: Parts,
    failures: int,
    is_kept: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a failed write is lost silently or tried forever."""
    parts.cache.put_errors = [OSError(28, "No space left on device") for _ in range(failures)]
    async with world.service(**parts.all) as service:
        await service.get_image("avatar", parts.did, parts.cid)
        await trio.sleep(RETRY_PAUSE * 5)
        tries = min(failures, 2)
        assert sample(service, "cache_write_errors_total") == tries
        assert (parts.key in parts.cache.entries) is is_kept
        assert len(parts.cache.puts) == tries + is_kept
        parts.cache.put_errors.clear()
        did, cid = parts.add(b"the next")
        await service.get_image("avatar", did, cid)
        await settled()
        assert key_of(did, cid) in parts.cache.entries


async def test_a_full_write_channel_drops_writes_and_no_answer_waits(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a full write channel makes answers wait or grows."""
    parts.cache.put_gate.close()
    async with world.service(world.config(cache={"write_queue": 2}), **parts.all) as service:
        for number in range(6):
            did, cid = parts.add(b"picture %d" % number)
            assert (await service.get_image("avatar", did, cid)).cache == "miss"
            await settled()
        assert sample(service, "cache_writes_dropped_total") == 3
        parts.cache.put_gate.open()
        await trio.sleep(2 * GATHERING_SECONDS)
        assert len(parts.cache.entries) == 3


async def test_a_cache_that_cannot_be_read_is_a_miss(world: World, parts: Parts) -> None:
    """Catches: a cache that cannot be read is an error."""
    parts.cache.get_error = OSError(5, "Input/output error")
    async with world.service(**parts.all) as service:
        assert service.cache_health.problem is None
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"
        assert service.cache_health.problem is not None


async def test_a_cache_that_is_broken_at_the_start_is_used_once_it_works(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a cache that is broken at the start stops it or stays broken."""
    parts.cache.check_error = OSError(30, "Read-only file system")
    async with world.service(**parts.all) as service:
        assert service.cache_health.problem == "Read-only file system"
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"
        parts.cache.check_error = None
        await trio.sleep(10)
        assert service.cache_health.problem is None


async def test_a_writer_that_crashed_starts_again_after_a_pause(
    nursery: trio.Nursery, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a writer that crashed stays dead or spins."""
    crashes = 0

    def crash(error: Exception) -> None:
        nonlocal crashes
        crashes += 1
        raise ZeroDivisionError

    parts.cache.put_errors = [OSError(28, "No space left on device")]
    writer = CacheWriter(parts.cache, queue_size=8, on_error=crash)
    nursery.start_soon(supervise, writer.run)
    writer.offer(parts.key, Entry(b"lost", Format.PNG))
    await settled()
    assert (crashes, parts.cache.puts) == (1, [parts.key])
    assert writer.pending(parts.key) is None
    did, cid = parts.add(b"the next")
    writer.offer(key_of(did, cid), Entry(b"kept", Format.PNG))
    await settled()
    assert parts.cache.entries == {}
    await trio.sleep(RESTART_PAUSE * 1.5)
    assert list(parts.cache.entries) == [key_of(did, cid)]


# Stopping.


class SlowCache(FakeCache):
    """A cache on a slow disk."""

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """See ``Cache.put``."""
        await trio.sleep(0.5)
        await super().put(key, entry)


@pytest.mark.parametrize("how", ["the block ends", "it is cancelled", "it fails"])
async def test_a_shutdown_finishes_the_writes_it_was_given(
    world: World, parts: Parts, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a shutdown abandons the writes it was given."""
    parts.cache = SlowCache()
    given: list[ImageKey] = []
    with trio.CancelScope() as scope:
        try:
            async with world.service(**parts.all) as service:
                for number in range(10):
                    did, cid = parts.add(b"picture %d" % number)
                    await service.get_image("avatar", did, cid)
                    given.append(key_of(did, cid))
                if how == "it is cancelled":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                if how == "it fails":
                    raise KeyError("of the block")
        except KeyError:
            assert how == "it fails"
    assert list(parts.cache.entries) == given
    assert len(given) == 10


async def test_what_was_given_to_the_writer_is_on_disk_after_the_service(world: World) -> None:
    """Catches: what was given to the writer is not on disk after the service."""
    with trio.CancelScope() as scope:
        async with world.service(processor=FakeProcessor()) as service:
            for number in range(10):
                await service.get_image("avatar", *world.add_blob(b"picture %d" % number))
            scope.cancel()
    images = world.cache_path / "images"
    files = [path for path in images.rglob("*") if path.is_file()]
    assert len(files) == 10
    assert not list((world.cache_path / "writing").iterdir())


@pytest.mark.parametrize(
    "error", [KeyError("mine"), BlobNotFound("mine"), ExceptionGroup("g", [ValueError()])]
)
async def test_an_exception_of_the_block_arrives_as_itself(world: World, error: Exception) -> None:
    """Catches: an exception of the block arrives in a group."""
    with pytest.raises(type(error)) as caught:
        async with world.service(cache=FakeCache()):
            raise error
    assert caught.value is error


@pytest.mark.parametrize("place", ["queued", "fetching", "transforming"])
async def test_a_request_under_way_at_shutdown_is_answered_as_busy(
    world: World, parts: Parts, nursery: trio.Nursery, place: str
) -> None:
    """Catches: a request under way at shutdown hangs."""
    gate = {
        "queued": parts.processor.queue,
        "fetching": parts.fetcher.gate,
        "transforming": parts.processor.gate,
    }[place]
    gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(parts.did, parts.cid)
        await settled()
        if place == "transforming":
            nursery.start_soon(open_when_waited_for, gate.open)
    await settled()
    if place == "transforming":
        # It could not be stopped, so it was finished, answered and written.
        assert [image.cache for image in requests.images] == ["miss"]
        assert list(parts.cache.entries) == [parts.key]
    else:
        assert [type(error) for error in requests.errors] == [Busy]
    with pytest.raises(ModerationUnreadable):  # nobody tells it any more what is blocked
        await service.get_image("banner", parts.did, parts.cid)


async def open_when_waited_for(open_gate: Callable[[], None]) -> None:
    await settled()
    open_gate()


async def test_a_service_closes_its_connections(client_world: World) -> None:
    """Catches: a service leaves connections open."""
    world = client_world
    other = FakePds("other.example")
    world.network.add(other)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", *world.add_blob(b"one"))
        await service.get_image("avatar", *world.add_blob(b"two", pds=other))
    assert world.open_wires == 0


# Accounts migrate.


async def migrated(world: World) -> tuple[Did, Cid, FakePds]:
    """An account whose document a service has just read, and that then moved, with a new blob."""
    did, _ = world.add_blob(b"old")
    new_home = FakePds("new.example")
    world.network.add(new_home)
    return did, cid_of(b"new"), new_home


def move(world: World, did: Did, new_home: FakePds) -> None:
    del world.pds.accounts[did]
    world.move_account(did, new_home)
    new_home.add_blob(did, b"new")


LEAVING: dict[str, Fault] = {
    "reset": faults.reset,
    "hang": faults.hang,
    "hang in body": faults.hang_in_body,
    "other bytes": faults.with_body(lambda data: data + b"!"),
    "truncated": faults.truncated,
    **{f"status {each}": faults.answers(each, b"") for each in (401, 403, 410, 451, 500, 503, 429)},
    "limited": faults.answers(429, b"", ("Retry-After", "250")),
    "not HTTP": faults.sends(b"220 smtp.example ESMTP\r\n"),
}
"""What the PDS that an account left does, beside what comes before HTTP."""


async def test_an_account_that_moved_is_found_at_its_new_pds_at_once(
    client_world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: an account that moved is gone until its document expires."""
    world = client_world
    did, cid, new_home = await migrated(world)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid_of(b"old"))
        move(world, did, new_home)
        mock_clock.jump(MIGRATION_AGE + 1)
        assert (await service.get_image("avatar", did, cid)).data.endswith(b"new")
    assert (len(world.plc.requests), world.pds.blob_requests, new_home.blob_requests) == (2, 2, 1)


async def test_a_missing_blob_asks_the_directory_only_after_a_while(
    client_world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: every missing blob asks the directory."""
    world = client_world
    did, cid, new_home = await migrated(world)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid_of(b"old"))
        move(world, did, new_home)
        mock_clock.jump(MIGRATION_AGE - 1)
        assert type(await failure(service, "avatar", did, cid)) is BlobNotFound
    assert (len(world.plc.requests), new_home.blob_requests) == (1, 0)


async def test_a_blob_that_is_missing_at_an_unchanged_pds_is_asked_for_once(
    client_world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: a blob that is missing at an unchanged PDS is asked for twice."""
    world = client_world
    did, _ = world.add_blob(b"old")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid_of(b"old"))
        mock_clock.jump(MIGRATION_AGE + 1)
        assert type(await failure(service, "avatar", did, cid_of(b"gone"))) is BlobNotFound
        assert type(await failure(service, "avatar", did, cid_of(b"gone too"))) is BlobNotFound
    assert (len(world.plc.requests), world.pds.blob_requests) == (2, 3)


@pytest.mark.parametrize("end", ["refuses", "silent", "no TLS", "forbidden", *LEAVING])
async def test_an_account_whose_pds_died_is_found_at_its_new_one(
    client_world: World, autojump_clock: trio.testing.MockClock, end: str
) -> None:
    """Catches: an account that left a dead server is a 502 until its document expires."""
    world = client_world
    did, cid, new_home = await migrated(world)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        # Refused, so that no open connection remains: the pool reads the system's clock.
        world.pds.refuses = -1
        assert type(await failure(service, "avatar", did, cid_of(b"old"))) is FetchFailed
        world.pds.refuses = 0
        world.move_account(did, new_home)
        for pds in (world.pds, new_home):
            pds.add_blob(did, b"new")
        await trio.sleep(MIGRATION_AGE + 1)
        match end:
            case "refuses":
                world.pds.refuses = -1
            case "silent":
                world.pds.answers_connections = False
            case "no TLS":
                world.pds.has_certificate = False
            case "forbidden":
                world.network.forbids.add(world.pds.host)
            case _:
                world.pds.fault = LEAVING[end]
        began = trio.current_time()
        assert (await service.get_image("avatar", did, cid)).data.endswith(b"new")
        assert trio.current_time() - began < service.config.fetch.timeout
        # The next one asks at the new PDS alone.
        asked = len(world.pds.requests)
        assert (await service.get_image("banner", did, cid)).data.endswith(b"new")
    assert (len(world.plc.requests), len(world.pds.requests)) == (2, asked)


@pytest.mark.parametrize("fault", [faults.answers(500), faults.reset, faults.hang])
async def test_a_pds_that_fails_has_the_directory_asked_once_a_minute(
    world: World, autojump_clock: trio.testing.MockClock, fault: Fault
) -> None:
    """Catches: every request of a dead server's accounts asks the directory."""
    did, cid = world.add_blob(b"old")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid)
        await trio.sleep(MIGRATION_AGE + 1)
        world.pds.fault = fault
        began = trio.current_time()
        for number in range(8):
            other = world.pds.add_blob(did, b"%d" % number)
            assert isinstance(await failure(service, "banner", did, other), ImageProxyError)
        minutes = (trio.current_time() - began) / MIGRATION_AGE
        assert len(world.plc.requests) <= 2 + minutes


async def test_a_directory_that_fails_too_leaves_the_failure_of_the_pds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a dead directory is asked with each request, or is what a client hears of."""
    did, cid = world.add_blob(b"old")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid)
        await trio.sleep(MIGRATION_AGE + 1)
        world.plc.fault = world.pds.fault = faults.answers(500)
        for number in range(5):
            other = world.pds.add_blob(did, b"%d" % number)
            assert type(await failure(service, "banner", did, other)) is FetchFailed
    assert len(world.plc.requests) == 2


async def test_an_account_that_was_deleted_is_no_failure_of_the_directory(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: an account that was deleted is a failure of the directory."""
    did, cid = world.add_blob(b"old")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid)
        mock_clock.jump(MIGRATION_AGE + 1)
        del world.pds.accounts[did]
        world.plc.documents[did] = document(did)
        assert type(await failure(service, "banner", did, cid)) is NoPdsEndpoint
        del world.plc.documents[did]
        mock_clock.jump(MIGRATION_AGE + 1)
        assert type(await failure(service, "banner", did, cid)) is DidNotFound


# Saturation.


async def test_a_full_fetch_channel_refuses_misses_at_once_and_serves_hits(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a full fetch channel makes requests wait or stops the hits."""
    world, resolver = client_world, FakeResolver()
    kept = world.add_blob(b"kept")
    blobs = [world.add_blob(b"picture %d" % number) for number in range(5)]
    resolver.pds = {did: world.pds.url for did, _ in (kept, *blobs)}
    config = world.config(fetch={"queue_size": 2, "workers": 1, "per_host": 1})
    parts: dict[str, Any] = {
        "cache": FakeCache(),
        "processor": FakeProcessor(),
        "resolver": resolver,
    }
    async with world.service(config, **parts) as service:
        await service.get_image("avatar", *kept)
        gate = trio.Event()
        world.pds.fault = faults.gated(gate)
        requests = Requests(nursery, service)
        for blob in blobs:
            requests.ask(*blob)
            await settled()
        assert [type(error) for error in requests.errors] == [Busy] * 2
        assert sample(service, "rejected_total", stage="fetch") == 2
        assert (await service.get_image("avatar", *kept)).cache == "hit"
        gate.set()
        await settled()
        assert len(requests.images) == 3
        # Busy is a moment's state of ours, and is not remembered of the blob.
        assert (await service.get_image("avatar", *blobs[-1])).cache == "miss"


async def test_a_flood_of_unknown_dids_refuses_no_account_that_is_resolved(
    client_world: World, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches fetches of blobs that wait behind questions to the directory.

    280 clients ask for accounts that do not exist; the directory takes its time.
    """
    world = client_world
    resolved = [world.add_blob(b"first %d" % number) for number in range(10)]
    others = [world.add_blob(did.encode(), did=did) for did, _ in resolved]
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        for blob in resolved:
            await service.get_image("avatar", *blob)
        world.plc.fault = faults.gated(trio.Event())
        flood = Requests(nursery, service)
        for _ in range(280):
            flood.ask(new_plc_did(), resolved[0][1])
        await settled()
        for blob in others:
            assert (await service.get_image("avatar", *blob)).cache == "miss"
        assert len(flood.images) == 0
        assert {type(error) for error in flood.errors} == {Busy}, "the lane must be full"
        nursery.cancel_scope.cancel()


async def test_a_processing_pool_without_a_free_place_is_busy_after_its_time(
    world: World, nursery: trio.Nursery, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a full processing pool makes requests wait forever."""

    class Impatient(FakeProcessor):
        async def process(
            self,
            source: bytes,
            preset: Preset,
            output: Format | None,
            *,
            publisher: Publisher = UNKNOWN,
            on_start: Callable[[], None] = lambda: None,
        ) -> Processed:
            with trio.move_on_after(5):
                return await super().process(
                    source, preset, output, publisher=publisher, on_start=on_start
                )
            raise Busy("no turn")

    parts.processor = Impatient()
    parts.processor.queue.close()
    async with world.service(**parts.all) as service:
        began = trio.current_time()
        assert type(await failure(service, "avatar", parts.did, parts.cid)) is Busy
        assert trio.current_time() - began == pytest.approx(5)
        assert sample(service, "rejected_total", stage="process") == 1
        parts.processor.queue.open()
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


# Blocks.


@pytest.mark.parametrize("what", ["did", "cid", "pair"])
@pytest.mark.parametrize("place", ["fetching", "queued", "transforming", "writing", "looking up"])
async def test_a_block_wins_against_a_request_under_way(
    world: World, parts: Parts, nursery: trio.Nursery, place: str, what: str
) -> None:
    """Catches: a block loses against a request under way."""
    gate = {
        "looking up": parts.cache.get_gate,
        "fetching": parts.fetcher.gate,
        "queued": parts.processor.queue,
        "transforming": parts.processor.gate,
        "writing": parts.cache.put_gate,
    }[place]
    gate.close()
    if place == "looking up":
        parts.cache.entries[parts.key] = Entry(b"kept", Format.PNG)
    selection = Selection(
        parts.did if what != "cid" else None, parts.cid if what != "did" else None
    )
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(parts.did, parts.cid)
        await settled()
        async with trio.open_nursery() as blocking:
            blocking.start_soon(partial(service.moderator.block, selection, by="a test"))
            if place == "writing":  # a write under way is waited for
                await settled()
                gate.open()
        gate.open()
        await settled()
        if place != "writing":  # that one had its answer before
            assert [type(error) for error in requests.errors] == [BlobBlocked]
            assert requests.images == []
        assert type(await failure(service, "avatar", parts.did, parts.cid)) is BlobBlocked
        with pytest.raises(BlobBlocked):
            await service.get_blob(BlobKey(parts.did, parts.cid))
        assert parts.cache.entries == {}
        assert sample(service, "blocked_total") >= 2
        assert await service.moderator.lift(selection, by="a test")
        # Nothing of it stayed anywhere.
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


@pytest.mark.parametrize("place", ["looking up", "fetching", "transforming"])
async def test_a_request_under_way_does_not_bring_back_what_a_purge_removed(
    world: World, parts: Parts, nursery: trio.Nursery, place: str
) -> None:
    """Catches: a request under way brings back what a purge removed."""
    gate = {
        "looking up": parts.cache.get_gate,
        "fetching": parts.fetcher.gate,
        "transforming": parts.processor.gate,
    }[place]
    gate.close()
    if place == "looking up":
        parts.cache.entries[parts.key] = Entry(b"kept", Format.PNG)
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(parts.did, parts.cid)
        await settled()
        await service.moderator.purge(Selection(did=parts.did), by="a test")
        gate.open()
        await settled()
        # What was read, fetched or made before is neither kept nor answered.
        assert [image.cache for image in requests.images] == ["miss"]
        fetches = 1 if place == "looking up" else 2
        assert len(parts.fetcher.calls) == len(parts.processor.calls) == fetches
        (kept,) = parts.cache.entries.values()
        assert kept.data == requests.images[0].data != b"kept"


@pytest.mark.parametrize("preset", ["avatar", "banner", None])
@pytest.mark.parametrize("place", ["queued", "transforming"])
async def test_what_was_fetched_before_a_purge_is_not_shared_after_it(
    world: World, parts: Parts, nursery: trio.Nursery, place: str, preset: str | None
) -> None:
    """Catches a flight that is joined after the purge of an account that is gone: its bytes are
    answered, and kept under another preset."""
    gate = {"queued": parts.processor.queue, "transforming": parts.processor.gate}[place]
    gate.close()
    blob = BlobKey(parts.did, parts.cid)

    async def ask_later() -> None:
        with pytest.raises(BlobNotFound):
            await (service.get_image(preset, *blob) if preset else service.get_blob(blob))

    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(*blob)
        await settled()
        parts.fetcher.errors = [BlobNotFound()]
        await service.moderator.purge(Selection(did=parts.did), by="a test")
        async with trio.open_nursery() as later:
            later.start_soon(ask_later)
            await settled()
            gate.open()
        await settled()
        # It came before, and would be answered after: a CDN that was told would keep it.
        assert [type(error) for error in requests.errors] == [BlobNotFound]
        assert (requests.images, parts.cache.entries) == ([], {})


async def test_an_original_that_was_fetched_before_a_purge_is_fetched_again(
    world: World, nursery: trio.Nursery
) -> None:
    """Catches the answer of an account that is gone by then, which a CDN keeps."""
    did, cid = world.add_blob(b"a picture")
    gate, seen = trio.Event(), trio.Event()
    world.pds.faults = [faults.gated(gate, seen=seen)]
    errors: list[ImageProxyError] = []

    async def ask() -> None:
        try:
            await service.get_blob(BlobKey(did, cid))
        except ImageProxyError as error:
            errors.append(error)

    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        nursery.start_soon(ask)
        await seen.wait()
        await service.moderator.purge(Selection(did=did), by="a test")
        world.pds.fault = faults.answers(404)
        gate.set()
        await until(lambda: bool(errors))
        assert [type(error) for error in errors] == [BlobNotFound]


@pytest.mark.parametrize("place", ["fetching", "transforming"])
async def test_a_failure_of_before_a_purge_is_not_remembered_after_it(
    world: World, parts: Parts, nursery: trio.Nursery, place: str
) -> None:
    """Catches a purge of what is there again, which is refused for a minute by what came before."""
    part = parts.fetcher if place == "fetching" else parts.processor
    part.gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(parts.did, parts.cid)
        await settled()
        await service.moderator.purge(Selection(did=parts.did), by="a test")
        parts.fetcher.errors = [BlobNotFound()]
        parts.processor.error = UndecodableImage() if place == "transforming" else None
        part.gate.open()
        await settled()
        assert len(requests.errors) == 1
        parts.fetcher.errors, parts.processor.error = [], None
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


async def test_a_result_too_large_for_one_format_is_served_in_the_others(
    world: World, parts: Parts
) -> None:
    """Catches: a result too large for one format denies the picture in every other."""
    async with world.service(**parts.all) as service:
        parts.processor.error = ResultTooLarge()
        assert (
            type(await failure(service, "avatar", parts.did, parts.cid, "webp")) is ResultTooLarge
        )
        parts.processor.error = None
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


async def test_the_share_of_a_transform_is_that_of_the_domain_and_the_owner_of_its_source(
    world: World, parts: Parts
) -> None:
    """Catches transforms that name no publisher, and a name or port that has its own share."""
    parts.resolver.pds[parts.did] = "https://one-of-many.PDS.example:8443"
    parts.fetcher.blobs[parts.resolver.pds[parts.did], BlobKey(parts.did, parts.cid)] = b"picture"
    async with world.service(**parts.all) as service:
        await service.get_image("avatar", parts.did, parts.cid)
    assert parts.processor.publishers == [Publisher("pds.example", parts.did)]


async def test_a_costly_result_is_left_alone_for_longer_each_time_and_the_others_are_served(
    world: World, parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a costly result takes a worker each minute, or denies every other preset."""
    async with world.service(**parts.all) as service:
        parts.processor.error = ResultTooCostly()
        for attempts, pause in enumerate((61, 121, 241), start=1):
            for _ in range(3):
                error = await failure(service, "avatar", parts.did, parts.cid, "avif")
                assert type(error) is ResultTooCostly
            assert len(parts.processor.calls) == attempts
            await trio.sleep(pause - 2)
            await failure(service, "avatar", parts.did, parts.cid, "avif")
            assert len(parts.processor.calls) == attempts
            await trio.sleep(2)
        parts.processor.error = None
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


async def test_a_block_by_another_process_stops_a_queued_write(world: World, parts: Parts) -> None:
    """Catches: a block by another process lets a queued write through."""
    parts.cache.put_gate.close()
    config = world.config()
    async with world.service(config, **parts.all) as service, open_moderator(config) as elsewhere:
        await service.get_image("avatar", parts.did, parts.cid)
        await settled()
        did, cid = parts.add(b"queued")
        await service.get_image("avatar", did, cid)
        async with trio.open_nursery() as deciding:
            deciding.start_soon(partial(elsewhere.block, Selection(did), by="a test"))
            await until(lambda: service.blocks.is_blocked(BlobKey(did, cid)))
            parts.cache.put_gate.open()
        await settled()
    assert list(parts.cache.entries) == [parts.key]


async def test_a_purge_by_another_process_removes_what_is_in_memory_and_queued(
    world: World, parts: Parts
) -> None:
    """Catches: a purge by another process leaves what is in memory or queued."""
    config = world.config()
    async with world.service(config, **parts.all) as service, open_moderator(config) as elsewhere:
        await service.get_image("avatar", parts.did, parts.cid)
        await settled()
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"
        await elsewhere.purge(Selection(parts.did), by="a test")
        parts.cache.entries.clear()  # what the other process does on a disk that they share
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "miss"


async def test_a_decision_about_one_owner_leaves_the_results_of_another_in_the_cache(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """A labeler decides many times a second.

    Catches: a decision about one owner keeps the results of another out of the cache.
    """
    parts.fetcher.gate.close()
    async with world.service(**parts.all) as service:
        requests = Requests(nursery, service)
        requests.ask(parts.did, parts.cid)
        await settled()
        await service.moderator.purge(Selection(new_plc_did()), by="a test")
        parts.fetcher.gate.open()
        await settled()
        assert [image.cache for image in requests.images] == ["miss"]
        assert (await service.get_image("avatar", parts.did, parts.cid)).cache == "hit"


async def test_a_write_under_way_or_queued_does_not_bring_back_what_was_purged(
    world: World, parts: Parts, nursery: trio.Nursery
) -> None:
    """Catches: a write under way or queued brings back what was purged."""
    parts.cache.put_gate.close()
    queued = parts.add(b"queued")
    done: list[int] = []

    async def purge(did: Did) -> None:
        done.append(await service.moderator.purge(Selection(did), by="a test"))

    async with world.service(**parts.all) as service:
        await service.get_image("avatar", parts.did, parts.cid)
        await service.get_image("avatar", *queued)
        for did in (parts.did, queued[0]):
            nursery.start_soon(purge, did)
        await until(lambda: service.blocks.purges_pending == 2)
        assert done == [], "a write that has begun is waited for"
        parts.cache.put_gate.open()
        await until(lambda: len(done) == 2)
        assert parts.cache.entries == {}
        assert parts.cache.puts == [parts.key]
        assert (await service.get_image("avatar", *queued)).cache == "miss"


async def test_a_block_of_one_owner_leaves_the_others(world: World, parts: Parts) -> None:
    """Catches: a block of one owner hits another."""
    other, cid = parts.add(b"a picture")
    assert cid == parts.cid
    async with world.service(**parts.all) as service:
        await service.moderator.block(Selection(parts.did, parts.cid), by="a test")
        assert (await service.get_image("avatar", other, cid)).cache == "miss"
        assert type(await failure(service, "avatar", parts.did, cid)) is BlobBlocked


# Blobs.


async def test_an_original_shares_the_flight_of_its_blob(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a blob is transformed or fetched beside the flight."""
    world, processor = client_world, FakeProcessor()
    data = tiny_png()
    did, cid = world.add_blob(data, mime="text/html")
    gate = trio.Event()
    world.pds.faults = [faults.gated(gate)]
    async with world.service(cache=FakeCache(), processor=processor) as service:
        Requests(nursery, service).ask(did, cid)
        await settled()
        nursery.start_soon(open_when_waited_for, gate.set)
        blob = await service.get_blob(BlobKey(did, cid))
        # The type is the content's, whatever the PDS says.
        assert (blob.data, blob.content_type) == (data, "image/png")
        assert blob.etag == f'"{cid}"'
    assert world.pds.blob_requests == 1


@pytest.mark.parametrize(
    ("allowed", "data", "passes"),
    [
        (["image/*"], tiny_png(), True),
        (["image/*"], b"<html>", False),
        (["image/*"], b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
        (["image/*"], b"", False),
        (["image/jpeg"], tiny_png(), False),
        (["image/jpeg"], tiny_jpeg(), True),
        (["image/jpeg", "application/octet-stream"], b"anything", True),
    ],
)
async def test_a_blob_of_a_type_that_is_not_allowed_is_refused(
    world: World, allowed: list[str], data: bytes, passes: bool
) -> None:
    """Catches: a blob of a type that is not allowed passes."""
    blob = BlobKey(*world.add_blob(data))
    config = world.config(blob={"allowed_types": allowed})
    async with world.service(config, cache=FakeCache()) as service:
        if passes:
            assert (await service.get_blob(blob)).data == data
        else:
            with pytest.raises(UnsupportedImage):
                await service.get_blob(blob)


async def test_a_blob_that_is_not_its_cids_is_refused(client_world: World) -> None:
    """Catches: a blob that is not its CID's passes."""
    blob = BlobKey(*client_world.add_blob(tiny_png()))
    client_world.pds.fault = faults.with_body(lambda data: data + b"\0")
    async with client_world.service(cache=FakeCache()) as service:
        with pytest.raises(CidMismatch):
            await service.get_blob(blob)


async def test_a_blob_that_failed_as_a_picture_can_still_be_downloaded(
    world: World,
) -> None:
    """Catches: a blob that is no picture cannot be downloaded after it failed as one."""
    did, cid = world.add_blob(b"some text")
    config = world.config(blob={"allowed_types": ["application/octet-stream"]})
    async with world.service(config, cache=FakeCache()) as service:
        assert type(await failure(service, "avatar", did, cid)) is UnsupportedImage
        assert (await service.get_blob(BlobKey(did, cid))).data == b"some text"


# Whole, over disk and threads.


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnsupportedImage),
        (b"not an image at all", UnsupportedImage),
        (tiny_png()[:50], UndecodableImage),
        (tiny_jpeg()[:40], UndecodableImage),
        (tiny_png(size=(3000, 2)), ImageTooLarge),
        (bytes(200_000), ImageTooLarge),
    ],
    ids=["empty", "no image", "truncated PNG", "truncated JPEG", "pixels", "bytes"],
)
async def test_the_service_goes_on_after_bad_input(
    client_world: World, data: bytes, error: type[ImageProxyError]
) -> None:
    """Catches: bad input breaks the service."""
    world = client_world
    config = world.config(process={"max_megapixels": 0.005}, fetch={"max_source_mb": 0.1})
    async with world.service(config) as service:
        did, cid = world.add_blob(data)
        assert type(await failure(service, "avatar_thumbnail", did, cid)) is error
        good = world.add_blob(tiny_png())
        assert (await service.get_image("avatar_thumbnail", *good)).content_type == "image/png"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (tiny_png(size=(3000, 2)), "3000 x 2 pixels are over process.max_megapixels = 0.005"),
        (bytes(200_000), "Content-Length 200000 is over 104857 (fetch.max_source_mb)"),
    ],
)
async def test_what_is_too_large_names_the_key_that_allows_more(
    world: World, data: bytes, cause: str
) -> None:
    """Catches a log line whose numbers have to be looked for in the configuration."""
    config = world.config(process={"max_megapixels": 0.005}, fetch={"max_source_mb": 0.1})
    async with world.service(config) as service:
        did, cid = world.add_blob(data)
        assert str(await failure(service, "avatar_thumbnail", did, cid)) == cause


@pytest.mark.parametrize(
    "value",
    [
        document("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", pds_service("https://pds.example")),
        b"",
        b"<html>",
        b"\xff" * 100,
        "[" * 50_000,
    ],
)
async def test_the_service_goes_on_after_a_garbage_document(
    client_world: World, value: Any
) -> None:
    """Catches: a garbage document breaks the service."""
    world = client_world
    did, cid = world.add_blob(b"data")
    world.plc.documents[did] = value
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        assert type(await failure(service, "avatar", did, cid)) is DidUnresolvable
        assert (await service.get_image("avatar", *world.add_blob(b"good"))).cache == "miss"


async def test_a_document_with_two_pdses_goes_to_the_first(world: World) -> None:
    """Catches: a document with two PDSes goes to the second or to both."""
    second = FakePds("second.example")
    world.network.add(second)
    did, cid = world.add_blob(b"data")
    world.plc.documents[did] = document(did, pds_service(world.pds.url), pds_service(second.url))
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        await service.get_image("avatar", did, cid)
    assert (world.pds.blob_requests, second.connections) == (1, 0)


async def test_a_did_web_is_served(client_world: World) -> None:
    """Catches: a DID web is not served."""
    world = client_world
    did = Did("did:web:someone.example")
    world.make_web_account(did)
    cid = world.pds.add_blob(did, b"data")
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        assert (await service.get_image("avatar", did, cid)).cache == "miss"
    assert world.plc.requests == []


async def test_a_cancelled_request_gives_its_worker_back(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a worker is lost with every cancelled request."""
    world = client_world
    config = world.config(fetch={"workers": 2, "per_host": 2, "queue_size": 4})
    async with world.service(config, cache=FakeCache(), processor=FakeProcessor()) as service:
        requests = Requests(nursery, service)
        for number in range(20):
            world.pds.faults = [faults.hang]
            scope = requests.ask(*world.add_blob(b"picture %d" % number))
            await settled()
            scope.cancel()
            await settled()
        assert (await service.get_image("avatar", *world.add_blob(b"good"))).cache == "miss"
        assert sample(service, "fetch_queue_depth") == 0
    assert world.open_wires == 0
    assert requests.errors == []
